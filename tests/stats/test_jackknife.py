"The jackknife against textbook formulas and references of its own."
import numpy as np
import pytest
from scipy import stats

from mlops_nb.stats.bootstrap import Estimate, Units, weighted_mean
from mlops_nb.stats.jackknife import jackknife_estimate, jackknife_interval, share_interval, standard_error


def test_the_standard_error_of_a_mean_is_the_textbook_one():
    x = np.random.default_rng(0).normal(size=50)
    assert standard_error(x.mean() - weighted_mean(x).without(Units(50)))[0] == pytest.approx(stats.sem(x))


def test_degrees_of_freedom_and_skewness_are_those_of_the_moments():
    x = np.random.default_rng(0).exponential(size=4000)
    _, free, skewness = standard_error(x - x.mean())
    assert free == pytest.approx(2 * 4000 / (stats.kurtosis(x) + 2)) # 2n / (excess kurtosis + 2)
    assert skewness == pytest.approx(stats.skew(x) / 4000**0.5)


def test_units_that_all_change_a_figure_equally_leave_their_number_less_one():
    assert standard_error(np.array([1.0, -1] * 10)) == pytest.approx(((19.0)**0.5, 19, 0))
    assert standard_error(np.zeros(5)) == (0, 1, 0)
    assert standard_error(np.r_[5.0, np.zeros(9)])[1] == 1


def test_a_mean_has_the_interval_of_student_where_no_unit_stands_out():
    x = np.array([3.0, 5] * 20)
    e = jackknife_estimate(weighted_mean(x), Units(40), 40)
    assert (e.low, e.high) == pytest.approx(stats.t.interval(0.95, 39, 4, stats.sem(x)))


def test_entities_of_equal_size_are_their_means():
    means = np.array([1.0, 2] * 6)
    x, who = np.repeat(means, 5) + np.tile([-2, -1, 0, 1, 2], 12), np.repeat(np.arange(12), 5)
    e = jackknife_estimate(weighted_mean(x), Units(12, who), 60)
    assert (e.low, e.high) == pytest.approx(stats.t.interval(0.95, 11, 1.5, stats.sem(means)))


@pytest.mark.parametrize("hits, n", [(0, 30), (1, 30), (15, 30), (29, 30), (30, 30), (7, 200)])
def test_a_share_of_independent_rows_has_wilsons_interval(hits, n):
    x, wilson = (np.arange(n) < hits) * 1.0, stats.binomtest(hits, n).proportion_ci(method="wilson")
    for units in (Units(n), Units(n, np.arange(n))):
        e = share_interval(weighted_mean(x), units)
        assert (e.value, e.low, e.high) == pytest.approx((hits / n, wilson.low, wilson.high))


def test_rows_that_are_copies_are_worth_one():
    "Four copies of each of fifty rows say as much as the fifty; fewer degrees of freedom make it a little less."
    x = (np.arange(50) < 10) * 1.0
    once = share_interval(weighted_mean(x), Units(50))
    copies = share_interval(weighted_mean(np.repeat(x, 4)), Units(50, np.repeat(np.arange(50), 4)))
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high), abs=0.01)
    assert copies.high - copies.low > once.high - once.low
    all_hit = share_interval(weighted_mean(np.ones(200)), Units(50, np.repeat(np.arange(50), 4)))
    assert all_hit.low == pytest.approx(stats.binomtest(50, 50).proportion_ci(method="wilson").low)


def test_a_share_of_some_rows_rests_on_them():
    x, of = (np.arange(100) < 5) * 1.0, (np.arange(100) < 20) * 1.0
    wilson = stats.binomtest(5, 20).proportion_ci(method="wilson")
    e = share_interval(weighted_mean(x, of=of), Units(100))
    assert (e.low, e.high) == pytest.approx((wilson.low, wilson.high))


@pytest.mark.parametrize("n_units", [0, 2])
def test_too_few_units_to_say(n_units):
    x = np.arange(10.0)
    assert jackknife_estimate(weighted_mean(x), Units(10), 10, n_units) == Estimate(4.5)
    assert share_interval(weighted_mean(x > 4, of=np.arange(10) < n_units), Units(10)).low is None


def test_undefined_without_one_unit_is_no_interval():
    assert jackknife_interval(0.5, np.array([0.4, np.nan, 0.6]), 3) == Estimate(0.5)
    assert jackknife_interval(np.nan, np.array([0.4, 0.5, 0.6]), 3) == Estimate(None)


def test_of_unequal_entities_the_limit_is_their_number():
    x = np.random.default_rng(0).normal(size=40)
    x = np.where(np.abs(x - x.mean()) > 1, np.sign(x), x)
    without = weighted_mean(x).without(Units(40))
    rows, few = (jackknife_interval(x.mean(), without, 4, entities=e) for e in (False, True))
    half = stats.t.ppf(0.975, 3) * stats.sem(x)
    assert few.high - few.value == pytest.approx(half) and rows.high < few.high


@pytest.mark.parametrize("per", [4, 10, 30])
def test_intervals_of_repeated_entities_cover(per):
    "The mean of 40 entities with `per` rows each: rows taken one by one pretend to know what they do not."
    inside, who = {"rows": 0, "entities": 0}, np.arange(40 * per) // per
    for seed in range(1000):
        rng = np.random.default_rng([seed, per])
        x = np.repeat(rng.normal(0, 1, 40), per) + rng.normal(0, 1, 40 * per)
        for name, units in (("rows", Units(40 * per)), ("entities", Units(40, who))):
            e = jackknife_estimate(weighted_mean(x), units, 40 * per)
            inside[name] += e.low <= 0 <= e.high
    assert 930 <= inside["entities"] <= 970 and inside["rows"] < 800, inside
