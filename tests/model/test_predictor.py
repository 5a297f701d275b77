"""One way into the model: a row alone, a batch, a file, and other types of the same values give the same numbers to the
last bit."""
import datetime as dt
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trained_project as modelling

from mlops_nb.bundle.stage import run_bundle
from mlops_nb.config.params import EncoderParams
from mlops_nb.core.errors import UserError
from mlops_nb.model.calibrators import PlattCalibrator, TemperatureCalibrator
from mlops_nb.model.dataframes import cast_to_schema
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.train.stage import open_trained_predictor


@pytest.fixture(scope="module", params=list(modelling.CLASSES))
def project(request, tmp_path_factory):
    root = modelling.judged(modelling.trained(tmp_path_factory.mktemp(request.param), request.param), request.param)
    run_bundle(root)
    return root


@pytest.fixture(scope="module")
def predictor(project): return Predictor.open(project / "artifacts/bundle")


@pytest.fixture(scope="module")
def binary(tmp_path_factory):
    root = modelling.judged(modelling.trained(tmp_path_factory.mktemp("one")))
    run_bundle(root)
    return root / "artifacts/bundle"


def same(a, b):
    assert a.shape == b.shape and a.tobytes() == np.ascontiguousarray(b).tobytes()


def test_a_row_alone_equals_the_batch_to_the_last_bit(predictor):
    frame = modelling.rows(150, seed=1)
    want = predictor.predict(frame)
    same(np.array([predictor.predict_one(r) for r in frame.to_dicts()]), want)
    same(np.concatenate([predictor.predict(frame[i:i + 7]) for i in range(0, 150, 7)]), want)


def test_a_row_is_judged_as_it_is_answered_and_settled(predictor):
    frame, task = modelling.rows(60, seed=3), predictor.schema.task
    columns = frame.to_dict(as_series=False)
    for calibration in {"binary": (None, PlattCalibrator(.7, -.3)), "multiclass": (None, TemperatureCalibrator(1.5)),
                        "regression": (None,)}[task]:
        policy = Policy(task, predictor.schema.classes, predictor.policy.threshold, calibrator=calibration)
        p = Predictor(predictor.schema, predictor.features, predictor.encoder, predictor.model, policy)
        X = p.encode_frame(frame)
        scores, decisions, _ = p.policy.apply(columns, p.predict_encoded(X))
        assert p.predict_and_decide(columns, X) == (scores.tolist(), decisions, None)
        for i in range(len(X)):
            alone = p.predict_and_decide({c: [v[i]] for c, v in columns.items()}, X[i:i + 1])
            assert alone == (scores[i:i + 1].tolist(), decisions and [decisions[i]], None)
            given = scores[i] if task == "multiclass" else scores[i].item()
            assert p.decide_row({c: [v[i]] for c, v in columns.items()}, given) == alone


def test_without_a_threshold_nothing_is_judged(binary):
    p = Predictor.open(binary)
    p.policy.threshold = None
    for n in (1, 2):
        with pytest.raises(UserError, match="no threshold"):
            p.predict_and_decide({}, np.zeros((n, len(p.feature_names))))


def test_training_rows_get_the_scores_that_lightgbm_gives(project, predictor):
    import lightgbm as lgb
    reference = lgb.Booster(model_file=project / "artifacts/models/gbdt/model.txt")
    frame = pl.read_parquet(project / "artifacts/prepared/test.parquet")
    X = predictor.encoder.transform(frame)  # the columns that training read from the file, features included
    same(predictor.encode_frame(frame), X)
    same(predictor.predict(frame), reference.predict(X))
    same(predictor.predict_raw(frame), reference.predict(X, raw_score=True))
    contributions = reference.predict(X, pred_contrib=True)
    same(predictor.contributions(frame).reshape(contributions.shape), contributions)


def test_a_draft_is_the_bundle(project, predictor):
    frame = modelling.rows(100, seed=2)
    same(open_trained_predictor(project).predict(frame), predictor.predict(frame))
    assert open_trained_predictor(project).policy.threshold is None and open_trained_predictor(project).id is None
    assert open_trained_predictor(project).feature_names == predictor.feature_names == ["x", "count", "place", "known",
                                                                                        "ratio", "weekday"]
    assert predictor.inputs == ["x", "count", "place", "known", "when"]


def test_columns_that_are_not_needed_and_their_order_do_not_matter(predictor):
    frame = modelling.rows(50, seed=3)
    same(predictor.predict(frame.select(reversed(frame.columns)).with_columns(extra=1)),
         predictor.predict(frame.select(predictor.inputs)))


def test_the_same_values_in_other_types(predictor):
    frame = modelling.rows(80, seed=4)
    want = predictor.predict(frame)
    text = frame.with_columns(pl.col("x", "count", "known").cast(pl.String),
                              pl.col("when").dt.to_string("%Y-%m-%d %H:%M:%S"))
    same(predictor.predict(text), want)
    same(predictor.predict(text.with_columns(pl.col("x").fill_null(" "), pl.col("place").fill_null("?") + pl.lit(" "))),
         want)
    same(predictor.predict(frame.with_columns(pl.col("count").cast(pl.Float32), pl.col("place").cast(pl.Categorical))),
         want)
    same(predictor.predict(frame.with_columns(pl.col("count").cast(pl.UInt8), pl.col("when").cast(pl.Datetime("ns")))),
         want)
    in_tokyo = pl.col("when").dt.replace_time_zone("UTC").dt.convert_time_zone("Asia/Tokyo")
    same(predictor.predict(frame.with_columns(in_tokyo)), want)
    same(predictor.predict(frame.with_columns(pl.col("x").fill_null(float("nan")))), want)


def test_whole_columns_of_nulls_and_no_rows(predictor):
    frame = modelling.rows(20, seed=5)
    typed = frame.with_columns(pl.lit(None, pl.Float64).alias("x"))
    same(predictor.predict(frame.with_columns(x=None)), predictor.predict(typed))
    assert len(predictor.predict(frame[:0])) == 0
    assert predictor.contributions(frame[:0]).shape[-1] == len(predictor.feature_names) + 1
    assert predictor.score_frame(frame[:0]).columns == list(predictor.output_schema())


@pytest.mark.parametrize("change, said", [
    ({"drop": "x"}, "no column 'x'"), ({"drop": "when"}, "no column 'when'"),
    ({"count": pl.lit(1.5)}, "'count' holds 1.5, and the schema says integer"),
    ({"x": pl.lit("1,5")}, "'x' holds '1,5'"),
    ({"x": pl.lit(float("inf"))}, "'x' holds inf"), ({"known": pl.lit("perhaps")}, "'known' holds 'perhaps'"),
    ({"known": pl.lit(2)}, "'known' holds 2"),
    ({"when": pl.lit("31/12/2026")}, "'when' holds '31/12/2026'"),
    ({"when": pl.lit(20260101)}, "'when' holds 20260101"),
    ({"count": pl.lit(2**64 - 1, pl.UInt64)}, "'count' holds 18446744073709551615")])
def test_what_does_not_fit_is_named(binary, change, said):
    p, frame = Predictor.open(binary), modelling.rows(20, seed=6)
    frame = frame.drop(change["drop"]) if "drop" in change else frame.with_columns(**change)
    with pytest.raises(UserError, match=said.replace("(", "\\(")) as e: p.predict(frame)
    assert "\n" not in str(e.value)
    with pytest.raises(UserError): p.predict_one(frame.row(0, named=True))


@pytest.mark.parametrize("value", [[1.0], {"a": 1}, object(), 10**60, b"\xff", 1 + 2j, dt.time(1)])
def test_a_value_of_no_type_is_a_sentence(binary, value):
    row = modelling.rows(1).row(0, named=True) | {"x": value}
    with pytest.raises(UserError, match="x"): Predictor.open(binary).predict_one(row)


@settings(deadline=None, max_examples=80)
@given(row=st.fixed_dictionaries({
    "x": st.none() | st.floats(allow_infinity=False), "count": st.integers(-2**40, 2**40),
    "place": st.none() | st.text(max_size=8),
    "known": st.booleans(), "when": st.none() | st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1))}))
def test_any_row_of_the_right_types_is_answered_alone_as_among_others(binary, row):
    p = Predictor.open(binary) if not hasattr(test_any_row_of_the_right_types_is_answered_alone_as_among_others,
                                              "p") else None
    p = test_any_row_of_the_right_types_is_answered_alone_as_among_others.__dict__.setdefault("p", p)
    inputs = modelling.rows(5, seed=7).select(p.inputs)
    frame = pl.concat([inputs, pl.DataFrame([row], schema=inputs.schema), inputs])
    score = p.predict_one(row)
    assert 0 < score < 1 and score == p.predict(frame)[5]


def test_decisions(predictor):
    classes = modelling.CLASSES[predictor.schema.task]
    if predictor.schema.task == "binary":
        at = predictor.policy.threshold
        assert predictor.decide(np.array([0, np.nextafter(at, 0), at, 1])).tolist() == ["no", "no", "yes", "yes"]
        assert predictor.decide(np.array(at)) == "yes"
    elif predictor.schema.task == "multiclass":
        assert predictor.decide(np.eye(3)).tolist() == classes
        assert predictor.decide(np.array([.2, .2, .6])) == classes[2]
    else: assert predictor.decide(np.array([1.5])).tolist() == [1.5]


def test_no_decision_without_a_threshold(tmp_path):
    p = open_trained_predictor(modelling.trained(tmp_path, n=200))
    with pytest.raises(UserError, match="run the stage evaluate"): p.decide(p.predict(modelling.rows(3)))


def test_a_model_of_other_columns_is_refused(tmp_path):
    root = modelling.trained(tmp_path, n=200)
    (root / "features.py").write_text(modelling.FEATURES.replace("def ratio", "def other"))
    with pytest.raises(UserError, match="run the stage train again"): open_trained_predictor(root)


def test_without_feature_functions(tmp_path):
    root = modelling.judged(modelling.trained(tmp_path, features=False, n=200))
    run_bundle(root)
    frame = modelling.rows(30, seed=8).drop("when")
    same(Predictor.open(root / "artifacts/bundle").predict(frame), open_trained_predictor(root).predict(frame))


@pytest.mark.parametrize("n", [0, 1, 255, 257, 1000, 40_000])
def test_threads_do_not_change_a_bit(project, n):
    one, three = (Predictor.open(project / "artifacts/bundle", threads) for threads in (1, 3))
    rows = modelling.rows(max(n, 10), seed=3, task=one.schema.task)[:n]
    assert (one.predict(rows).tobytes() == three.predict(rows).tobytes()
            and one.predict(rows).shape == three.predict(rows).shape)
    assert one.predict_raw(rows).tobytes() == three.predict_raw(rows).tobytes()
    some = rows[:1500]
    assert (one.contributions(some).tobytes() == three.contributions(some).tobytes()
            and len(three.contributions(some)) == len(some))
    assert one.score_frame(rows).equals(three.score_frame(rows)) and len(three.score_frame(rows)) == n


def test_a_wrong_value_in_a_late_slice_is_named(binary):
    predictor = Predictor.open(binary, threads=2)
    rows = modelling.rows(5000).with_columns(pl.col("count").cast(pl.String))
    bad = rows.with_columns(pl.when(pl.int_range(5000) == 4990).then(pl.lit("a lot")).otherwise("count").alias("count"))
    with pytest.raises(UserError, match="'count' holds 'a lot'"): predictor.predict(bad)


# --- only the core

HEAVY = ["pandas", "sklearn", "shap", "matplotlib", "mlflow", "torch", "pyarrow", "pandera", "lightgbm", "scipy",
         "duckdb", "dvc", "nbdev",
         "IPython", "psutil", "sqlalchemy"]

LEAN = """
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in HEAVY: raise ModuleNotFoundError(f'{name} must not be needed here', name=name)
sys.meta_path.insert(0, Forbid())
import importlib.util, importlib.machinery
importlib.util.find_spec = lambda name: importlib.machinery.PathFinder.find_spec(name)
from mlops_nb.model.predictor import Predictor
from mlops_nb.batch.batch_scoring import score_files
p = Predictor.open(sys.argv[1])
import polars as pl
frame = pl.read_parquet(sys.argv[2])
assert len(p.predict(frame)) == len(p.contributions(frame)) == score_files(p, sys.argv[2], sys.argv[3], 100).n_rows
assert p.predict_one(frame.row(0, named=True)) == p.predict(frame)[0]
from mlops_nb.bundle.bundle import check_golden_examples
assert check_golden_examples(sys.argv[1]) is None
assert not {m.split('.')[0] for m in sys.modules} & set(HEAVY)
print('lean')
""".replace("HEAVY", str(HEAVY))


def test_predicting_needs_the_core_only(binary, tmp_path):
    modelling.rows(250).write_parquet(tmp_path / "in.parquet")
    run = subprocess.run([sys.executable, "-c", LEAN, str(binary), str(tmp_path / "in.parquet"),
                          str(tmp_path / "out.parquet")],
                         capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout.strip()) == (0, "lean"), run.stderr


INSTALLED = """
import sys
from mlops_nb.model.predictor import Predictor
from mlops_nb.batch.batch_scoring import score_files
print(score_files(Predictor.open(sys.argv[1]), sys.argv[2], sys.argv[3]).n_rows)
"""


@pytest.mark.slow
def test_an_environment_with_the_core_dependencies_scores_a_file(binary, tmp_path):
    root = Path(__file__).parents[2]
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True, timeout=120)
    of_it = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python] # the pip there is here
    pip = [*of_it, "install", "-q", "--no-compile", "--retries", "1", "--timeout", "20"]
    constraints = ["-c", str(root / "constraints.txt")] if (root / "constraints.txt").exists() else []
    reach = subprocess.run([*pip, *constraints, "msgspec"], capture_output=True, text=True, timeout=180)
    if reach.returncode: pytest.skip(f"pip reaches no package index here: {reach.stderr.strip().splitlines()[-1]}")
    source = tmp_path / "source" # a build leaves folders beside what it builds
    for part in ("mlops_nb", "nbs/reports", "docs/runbooks"):
        shutil.copytree(root / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("pyproject.toml", "README.md"): shutil.copy(root / part, source)
    done = subprocess.run([*pip, *constraints, str(source)], capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    modelling.rows(250).write_parquet(tmp_path / "in.parquet")
    run = subprocess.run([python, "-I", "-c", INSTALLED, binary, tmp_path / "in.parquet", tmp_path / "out.parquet"],
                         capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert (run.returncode, run.stdout.strip()) == (0, "250"), run.stderr
    assert pl.read_parquet(tmp_path / "out.parquet").equals(Predictor.open(binary).score_frame(modelling.rows(250)))
    frozen = subprocess.run([*of_it, "freeze"], capture_output=True, text=True, check=True).stdout.lower()
    installed = {line.partition("==")[0] for line in frozen.splitlines()}
    assert {"polars", "lightgbm", "numpy"} <= installed
    assert not installed & {"pandas", "scikit-learn", "shap", "matplotlib", "mlflow", "torch", "pyarrow", "pandera"}


# --- cast_to_schema by itself

def test_cast_to_schema_takes_each_column_once_and_in_order():
    schema = modelling.schema("binary")
    out = cast_to_schema(modelling.rows(5), schema, ["count", "x"])
    assert out.columns == ["count", "x"] and out.dtypes == [pl.Int64, pl.Float64]


def test_features_are_computed_from_converted_values(tmp_path):
    "A feature function sees contract types, whatever the caller sends."
    (tmp_path / "f.py").write_text("import mlops_nb.model.features as fx\n\n@fx.feature\ndef twice(count):\n"
                                   "    assert count.dtype == 'float64'\n    return 2 * count\n")
    frame, features = modelling.rows(50).with_columns(pl.col("place").replace({"?": None})), load_features(tmp_path /
        "f.py")
    given = frame.with_columns(pl.Series("twice", features.compute(frame)["twice"]))
    encoder = Encoder.fit(given, modelling.schema("binary"), features, EncoderParams())
    import lightgbm as lgb

    from mlops_nb.model.booster import Booster
    X = encoder.transform(given)
    model = lgb.train({"verbosity": -1, "num_threads": 1, "min_data_in_leaf": 2}, lgb.Dataset(X, X[:, 1]),
                      2).model_to_string()
    p = Predictor(modelling.schema("binary"), features, encoder, Booster(model))
    same(p.encode_frame(frame.with_columns(pl.col("count").cast(pl.String))), X)
