"Bootstrap draws, intervals, and what is undefined."
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.stats.bootstrap import (
    Estimate,
    Resampling,
    bootstrap_estimate,
    bootstrap_replicates,
    bootstrap_weights,
    percentile_interval,
    weighted_mean,
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


def test_estimate_is_the_interval_of_the_replicates():
    x, resampling = np.random.default_rng(0).normal(size=200), Resampling(50, 0.8, 7)
    replicates = bootstrap_replicates(weighted_mean(x), 200, resampling)
    found = bootstrap_estimate(weighted_mean(x), 200, resampling)
    assert [found.low, found.high] == pytest.approx(np.quantile(replicates, [0.1, 0.9]))
    assert found.value == weighted_mean(x)(np.ones(200)) and found.n_undefined == 0
