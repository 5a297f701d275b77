"""The training repeated: no fold learns from what comes after it, rows that judge do nothing else, and what cannot be
judged is named."""

import json
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from support import trained_project as modelling

from mlops_nb.config.params import read_params, write_params
from mlops_nb.config.project import Project
from mlops_nb.config.schema import Schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data.folds import Fold
from mlops_nb.data.prepare import read_dataset_info
from mlops_nb.evaluate import cross_validation as repeating
from mlops_nb.evaluate.cross_validation import (
    measure_agreement,
    read_cross_validation,
    repeat_with_seeds,
    run_cross_validation,
    skip_reason,
    summarize_metrics,
)
from mlops_nb.evaluate.metrics import METRICS
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.model.encoder import Encoder
from mlops_nb.pipeline import STAGES, run_stage
from mlops_nb.scaffold import init_project
from mlops_nb.train.baselines import run_baselines
from mlops_nb.train.stage import open_trained_predictor
from mlops_nb.train.tuning import TuningResult


def parts_of(n, *sizes):
    at = np.repeat(np.arange(len(sizes)), sizes)
    return Fold(*(np.r_[at, np.full(n - len(at), -1)] == i for i in range(3)))


@pytest.mark.parametrize("y, sizes, task, why", [
    ([0, 1, 0, 1, 0, 1], (2, 2, 2), "binary", None),
    ([0, 0, 0, 1, 0, 1], (2, 2, 2), "binary", "no row to learn from is 'yes'"),
    ([0, 1, 0, 1, 1, 1], (2, 2, 2), "binary", "no row to be judged is 'no'"),
    ([0, 1, 0, 1, 0, 1], (4, 0, 2), "binary", "nothing to learn from beside the 2 rows"),
    ([0, 1, 0, 1, 0, 1], (3, 2, 1), "binary", "1 rows to be judged are too few; evaluate.min_segment_rows asks for 2"),
    ([3, 3, 4, 4, 5, 6], (2, 2, 2), "regression", "the same value"),
    ([3, 4, 4, 4, 5, 5], (2, 2, 2), "regression", None)])
def test_what_cannot_be_judged(y, sizes, task, why):
    schema = Schema("v", task, "y", classes=["no", "yes"] if task == "binary" else None, columns={})
    found = skip_reason(np.array(y, float), parts_of(6, *sizes), schema, 2)
    assert (found is None) == (why is None) and (why or "") in (found or "")


def test_a_class_of_many_that_no_judged_row_has_is_no_reason():
    three = Schema("v", "multiclass", "y", classes=["a", "b", "c"], columns={})
    assert skip_reason(np.array([0, 1, 2, 1, 0, 1.]), parts_of(6, 3, 1, 2), three, 2) is None
    assert "'c'" in skip_reason(np.array([0, 1, 1, 1, 2, 1.]), parts_of(6, 3, 1, 2), three, 2)


def test_a_fold_with_too_few_rows_to_correct_its_quantiles_is_left_out():
    schema = Schema("v", "regression", "y", quantiles=[.1, .5, .9], columns={})
    y = np.arange(40.)
    assert skip_reason(y, parts_of(40, 10, 18, 12), schema, 2) is None
    assert "need 9 calibration rows, half of the validation rows, and there are 8" in skip_reason(
        y, parts_of(40, 10, 17, 13), schema, 2)


def test_agreement_of_three():
    s = [np.array([.1, .2, .3, .4]), np.array([.2, .4, .6, .8]), np.array([.1, .2, .3, .9])]
    found = measure_agreement(s, [x >= .5 for x in s])
    assert found.disagreement_rate == pytest.approx((.5 + .25 + .25) / 3)
    assert found.mean_abs_score_difference == pytest.approx(
        np.mean([np.abs(a - b).mean() for a, b in ((s[0], s[1]), (s[0], s[2]), (s[1], s[2]))])
    )
    assert 0 < found.score_correlation < 1 and measure_agreement(s, None).disagreement_rate is None
    assert measure_agreement([s[0], np.full(4, .5)], None).score_correlation is None


# ---- the stage


def project(root, task="binary", learner="gbdt", method="random", n=900, **stability):
    modelling.trained(root, task, n=n, learner=learner)
    params = read_params(root / "params.yaml")
    params.prepare.split.method, params.evaluate.min_segment_rows, params.evaluate.n_resamples = method, 20, 20
    for name, value in stability.items(): setattr(params.cross_validation, name, value)
    write_params(params, root / "params.yaml")
    return root


@pytest.mark.parametrize("task", list(modelling.CLASSES))
def test_files_and_figures(task, tmp_path):
    root = project(tmp_path / "p", task, n_folds=3, n_seeds=2)
    assert run_stage("cross_validation", root, "gbdt")["trainings"] == 5
    found = read_cross_validation(root, "gbdt")
    assert [r.name for r in found.folds + found.seeds] == ["fold 1", "fold 2", "fold 3", "seed 0", "seed 1"]
    for run in found.folds + found.seeds:
        assert run.metrics.keys() == METRICS[task].keys() and run.time_range is None and run.skip_reason is None
        assert all(x is not None for m, x in run.metrics.items() if m != "precision")
    rest = 900 - read_dataset_info(root).parts["test"].rows
    assert sum(r.rows["held_out"] for r in found.folds) == rest # the test rows are in none
    assert {sum(r.rows.values()) for r in found.folds} == {rest}
    table = pl.read_parquet(root / "artifacts/cross_validation/gbdt/metrics.parquet")
    assert len(table) == 5 * len(METRICS[task])
    spread, x = found.fold_summary[found.primary_metric], [r.metrics[found.primary_metric] for r in found.folds]
    assert [spread.mean, spread.std, spread.min, spread.max] == pytest.approx(
        [np.mean(x), np.std(x, ddof=1), min(x), max(x)]
    )
    assert (
        "± " in found.sentences[0]
        and "over 3 random folds" in found.sentences[0]
        and "The seed changes nothing" in found.sentences[1]
    )
    before = file_hashes(root / "artifacts/cross_validation")
    run_cross_validation(root, "gbdt")
    assert file_hashes(root / "artifacts/cross_validation") == before


def test_the_first_seed_is_the_stages_own_model(tmp_path):
    root = project(tmp_path / "p", n_seeds=2)
    run_baselines(root)
    run_evaluate(root)
    run_cross_validation(root, "gbdt")
    mine = read_json(root / "artifacts/metrics.json", dict)["test"]
    assert (
        read_cross_validation(root, "gbdt").seeds[0].metrics == mine
    )  # scores, calibration and threshold as the stages chose them


def test_seeds_that_matter(tmp_path):
    root = project(tmp_path / "p", n_seeds=3)
    params = read_params(root / "params.yaml")
    params.train.gbdt.subsample, params.train.seed = .6, 4
    write_params(params, root / "params.yaml")
    run_cross_validation(root, "gbdt")
    found = read_cross_validation(root, "gbdt")
    assert [r.name for r in found.seeds] == ["seed 4", "seed 5", "seed 6"]
    assert found.seed_agreement.disagreement_rate > 0 and .5 < found.seed_agreement.score_correlation < 1
    assert found.sentences[0].startswith("roc_auc 0.") and "under 3 seeds; two of them decide" in found.sentences[0]


def test_repetitions_use_what_was_tuned(tmp_path):
    root = project(tmp_path / "p", n_folds=2)
    run_cross_validation(root, "gbdt")
    before = read_cross_validation(root, "gbdt")
    tuned = TuningResult("gbdt", 1, 0, .6, .5, {"num_leaves": 2, "n_estimators": 3}, {})
    write_json(root / "artifacts/tuning/tuning.json", {"gbdt": tuned})
    run_cross_validation(root, "gbdt")
    assert read_cross_validation(root, "gbdt").fold_summary["roc_auc"].mean < before.fold_summary["roc_auc"].mean


def test_seeds_of_a_net(tmp_path):
    root = project(tmp_path / "p", "multiclass", "net", n=300, n_seeds=2)
    run_cross_validation(root, "net")
    found = read_cross_validation(root, "net")
    assert found.seed_agreement.mean_abs_score_difference > 0 and found.learner == "net" and len(found.seeds) == 2


def test_one_seed_has_nothing_to_be_compared_with(tmp_path):
    root = project(tmp_path / "p", "regression", n_seeds=1)
    run_cross_validation(root, "gbdt")
    found = read_cross_validation(root, "gbdt")
    assert (
        found.seed_agreement is None
        and found.seed_summary["rmse"].std is None
        and "at least two are needed" in found.sentences[0]
    )


def test_nothing_is_repeated_unasked(tmp_path, monkeypatch):
    root = project(tmp_path / "p")
    monkeypatch.setattr(repeating, "fit_learner", None)
    assert run_cross_validation(root, "gbdt")["trainings"] == 0
    found = read_cross_validation(root, "gbdt")
    assert found.folds == found.seeds == []
    assert found.sentences == [
        "Nothing was repeated; cross_validation.n_folds and cross_validation.n_seeds in params.yaml say how often."
    ]
    assert len(pl.read_parquet(root / "artifacts/cross_validation/gbdt/metrics.parquet")) == 0


def timed(root, rate):
    "A project whose rows have a time; `rate` gives the share of events by month."
    root = project(root, n=900, n_folds=4, n_seeds=0)
    schema, rng = modelling.schema("binary"), np.random.default_rng(0)
    schema.event_time, schema.columns["when"].nullable = "when", False
    write_schema(schema, root / "schema.yaml")
    params = read_params(root / "params.yaml")
    params.prepare.split.method = "time"
    write_params(params, root / "params.yaml")
    months = dict(train=(0, 6), valid=(6, 8), test=(8, 10))
    for part, (a, b) in months.items():
        path = root / f"artifacts/prepared/{part}.parquet"
        frame = pl.read_parquet(path)
        month = np.sort(rng.integers(a, b, len(frame)))
        y = (rng.random(len(frame)) < [rate(m) for m in month]).astype(float)
        frame = frame.with_columns(
            when=pl.Series([datetime(2026, int(m) + 1, 1) for m in month]).cast(pl.Datetime("us")), _target=y
        )
        frame.sample(fraction=1, shuffle=True, seed=0).write_parquet(path)
    return root


def test_a_window_without_events_is_left_out_and_named(tmp_path):
    root = timed(tmp_path / "p", lambda month: 0 if month < 3 else .4)
    run_cross_validation(root, "gbdt")
    found = read_cross_validation(root, "gbdt")
    out = [r for r in found.folds if r.skip_reason]
    assert (
        out
        and all(r.metrics == {} for r in out)
        and found.fold_summary["roc_auc"].n_runs == len(found.folds) - len(out) > 0
    )
    for r in out:
        assert any(
            s.startswith(f"{r.name.capitalize()} is left out: no row to ") and "'yes'" in s for s in found.sentences
        )
    for r in found.folds:
        if not r.skip_reason:
            assert (
                r.time_range["train"][1]
                < r.time_range["valid"][0]
                <= r.time_range["valid"][1]
                < r.time_range["held_out"][0]
            )
        assert r.time_range["held_out"][1] < "2026-09" # the test rows are in no window


def test_the_encoder_of_a_window_knows_nothing_of_what_comes_later(tmp_path, monkeypatch):
    root, seen = timed(tmp_path / "p", lambda month: .4), []
    honest = Encoder.fit.__func__

    def spy(cls, frame, *rest):
        seen.append(frame["when"].max().isoformat())
        return honest(cls, frame, *rest)
    monkeypatch.setattr(Encoder, "fit", classmethod(spy))
    run_cross_validation(root, "gbdt")
    trained = [r for r in read_cross_validation(root, "gbdt").folds if not r.skip_reason]
    assert seen == [r.time_range["train"][1] for r in trained] and len(seen) >= 3


def test_rows_that_cannot_be_cut(tmp_path):
    root = timed(tmp_path / "p", lambda month: .4)
    for part in ("train", "valid"):
        path = root / f"artifacts/prepared/{part}.parquet"
        pl.read_parquet(path).with_columns(when=pl.lit(datetime(2026, 1, 1)).cast(pl.Datetime("us"))).write_parquet(
            path
        )
    run_cross_validation(root, "gbdt")
    found = read_cross_validation(root, "gbdt")
    assert found.folds == [] and found.sentences == [
        "4 were asked for, and the rows can be cut into 0 expanding windows only."
    ]


def test_a_repetition_starts_from_nothing(tmp_path):
    root = project(tmp_path / "p", n_folds=2)
    run_cross_validation(root, "gbdt")
    before = read_cross_validation(root, "gbdt")
    params = read_params(root / "params.yaml")
    params.train.init_model = "artifacts/models/gbdt"
    write_params(params, root / "params.yaml")
    run_cross_validation(root, "gbdt")
    after = read_cross_validation(root, "gbdt")
    assert after.folds == before.folds
    assert after.sentences == [
        *before.sentences,
        "Each repetition was trained from nothing, and not from train.init_model.",
    ]


def test_scores_that_are_no_numbers_leave_nulls(tmp_path, monkeypatch):
    root = project(tmp_path / "p", n_folds=2, n_seeds=2)
    honest = repeating.Predictor.predict
    monkeypatch.setattr(repeating.Predictor, "predict", lambda self, frame: honest(self, frame) * np.nan)
    run_cross_validation(root, "gbdt")
    found = read_cross_validation(root, "gbdt")
    assert found.seed_agreement is None and "some of their scores are no numbers" in found.sentences[-1]
    assert found.sentences[0] == "roc_auc is defined in none of 2 random folds."
    assert found.fold_summary == {} and all(x is None for r in found.folds for x in r.metrics.values())
    json.loads(
        (root / "artifacts/cross_validation/gbdt/cross_validation.json").read_text(),
        parse_constant=lambda c: pytest.fail(c),
    )


def test_missing_inputs_and_a_wrong_learner(tmp_path):
    root = project(tmp_path / "p", n_folds=2)
    with pytest.raises(UserError, match="no learner 'gbtd'; did you mean 'gbdt'"): run_cross_validation(root, "gbtd")
    with pytest.raises(UserError, match="cross_validation.json does not exist"): read_cross_validation(root, "gbdt")
    (root / "artifacts/prepared/test.parquet").unlink()
    with pytest.raises(UserError, match="run the stage prepare first"): run_cross_validation(root, "gbdt")


def test_spreads_of_what_is_undefined():
    runs = [
        repeating.CrossValidationRun("a", {}, None, {"roc_auc": None, "f1": 0.5}),
        repeating.CrossValidationRun("b", {}, None, {}, "why"),
    ]
    assert summarize_metrics(runs).keys() == {"f1"} and summarize_metrics(runs)["f1"].n_runs == 1


def test_scores_of_a_seed_are_those_of_the_trained_model(tmp_path):
    root = project(tmp_path / "p", n_seeds=2)
    made = Project.open(root)
    parts = {p: pl.read_parquet(root / f"artifacts/prepared/{p}.parquet") for p in ("train", "valid", "test")}
    predictor, _ = repeating.fit_predictor(made, "gbdt", parts["train"], parts["valid"], "it")
    predictor.policy = None
    assert predictor.predict(parts["test"]).tobytes() == open_trained_predictor(root).predict(parts["test"]).tobytes()
    assert len(repeat_with_seeds(made, "gbdt", parts)[0]) == 2


@pytest.mark.realdata
@pytest.mark.slow
def test_bank_calls_in_their_order(real_data, tmp_path):
    "The world changes: windows show it, and calibration helps as far as the valid rows can know."
    root = tmp_path / "bank"
    contract = init_project(root, str(real_data("bank_marketing/bank-additional-full.csv")), "y").schema
    contract.columns["duration"].feature = False # known only after the call
    write_schema(contract, root / "schema.yaml")
    params = read_params(root / "params.yaml")
    params.prepare.split.method, params.cross_validation.n_folds, params.evaluate.n_resamples = "order", 3, 20
    write_params(params, root / "params.yaml")
    for stage in ("features", "validate", "prepare", "tune", "baseline", "train", "evaluate", "cross_validation"):
        run_stage(stage, root, "gbdt" if STAGES[stage].matrix else None)
    found, evaluation = read_cross_validation(root, "gbdt"), read_evaluation(root)
    assert (
        found.fold_summary["roc_auc"].max < evaluation.metrics["valid"]["roc_auc"].low
    )  # one figure would have hidden it
    windows = [r.rows for r in found.folds]
    learned = [w["train"] + w["valid"] for w in windows]
    assert learned[1:] == [
        before + w["held_out"] for before, w in zip(learned[:-1], windows[:-1], strict=True)
    ]  # all that came before
    assert (
        evaluation.recalibration.method != "none"
        and evaluation.calibration.expected_calibration_error
        < evaluation.recalibration.uncalibrated.expected_calibration_error
    )
