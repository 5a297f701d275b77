"Rows of any library give the bits that the same rows give as a polars frame."
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from support import server as serving
from support import trained_project as modelling

from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.model.dataframes import cast_to_schema, to_polars
from mlops_nb.model.predictor import Predictor

SCHEMA = modelling.schema("binary")
NEEDED = ["x", "count", "place", "known", "when", "note"]
ROWS = modelling.rows(200, seed=5)
WANT = cast_to_schema(ROWS, SCHEMA, NEEDED)


def read(rows, columns=NEEDED, schema=SCHEMA): return cast_to_schema(to_polars(rows, schema, columns), schema, columns)


def as_pandas(frame):
    "As people have it: numbers with NaN, text with None."
    return pd.DataFrame({c: frame[c].to_list() for c in frame.columns})


PANDAS = {
    "inferred": as_pandas,
    "nullable": lambda f: as_pandas(f).convert_dtypes(),
    "arrow": lambda f: f.to_pandas(use_pyarrow_extension_array=True),
    "categories": lambda f: as_pandas(f).assign(place=lambda d: d.place.astype("category"),
                                                count=lambda d: pd.Categorical(d["count"])),
    "Int64": lambda f: as_pandas(f).assign(count=lambda d: d["count"].astype("Int64")),
    "objects": lambda f: as_pandas(f).astype(object),
    "zone": lambda f: as_pandas(f).assign(when=lambda d: d.when.dt.tz_localize("UTC").dt.tz_convert("Asia/Tokyo")),
    "nanoseconds": lambda f: as_pandas(f).assign(when=lambda d: d.when.astype("datetime64[ns]")),
    "other index": lambda f: as_pandas(f).set_index(np.arange(len(f))[::-1]),
}
OTHERS = {
    "polars": lambda f: f, "lazy": lambda f: f.lazy(), "table": lambda f: f.to_arrow(),
    "batch": lambda f: f.to_arrow().combine_chunks().to_batches()[0], "dictionaries": lambda f: f.to_dicts(),
    "records of pandas": lambda f: as_pandas(f).to_dict("records"),
    "categories of Arrow": lambda f: f.to_arrow().set_column(f.columns.index("place"), "place",
                                                             pa.array(f["place"].to_list()).dictionary_encode()),
}


@pytest.mark.parametrize("kind", [*PANDAS, *OTHERS])
def test_every_library_means_the_same_values(kind):
    rows = (PANDAS | OTHERS)[kind](ROWS)
    assert read(rows).equals(WANT) and WANT.null_count().sum_horizontal().item() > 20


def test_a_model_answers_them_to_the_same_bits(tmp_path):
    predictor = Predictor.open(serving.bundle(tmp_path, n=300))
    rows = modelling.rows(150, seed=6)
    scores = predictor.predict(rows)
    for make in (PANDAS["categories"], PANDAS["nullable"], OTHERS["table"], OTHERS["dictionaries"]):
        other = make(rows)
        assert np.array_equal(predictor.predict(other), scores)
        assert predictor.score_frame(other).equals(predictor.score_frame(rows))
        assert np.array_equal(predictor.contributions(other), predictor.contributions(rows))
    assert [predictor.predict_one(r) for r in as_pandas(rows).to_dict("records")] == scores.tolist()
    assert predictor.predict([]).shape == (0,) == predictor.predict(as_pandas(rows)[:0]).shape


def test_each_value_of_a_dictionary_is_read_as_if_it_were_alone():
    schema = Schema("mixed", "binary", "y", classes=["no", "yes"], missing_values=["?"], columns={
        "n": Column("number", nullable=True), "i": Column("integer", nullable=True),
        "c": Column("category", nullable=True), "b": Column("boolean", nullable=True),
        "t": Column("timestamp", nullable=True), "y": Column("category")})
    tokyo = timezone(timedelta(hours=9))
    values = {"n": [1, 2.5, "3", None, np.float32(.5), "?", float("nan"), 2**53 + 1, True],
              "i": [1, 2.0, "3", None, np.int64(4), 2**53 + 1, "?", pd.NA, float("nan")],
              "c": [1, 2.0, "a ", None, True, "?", float("nan"), 2.5, "1"],
              "b": [True, "no", 1, None, 0, "?", np.True_, False, "TRUE"],
              "t": [datetime(2026, 1, 1), datetime(2026, 1, 1, tzinfo=tokyo), "2026-01-01", None, pd.NaT,
                    datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1).date(), pd.Timestamp("2026-01-01"),
                    np.nan]}
    rows = [dict(zip(values, row)) for row in zip(*values.values())]
    alone = pl.concat([read([row], [*values], schema) for row in rows])
    assert read(rows, [*values], schema).equals(alone)
    frame = pd.DataFrame({c: pd.Series(v, dtype=object) for c, v in values.items()})
    assert read(frame, [*values], schema).equals(alone)
    assert alone["i"].to_list() == [1, 2, 3, None, 4, 2**53 + 1, None, None, None]
    assert alone["c"].to_list() == ["1", "2", "a", None, "true", None, None, "2.5", "1"]
    assert alone["t"][1] == datetime(2025, 12, 31, 15) and alone["t"].null_count() == 3


def test_what_nobody_needs_disturbs_nobody():
    odd = as_pandas(ROWS).assign(odd=[{1}, object()] * 100, period=pd.Period("2026-01"))
    assert read(pd.concat([odd, odd[["odd"]]], axis=1)).equals(WANT)
    assert read([{**r, "odd": object()} for r in ROWS.to_dicts()]).equals(WANT)


@pytest.mark.parametrize("rows, said", [
    (as_pandas(ROWS).rename(columns={"count": "counts"}), "no column 'count', .* did you mean 'counts'"),
    (pd.concat([as_pandas(ROWS)] * 2, axis=1), "several columns 'x'"),
    (as_pandas(ROWS).assign(count="many"), "'count' holds 'many'"),
    (as_pandas(ROWS).assign(x=[[1.0]] * 200), "'x' holds List"),
    (ROWS.with_columns(place=pl.struct("x")), "'place' holds Struct"),
    (as_pandas(ROWS).assign(x=[object()] * 200), "'x' is <object"),
    ([{**r, "x": 1j} for r in ROWS.to_dicts()], "'x' is 1j, which no column can hold"),
    ([*ROWS.to_dicts(), {"x": 1.0}], "no column 'count'"), ([*ROWS.to_dicts(), 3], "row 201 is 3"),
    (ROWS.row(0, named=True), "dict is no table"), (ROWS.to_numpy(), "ndarray is no table"),
    (pa.array([1, 2]), "Int64Array is no table"), ("rows.csv", "str is no table"), (None, "NoneType is no table")])
def test_what_is_wrong_is_one_sentence(rows, said):
    with pytest.raises(UserError, match=said) as e: read(rows)
    assert "\n" not in str(e.value)


ALONE = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'pyarrow': raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Forbid())
from mlops_nb.model.dataframes import to_polars
assert 'pandas' not in sys.modules
import pandas as pd
from mlops_nb.config.schema import Column, Schema
schema = Schema('s', 'binary', 'y', classes=['a', 'b'], columns={
    **{c: Column('number') for c in 'uvw'}, 'y': Column('category')})
frame = pd.DataFrame({'u': [1, 2.5], 'v': pd.Categorical([3, None]), 'w': ['4', None]})
print(to_polars(frame, schema, ['u', 'v', 'w']).rows())
"""


def test_a_pandas_frame_needs_no_pyarrow():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[(1.0, 3.0, 4.0), (2.5, None, None)]\n", done.stderr
