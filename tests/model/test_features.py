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
