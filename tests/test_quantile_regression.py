"Quantile regression from the schema to the reply: one project, through every stage that has a part in it."
import json

import msgspec
import numpy as np
import polars as pl
import pytest
from msgspec import structs
from support.trained_project import trained

from mlops_nb.bundle.bundle import check_golden_examples
from mlops_nb.bundle.onnx_export import export_onnx
from mlops_nb.bundle.stage import run_bundle
from mlops_nb.config.params import CrossValidationParams, Params, PolicyRule, read_params, write_params
from mlops_nb.config.project import Project
from mlops_nb.config.schema import read_schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.prepare import read_split
from mlops_nb.evaluate.cross_validation import cross_validate
from mlops_nb.evaluate.row_losses import row_losses
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.explain.counterfactuals import build_reference_rows
from mlops_nb.explain.stage import read_explanation, run_explain
from mlops_nb.explain.what_if import what_if
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.monitor.cohort_metrics import judged_rows, read_quality_reference
from mlops_nb.monitor.quality import measured_metrics
from mlops_nb.release.gate import evaluate_gate
from mlops_nb.report.interval_figures import intervals_html
from mlops_nb.serve.endpoint import PredictionResult
from mlops_nb.serve.inference_protocol import build_infer_outputs
from mlops_nb.stats.monitoring_baseline import MonitoringBaseline
from mlops_nb.train.baselines import run_baselines
from mlops_nb.train.stage import TrainingReport, open_trained_predictor, run_train

LEVELS = [0.1, 0.5, 0.9]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = trained(tmp_path_factory.mktemp("quantiles") / "p", "regression", n=1500)
    schema = read_schema(root / "schema.yaml")
    schema.quantiles = LEVELS
    write_schema(schema, root / "schema.yaml")
    with pytest.raises(UserError, match="the model gives 1 values for a row, and schema.yaml asks for 3"):
        open_trained_predictor(root)
    params = read_params(root / "params.yaml")
    params.evaluate.min_segment_rows = 100
    write_params(params, root / "params.yaml")
    run_train(root)
    run_baselines(root)
    run_evaluate(root)
    run_explain(root)
    run_bundle(root)
    return root


@pytest.fixture(scope="module")
def predictor(project): return Predictor.open(project / "artifacts/bundle")


@pytest.fixture(scope="module")
def test_rows(project): return pl.read_parquet(project / "artifacts/prepared/test.parquet")


def test_training_says_what_it_went_by(project):
    about = read_json(project / "artifacts/models/gbdt/training.json", TrainingReport)
    assert about.eval_metric == "pinball_loss" and about.best_loss > 0


def test_evaluation_judges_the_median_and_the_interval(project, predictor, test_rows):
    found, q = read_evaluation(project), predictor.predict(test_rows)
    y = test_rows["_target"].to_numpy()
    assert (found.task, found.primary_metric, found.better) == ("regression", "mae", "lower")
    assert found.metrics["test"]["mae"].value == pytest.approx(np.abs(q[:, 1] - y).mean())
    inside = ((q[:, 0] <= y) & (y <= q[:, 2])).mean()
    assert found.intervals.coverage.value == pytest.approx(inside)
    assert found.metrics["test"]["coverage"] == found.intervals.coverage
    assert abs(inside - 0.8) < 0.1 and {s.column for s in found.intervals.segments} == {"known"}
    assert found.intervals.pinball_loss.value < found.intervals.constant_pinball_loss
    known = read_json(project / "artifacts/metrics.json", dict)["test"]
    assert known.keys() >= {"coverage", "interval_width", "pinball_loss"}
    assert {"constant", "linear"} == {c.name for c in found.comparisons}
    kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet").filter(split="test")
    assert np.array_equal(kept.select("^score_.*$").to_numpy(), q) and "decision" not in kept.columns


def test_rows_for_the_correction_had_no_part_in_the_training(project, predictor):
    from mlops_nb.evaluate.prediction_intervals import fit_conformal
    from mlops_nb.train.dataset import entity_groups
    from mlops_nb.train.quantile_boosting import calibration_rows
    valid = pl.read_parquet(project / "artifacts/prepared/valid.parquet")
    groups = entity_groups(valid, predictor.schema)
    kept, raw = calibration_rows(len(valid), groups), predictor.model.predict(predictor.encode_frame(valid))
    assert predictor.schema.entity and not {*groups[kept]} & {*groups[~kept]}
    assert fit_conformal(valid["_target"].to_numpy()[kept], raw[kept], LEVELS) == predictor.policy.calibrator


def test_one_row_and_many_get_the_same_bits_and_quantiles_never_cross(predictor, test_rows):
    q = predictor.predict(test_rows)
    assert q.shape == (len(test_rows), 3) and (np.diff(q, axis=1) >= 0).all()
    for row, p in zip(test_rows.head(30).to_dicts(), q):
        assert np.array_equal(predictor.predict_one(row), p)
    assert predictor.output_schema() == dict.fromkeys(["score_0.1", "score_0.5", "score_0.9"], pl.Float64())
    assert np.array_equal(predictor.score_frame(test_rows).to_numpy(), q)
    assert np.array_equal(predictor.predict_point(test_rows), q[:, 1])
    assert "the median of the quantiles 0.1, 0.5, 0.9" in repr(predictor)


def test_contributions_are_those_of_the_median(project, predictor, test_rows):
    some = test_rows.head(20)
    parts = predictor.contributions(some)
    assert parts.shape == (20, len(predictor.feature_names) + 1)
    assert np.allclose(parts.sum(1), predictor.predict_point(some))
    assert read_explanation(project).raw_units == "units of the target"
    found = what_if(predictor, some[:1], {"count": 49}, build_reference_rows(predictor, test_rows), min_difference=0.5)
    changed = some[:1].with_columns(count=pl.lit(49))
    median = [predictor.predict_point(row)[0] for row in (some[:1], changed)]
    assert [found.before.score, found.after.score] == pytest.approx(median)


def test_replies_of_both_protocols(predictor, test_rows):
    from types import SimpleNamespace

    from mlops_nb.serve.rest_protocol import encode_predict_response
    X, columns = predictor.encode_frame(test_rows.head(2)), {}
    scores, decisions, review = predictor.predict_and_decide(columns, X)
    alone = predictor.predict_and_decide(columns, X[:1])
    assert alone == (scores[:1], None, None) and (decisions, review) == (None, None)
    result = PredictionResult(id="r", endpoint="e", variant="v", bundle="b", scores=scores)
    said = msgspec.json.decode(encode_predict_response(result, SimpleNamespace(predictor=predictor)))["predictions"]
    assert said == [{"score": dict(zip(["0.1", "0.5", "0.9"], s))} for s in scores]
    outputs = build_infer_outputs(predictor.output_schema(), scores)
    assert [(o.name, o.shape) for o in outputs] == [(f"score_{q}", [2]) for q in LEVELS]
    assert outputs[2].data == (scores[0][2], scores[1][2])


def test_a_rule_bounds_each_quantile(predictor):
    policy = Policy("regression", rules=[PolicyRule(when={}, min_score=0.0)]).bind(predictor.schema)
    q = np.array([[-1., 2., 3.], [-3., -2., -1.]])
    assert policy.apply({}, q).scores.tolist() == [[0., 2., 3.], [0., 0., 0.]]
    assert policy.apply_row({}, q[0])[0].tolist() == [0., 2., 3.]


def test_the_bundle_holds_what_others_need(project, predictor):
    assert check_golden_examples(project / "artifacts/bundle") in ("", None, [])
    baseline = read_json(project / "artifacts/bundle/baseline.json", MonitoringBaseline)
    assert [*baseline.scores] == ["score_0.1", "score", "score_0.9"] and [*baseline.calibration] == ["score"]
    card = (project / "artifacts/bundle/card.md").read_text()
    assert "It predicts the quantiles 0.1, 0.5, 0.9 of `y` (what is asked)" in card
    assert "at least 80% lie between the lowest and the highest" in card and "was corrected on" in card


def test_the_gate_looks_at_the_coverage(project):
    rules = {r.name: r for r in evaluate_gate(project).results}
    assert rules["quantiles: coverage"].passed and rules["quantiles: coverage"].bound == pytest.approx(0.75)
    assert rules["quantiles: pinball loss"].passed and rules["parity: single row and batch"].passed


def test_onnx_answers_as_the_bundle(project, test_rows, tmp_path):
    pytest.importorskip("onnxruntime")
    about = export_onnx(project / "artifacts/bundle", tmp_path / "onnx", test_rows)
    assert about.task == "regression" and (tmp_path / "onnx/model.onnx").is_file()


def test_the_report_shows_the_interval(project, test_rows):
    found = read_evaluation(project)
    kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet").filter(split="test")
    page = intervals_html(found.intervals, kept).text
    assert "The interval from 0.1 to 0.9 covers" in page and "says 80" in page and "known = true" in page
    assert intervals_html(None, kept).text == ""


def log_of(q, y):
    "Rows of the log with their labels, as monitoring reads them."
    return pl.DataFrame({"score": q.tolist(), "label": [None if np.isnan(v) else f"{v:.17g}" for v in y],
                         "entity": [None] * len(y)}, schema_overrides={"label": pl.String, "entity": pl.String})


def test_production_is_judged_by_its_coverage(project, predictor, test_rows):
    reference, q = read_quality_reference(project / "artifacts/bundle"), predictor.predict(test_rows)
    y = test_rows["_target"].to_numpy().astype(float).copy()
    y[:20] = np.nan # their labels are still to come
    rows = judged_rows(log_of(q, y), reference.schema)
    assert np.array_equal(rows.scores, q[:, 1]) and np.array_equal(rows.quantiles, q)
    found, _, how = measured_metrics(rows, reference, Params())
    inside = ((q[:, 0] <= y) & (y <= q[:, 2]))[20:].mean()
    assert how == "labelled" and found["coverage"].value == pytest.approx(inside)
    assert found["coverage"].low < inside < found["coverage"].high and found["interval_width"].value > 0
    assert reference.metrics["coverage"] == pytest.approx(read_evaluation(project).intervals.coverage.value)
    moved, _, _ = measured_metrics(judged_rows(log_of(q, y + 5), reference.schema), reference, Params())
    assert moved["coverage"].high < 0.3


def test_a_repeated_training_tells_its_coverage(project):
    opened = Project.open(project)
    opened = opened.with_params(structs.replace(opened.params, cross_validation=CrossValidationParams(n_folds=2)))
    frame = pl.concat(read_split(project, split) for split in ("train", "valid"))
    found = next(cross_validate(opened, "gbdt", frame)).metrics
    assert 0.65 < found["coverage"] < 0.95 and found["interval_width"] > 0 and found["pinball_loss"] < found["mae"]


def test_the_judge_takes_the_loss_of_the_median(predictor, test_rows):
    q, y = predictor.predict(test_rows.head(3)), test_rows["_target"].head(3)
    losses = row_losses(pl.Series(q.tolist()), y.cast(pl.String), predictor.schema)
    assert losses.to_list() == pytest.approx(((q[:, 1] - y.to_numpy())**2).tolist())


def test_a_project_asks_for_a_narrow_gap_and_a_calibrator(project):
    assert json.loads((project / "artifacts/evaluation/policy.json").read_text())["calibrator"]["method"] == "conformal"
    assert read_params(project / "params.yaml").gate.max_coverage_gap == 0.05
