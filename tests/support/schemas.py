"Schemas of every kind, for property tests."
from hypothesis import strategies as st

from mlops_nb.config.schema import Column, Schema

names = st.text(min_size=1, max_size=20) | st.sampled_from([
    "emp.var.rate", "education-num", "y", "no", "null", "1", "a b", "Größe", 'say "hi"', "it's", "#", "a: b", "列",
    "columns", "~", "-"])
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
ranges = st.tuples(numbers, numbers).map(lambda r: tuple(sorted(r)) if None not in r else r)
plain = {"nullable": st.booleans(), "feature": st.booleans(), "doc": st.text(max_size=20),
         "leak_accepted": st.text(max_size=20), "on_violation": st.sampled_from(["quarantine", "null", "stop"])}
columns = st.one_of(
    st.builds(Column, type=st.sampled_from(["integer", "number"]), range=st.none() | ranges, **plain),
    st.builds(Column, type=st.just("category"), domain=st.none() | st.lists(names, max_size=4),
              on_new_category=st.just("quarantine"),
              **plain),
    st.builds(Column, type=st.just("timestamp"), range=st.none() | st.just(("2012-01-31", None)),
              format=st.none() | st.just("%d/%m/%Y"),
              **plain),
    st.builds(Column, type=st.sampled_from(["boolean", "text"]), **plain))


@st.composite
def schemas(draw):
    cols = draw(st.dictionaries(names, columns, min_size=1, max_size=4))
    some = st.sampled_from(list(cols))
    return Schema(draw(names), "multiclass", draw(some), cols,
                  classes=draw(st.lists(names, min_size=2, max_size=4, unique=True)),
                  entity=draw(st.none() | some), event_time=draw(st.none() | some),
                  segments=draw(st.lists(some, max_size=2)),
                  missing_values=draw(st.lists(names, max_size=3)))
