"Estimates before labels: exact expectations, coverage, and recalibration under covariate shift."
import numpy as np

from mlops_nb.evaluate.metrics import METRICS, DecisionSettings, weighted_metric
from mlops_nb.stats.bootstrap import Estimate
from mlops_nb.stats.performance_estimate import (
    density_ratio,
    estimate_performance,
    fit_beta_calibration,
    outcome_rows,
    outcome_weights,
)


def test_expected_metrics_are_the_means_over_all_futures():
    s = np.array([.9, .6, .2])
    y, repeated = outcome_rows(s)
    metrics = {m: weighted_metric("binary", m, y, repeated, DecisionSettings()) for m in ("accuracy", "brier", "cost")}
    futures = [np.array([i >> k & 1 for k in range(3)]) for i in range(8)]
    chance = [np.prod(np.where(f, s, 1 - s)) for f in futures]
    for name, m in metrics.items():
        each = [weighted_metric("binary", name, f.astype(float), s, DecisionSettings())(np.ones(3)) for f in futures]
        assert np.isclose(m(outcome_weights(s)), np.dot(chance, each)), name


def test_several_classes():
    rng = np.random.default_rng(0)
    p = rng.dirichlet([1, 1, 2], 2000)
    came = (rng.random((2000, 1)) > p.cumsum(1)).sum(1).clip(max=2).astype(float)
    y, s = outcome_rows(p)
    metrics = {m: weighted_metric("multiclass", m, y, s) for m in METRICS["multiclass"]}
    for name, e in estimate_performance(metrics, p, lambda rng: p).items():
        realised = weighted_metric("multiclass", name, came, p)(np.ones(2000))
        assert abs(e.value - realised) < .04 and e.low < e.value < e.high, name


def test_grouped_rows_are_fitted_as_single_ones():
    rng = np.random.default_rng(1)
    s = rng.choice([.1, .4, .7], 900)
    y = (rng.random(900) < s**1.5) * 1.
    values = np.unique(s)
    grouped = fit_beta_calibration(values, np.array([y[s == v].mean() for v in values]),
                                   rows=np.array([(s == v).sum() for v in values]))
    assert np.allclose(grouped.coefficients, fit_beta_calibration(s, y).coefficients, atol=1e-6)


def test_no_rows_and_one_class_change_little():
    none = fit_beta_calibration(np.zeros(0), np.zeros(0))
    assert np.allclose(none.apply(np.array([.3])), .3)
    assert fit_beta_calibration(np.full(50, .3), np.zeros(50)).apply(np.array([.3]))[0] < .1


def test_the_density_ratio_finds_what_became_frequent():
    rng = np.random.default_rng(2)
    before, now = rng.normal(0, 1, (1500, 1)), rng.normal(1, 1, (1500, 1))
    ratio = density_ratio(before, now)
    assert np.isclose(ratio.mean(), 1) and ratio[before[:, 0] > 1].mean() > 4 * ratio[before[:, 0] < -.5].mean()


def test_a_figure_that_no_outcome_has_is_none_and_no_warning(recwarn):
    found = estimate_performance({"mean": lambda w: float(w[len(w) // 2:].sum()), "never": lambda w: float("nan")},
                                 np.full(50, .3), lambda rng: np.full(50, .3))
    assert found["never"] == Estimate(None, None, None) and found["mean"].low < 15 < found["mean"].high
    assert not recwarn.list
