"Bootstrap draws, intervals, and what is undefined."
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlops_nb.stats.bootstrap import (
    Estimate,
    Resampling,
    SumStatistic,
    Units,
    bootstrap_replicates,
    bootstrap_weights,
    exact_at_bound,
    interval_on_scale,
    percentile_interval,
    weighted_mean,
    wilson_interval,
)


def test_replicates_are_the_same_each_time_and_draw_n_rows():
    a, b = ([bootstrap_weights(100, i, seed=3) for i in range(5)] for _ in range(2))
    assert all((x == y).all() and x.sum() == 100 for x, y in zip(a, b, strict=True))
    assert len({x.tobytes() for x in [*a, bootstrap_weights(100, 0, seed=4)]}) == 6


def test_an_interval_needs_nine_replicates_of_ten():
    few, many = np.r_[np.full(89, 1.0), np.full(11, np.nan)], np.r_[np.full(90, 1.0), np.full(10, np.nan)]
    assert percentile_interval(1.0, few) == Estimate(1.0, None, None, 11)
    assert percentile_interval(1.0, many) == Estimate(1.0, 1.0, 1.0, 10)
    assert percentile_interval(math.nan, np.ones(10)).value is None


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_weights_are_repeated_rows(n, seed):
    x, w = np.random.default_rng(seed).normal(size=n), bootstrap_weights(n, 3, seed)
    assert weighted_mean(x)(w) == pytest.approx(np.repeat(x, w.astype(int)).mean())


def test_no_weight_is_undefined(): assert math.isnan(weighted_mean(np.ones(3))(np.zeros(3)))


@pytest.mark.parametrize("threads", [2, 5])
def test_threads_change_nothing(threads):
    x = np.random.default_rng(0).normal(size=500)
    one, several = (
        bootstrap_replicates(weighted_mean(x), 500, Resampling(30, seed=4, threads=t)) for t in (1, threads)
    )
    assert np.array_equal(one, several)


def test_several_figures_share_their_draws():
    x = np.random.default_rng(0).normal(size=100)
    both = bootstrap_replicates(lambda w: [weighted_mean(x)(w), weighted_mean(2 * x)(w)], 100, Resampling(20))
    assert both.shape == (20, 2) and both[:, 1] == pytest.approx(2 * both[:, 0])


def test_sums_by_unit_and_figures_without_each_unit():
    x, who = np.array([1.0, 2, 4, 8]), np.array([1, 0, 1, 2])
    assert Units(4).sums(x) is x and Units(3, who).sums(x).tolist() == [2, 5, 8]
    ratio = SumStatistic(lambda a, b: a / b, [x, np.array([1.0, 1, 2, 2])])
    assert ratio(np.array([1.0, 0, 2, 1])) == (1 + 8 + 8) / (1 + 4 + 2)
    assert ratio.without(Units(3, who)) == pytest.approx([13 / 5, 10 / 3, 7 / 4])
    assert np.isnan(weighted_mean(x, of=[0, 1, 0, 0]).without(Units(4))).tolist() == [False, True, False, False]


# --- intervals against independent references


@pytest.mark.parametrize("x, n", [(0, 10), (7, 200), (200, 200)])
def test_wilson_like_scipy(x, n):
    wilson = stats.binomtest(x, n).proportion_ci(method="wilson")
    assert wilson_interval(x / n, n, stats.norm.ppf(0.975)) == pytest.approx([wilson.low, wilson.high], abs=1e-12)


@pytest.mark.parametrize("hits", [0, 20])
def test_at_a_bound_the_interval_is_exact_and_not_of_width_0(hits):
    exact = stats.binomtest(hits, 20).proportion_ci(method="exact")
    assert [*exact_at_bound(hits / 20, 20)] == pytest.approx([exact.low, exact.high])


def test_skewness_is_taken_out_as_halls_cubic_has_it():
    "At each end, Hall's g(t) = t + a t²/3 + a² t³/27 + a/6 of the studentised distance gives t again."
    low, high = interval_on_scale(10, 2, 12, "skewed", skewness=0.7)
    t = stats.t.ppf(0.975, 12)
    def g(t, a=0.7): return t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
    assert [g((10 - low) / 2), g((10 - high) / 2)] == pytest.approx([t, -t])
    assert high - 10 > 10 - low, "the long tail is where the truth may be"


def test_a_root_mean_square_is_cut_where_its_square_is():
    low, high = interval_on_scale(3, 0.5, 20, "squared", skewness=0.4)
    assert [low**2, high**2] == pytest.approx(interval_on_scale(9, 2 * 3 * 0.5, 20, "skewed", skewness=0.4))
    low, high = interval_on_scale(0.2, 0.05, 9, "cube_root")
    assert np.cbrt([low, high]).sum() == pytest.approx(2 * np.cbrt(0.2)) and 0 < low < high


def test_scales_keep_their_bounds():
    low, high = interval_on_scale(0.02, 0.02, 29, "positive")
    assert 0 < low < 0.02 < high and low * high == pytest.approx(0.02**2)
    low, high = interval_on_scale(0.99, 0.02, 29, "unit")
    assert 0 < low < 0.99 < high < 1
    assert np.isnan(interval_on_scale(0.0, 0.0, 29, "positive")).all() # an error never seen is not known to be 0
    assert interval_on_scale(-3.0, 1, 29)[0] == pytest.approx(-3 - stats.t.ppf(0.975, 29))


@settings(deadline=None, max_examples=30)
@given(sizes=st.lists(st.integers(1, 5), min_size=1, max_size=12), seed=st.integers(0, 99))
def test_clusters_are_drawn_as_a_whole(sizes, seed):
    clusters = np.repeat(np.arange(len(sizes)), sizes)
    w = bootstrap_weights(len(clusters), 1, seed, clusters)
    each = [set(w[clusters == c]) for c in range(len(sizes))]
    assert all(len(e) == 1 for e in each) and sum(e.pop() for e in each) == len(sizes)
    alone = np.arange(len(sizes))
    assert (bootstrap_weights(len(sizes), 1, seed, alone) == bootstrap_weights(len(sizes), 1, seed)).all()


def test_intervals_of_repeated_entities_cover(per=10):
    "The mean of 40 entities with ten rows each: rows drawn one by one pretend to know what they do not."
    rng, inside = np.random.default_rng(per), {"rows": 0, "entities": 0}
    clusters = np.arange(40 * per) // per
    for seed in range(300):
        x = np.repeat(rng.normal(0, 1, 40), per) + rng.normal(0, 1, 40 * per)
        for name, drawn_together in (("rows", None), ("entities", clusters)):
            resampling = Resampling(100, seed=seed, clusters=drawn_together)
            replicates = bootstrap_replicates(weighted_mean(x), len(x), resampling)
            free = (len(x) if drawn_together is None else 40) - 1
            low, high = interval_on_scale(x.mean(), replicates.std(ddof=1), free)
            inside[name] += low <= 0 <= high
    assert inside["entities"] >= 273 > inside["rows"] # 285 of 300 are expected, and fewer than 273 once in 900
