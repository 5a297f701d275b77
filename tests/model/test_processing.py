"@preprocess and @postprocess: what may be marked, what comes back, which rows are refused, and what the checks find."
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.model.features import load_features
from mlops_nb.model.policy import PolicyOutcome
from mlops_nb.model.processing import (
    ProcessingError,
    RowRefused,
    check_postprocess,
    check_processing,
    model_inputs,
    postprocess_outcome,
    preprocess_arrays,
    preprocess_inputs,
    refused_rows,
    with_features,
)

HEAD = "import time\nimport numpy as np\nimport mlops_nb.model.features as fx\n"
SCHEMA = Schema("calls", "binary", "left", classes=["no", "yes"], entity="who", columns=dict(
    who=Column("text", feature=False), bill=Column("number"), seconds=Column("integer", nullable=True),
    plan=Column("category", nullable=True), old=Column("boolean"), called=Column("timestamp", nullable=True),
    left=Column("category")))
ROWS = pl.DataFrame(dict(who=["a", "b", "a", "c"], bill=[10., 20., 30., 900.], seconds=[1, None, 3, 4],
                         plan=["x", None, "y", "x"], old=[True, False, True, True], called=[None] * 4)).with_columns(
    pl.col("called").cast(pl.Datetime("us")))


@pytest.fixture
def load(tmp_path):
    "Features from the text of a file."
    def make(text):
        (tmp_path / "f.py").write_text(HEAD + text)
        return load_features(tmp_path / "f.py")
    return make


def clean(body, feature="hour = None\n@fx.feature\ndef at(called): return called.astype(float)"):
    return f"{feature}\n@fx.preprocess\ndef clean(rows):\n    " + body.replace("\n", "\n    ")


@pytest.mark.parametrize("text, says", [
    ("@fx.preprocess\ndef f(): pass", "must take one argument"),
    ("@fx.preprocess\ndef f(a, b): pass", "must take one argument"),
    ("@fx.postprocess\ndef f(*a): pass", "must take one argument"),
    ("@fx.preprocess(timeout_seconds=0)\ndef f(rows): pass", "such as 1"),
    ("@fx.postprocess(timeout_seconds='1')\ndef f(rows): pass", "such as 1"),
])
def test_what_cannot_be_marked_is_one_sentence(load, text, says):
    with pytest.raises(UserError, match=says) as e: load(text)
    assert "\n" not in str(e.value)


def test_functions_are_kept_by_name_in_their_order(load):
    features = load("@fx.preprocess\ndef b(rows): return rows\n@fx.preprocess(timeout_seconds=2)\n"
                    "def a(rows): return rows\n@fx.postprocess\ndef c(d): return d\n")
    assert [*features.preprocess] == ["b", "a"] and [*features.postprocess] == ["c"] and not features.functions
    assert features.preprocess["a"].timeout_seconds == 2 and features.preprocess["b"].timeout_seconds == 1


def test_they_get_what_the_model_and_its_features_read(load):
    features = load(clean("assert [*rows] == ['bill', 'seconds', 'plan', 'old', 'called']\nreturn rows"))
    assert preprocess_inputs(features, SCHEMA) == ["bill", "seconds", "plan", "old", "called"]
    assert "who" not in preprocess_inputs(features, SCHEMA) and "left" not in preprocess_inputs(features, SCHEMA)
    assert model_inputs(ROWS, features, SCHEMA).select("bill", "plan").equals(ROWS.select("bill", "plan"))


def test_one_after_the_other_before_the_features(load):
    features = load("@fx.preprocess\ndef half(rows): return rows | {'bill': rows['bill'] / 2}\n"
                    "@fx.preprocess\ndef less(rows): return rows | {'bill': rows['bill'] - 1}\n"
                    "@fx.feature\ndef double(bill): return bill * 2\n")
    read = model_inputs(ROWS, features, SCHEMA)
    assert read["bill"].to_list() == [4, 9, 14, 449] and read["double"].to_list() == [8, 18, 28, 898]
    shown = with_features(ROWS, features, SCHEMA)
    assert shown.select(ROWS.columns).equals(ROWS) and shown["double"].equals(read["double"])


def test_every_type_comes_back_as_it_was(load):
    features = load(clean("""return dict(
    bill=rows['bill'].astype(np.float32).astype(int), seconds=np.where(np.isnan(rows['seconds']), np.inf, 2),
    plan=np.array(['z' if p is None else p for p in rows['plan']]), old=rows['old'] == 0,
    called=np.full(len(rows['bill']), np.datetime64('2026-01-02')))"""))
    read = model_inputs(ROWS, features, SCHEMA)
    assert read["bill"].to_list() == [10, 20, 30, 900] and read["bill"].dtype == pl.Float64
    assert read["seconds"].to_list() == [2, None, 2, 2] and read["plan"].to_list() == ["x", "z", "y", "x"]
    assert read["old"].to_list() == [0, 1, 0, 0] and read["at"].null_count() == 0


@pytest.mark.parametrize("body, says", [
    ("return {c: a for c, a in rows.items() if c != 'bill'}", "returned no 'bill'"),
    ("return rows | {'bil': rows['bill']}", "returned 'bil', which it was not given"),
    ("return rows | {'bill': rows['bill'][:1]}", "shape (1,) for 'bill' of 4 rows"),
    ("return rows | {'bill': 3.0}", "shape () for 'bill'"),
    ("return rows | {'bill': np.full(len(rows['bill']), np.nan)}", "a missing value in 'bill'"),
    ("return rows | {'bill': rows['plan']}", "returned object values in 'bill'; return numbers"),
    ("return rows | {'plan': rows['bill']}", "returned float64 values in 'plan'; return texts"),
    ("return rows | {'plan': np.array([1, 'a', None, 'b'], object)}", "object values in 'plan'"),
    ("return rows | {'called': rows['bill']}", "values in 'called'; return times"),
    ("return rows | {'bill': [[1], [1, 2], [3], [4]]}", "no array for 'bill'"),
    ("rows['bill'][rows['bill'] > 100] = 0\nreturn rows", "changes an array in place"),
    ("rows['bill'] += 1\nreturn rows", "changes an array in place"),
    ("return None", "returned NoneType"),
    ("return rows['nobody']", "failed with KeyError"),
    ("return rows | {'bill': rows['bill'] - rows['bill'].mean()}", "'bill' after preprocess (clean) is"),
    ("return rows | {'bill': np.arange(len(rows['bill'])) * 1.}", "'bill' after preprocess (clean) is"),
    ("clean.calls = getattr(clean, 'calls', 0) + 1\nreturn rows | {'bill': rows['bill'] + clean.calls}",
     "'bill' after"),
    ("return rows | {'bill': np.random.default_rng().random(len(rows['bill']))}", "'bill' after preprocess"),
    ("if len(rows['bill']) > 1: raise ValueError('too many')\nreturn rows", "none of its rows alone"),
])
def test_what_the_check_finds(load, body, says):
    with pytest.raises(UserError) as e: check_processing(load(clean(body)), SCHEMA, ROWS)
    assert says in str(e.value) and "f.py: " in str(e.value) and "\n" not in str(e.value)


def test_a_missing_value_that_was_one_is_none_of_its_fault(load):
    features = load(clean("return rows | {'bill': rows['bill'] * 2}"))
    rows = ROWS.with_columns(bill=pl.Series([None, 1., 2., 3.]))
    assert model_inputs(rows, features, SCHEMA)["bill"].to_list() == [None, 2, 4, 6]


def test_a_slow_function_is_found_before_a_server_gives_it_up(load):
    slow = "@fx.preprocess(timeout_seconds=.001)\ndef slow(rows):\n    time.sleep(.01)\n    return rows\n"
    with pytest.raises(UserError, match=r"preprocess \(slow\) took .* s for one row, and a server waits 0.001 s"):
        check_processing(load(slow), SCHEMA, ROWS)


def test_the_row_of_a_refusal_is_the_one_of_the_frame(load):
    features = load(clean("if (rows['bill'] > 500).any(): raise ValueError('too  much\\nof it')\nreturn rows"))
    with pytest.raises(RowRefused) as e: check_processing(features, SCHEMA, ROWS)
    assert (e.value.row, e.value.reason, str(e.value)) == (3, "too much of it", "row 3: too much of it")


@settings(max_examples=60, deadline=None)
@given(bills=st.lists(st.sampled_from([1., 2., -1.]), max_size=40))
def test_refused_are_the_rows_that_it_refuses_and_no_others(tmp_path_factory, bills):
    path = tmp_path_factory.mktemp("f") / "f.py"
    path.write_text(HEAD + "@fx.preprocess\ndef clean(rows):\n"
                    "    if (rows['bill'] < 0).any(): raise ValueError('below 0')\n"
                    "    return rows | dict(bill=rows['bill'] * 3)\n")
    schema = Schema("calls", "binary", "left", classes=["no", "yes"],
                    columns=dict(bill=Column("number"), left=Column("category")))
    features, arrays = load_features(path), dict(bill=np.array(bills))
    bad = [i for i, b in enumerate(bills) if b < 0]
    assert dict(refused_rows(arrays, features, schema)) == dict.fromkeys(bad, "below 0")
    if bad:
        with pytest.raises(RowRefused) as e: preprocess_arrays(arrays, features, schema)
        assert e.value.row == bad[0]
    else: assert preprocess_arrays(arrays, features, schema)["bill"].tolist() == [b * 3 for b in bills]


def test_no_rows_are_no_case_for_anybody(load):
    features = load(clean("return rows | {'bill': rows['bill'] - rows['bill'].min()}")
                    + "\n@fx.postprocess\ndef top(d): return d | {'score': d['score'] / d['score'].max()}")
    assert model_inputs(ROWS[:0], features, SCHEMA).height == 0
    assert postprocess_outcome(PolicyOutcome(np.array([]), [], None), features, SCHEMA).scores.tolist() == []


# after the policy

def schema_of(task):
    classes = dict(binary=["no", "yes"], multiclass=["a", "b", "c"], regression=None)[task]
    return Schema("calls", task, "left", classes=classes, columns=dict(bill=Column("number"), left=Column("number")))


OUTCOMES = dict(binary=PolicyOutcome(np.array([.1, .5, .9]), ["no", None, "yes"], [False, True, False]),
                multiclass=PolicyOutcome(np.array([[.2, .3, .5], [.6, .2, .2]]), ["c", "a"], None),
                regression=PolicyOutcome(np.array([-3., 40.]), None, None))


@pytest.mark.parametrize("task", OUTCOMES)
def test_an_outcome_that_is_not_touched_is_the_same(load, task):
    features, outcome = load("@fx.postprocess\ndef same(d): return d\n"), OUTCOMES[task]
    found = postprocess_outcome(outcome, features, schema_of(task))
    assert found.scores.tolist() == outcome.scores.tolist() and found[1:] == outcome[1:]
    check_postprocess(outcome, features, schema_of(task))


@pytest.mark.parametrize("task, body, says", [
    ("binary", "d | {'score': d['score'] * 2}", "the score 1.8; a probability"),
    ("binary", "d | {'score': d['score'] - 1}", "a probability lies between 0 and 1"),
    ("binary", "d | {'score': d['score'] * np.nan}", "a score that is no number"),
    ("binary", "d | {'decision': np.full(len(d['score']), 'maybe')}", "the decision 'maybe', which is none"),
    ("binary", "d | {'decision': np.full(len(d['score']), 'no')}", "only where, `needs_review` is True"),
    ("binary", "d | {'needs_review': d['score'] > 2}", "only where, `needs_review` is True"),
    ("binary", "d | {'needs_review': d['score']}", "values in 'needs_review'; return True or False"),
    ("binary", "{'score': d['score']}", "returned no 'decision'"),
    ("binary", "d | {'score': d['score'] / d['score'].max()}", "'score' after postprocess (f) is"),
    ("binary", "1 / 0", "failed with ZeroDivisionError"),
    ("binary", "int('x')", "failed with ValueError"),
    ("multiclass", "d | {'score_a': d['score_a'] / 2}", "add up to 0.9"),
    ("regression", "d | {'score': d['score'] * np.inf}", "a score that is no number"),
    ("regression", "d | {'decision': d['score']}", "returned 'decision', which it was not given"),
])
def test_what_an_outcome_must_not_become(load, task, body, says):
    with pytest.raises(UserError) as e:
        check_postprocess(OUTCOMES[task], load(f"@fx.postprocess\ndef f(d): return {body}\n"), schema_of(task))
    assert says in str(e.value) and "\n" not in str(e.value)


def test_a_score_and_what_belongs_to_it_may_change(load):
    features = load("@fx.postprocess\ndef f(d):\n    sure = d['score'] < .2\n    return d | dict(\n"
                    "        score=np.where(sure, 0, d['score']), needs_review=d['needs_review'] & False,\n"
                    "        decision=np.where(d['needs_review'], 'yes', d['decision']))\n")
    found = postprocess_outcome(OUTCOMES["binary"], features, schema_of("binary"))
    assert (found.scores.tolist(), found[1], found[2]) == ([0, .5, .9], ["no", "yes", "yes"], [False] * 3)


def test_a_model_that_has_no_score_is_left_to_others(load):
    features = load("@fx.postprocess\ndef f(d): return d | {'score': d['score'] / 2}\n")
    found = postprocess_outcome(PolicyOutcome(np.array([.5, np.nan]), ["yes", "no"], None), features,
                                schema_of("binary"))
    assert found.scores[0] == .25 and np.isnan(found.scores[1])
    with pytest.raises(ProcessingError, match="no number"):
        worse = load("@fx.postprocess\ndef f(d): return d | {'score': d['score'] * np.nan}\n")
        postprocess_outcome(PolicyOutcome(np.array([.5, np.nan]), ["yes", "no"], None), worse, schema_of("binary"))


def test_a_feature_may_read_a_vector_which_no_preprocess_sees(load):
    schema = Schema("d", "regression", "y", dict(x=Column("number"), v=Column("vector", size=2, nullable=True),
                                                 w=Column("vector", size=2), y=Column("number")))
    features = load("@fx.preprocess\ndef f(rows):\n    assert [*rows] == ['x']\n    return {'x': rows['x'] * 2}\n"
                    "@fx.feature\ndef both(x, v): return x + np.array([len(t or '') for t in v])")
    frame = pl.DataFrame(dict(x=[1., 2.], v=["[1.0,2.0]", None], w=["[0.0,0.0]"] * 2))
    assert preprocess_inputs(features, schema) == ["x", "v"]
    found = model_inputs(frame, features, schema)
    assert found["both"].to_list() == [11, 4] and found["v"].to_list() == frame["v"].to_list()
    check_processing(features, schema, frame)


def test_a_function_that_ends_the_process_does_not(load):
    features = load("@fx.preprocess\ndef f(rows): raise SystemExit(3)")
    with pytest.raises(ProcessingError, match="failed with SystemExit: 3"): model_inputs(ROWS, features, SCHEMA)
