"The stage evaluate on small projects of all three tasks."
import json
import shutil
from base64 import b64encode

import lightgbm as lgb
import msgspec
import numpy as np
import polars as pl
import pytest
from support.small_project import TASKS, small_project, small_rows, small_schema

from mlops_nb.bundle.signatures import generate_signing_key, read_signing_key, sign_bundle
from mlops_nb.config.params import EncoderParams, EvaluateParams, Params, write_params
from mlops_nb.config.project import Project
from mlops_nb.config.schema import Column, write_schema
from mlops_nb.config.settings import ReleaseSettings, Settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes, write_manifest
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data.prepare import read_content_keys
from mlops_nb.data.row_keys import sketch_keys
from mlops_nb.evaluate.evaluation import Evaluation
from mlops_nb.evaluate.metrics import METRICS, row_loss
from mlops_nb.evaluate.stage import _find_champions, read_evaluation, run_evaluate
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor


def champion_of(root, store, change=None, anchor=None):
    "What the model of a project would be as a bundle: enough for a champion."
    bundle = store / "bundle"
    shutil.copytree(root / "artifacts/models/gbdt", bundle)
    shutil.copy(root / "features.py", bundle)
    schema = small_schema(read_evaluation(root).task)
    if change: change(schema)
    write_json(bundle / "schema.json", schema)
    shutil.copy(root / "artifacts/evaluation/policy.json", bundle)
    if anchor: write_json(bundle / "provenance.json", {"anchor": anchor})
    write_manifest(bundle)
    return bundle.rename(store / Predictor.open(bundle).id)


@pytest.fixture(scope="module", params=TASKS)
def project(request, tmp_path_factory):
    "An evaluated project."
    root = small_project(tmp_path_factory.mktemp(request.param), request.param)
    run_evaluate(root)
    return root


def test_files_and_metrics(project):
    found, flat = read_evaluation(project), json.loads((project / "artifacts/metrics.json").read_text())
    names = {f.name for f in (project / "artifacts/evaluation").iterdir()}
    always = {"predictions.parquet", "policy.json", "evaluation.json", "slices.parquet", "discovered_slices.parquet",
              "fairness.parquet", "residuals.parquet", "calibration_curve.parquet"}
    moved = found.recalibration and found.recalibration.method != "none"
    of_task = {"binary": {"cost_curve", "threshold_curve", "score_histogram"},
               "multiclass": {"threshold_curve", "score_histogram", "class_metrics"},
               "regression": {"residual_histogram", "residuals_by_prediction"}}[found.task]
    assert names == always | {f"{name}.parquet" for name in of_task} | (
        {"calibration_curve_uncalibrated.parquet"} if moved else set()
    )
    if found.task == "binary":
        curve = pl.read_parquet(project / "artifacts/evaluation/threshold_curve.parquet")
        at = curve.filter(pl.col("threshold") == found.decision_settings.threshold).row(0, named=True)
        assert {k: at[k] for k in found.decision_costs.confusion_counts} == found.decision_costs.confusion_counts
    assert (found.threshold is not None) == (found.task == "binary") and (found.recalibration is None) == (
        found.task == "regression"
    )
    assert flat.keys() == {"test", "valid"} and flat["test"].keys() == METRICS[found.task].keys()
    for part, metrics in found.metrics.items():
        for m, e in metrics.items(): assert flat[part][m] == e.value and e.low <= e.value <= e.high, (part, m)
    assert (found.decision_costs is not None) == (found.task == "binary") and (found.confusion_matrix is None) == (
        found.task == "regression"
    )
    assert {s.column for s in found.slices} == {"plan", "tenure"} and found.excess_log_loss is None


def test_tables_of_calibration_and_residuals_take_the_entity_as_the_unit(project, tmp_path):
    root = shutil.copytree(project, tmp_path / "p")
    schema = small_schema(read_evaluation(root).task)
    schema.columns["who"], schema.entity = Column("integer"), "who"
    write_schema(schema, root / "schema.yaml")
    for path in (root / "artifacts/prepared").glob("*.parquet"): # three entities: hardly an interval is left
        pl.read_parquet(path).with_columns(who=pl.col("_row") % 3).write_parquet(path)
    run_evaluate(root)
    for name in ("calibration_curve", "residuals"):
        rows, entities = (pl.read_parquet(r / f"artifacts/evaluation/{name}.parquet") for r in (project, root))
        width = [(t["high"] - t["low"]).fill_null(np.inf).to_numpy() for t in (rows, entities)]
        assert np.median(width[1]) > 1.5 * np.median(width[0]), name


def test_evaluation_is_documented_json(project):
    found = read_evaluation(project)
    assert msgspec.json.decode(msgspec.json.encode(found), type=Evaluation, strict=True) == found
    assert [c.kind for c in found.comparisons] == ["baseline"] and found.comparisons[0].metrics[
        found.primary_metric
    ].gain.value > 0


def test_metrics_can_be_recomputed_from_the_predictions(project):
    found = read_evaluation(project)
    kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet")
    assert kept.group_by("split").len().sort("split").rows() == [("test", 900), ("valid", 800)]
    assert kept.select("_source", "_row").n_unique() == 1700
    test = kept.filter(split="test")
    s = test.select(pl.col("^score.*$")).to_numpy()
    s = s[:, 0] if s.shape[1] == 1 else s
    loss = row_loss(found.task, test["_target"].to_numpy(), s)
    if found.task == "regression":
        assert np.sqrt((loss**2).mean()) == pytest.approx(found.metrics["test"]["rmse"].value)
    else: assert loss.mean() == pytest.approx(found.metrics["test"]["log_loss"].value)


def test_decisions_are_the_predictors(project):
    found = read_evaluation(project)
    if found.task == "regression": pytest.skip("a regression decides nothing")
    kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet").filter(split="test")
    right = (kept["decision"] == pl.Series([found.classes[int(t)] for t in kept["_target"]])).mean()
    assert right == pytest.approx(found.metrics["test"]["accuracy"].value)
    assert np.trace(found.confusion_matrix) == pytest.approx(right * 900) and np.sum(found.confusion_matrix) == 900
    policy = read_json(project / "artifacts/evaluation/policy.json", Policy)
    assert policy.classes == found.classes and policy.threshold == (
        found.decision_settings.threshold if found.task == "binary" else None
    )


def test_same_inputs_same_bytes(project):
    before = file_hashes(project / "artifacts")
    run_evaluate(project)
    assert file_hashes(project / "artifacts") == before


def test_a_champion_that_is_the_same_model_is_exactly_as_good(project, tmp_path):
    champion = champion_of(project, tmp_path)
    run_evaluate(project, champion)
    c = read_evaluation(project).comparisons[-1]
    assert (c.kind, c.bundle_id) == ("champion", champion.name) and "the same" in c.message
    for d in c.metrics.values(): assert (d.gain.value, d.gain.low, d.gain.high) == (0, 0, 0)
    run_evaluate(project)


def test_a_champion_that_learned_the_test_rows_is_not_compared(project, tmp_path):
    bundle, schema = champion_of(project, tmp_path), small_schema(read_evaluation(project).task)
    keys = read_content_keys(project / "artifacts/prepared/test.parquet", schema)
    write_json(bundle / "baseline.json", dict(training_keys=b64encode(sketch_keys(keys)).decode()))
    write_manifest(bundle)
    bundle = bundle.rename(tmp_path / Predictor.open(bundle).id)
    run_evaluate(project, bundle)
    found = read_evaluation(project).comparisons[-1]
    assert not found.metrics and "trained on about 100% of the test rows" in found.message
    run_evaluate(project)


def test_the_best_champion_so_far_is_compared_beside_the_present_one(project, tmp_path):
    best = champion_of(project, tmp_path)
    run_evaluate(project, champion_of(project, tmp_path, anchor=best.name))
    found = {c.name: c for c in read_evaluation(project).comparisons if c.kind == "champion"}
    assert list(found) == ["champion", "anchor"] and found["anchor"].bundle_id == best.name
    assert all(d.gain.value == 0 for d in found["anchor"].metrics.values())
    run_evaluate(project, champion_of(project, tmp_path, anchor="gone"))
    gone = read_evaluation(project).comparisons[-1]
    assert gone.name == "anchor" and not gone.metrics and "The anchor gone cannot score these rows" in gone.message
    run_evaluate(project)


def test_a_champion_that_cannot_be_used_is_a_sentence(project, tmp_path):
    champion = champion_of(project, tmp_path)
    (champion / "model.txt").write_text("tampered")
    run_evaluate(project, champion)
    c = read_evaluation(project).comparisons[-1]
    assert (
        c.metrics == {}
        and "cannot score these rows" in c.message
        and "changed" in c.message
        and str(tmp_path) not in c.message
    )
    run_evaluate(project)


def test_a_champion_whose_column_is_gone(tmp_path):
    old, new = small_project(tmp_path / "old", "binary"), small_project(tmp_path / "new", "binary")
    run_evaluate(old)
    (tmp_path / "store").mkdir()
    champion = champion_of(old, tmp_path / "store")
    schema = small_schema("binary")
    del schema.columns["charge"]
    write_schema(schema, new / "schema.yaml")
    write_params(Params(evaluate=EvaluateParams(n_resamples=10)), new / "params.yaml")
    for part in ("train", "valid", "test"):
        path = new / f"artifacts/prepared/{part}.parquet"
        pl.read_parquet(path).drop("charge", "paid_so_far").write_parquet(path)
    frame = pl.read_parquet(new / "artifacts/prepared/train.parquet")
    encoder = Encoder.fit(frame, schema, load_features(None), EncoderParams())
    (new / "artifacts/models/gbdt/encoder.json").write_bytes(encoder.to_json())
    data = lgb.Dataset(encoder.transform(frame), frame["_target"].to_numpy(), categorical_feature=encoder.categorical)
    lgb.train(dict(objective="binary", verbosity=-1, num_threads=1), data, 5).save_model(
        new / "artifacts/models/gbdt/model.txt"
    )
    run_evaluate(new, champion)
    c = read_evaluation(new).comparisons[-1]
    assert (
        c.message
        == f"The champion {champion.name[:12]} cannot score these rows: it needs columns that are gone: charge."
    )
    assert c.metrics == {}


def test_another_champion_has_an_interval(tmp_path):
    weak, strong = (
        small_project(tmp_path / "weak", "regression", rounds=1),
        small_project(tmp_path / "strong", "regression"),
    )
    run_evaluate(weak)
    (tmp_path / "store").mkdir()
    run_evaluate(strong, champion_of(weak, tmp_path / "store"))
    d = read_evaluation(strong).comparisons[-1].metrics["rmse"]
    assert d.gain.low > 0 and d.other_value > d.value


def test_excess_log_loss_of_simulated_data(tmp_path):
    root = small_project(tmp_path / "p", "binary")
    test = small_rows("binary", 900, "test.csv", 2)
    (root / "truth").mkdir()
    test.select("_source", "_row", probability="p").sample(fraction=1, shuffle=True, seed=0).write_parquet(
        root / "truth/truth.parquet"
    )
    run_evaluate(root)
    p, q = (
        test["p"].to_numpy(),
        pl.read_parquet(root / "artifacts/evaluation/predictions.parquet").filter(split="test")["score"].to_numpy(),
    )
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert read_evaluation(root).excess_log_loss == pytest.approx(expected) and expected > 0
    test.head(5).select("_source", "_row", probability="p").write_parquet(root / "truth/truth.parquet")
    run_evaluate(root)
    assert read_evaluation(root).excess_log_loss is None


def test_scores_that_are_no_numbers_leave_nulls(monkeypatch, tmp_path):
    root = small_project(tmp_path / "p", "binary")
    honest = Predictor.predict

    def broken(self, frame):
        s = honest(self, frame).copy()
        s[3] = np.nan
        return s
    monkeypatch.setattr(Predictor, "predict", broken)
    run_evaluate(root)
    found = read_evaluation(root)
    assert (
        found.score_summary["test"].n_not_finite == 1
        and found.decision_costs is None
        and found.calibration.expected_calibration_error is None
    )
    assert all(e.value is None for e in found.metrics["test"].values())
    assert json.loads((root / "artifacts/metrics.json").read_text())["test"]["roc_auc"] is None


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [1, 3])
def test_tiny_test_sets(task, n, tmp_path):
    root = small_project(tmp_path / "p", task, (500, 5, n))
    run_evaluate(root)
    found = read_evaluation(root)
    assert found.slices == [] and found.score_summary["test"].n_rows == n
    if task == "binary" and n == 1: assert found.metrics["test"]["roc_auc"].value is None


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_one_class_in_the_test_part(task, tmp_path):
    root = small_project(tmp_path / "p", task)
    path = root / "artifacts/prepared/test.parquet"
    pl.read_parquet(path).filter(pl.col("_target") == 0).write_parquet(path)
    run_evaluate(root)
    found = read_evaluation(root)
    undefined = {m for m, e in found.metrics["test"].items() if e.value is None}
    assert undefined == ({"roc_auc", "average_precision", "recall"} if task == "binary" else {"roc_auc_ovr"})
    assert found.calibration.slope is None


@pytest.mark.parametrize("part", ["valid", "test"])
def test_missing_and_empty_parts(part, tmp_path):
    root = small_project(tmp_path / "p", "binary")
    path = root / f"artifacts/prepared/{part}.parquet"
    pl.read_parquet(path).head(0).write_parquet(path)
    with pytest.raises(UserError, match="holds no row"): run_evaluate(root)
    path.unlink()
    with pytest.raises(UserError, match="run the stage prepare"): run_evaluate(root)
    assert not (root / "artifacts/evaluation").exists()


def test_missing_baseline(tmp_path):
    root = small_project(tmp_path / "p", "binary")
    (root / "artifacts/models/baseline/scores.parquet").unlink()
    with pytest.raises(UserError, match="run the stage baseline"): run_evaluate(root)


def test_no_anchor_is_opened_that_no_trusted_key_has_signed(tmp_path):
    (tmp_path / "project").mkdir()
    public = generate_signing_key(tmp_path / "team.pem", tmp_path / "project")
    for name in ("champion", "anchor"):
        (tmp_path / "store" / name).mkdir(parents=True)
        write_json(tmp_path / "store" / name / "provenance.json", {"anchor": "anchor"} if name == "champion" else {})
        write_manifest(tmp_path / "store" / name)
    settings = Settings(release=ReleaseSettings(trusted_keys=public, signing_key_file="../team.pem"))
    key = read_signing_key(tmp_path / "project", settings, {})
    project, champion = Project(tmp_path / "project", settings=settings), tmp_path / "store/champion"
    for name in ("champion", "anchor"):
        with pytest.raises(UserError, match=f"{name} is not signed"): _find_champions(project, champion)
        sign_bundle(tmp_path / "store" / name, key)
    assert [*_find_champions(project, champion)] == ["champion", "anchor"]
