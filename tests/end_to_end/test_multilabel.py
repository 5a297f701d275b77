"""Several labels at once, from a file to answers: both learners, trials by a metric, folds, the gate, the bundle,
explanations, ONNX, the parts of the pages, and what monitoring makes of labels of which some are known."""
import json

import numpy as np
import polars as pl
import pytest

from mlops_nb.bundle.bundle import check_golden_examples, open_bundle
from mlops_nb.bundle.onnx_export import export_onnx
from mlops_nb.config.params import CostParams, NetParams, read_params, write_params
from mlops_nb.config.schema import Schema, read_schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.data.prepare import read_dataset_info, read_split
from mlops_nb.evaluate.label_evaluation import LABEL_METRICS
from mlops_nb.evaluate.metrics import metric_values
from mlops_nb.evaluate.stage import read_evaluation
from mlops_nb.explain.counterfactuals import read_reference_rows
from mlops_nb.explain.stage import read_explanation
from mlops_nb.explain.what_if import what_if
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.monitor.cohort_metrics import (
    JudgedRows,
    bin_calibrations,
    estimated_metrics,
    judged_rows,
    label_brier_scores,
    mean_loss,
    read_quality_reference,
    shift_calibrations,
)
from mlops_nb.monitor.label_sampling import is_near_threshold
from mlops_nb.monitor.loss_guard import guard_losses, guard_residuals, loss_margin
from mlops_nb.monitor.quality import measured_metrics
from mlops_nb.monitor.record_counts import decision_columns, decision_histograms, open_bundle_cells
from mlops_nb.pipeline import run_stage
from mlops_nb.release.compression import compress_bundle
from mlops_nb.release.judge import with_own_metrics
from mlops_nb.release.judge_state import JudgeState
from mlops_nb.report.curve_figures import gains_html, ranking_html
from mlops_nb.report.data_figures import target_html
from mlops_nb.report.decision_figures import decision_figure
from mlops_nb.report.evaluation_figures import calibration_figure, residuals_figure
from mlops_nb.report.explanation_tables import worst_predicted_table
from mlops_nb.report.stage import key_metrics
from mlops_nb.scaffold import init_project
from mlops_nb.train.model_import import import_model
from mlops_nb.train.tuning import read_tuning_results

pytestmark = pytest.mark.slow
LABELS = ["backup", "security", "tv"]


def subscribers(n=2600, seed=0):
    "What each subscriber takes; of a third the security package is not known, and tv is rare."
    rng = np.random.default_rng(seed)
    months, bill, plan = rng.integers(0, 72, n), rng.normal(60, 20, n), rng.choice(["fibre", "dsl"], n)
    z = np.c_[(bill - 60) / 12, (months - 30) / 12, (bill - 85) / 10 + 1.5 * (plan == "fibre")]
    y = (rng.random((n, 3)) < 1 / (1 + np.exp(-z))).astype(int)
    return pl.DataFrame(dict(months=months, bill=bill.round(2), plan=plan, sex=rng.choice(["f", "m"], n),
                             backup=y[:, 0],
                             security=np.where(rng.random(n) < .3, "", np.where(y[:, 1] == 1, "Yes", "No")),
                             tv=np.where(y[:, 2] == 1, "true", "false")))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multilabel")
    subscribers().write_csv(folder / "takes.csv")
    root = folder / "takes"
    report = init_project(root, str(folder / "takes.csv"), LABELS)
    assert report.schema.task == "multilabel" and report.schema.targets == LABELS
    schema = read_schema(root / "schema.yaml")
    schema.columns["sex"].sensitive, schema.segments = True, ["plan"]
    write_schema(schema, root / "schema.yaml")
    p = read_params(root / "params.yaml")
    p.train.learners, p.train.gbdt.n_estimators, p.train.gbdt.learning_rate = ["gbdt", "net"], 60, .15
    p.train.net = NetParams(ensemble_size=2, d_hidden=16, max_epochs=3, batch_size=512, learning_rate=.02,
                            d_embedding=0, n_blocks=1)
    p.train.model_selection, p.tune.n_trials, p.tune.metric = "gbdt", 2, "macro_roc_auc"
    p.cross_validation.n_folds, p.cross_validation.n_seeds = 2, 0
    p.evaluate.n_resamples, p.explain.max_rows = 50, 200
    p.evaluate.costs = CostParams(false_positive=1, false_negative=3)
    p.gate.min_gain = -.5
    p.gate.thresholds = {"macro_roc_auc": .7, "worst_roc_auc": .6, "roc_auc.tv": .6}
    write_params(p, root / "params.yaml")
    for stage in ("features", "validate", "prepare", "baseline", "tune"): run_stage(stage, root)
    for learner in p.train.learners: run_stage("train", root, learner)
    run_stage("evaluate", root)
    run_stage("cross_validation", root, "gbdt")
    for stage in ("explain", "bundle", "gate"): run_stage(stage, root)
    return root


@pytest.fixture(scope="module")
def predictor(project): return Predictor.open(project / "artifacts/bundle")


def test_labels_that_are_not_known_are_no_zeros(project):
    y = read_split(project, "train")["_target"].to_numpy()
    unknown = np.isnan(y).mean(0)
    assert unknown[0] == unknown[2] == 0 and .25 < unknown[1] < .35
    part = read_dataset_info(project).parts["train"]
    assert part.known_labels["security"] == (~np.isnan(y[:, 1])).sum() and part.target["tv"] == (y[:, 2] == 1).sum()


def test_both_learners_are_measured_and_tuned_by_a_metric_of_the_labels(project):
    e = read_evaluation(project)
    assert [c.learner for c in e.candidates] == ["gbdt", "net"]
    assert all(c.metrics["test"]["macro_roc_auc"].value > .7 for c in e.candidates)
    assert {t.metric for t in read_tuning_results(project).values()} == {"macro_roc_auc"}


def test_each_label_has_its_own_figures_and_threshold(project):
    e = read_evaluation(project)
    assert [x.label for x in e.labels] == LABELS
    aucs = [x.metrics["test"]["roc_auc"].value for x in e.labels]
    assert e.metrics["test"]["macro_roc_auc"].value == pytest.approx(np.mean(aucs))
    assert e.metrics["test"]["worst_roc_auc"].value == pytest.approx(min(aucs))
    assert [x.threshold.value for x in e.labels] == e.decision_settings.thresholds
    rows = len(read_split(project, "test"))
    assert e.labels[0].n_known["test"] == rows > e.labels[1].n_known["test"]
    assert {f.column for f in e.fairness} == {f"sex ({label})" for label in LABELS}
    metrics = json.loads((project / "artifacts/metrics.json").read_text())["test"]
    assert metrics["roc_auc.tv"] == aucs[2]


def test_the_gate_knows_the_worst_label(project):
    gate = json.loads((project / "artifacts/gate.json").read_text())
    assert gate["passed"], gate["message"]
    names = {r["name"] for r in gate["results"]}
    assert {"threshold: worst_roc_auc", "threshold: roc_auc.tv", "test events", "parity: single row and batch"} <= names


def test_one_row_gets_the_same_bits_as_many(project, predictor):
    assert check_golden_examples(open_bundle(project / "artifacts/bundle").path, predictor) is None
    test = read_split(project, "test").select(predictor.required_columns)
    scores = predictor.predict(test)
    assert scores.shape[1] == 3 and scores.sum(1).max() > 1.2
    alone = [predictor.predict_one(row) for row in test[:50].to_dicts()]
    assert np.array_equal(alone, scores[:50])
    scored = predictor.score_frame(test)
    assert scored.columns == ["score_backup", "score_security", "score_tv", "decision"]
    decided = [", ".join(n for n, yes in zip(LABELS, row) if yes) or "none"
               for row in scores >= predictor.policy.thresholds]
    assert scored["decision"].to_list() == decided and len({*decided}) > 3


def test_one_label_alone_is_a_binary_model(project, predictor):
    tv, test = predictor.of_label("tv"), read_split(project, "test")
    assert np.array_equal(tv.predict(test), predictor.predict(test)[:, 2])
    assert {*tv.decide(tv.predict(test))} == {"no tv", "tv"}
    found = what_if(tv, test[:1], {"bill": 120.}, read_reference_rows(project, tv))
    assert found.after.score > found.before.score
    with pytest.raises(UserError, match="no label 'tb'; known are"): predictor.of_label("tb")
    with pytest.raises(UserError, match="predictor.of_label"):
        what_if(predictor, test[:1], {}, read_reference_rows(project, predictor))


def test_the_onnx_model_answers_as_the_bundle(project, tmp_path):
    assert all(c.n_decisions_changed == 0 for c in export_onnx(project / "artifacts/bundle", tmp_path).checks)


def test_what_is_not_there_for_several_labels_says_so(project, tmp_path):
    with pytest.raises(UserError, match="several labels cannot be made smaller"):
        compress_bundle(project, project / "artifacts/bundle", tmp_path / "small")
    with pytest.raises(UserError, match="imported model predicts one target"): import_model("m.onnx", "own", project)
    policy = Policy("multilabel", LABELS, reject_region=(.4, .6))
    with pytest.raises(UserError, match="only a binary task"): policy.bind(read_schema(project / "schema.yaml"))


def test_the_parts_of_the_pages_show_each_label(project):
    e, dataset, found = read_evaluation(project), read_dataset_info(project), read_explanation(project)
    tables = {p.stem: pl.read_parquet(p, glob=False) for p in (project / "artifacts/evaluation").glob("*.parquet")}
    files = {split: project / f"artifacts/prepared/{split}.parquet" for split in dataset.parts}
    schema = read_schema(project / "schema.yaml")
    parts = [decision_figure(e, tables), ranking_html(e, tables), residuals_figure(e, tables["residuals"]),
             calibration_figure(e, tables["calibration_curve"], tables.get("calibration_curve_uncalibrated")),
             target_html(None, files, dataset, schema)]
    assert "is told apart worst" in parts[0].text and gains_html(e, tables).text == ""
    for part in parts: assert all(label in part.text for label in LABELS)
    share = dataset.parts["test"].target["security"] / dataset.parts["test"].known_labels["security"]
    assert dataset.parts["test"].share_of("security") == share
    assert all(x.predicted_class != x.truth and x.prediction >= .5 for x in found.worst_predicted)
    assert {x.predicted_class for x in found.worst_predicted} <= {*LABELS, *(f"no {n}" for n in LABELS)}
    assert "Log loss" in worst_predicted_table(found).text
    assert [m.name for m in key_metrics(e)] == ["log_loss", "macro_roc_auc", "worst_roc_auc"]
    card = (project / "artifacts/bundle/card.md").read_text()
    assert "each of 3 labels" in card and all(f"| {label} |" in card for label in LABELS)


def logged_label(row): # as feedback is kept: all labels, or those known
    if np.isnan(row).all(): return None
    if np.isnan(row).any(): return json.dumps({n: int(v) for n, v in zip(LABELS, row, strict=True) if v == v})
    return ", ".join(n for n, v in zip(LABELS, row, strict=True) if v == 1) or "none"


def test_rows_in_production_are_judged_by_label(project, predictor):
    test = read_split(project, "test")
    scores, y = predictor.predict(test), test["_target"].to_numpy().copy()
    y[::4] = np.nan # no label at all
    frame = pl.DataFrame(dict(score=scores.tolist(), label=[*map(logged_label, y)],
                              decision=predictor.decide(scores).tolist(),
                              entity=pl.Series([None] * len(y), dtype=pl.String)))
    reference = read_quality_reference(project / "artifacts/bundle")
    rows = judged_rows(frame, reference.schema)
    assert np.array_equal(rows.y, y, equal_nan=True) and rows.is_known.sum() == (~np.isnan(y).all(1)).sum()
    found, *_ = measured_metrics(rows, reference, read_params(project / "params.yaml"))
    some = rows.take(rows.is_known)
    expected = metric_values("multilabel", some.y, some.scores, reference.settings)
    assert {m: found[m].value for m in expected} == pytest.approx(expected)
    tv = metric_values("binary", some.y[:, 2], some.scores[:, 2])
    assert found["roc_auc.tv"].value == pytest.approx(tv["roc_auc"])
    assert reference.metrics["roc_auc.tv"] == read_evaluation(project).labels[2].metrics["test"]["roc_auc"].value
    losses, residuals = guard_losses(some, reference), guard_residuals(some, reference)
    usual = label_brier_scores(reference.baseline.calibration)
    assert losses == pytest.approx(np.nanmean((some.y - some.scores)**2 + usual.max() - usual, 1).clip(max=1))
    assert residuals == pytest.approx(np.nanmean(some.y - some.scores, 1))
    assert loss_margin(reference, 0.) > usual.max() == mean_loss(reference.baseline.calibration, "multilabel")[0]
    assert is_near_threshold(frame["score"], predictor.policy).any()


def labelled_rows(scores, y): # JudgedRows as if logged
    return JudgedRows(pl.DataFrame(dict(score=scores.tolist(), label=[*map(logged_label, y)])), scores, y)


@pytest.mark.parametrize("known", LABELS)
def test_feedback_of_one_label_only_is_no_worse_than_the_test_rows(project, predictor, known):
    test, k = read_split(project, "test"), LABELS.index(known)
    y = test["_target"].to_numpy().copy()
    y[:, np.arange(3) != k] = np.nan
    rows = labelled_rows(predictor.predict(test), y)
    reference = read_quality_reference(project / "artifacts/bundle")
    losses = guard_losses(rows.take(rows.is_known), reference)
    assert losses.mean() == pytest.approx(label_brier_scores(reference.baseline.calibration).max(), abs=.005)


@pytest.mark.parametrize("where", ["bundle", "test rows"])
def test_each_label_is_estimated_before_labels_come(project, predictor, where):
    test, reference = read_split(project, "test"), read_quality_reference(project / "artifacts/bundle")
    of = (bin_calibrations(reference) if where == "bundle" else
          shift_calibrations(predictor, test, test.select(predictor.inputs)))
    rows = labelled_rows(predictor.predict(test), np.full((len(test), 3), np.nan))
    found = estimated_metrics(reference, rows, of)
    assert {*found} == {f"{m}.{label}" for m in LABEL_METRICS for label in LABELS}
    for label in LABELS:
        e = found[f"roc_auc.{label}"]
        assert e.low <= reference.metrics[f"roc_auc.{label}"] <= e.high


def test_own_metrics_of_a_release_see_each_label():
    def hits(y, p): return np.nanmean(np.where(np.isnan(y), np.nan, (p >= .5) == y), 1)
    hits.metric_better = "higher"
    labelled = pl.DataFrame(dict(score=[[.9, .1, .1], [.9, .9, .1], [.2, .2, .2], [.2, .2, .9]],
                                 label=["backup", '{"security": 0}', None, "none"]))
    schema = Schema("s", "multilabel", "", {}, targets=LABELS)
    found = with_own_metrics(JudgeState("r1"), labelled, {"hits": hits}, schema)
    assert found["metric hits"].to_list() == pytest.approx([-1., 0., None, -2 / 3])


def test_decisions_are_counted_by_label(project):
    cells = open_bundle_cells(project / "artifacts/bundle")
    rows = pl.Series(["backup, tv", "none", None, "tv"])
    found = {c.name: c.values.to_list() for c in decision_columns(rows, cells.schema)}
    assert found == {"backup": ["yes", "no", None, "no"], "security": ["no", "no", None, "no"],
                     "tv": ["yes", "no", None, "yes"]}
    assert {*decision_histograms(cells.schema)} == {*LABELS}
