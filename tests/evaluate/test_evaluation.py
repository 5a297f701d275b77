"The evaluation of one model's scores: what is chosen where, and how often a bootstrap is drawn."
import numpy as np
import polars as pl
import pytest
from support import trained_project as modelling
from support.small_project import small_rows, small_schema

from mlops_nb.config.params import EvaluateParams
from mlops_nb.config.schema import Column
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.evaluate.evaluation import (
    describe_scores,
    evaluate_scores,
    resampling_from_params,
    scored_rows,
    split_resamplings,
)
from mlops_nb.evaluate.metrics import METRICS
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.release.gate import check_thresholds
from mlops_nb.report.evaluation_tables import metrics_table
from mlops_nb.train.baselines import run_baselines


def test_constant_scores_are_seen():
    assert describe_scores(np.full(7, 0.3)).n_unique == 1
    assert describe_scores(np.full((7, 3), 1 / 3)).n_unique == 1
    assert describe_scores(np.full(2, np.nan)).min is None


def evaluated(schema, params, valid, test, scores):
    splits = {"valid": valid, "test": test}
    rows = scored_rows(schema, params, splits, scores, split_resamplings(params, splits, schema.entity))
    return evaluate_scores(schema, params, rows, test)


def test_the_threshold_comes_from_valid_and_not_from_test(tmp_path):
    schema, valid, test = small_schema("binary"), small_rows("binary", 300, "v", 0), small_rows("binary", 300, "t", 1)
    s = {"valid": valid["p"].to_numpy(), "test": test["p"].to_numpy()}
    flipped = test.with_columns(_target=1 - pl.col("_target"))
    a, b = (evaluated(schema, EvaluateParams(n_resamples=5), valid, t, s) for t in (test, flipped))
    assert a.decision_settings == b.decision_settings and a.metrics["test"]["accuracy"].value == pytest.approx(
        1 - b.metrics["test"]["accuracy"].value
    )


def test_calibration_takes_the_entity_as_the_unit():
    "Ten copies of each row: an error that chance gives sixty rows is more than it gives six hundred new ones."
    schema, params = small_schema("binary"), EvaluateParams(n_resamples=5)
    valid, test = (pl.concat([small_rows("binary", 60, s, i).with_columns(who="_row")] * 10)
                   for i, s in enumerate(("v", "t")))
    s = {"valid": valid["p"].to_numpy(), "test": test["p"].to_numpy()}
    rows = evaluated(schema, params, valid, test, s)
    schema.columns["who"], schema.entity = Column("integer"), "who"
    entities = evaluated(schema, params, valid, test, s)
    assert rows.calibration.excess_error > 0 == entities.calibration.excess_error
    assert rows.calibration.expected_calibration_error == entities.calibration.expected_calibration_error


class Rows:
    "A frame of which only the number of rows is asked for."
    def __init__(self, n): self.n = n

    def __len__(self): return self.n


@pytest.mark.parametrize(
    "wanted, rows, drawn",
    [(1000, 1, 1000), (1000, 200_000, 1000), (1000, 400_000, 500), (1000, 10**9, 250), (20, 10**9, 20)],
)
def test_long_tests_have_fewer_resamples(wanted, rows, drawn):
    params = EvaluateParams(n_resamples=wanted, confidence_level=0.9, seed=3)
    resampling = resampling_from_params(params, Rows(rows), threads=2)
    assert (resampling.n_resamples, resampling.confidence_level) == (drawn, 0.9)
    assert (resampling.seed, resampling.threads) == (3, 2)


@pytest.mark.parametrize("counts", [True, False])
def test_a_model_of_counts_has_its_deviance_reported_and_others_have_none(tmp_path, counts):
    from sklearn.metrics import mean_poisson_deviance
    root = modelling.trained(tmp_path, "regression", counts=counts)
    run_baselines(root)
    run_evaluate(root)
    found, rows = read_evaluation(root), pl.read_parquet(root / "artifacts/evaluation/predictions.parquet")
    metrics = read_json(root / "artifacts/metrics.json", dict)["test"]
    assert found.metrics["test"].keys() == metrics.keys() == METRICS["regression"].keys() | (
        {"poisson_deviance"} if counts else set())
    assert ("mean Poisson deviance" in metrics_table(found).text) == counts
    (rule,) = check_thresholds("regression", {"poisson_deviance": 1e9}, metrics)
    assert rule.passed == counts # what could not be computed fails
    if not counts: return
    test = rows.filter(split="test")
    assert metrics["poisson_deviance"] == pytest.approx(mean_poisson_deviance(test["_target"], test["score"]))
    e = found.metrics["test"]["poisson_deviance"]
    assert 0 < e.low < e.value < e.high
