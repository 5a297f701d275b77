"Latency quantiles: thresholds from the warm-up, false alarms when everything is slow, and what is found."
import math

import numpy as np
import pytest

from mlops_nb.stats.quantile_exceedance import QuantileExceedance

ALARM = math.log(20)


def release(seed, slower=1., tail=0., looks=80, margin=0.):
    rng, test, first = np.random.default_rng(seed), QuantileExceedance(margin), math.inf
    for look in range(looks):
        mine = rng.random(250) < .1
        x = rng.lognormal(0, .5, 250) * (1.5 if look % 10 > 6 else 1) # slow hours, for both
        x = np.where(mine, slower * x, x)
        x = np.where(mine & (rng.random(250) < tail), 5 * x, x)
        test.update(x[~mine], x[mine], .1)
        if test.log_e >= ALARM: first = min(first, look + 1)
    return first, test


def test_slow_hours_accuse_nobody():
    assert sum(release(seed)[0] < math.inf for seed in range(20)) <= 3


@pytest.mark.parametrize("slower, tail", [(1.2, 0.), (1., .06)])
def test_slower_requests_and_a_slower_tail_are_found(slower, tail):
    assert sum(release(seed, slower, tail)[0] < math.inf for seed in range(10)) >= 9


def test_the_warm_up_fixes_the_thresholds_and_counts_for_nothing_else():
    test = QuantileExceedance(warm_up=100)
    test.update(np.arange(60.), np.full(50, 1e9), .5)
    assert (test.thresholds, len(test.sample), test.log_e) == ([], 60, 0)
    test.update(np.arange(60., 200), np.full(50, 1e9), .5)
    assert test.thresholds == pytest.approx(np.quantile(np.arange(100.), [.5, .9, .99])) and test.sample == []
    assert test.tests[0].champion_units == 0
    test.update([98.5, 200.], [0., 50.], .5)
    assert (test.tests[2].champion_events, test.tests[2].challenger_events, test.ratios[0].challenger) == (2, 0, [1])


def test_a_guard_passes_only_when_every_quantile_does():
    _, fast = release(0, .9, looks=300, margin=.5)
    _, tail = release(0, .9, .03, looks=300, margin=.5)
    assert fast.log_e_below > ALARM > tail.log_e_below
    low, high = fast.interval(.05, .5)
    assert 0 < low < high < 1 < tail.interval(.05, .99)[0]
