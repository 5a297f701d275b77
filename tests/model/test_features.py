"Feature functions: loading, computing, and the messages people get."
import sys
from datetime import date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.schema import Column, Schema, read_schema
from mlops_nb.core.errors import UserError
from mlops_nb.model.features import Features, column_to_array, feature, load_features

HEAD = "import numpy as np\nimport mlops_nb.model.features as fx\n"


@pytest.fixture
def load(tmp_path):
    "Features from the text of a file."
    def make(text):
        path = tmp_path / "f.py"
        path.write_text(HEAD + text)
        return load_features(path)
    return make


@pytest.mark.parametrize("text, says", [
    ("from . import x\n", "line 3: a relative import"),
    ("def f():\n    from ..x import y\n", "line 4: a relative import"),
    ("def f(:\n", "line 3"),
    ("import no_such_package_at_all\n", "no_such_package_at_all"),
    ("1 / 0\n", "ZeroDivisionError"),
    ("@fx.feature\ndef f(): return 1\n", "must name the columns"),
    ("@fx.feature\ndef f(*a): return 1\n", "must name the columns"),
    ("@fx.feature(type='text')\ndef f(a): return a\n", "use 'number' or 'category'"),
    ("@fx.feature(allow=['b'])\ndef f(a): return a\n", "feature 'f' allows 'b', a column it does not read"),
])
def test_a_file_that_cannot_be_used_is_one_sentence(load, text, says):
    with pytest.raises(UserError) as e: load(text)
    assert says in str(e.value) and "\n" not in str(e.value)


@pytest.mark.parametrize("body, says", [
    ("return 3.0", "shape ()"),
    ("return a[:1]", "shape (1,)"),
    ("return np.stack([a, a])", "shape (2, 3)"),
    ("return ['x', 'y', 'z']", "@feature(type='category')"),
    ("return np.array(['2024-01-01'] * 3, 'datetime64[D]')", "datetime64"),
    ("return a.no_such_method()", "feature 'f' failed with AttributeError"),
])
def test_a_function_that_returns_nonsense_is_named(load, body, says):
    with pytest.raises(UserError, match="'f'") as e:
        load(f"@fx.feature\ndef f(a): {body}\n").compute(pl.DataFrame(dict(a=[1., 2., 3.])))
    assert says in str(e.value)


def test_category_that_returns_numbers(load):
    with pytest.raises(UserError, match="is a category"):
        load("@fx.feature(type='category')\ndef f(a): return a\n").compute(pl.DataFrame(dict(a=[1., 2.])))


def test_only_the_files_own_functions_count_and_nothing_is_left_behind(load, tmp_path):
    before = set(sys.modules)
    f = load("import json\n@fx.feature\ndef b(y): return y\n@fx.feature\ndef a(x, y): return x + y\ndef helper(z): "
             "return z\n")
    assert f.names == ["b", "a"] and f.inputs == ["y", "x"]
    assert set(sys.modules) - before <= {"json"}
    assert [p.name for p in tmp_path.iterdir()] == ["f.py"]  # a bundle with an extra __pycache__ would be refused


def test_two_files_do_not_see_each_other(tmp_path):
    (tmp_path / "a.py").write_text(HEAD + "k = 1.\n@fx.feature\ndef f(x): return x + k\n")
    (tmp_path / "b.py").write_text(HEAD + "k = 2.\n@fx.feature\ndef f(x): return x + k\n")
    a, b = load_features(tmp_path / "a.py"), load_features(tmp_path / "b.py")
    frame = pl.DataFrame(dict(x=[0.]))
    assert (a.compute(frame)["f"][0], b.compute(frame)["f"][0]) == (1., 2.) and a.sha256 != b.sha256


def test_types_of_inputs():
    f = pl.DataFrame(dict(i=[1, None], b=[True, None], s=["x", None], t=[datetime(2024, 1, 1), None],
                          d=[date(2024, 1, 1), None]))
    assert [column_to_array(f[c]).dtype.str for c in f.columns] == ["<f8", "<f8", "|O", "<M8[us]", "<M8[us]"]
    assert (np.isnan(column_to_array(f["b"])[1]) and column_to_array(f["s"])[1] is None
            and np.isnat(column_to_array(f["t"])[1]))
    assert column_to_array(f["s"].cast(pl.Categorical))[0] == "x"


def test_infinities_and_none_become_missing(load):
    f = load("@fx.feature\ndef inverse(a): return 1 / a\n@fx.feature\ndef none(a): return [None if x == 0 else x for x "
             "in a]\n")
    out = f.compute(pl.DataFrame(dict(a=[0., 2.])))
    assert np.isnan(out["inverse"][0]) and out["inverse"][1] == .5
    assert np.isnan(out["none"][0]) and out["none"].dtype == np.float64


def test_no_rows(load):
    f = load("@fx.feature\ndef f(a): return a * 2\n@fx.feature(type='category')\ndef g(a): return np.where(a > 1, 'x', "
             "'y')\n")
    out = f.compute(pl.DataFrame(dict(a=pl.Series([], dtype=pl.Float64))))
    assert out["f"].shape == out["g"].shape == (0,)


def test_missing_column_is_named(load):
    with pytest.raises(UserError, match="'tenure'.*did you mean 'tenures'"):
        load("@fx.feature\ndef f(tenure): return tenure\n").compute(pl.DataFrame(dict(tenures=[1.])))


def test_contract(load):
    schema = Schema(dataset="d", task="binary", target="y", classes=["0", "1"],
                    columns=dict(x=Column("number"), y=Column("category")))
    with pytest.raises(UserError, match="not known at prediction"):
        load("@fx.feature\ndef f(y): return y == '1'\n").check_schema(schema)
    with pytest.raises(UserError, match="not a column of schema.yaml"):
        load("@fx.feature\ndef f(z): return z\n").check_schema(schema)
    with pytest.raises(UserError, match="rename"): load("@fx.feature\ndef x(x): return x\n").check_schema(schema)
    duration = Schema(dataset="d", task="regression", target="stop - start", event_time="start", columns=dict(
        start=Column("timestamp"), stop=Column("timestamp")))
    load("@fx.feature\ndef f(start): return start.astype(float)\n").check_schema(duration)
    with pytest.raises(UserError, match="'stop'"):
        load("@fx.feature\ndef f(stop): return stop.astype(float)\n").check_schema(duration)


KEPT = Schema(dataset="d", task="regression", target="stop - start", event_time="start", entity="who", columns=dict(
    who=Column("text"), born=Column("timestamp", feature=False), x=Column("number"), start=Column("timestamp"),
    stop=Column("timestamp")))


@pytest.mark.parametrize("column, says", [
    ("born", "reads 'born', which is `feature: false`"), ("who", "reads 'who', the entity"),
    ("stop", "reads 'stop', from which the target is computed"),
])
def test_a_column_the_schema_keeps_from_the_model_is_read_only_where_it_is_allowed_by_name(load, column, says):
    text = "@fx.feature\ndef plain(x): return x\n@fx.feature{}\ndef f(x, c): return x\n".replace("c)", column + ")")
    with pytest.raises(UserError) as e: load(text.format("")).check_schema(KEPT)
    assert "feature 'f' " + says in str(e.value) and f"@feature(allow=['{column}'])" in str(e.value)
    assert "\n" not in str(e.value)
    load(text.format(f"(allow=['{column}'])")).check_schema(KEPT)
    with pytest.raises(UserError, match="allow="):  # `reads` is no way around it
        load(f"@fx.feature(reads=['{column}'])\ndef f(x): return x\n").check_schema(KEPT)


@pytest.mark.parametrize("column", ["x", "start"])
def test_allowing_what_nobody_forbids_is_refused(load, column):
    features = load(f"@fx.feature(allow=['{column}'])\ndef f({column}): return {column}\n")
    with pytest.raises(UserError, match=f"feature 'f' allows '{column}', which every feature may read"):
        features.check_schema(KEPT)


def test_the_target_itself_cannot_be_allowed(load):
    schema = Schema(dataset="d", task="binary", target="y", classes=["0", "1"], columns=dict(y=Column("category")))
    with pytest.raises(UserError, match="the target, which is not known at prediction"):
        load("@fx.feature(allow=['y'])\ndef f(y): return y == '1'\n").check_schema(schema)


def monthly_rows(n_people=600, n_months=3):
    "Month after month, so that the first rows are of other people; they rise, are never late and miss nothing."
    n = n_people * n_months
    x = np.random.default_rng(0).normal(size=n).cumsum()
    x[::29] = np.nan
    x[:29] = np.arange(29.)
    return pl.DataFrame(dict(who=[f"p{i}" for i in range(n_people)] * n_months, x=x,
                             late=[float(i > 20 and i % 7 == 0) for i in range(n)]))


ROW_DEPENDENT = {
    "lag per entity": """def f(who, x):
    last, out = {}, []
    for w, v in zip(who, x): out.append(last.get(w, np.nan)); last[w] = v
    return np.array(out)""",
    "seen before": """def f(who):
    seen = set()
    return np.array([float(w in seen or seen.add(w) is not None) for w in who])""",
    "count so far": "def f(who): return np.array([(who[:i] == w).sum() for i, w in enumerate(who)])",
    "the mean of the batch for a missing value": "def f(x): return np.where(np.isnan(x), np.nansum(x) / "
                                                 "max(1, np.isfinite(x).sum()), x)",
    "above the mean of the batch": "def f(late): return late > late.mean()",
    "rank": "def f(late): return np.searchsorted(np.sort(late), late)",
    "cumulative sum": "def f(late): return np.cumsum(late)",
    "order of the rows": "def f(x): return np.where(x < np.r_[-np.inf, x[:-1]], x, 0)",
    "the smallest of the batch": "def f(x): return np.where(x < -20, np.fmin.reduce(x), x)",
}


def check_first_rows(features, frame, n_rows=20):
    "The first rows one by one against the whole: what used to be the whole proof."
    whole = features.compute(frame)
    for i in range(n_rows):
        for name, values in features.compute(frame[i:i + 1]).items():
            np.testing.assert_equal(values[0], whole[name][i])


@pytest.mark.parametrize("text", ROW_DEPENDENT.values(), ids=ROW_DEPENDENT)
def test_a_function_that_reads_other_rows_is_found_out_though_the_first_rows_do_not_show_it(load, text):
    features, frame = load("@fx.feature\ndef plain(x): return x * 2\n@fx.feature\n" + text + "\n"), monthly_rows()
    check_first_rows(features, frame)
    with pytest.raises(UserError, match="f.py: feature 'f' is .* for the same row alone; compute it from the row's"):
        features.check_rowwise(frame, "who")


@pytest.mark.parametrize("body, batch", [
    ("np.full(len(x), len(x))", "alone"),
    ("np.full(len(x), len(x) > 1 and len(set(who)) == 1)", "among the rows of its who"),
    ("np.full(len(x), len(x) == 100)", "in one half of the batch"),
    ("np.r_[False, x[:-1] > x[1:]]", "in the batch in another order"),  # the rows come in rising order
])
def test_the_message_says_in_which_batch_the_value_differs(load, body, batch):
    features = load(f"@fx.feature\ndef f(who, x): return {body}\n")
    frame = pl.DataFrame(dict(who=[f"p{i % 70}" for i in range(200)], x=np.arange(200.)))
    with pytest.raises(UserError) as e: features.check_rowwise(frame, "who")
    assert f"for the same row {batch};" in str(e.value) and "\n" not in str(e.value)


def test_a_function_that_remembers_its_last_call_is_found_out(load):
    features = load("calls = []\n@fx.feature\ndef f(x):\n    calls.append(len(x))\n    return x + (len(calls) > 1)\n")
    with pytest.raises(UserError, match="'f' is 0.0 .* and 1.0 for the same row alone"):
        features.check_rowwise(pl.DataFrame(dict(x=[0., 1.])))


@pytest.mark.parametrize("entity", [None, "who"])
@pytest.mark.parametrize("n", [0, 1, 2, 3000])
def test_functions_of_one_row_pass_with_any_number_of_rows(load, entity, n):
    features = load("@fx.feature\ndef f(x): return np.exp(np.sin(x)) / 3\n@fx.feature(type='category')\n"
                    "def g(who): return np.array([w and w[:2] for w in who], dtype=object)\n")
    frame = pl.DataFrame(dict(who=[None if i % 11 == 0 else f"p{i % 500}" for i in range(n)],
                              x=[None if i % 5 == 0 else i / 7 for i in range(n)]),
                         schema=dict(who=pl.String, x=pl.Float64))
    features.check_rowwise(frame, entity)


def test_as_many_rows_are_tried_as_asked_and_half_of_them_share_an_entity(load):
    features = load("sizes, most = set(), []\n@fx.feature\ndef f(who, x):\n    sizes.add(len(x))\n    if len(x) > 5: "
                    "most.append(len(x) - len(set(who)))\n    return x\n")
    frame = pl.DataFrame(dict(who=[f"p{i}" for i in range(30_000)] + ["p7", "p8"], x=np.arange(30_002.)))
    features.check_rowwise(frame, "who")
    state = features.functions["f"].__globals__
    assert max(state["sizes"]) <= 500 and max(state["most"]) == 2  # the only two that are there twice


@settings(deadline=None, max_examples=30)
@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True)), min_size=1, max_size=30))
def test_one_row_at_a_time_is_the_same_to_the_last_bit(values):
    @feature
    def f(a): return np.log1p(np.abs(a)) / 3
    features = Features(dict(f=f), dict(f="number"), dict(f=["a"]))
    frame = pl.DataFrame(dict(a=pl.Series(values, dtype=pl.Float64)))
    features.check_rowwise(frame, n_rows=len(frame))
    assert not np.isinf(features.compute(frame)["f"]).any()


def test_the_repositorys_own_features_stand_alone():
    path = Path(__file__).parents[2] / "mlops_nb" / "examples" / "churn_features.py"
    features, schema = load_features(path), read_schema(path.parents[2] / "schema.yaml")
    features.check_schema(schema)
    assert features.allow["joined_quarter"] == ["joined"] and not schema.columns["joined"].feature
    assert features.names and "import mlops_nb.model.features as fx" in features.source


def test_a_feature_reads_columns_whose_names_are_no_arguments(tmp_path):
    head = "from mlops_nb.model.features import feature\n"
    (tmp_path / "f.py").write_text(head + "@feature(reads=['unit price', 'class'])\ndef total(price, pieces): return "
                                          "price * pieces\n")
    f = load_features(tmp_path / "f.py")
    assert f.inputs == ["unit price", "class"]
    assert f.compute(pl.DataFrame({"class": [2, 3], "unit price": [1.5, None]}))["total"].tolist()[0] == 3.0
    (tmp_path / "f.py").write_text(head + "@feature(reads=['unit price'])\ndef total(price, pieces): return price * "
                                          "pieces\n")
    with pytest.raises(UserError, match=r"2 argument\(s\), and `reads` names 1 column"):
        load_features(tmp_path / "f.py")
