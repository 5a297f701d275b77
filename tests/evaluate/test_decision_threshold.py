"Calibration, the threshold and the money."
from statistics import NormalDist

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr

from mlops_nb.config.params import CostParams
from mlops_nb.evaluate.decision_threshold import (
    break_even_threshold,
    calibration_curve,
    calibration_slope_intercept,
    choose_threshold,
    confusion_counts,
    cost_curve,
    entity_residuals,
    excess_calibration_error,
    expected_calibration_error,
    least_squares_line,
    mean_errors_by_bin,
    mean_interval_by_bin,
    measure_calibration,
    measure_decision_costs,
    min_cost_threshold,
    quantile_bins,
    threshold_interval,
)
from mlops_nb.evaluate.metrics import row_cost
from mlops_nb.stats.bootstrap import Resampling, wilson_interval

quick = settings(deadline=None, max_examples=80)
costs = st.builds(CostParams, true_positive=st.integers(-5, 5), false_positive=st.integers(-5, 5),
                  true_negative=st.integers(-5, 5), false_negative=st.integers(-5, 5))
scores = st.lists(st.integers(0, 20), min_size=1, max_size=40)


@quick
@given(scores, st.integers(0, 10**6), costs)
def test_no_threshold_costs_less(p, seed, c):
    p = np.array(p) / 20
    y = np.random.default_rng(seed).integers(0, 2, len(p)).astype(float)

    def spent(t): return row_cost(y, p >= t, c).sum()

    t = min_cost_threshold(y, p, c)(np.ones(len(p)))
    assert 0 <= t <= np.nextafter(1, 2)
    assert spent(t) <= min(map(spent, [*np.linspace(0, 1, 201), 2.0])) + 1e-9


def test_a_threshold_between_neighbouring_floats_separates_them():
    p = np.array([0.5, np.nextafter(0.5, 1)])
    t = min_cost_threshold(np.array([0.0, 1.0]), p, CostParams())(np.ones(2))
    assert (p >= t).tolist() == [False, True]


def test_extremes_act_on_none_and_on_all():
    p = np.array([0.0, 0.4, 1.0])
    none = choose_threshold(np.zeros(3), p, CostParams())
    everybody = choose_threshold(np.ones(3), p, CostParams())
    assert not (p >= none).any() and (p >= everybody).all()


def test_where_acting_is_always_cheaper_there_is_no_break_even():
    assert break_even_threshold(CostParams(false_positive=-1.0)) is None
    assert break_even_threshold(CostParams(false_positive=3.0, false_negative=1.0)) == 0.75


@quick
@given(st.integers(1, 300), st.integers(0, 300), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_like_scipy(n, hits, confidence):
    from scipy.stats import binomtest
    hits = min(hits, n)
    low, high = wilson_interval(np.array([hits / n]), np.array([n]), NormalDist().inv_cdf((1 + confidence) / 2))
    expected = binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert [low[0], high[0]] == pytest.approx([expected.low, expected.high], abs=1e-12)


@quick
@given(st.integers(0, 10**6), st.floats(0.3, 3), st.floats(-1, 1))
def test_line_like_scikit_learn(seed, slope, shift):
    from sklearn.linear_model import LogisticRegression
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, 400)
    y, p = (rng.random(400) < 1 / (1 + np.exp(-z))).astype(float), 1 / (1 + np.exp(-(slope * z + shift)))
    fit = LogisticRegression(C=1e12, tol=1e-10, max_iter=1000).fit((slope * z + shift)[:, None], y)
    assert calibration_slope_intercept(y, p) == pytest.approx((fit.coef_[0, 0], fit.intercept_[0]), abs=1e-4)


@pytest.mark.parametrize(
    "y, p",
    [
        ([0, 0, 0], [0.1, 0.2, 0.3]),
        ([0, 1, 0], [0.5, 0.5, 0.5]),
        ([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]),
        ([], []),
        ([0, 1], [0.0, 1.0]),
    ],
)
def test_no_line_where_there_is_none(y, p):
    assert calibration_slope_intercept(np.array(y, float), np.array(p, float)) is None


def test_line_of_wrong_certainties():
    y, p = np.array([0.0, 1, 0, 1, 1, 0]), np.array([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    slope, _ = calibration_slope_intercept(y, p)
    assert 0 < slope < 0.2


@quick
@given(scores, st.integers(1, 12))
def test_bins_keep_order_and_equal_values_together(x, bins):
    x = np.array(x, float)
    b = quantile_bins(x, bins)
    assert set(b) == set(range(b.max() + 1)) and b.max() < bins
    for i in range(b.max()): assert x[b == i].max() < x[b == i + 1].min()


def test_bins_of_distinct_values_are_of_equal_size():
    sizes = np.bincount(quantile_bins(np.random.default_rng(0).random(1003), 10))
    assert len(sizes) == 10 and np.ptp(sizes) <= 2


def test_mean_interval_survives_large_offsets():
    x = 1e9 + np.arange(10.0)
    mean, low, high = mean_interval_by_bin(np.zeros(10, int), x)
    assert (high - low)[0] == pytest.approx(2 * 1.959964 * np.std(x - 1e9, ddof=1) / 10**0.5, rel=1e-6)
    assert mean[0] == 1e9 + 4.5


def customers(seed, n=100, per=30, task="binary"):
    "Half of the variance of what is known of a row, and of what is not, belongs to the customer; the truth is told."
    rng, who = np.random.default_rng([seed, n, per]), np.repeat(np.arange(n), per)
    known, hidden = ((rng.normal(size=n)[who] + rng.normal(size=len(who))) / 2**.5 for _ in range(2))
    if task == "regression": return who, known + hidden, known
    return who, (known + hidden > .74) * 1.0, ndtr(known - .74)


@pytest.mark.parametrize("per", [10, 30])
def test_intervals_of_bins_cover_where_entities_repeat(per):
    "Row by row they cover 92 % at 10 rows an entity and 83 % at 30."
    found = {"binary": [], "regression": []}
    for seed in range(150):
        for task in found:
            who, y, p = customers(seed, 100, per, task)
            t = calibration_curve(y, p, task == "binary", clusters=who)
            found[task].append(((t["low"] <= t["predicted"]) & (t["predicted"] <= t["high"])).mean())
    for inside in found.values(): assert .93 <= np.mean(inside) <= .97


@pytest.mark.parametrize("per", [10, 30])
def test_true_probabilities_of_repeated_entities_are_not_beyond_chance(per):
    "Row by row 18 % of such sets were at 10 rows an entity, and 42 % at 30."
    refused = {"binary": [], "regression": []}
    for seed in range(200):
        for task, found in refused.items():
            who, y, p = customers(seed, 100, per, task)
            found.append(measure_calibration(task, y, p, ["no", "yes"], clusters=who)[0].excess_error > 0)
    assert max(np.mean(found) for found in refused.values()) <= .09 # 5 % are expected, and 200 sets say so to 1.5


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_wrong_probabilities_of_repeated_entities_are_still_found(task):
    for seed in range(10):
        who, y, p = customers(seed, task=task)
        told = np.clip(2.5 * p, 0, 1) if task == "binary" else 2.5 * p
        assert measure_calibration(task, y, told, ["no", "yes"], clusters=who)[0].excess_error > .25


def test_each_class_of_repeated_entities_is_held_against_chance():
    refused = []
    for seed in range(60):
        who, y, p = customers(seed)
        y, p = np.where(y == 1, 1.0 + (who % 2), 0.0), np.stack([1 - p, p * (who % 2 == 0), p * (who % 2)], 1)
        refused.append([measure_calibration("multiclass", y, q, list("abc"), clusters=who)[0].excess_error > .25
                        for q in (p, p[:, [1, 0, 2]])])
    assert np.mean(refused, 0).tolist() == [0, 1]


def test_the_unit_of_a_mean_is_the_entity():
    rng = np.random.default_rng(0)
    x, bins = rng.normal(size=60), np.repeat([0, 1, 2], 20)
    copied = np.repeat(np.arange(60), 7) # each row seven times
    once, many = (mean_errors_by_bin(bins[i], x[i], who) for i, who in ((np.arange(60), None), (copied, copied)))
    np.testing.assert_allclose(once, many) # errors and units
    np.testing.assert_allclose(once[1], 20)
    order = rng.permutation(420)
    np.testing.assert_allclose(mean_errors_by_bin(bins[copied][order], x[copied][order], 419 - copied[order]), many)
    uneven = mean_errors_by_bin(np.zeros(100, int), rng.normal(size=100), np.r_[np.zeros(50, int), 1:51])
    assert uneven[1][0] == pytest.approx(100**2 / (50**2 + 50))


def test_a_bin_of_one_entity_has_no_interval():
    y, p, who = np.r_[np.zeros(50), np.ones(50)], np.repeat([.1, .9], 50), np.r_[np.zeros(50, int), 1:51]
    for is_probability in (True, False):
        t = calibration_curve(y, p, is_probability, clusters=who)
        assert t["low"].is_null().to_list() == [True, False]
    assert calibration_curve(y, p, clusters=who)["low"][1] == pytest.approx(50 / (50 + 2.00958**2), abs=1e-4) # t, 49


def test_many_entities_are_joined_and_say_the_same():
    who, y, p = customers(0, 6000, 3)
    sums = entity_residuals(y, p, who)
    table = calibration_curve(y, p)
    assert sums.shape == (2000, 10) and sums.sum(0) == pytest.approx(
        (table["n_rows"] * (table["observed"] - table["predicted"])).to_numpy())
    assert excess_calibration_error(calibration_curve(y, p / 2), residuals=entity_residuals(y, p / 2, who)) > .1


def test_reliability_counts_every_row_once():
    rng = np.random.default_rng(0)
    p = rng.random(777).round(1)
    t = calibration_curve((rng.random(777) < p).astype(float), p)
    assert t["n_rows"].sum() == 777 and (t["low"] <= t["observed"]).all() and (t["observed"] <= t["high"]).all()
    assert (t["from"] <= t["predicted"] + 1e-12).all() and (t["predicted"] <= t["to"] + 1e-12).all()


def test_error_of_a_constant_lie():
    y = np.r_[np.ones(30), np.zeros(70)]
    assert expected_calibration_error(calibration_curve(y, np.full(100, 0.5))) == pytest.approx(0.2)


def test_multiclass_is_judged_by_the_class_it_decides_for():
    y, s = np.array([0.0, 1, 2, 2]), np.tile([0.6, 0.3, 0.1], (4, 1))
    c, table = measure_calibration("multiclass", y, s, ["a", "b", "c"])
    assert c.expected_calibration_error == pytest.approx(0.6 - 0.25) and table["class"].unique(
        maintain_order=True
    ).to_list() == ["a", "b", "c"]


def test_regression_line():
    s = np.arange(50.0)
    c, table = measure_calibration("regression", 2 * s + 3, s)
    assert (c.slope, c.intercept) == pytest.approx((2, 3)) and table["class"].null_count() == len(table)
    assert measure_calibration("regression", s, np.zeros(50))[0].slope is None


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_scores_that_are_no_numbers_have_no_calibration(task):
    c, table = measure_calibration(task, np.array([0.0, 1]), np.array([0.5, np.nan]), ["a", "b"])
    assert c.expected_calibration_error is None and isinstance(table, pl.DataFrame) and not len(table)


def test_repeated_entities_do_not_make_a_threshold_certain():
    "Right probabilities of thirty customers: row by row another threshold was cheaper 'beyond noise' twice as often."
    c, found = CostParams(false_positive=1, false_negative=4), {"rows": 0, "entities": 0}
    for seed in range(200):
        who, y, p = customers(seed, 30, 30)
        for unit, clusters in (("rows", None), ("entities", who)):
            found[unit] += choose_threshold(y, p, c, clusters) != .2
    assert found["entities"] <= found["rows"] / 2 and found["entities"] <= 8
    who, y, p = customers(0, 300, 20) # and wrong ones are still found
    assert choose_threshold(y, np.clip(3 * p, 0, 1), c, who) > .35


def test_money_of_a_perfect_model_and_the_trivial_ones():
    y, c = np.r_[np.ones(100), np.zeros(300)], CostParams(true_positive=-40, false_positive=10, false_negative=0)
    m = measure_decision_costs(y, y, 0.5, c, resampling=Resampling(50))
    assert (m.model_cost, m.act_on_all_cost, m.act_on_none_cost, m.best_constant_policy) == (
        -10_000,
        -2_500,
        0,
        "act_on_all",
    )
    assert (
        m.savings["act_on_all"].value == 7_500
        and m.savings["act_on_none"].value == 10_000
        and m.savings["act_on_all"].low > 0
    )
    assert m.confusion_counts == dict(true_positive=100, false_positive=0, true_negative=300, false_negative=0)


def test_acting_like_the_trivial_policy_saves_exactly_nothing():
    y = np.r_[np.ones(10), np.zeros(90)]
    m = measure_decision_costs(y, np.full(100, 0.1), 0.5, CostParams(), resampling=Resampling(50))
    for name in ("act_on_none", "default_threshold"):
        assert (m.savings[name].value, m.savings[name].low, m.savings[name].high) == (0, 0, 0)
    assert m.best_constant_policy == "act_on_none" and m.savings["act_on_all"].value == 800


@quick
@given(scores, st.integers(0, 10**6))
def test_confusion_like_scikit_learn(p, seed):
    from sklearn.metrics import confusion_matrix
    p, y = np.array(p), np.random.default_rng(seed).integers(0, 2, len(p))
    (tn, fp), (fn, tp) = confusion_matrix(y, p >= 10, labels=[0, 1])
    assert confusion_counts(y, p >= 10) == dict(
        true_positive=tp, false_positive=fp, true_negative=tn, false_negative=fn
    )


@quick
@given(scores, st.integers(0, 10**6), costs)
def test_weights_are_repeated_rows(p, seed, c):
    rng = np.random.default_rng(seed)
    p, times = np.array(p) / 20, rng.integers(0, 4, len(p))
    y, each = rng.integers(0, 2, len(p)).astype(float), np.repeat(np.arange(len(p)), times)
    if not len(each): return

    def spent(t): return row_cost(y[each], p[each] >= t, c).sum()

    assert spent(min_cost_threshold(y, p, c)(times.astype(float))) == pytest.approx(
        spent(min_cost_threshold(y[each], p[each], c)(np.ones(len(each)))), abs=1e-9
    )


def test_the_break_even_point_stands_unless_another_is_cheaper_beyond_noise():
    "True probabilities: the cheapest of 300 rows costs more on new ones. Probabilities three times too high: it saves."
    c, costs_of, moved = CostParams(true_positive=-40, false_positive=10, false_negative=0), [], 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        p = rng.beta(1, 8, 4300)
        y, new = (rng.random(4300) < p).astype(float), p[300:]
        t = choose_threshold(y[:300], p[:300], c)
        cheapest = min_cost_threshold(y[:300], p[:300], c)(np.ones(300))
        costs_of.append([np.where(new >= at, new * -40 + (1 - new) * 10, 0).mean() for at in (t, cheapest, .2)])
        moved += t != .2
        assert choose_threshold(y[:2000], np.clip(3 * p[:2000], 0, 1), c) > .4
    chosen, cheapest, best = np.mean(costs_of, 0)
    assert best <= chosen < best + .3 * (cheapest - best) and moved <= 8


def test_a_threshold_of_few_rows_is_less_sure():
    c, width = CostParams(false_negative=4), {100: [], 3000: []}
    for seed in range(8):
        rng = np.random.default_rng(seed)
        p = rng.random(3000)
        y = (rng.random(3000) < p).astype(float)
        for n in width:
            found = threshold_interval(y[:n], p[:n], c, Resampling(60))
            assert found.low <= found.value == choose_threshold(y[:n], p[:n], c) <= found.high
            width[n].append(found.high - found.low)
    assert np.mean(width[3000]) < np.mean(width[100])
    assert threshold_interval(y, p, c, Resampling(60, threads=2)) == found


@quick
@given(scores, st.integers(0, 10**6), costs)
def test_the_curve_is_the_cost_at_each_threshold(p, seed, c):
    p = np.array(p) / 20
    y = np.random.default_rng(seed).integers(0, 2, len(p)).astype(float)
    curve = cost_curve(y, p, c, resampling=Resampling(5))
    assert curve["cost"].to_list() == pytest.approx(
        [1000 * row_cost(y, p >= t, c).mean() for t in curve["threshold"]], abs=1e-9
    )
    assert (curve["low"] <= curve["high"]).all()


def test_the_band_of_the_curve_is_that_of_a_mean_without_any_draw():
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y, c = (rng.random(500) < p).astype(float), CostParams(false_positive=1, false_negative=1)
    curve, other = (cost_curve(y, p, c, Resampling(n, seed=n)) for n in (2, 50))
    assert curve.equals(other)
    at = curve.row(by_predicate=pl.col("threshold") == .5, named=True)
    half = 1000 * np.std(row_cost(y, p >= .5, c), ddof=1) / 500**.5 * 1.96
    assert (at["high"] - at["low"]) / 2 == pytest.approx(half, rel=.01)


def test_the_curve_passes_through_the_money():
    rng = np.random.default_rng(0)
    p = rng.random(500)
    y = (rng.random(500) < p).astype(float)
    curve = cost_curve(y, p, CostParams())
    assert curve.filter(pl.col("threshold") == 0.5)["cost"][0] == pytest.approx(
        measure_decision_costs(y, p, 0.5, CostParams(), resampling=Resampling(2)).model_cost
    )


@quick
@given(st.integers(2, 50), st.integers(0, 10**6))
def test_least_squares_line_like_polyfit(n, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(5, 2, n), rng.normal(size=n)
    assert least_squares_line(x, y) == pytest.approx(np.polyfit(x, y, 1), rel=1e-6, abs=1e-8)
    assert least_squares_line(np.full(n, 0.3), y) is None
