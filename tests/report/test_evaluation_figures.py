"""report.evaluation_figures: every figure of every task, with what is missing or undefined."""
from types import SimpleNamespace

import polars as pl
import pytest
from support.small_evaluation import small_evaluation, training
from support.small_project import TASKS

from mlops_nb.evaluate.cross_validation import CrossValidationRun, MetricSummary
from mlops_nb.report.evaluation_figures import (
    calibration_figure,
    candidates_figure,
    comparison_figure,
    cross_validation_figure,
    residuals_figure,
    segments_figure,
)
from mlops_nb.stats.bootstrap import Estimate


def drawn(html): # Titles of the figures
    assert "nan" not in html.text.lower().replace("dominan", "") and "None" not in html.text
    return [part.split('"', 1)[0] for part in html.text.split('aria-label="')[1:] if "<svg" in html.text]


@pytest.fixture(scope="module", params=TASKS)
def evaluated(request): return small_evaluation(request.param)


def test_all_figures_of_each_task(evaluated):
    e, tables = evaluated
    figures = [comparison_figure(e), calibration_figure(e, tables["calibration_curve"]),
               segments_figure(e, tables["slices"], 50, 0.5), residuals_figure(e, tables["residuals"])]
    for html in figures: assert drawn(html)[0]
    assert drawn(figures[0])[0] == ("The model is better than the constant model and the linear model and not "
                                    "significantly different from the model in use")
    n_panels = figures[1].text.count('<g id="axes_')
    assert n_panels == (3 if e.task == "multiclass" else 1)
    assert ("percentage points" in drawn(figures[1])[0]) == (e.task != "regression")


def test_an_undefined_metric_is_said_and_not_drawn():
    e, _ = small_evaluation("binary")
    e.metrics["test"]["roc_auc"].value = None
    html = comparison_figure(e)
    assert "<svg" not in html.text and "The AUC is undefined" in html.text and html.text.count("<li>") == 3
    e, _ = small_evaluation("binary")
    e.comparisons = []
    assert drawn(comparison_figure(e)) == ["There is nothing to compare the model with"]


def test_one_learner_needs_no_figure_and_two_are_told_apart():
    e, _ = small_evaluation("binary")
    assert candidates_figure(e, [training("gbdt")]).text == (
        "<p>gbdt is the only learner of this run; train.learners in params.yaml names them.</p>")
    e, _ = small_evaluation("binary", ("net", "gbdt"))
    e.candidates[1].metrics = {s: dict(m) for s, m in e.candidates[1].metrics.items()}
    for s in ("valid", "test"): e.candidates[1].metrics[s]["roc_auc"] = SimpleNamespace(value=None, low=None, high=None)
    html = candidates_figure(e, [training("net"), training("gbdt")])
    assert drawn(html)[0].startswith("net was chosen: its AUC on the validation set is ")
    assert "net (chosen)" in html.text and "30 epochs, 2 KiB" in html.text and "30 trees, 4 KiB" in html.text
    assert drawn(candidates_figure(e, [training("net")], by_name=True))[0] == (
        "net was chosen by name, not by its metrics")


def test_calibration_before_and_after(evaluated):
    e, tables = evaluated
    curve = tables["calibration_curve"].with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))
    e.recalibration = SimpleNamespace(message="Platt <scaling>.", uncalibrated=e.calibration)
    html = calibration_figure(e, curve, curve)
    assert "Orange: what the model itself said." in html.text and "Platt &lt;scaling&gt;." in html.text
    assert "percentage points before, and is" in html.text
    e.recalibration = SimpleNamespace(message="None helped.", uncalibrated=None)
    assert "before, and is" not in calibration_figure(e, curve).text
    assert "<svg" not in calibration_figure(e, curve.clear()).text
    assert "rows of one entity" not in html.text
    e.n_entities = {"test": 40}
    assert "take the rows of one entity as one" in calibration_figure(e, curve).text


def test_other_trainings_are_drawn_where_there_are_any():
    e, _ = small_evaluation("binary")
    dates = {"held_out": ("2026-01-01T00:00:00", "2026-03-31T00:00:00")}
    folds = [CrossValidationRun("window 1", {}, dates, dict(roc_auc=0.8)),
             CrossValidationRun("window 2", {}, dates, dict(roc_auc=None)),
             CrossValidationRun("window 3", {}, dates, {}, "too few rows")]
    seeds = [CrossValidationRun(f"seed {i}", {}, None, dict(roc_auc=0.75)) for i in range(2)]
    windows, same = MetricSummary(0.8, None, 0.8, 0.8, 1), MetricSummary(0.75, 0.0, 0.75, 0.75, 2)
    repeated = SimpleNamespace(folds=folds, seeds=seeds, fold_summary=dict(roc_auc=windows),
                               seed_summary=dict(roc_auc=same), sentences=["<So>."],
                               seed_agreement=SimpleNamespace(mean_abs_score_difference=0.01))
    html = cross_validation_figure(e, repeated)
    assert drawn(html) == ["The AUC of 3 other trainings lies between 0.750 and 0.800"]
    assert "window 1, to 2026-03-31" in html.text and "window 2" not in html.text and "&lt;So&gt;." in html.text
    repeated.seed_agreement = None # models that are all the same
    assert drawn(cross_validation_figure(e, repeated)) == ["The AUC of 1 other training lies between 0.800 and 0.800"]
    repeated.folds, repeated.fold_summary = [], {}
    assert cross_validation_figure(e, repeated).text == "<p>&lt;So&gt;.</p>"


def test_segments_name_the_worst_only_beyond_chance():
    e, tables = small_evaluation("binary")
    slices = tables["slices"]
    level = slices.with_columns(gap_low=pl.lit(None, pl.Float64))
    assert drawn(segments_figure(e, level, 50, 0.5)) == ["No segment is significantly worse than the rest"]
    worse = slices.with_columns(gap_low=pl.lit(0.1))
    assert drawn(segments_figure(e, worse, 50, 0.5))[0].startswith(
        f"The model is weakest where {slices['column'][0]} = {slices['value'][0]}: AUC ")
    e.small_slices = [SimpleNamespace(column="<plan>", n_slices=2, n_rows=9)]
    none = segments_figure(e, slices.clear(), 50, 0.5).text
    assert "<svg" not in none and "fewer than 50): &lt;plan&gt;: 2 values with 9 rows." in none


@pytest.mark.parametrize("max_gap, listed", [(0.5, True), (None, True), (0.9, False)])
def test_segments_that_are_harder_are_listed(max_gap, listed):
    e, tables = small_evaluation("binary")
    hard, worse, *others = e.slices
    for s in (hard, worse): s.skill_score_rest, s.skill_score_gap = 0.4, Estimate(0.35, 0.3, 0.4)
    for s in others: s.skill_score_gap = Estimate(0., -0.1, 0.1)
    hard.simpler_gains, worse.simpler_gains = {}, {"linear": Estimate(0.2, 0.1, 0.3)}
    text = segments_figure(e, tables["slices"], 50, max_gap).text
    assert ("Harder rows" in text) == listed
    if listed:
        _, table = text.split("Harder rows")
        assert f"{hard.column} = {hard.value}" in table and f"{worse.column} = {worse.value}" not in table


def test_residuals_name_a_group_only_beyond_chance(evaluated):
    e, tables = evaluated
    base = tables["residuals"]
    off = pl.col("label") == base["label"][0]
    far = base.with_columns(**{k: pl.when(off).then(v).otherwise(pl.col(k))
                               for k, v in (("mean", 9.0), ("low", 8.9), ("high", 9.1))})
    named = drawn(residuals_figure(e, far))[0]
    of_class = f" of “{base['class'][0]}”" if e.task == "multiclass" else ""
    assert named.startswith(f"Predictions{of_class} are too low by 9 on average where") and base["label"][0] in named
    alone = base.group_by("feature", "class", maintain_order=True).first()
    for nothing in (base.clear(), alone): assert "more than one group" in residuals_figure(e, nothing).text
    many = pl.concat([base.with_columns(feature=pl.col("feature") + f" {i}") for i in range(3)])
    assert "other inputs</summary>" in residuals_figure(e, many).text


def test_the_heading_is_about_the_group_that_the_first_panel_marks():
    e, _ = small_evaluation("regression")
    groups = [("few", "a", 60, 2.0, 0.6), ("few", "b", 900, 0.0, 0.1), ("many", "c", 2000, -0.5, 0.04),
              ("many", "d", 900, 0.01, 0.1), ("tiny", "e", 3, 40.0, 0.1), ("tiny", "f", 900, 0.0, 0.1)]
    residuals = pl.DataFrame([dict({"class": None}, feature=f, label=v, n_rows=n, mean=m, low=m - half, high=m + half)
                              for f, v, n, m, half in groups], schema_overrides={"class": pl.String})
    html = residuals_figure(e, residuals).text
    assert "Predictions are too high by 0.500 on average where many is c" in html
    first = html[html.index('<g id="axes_1"'):html.index('<g id="axes_2"')]
    assert ">many</" in first and ">c</" in first # the name of the panel, and of the group in orange
