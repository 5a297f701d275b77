"False alarms over a life, delay after a late change, and the upper bound of the test rows."
import math

import numpy as np
import pytest

from mlops_nb.stats.mean_change import MeanChangeTest, mean_upper_bound


def life(seed, change=None, days=150, n=30):
    rng, test = np.random.default_rng(seed), MeanChangeTest(margin=.1)
    for day in range(days):
        test.update((rng.random(n) < (.25 if change is not None and day >= change else .1)) * 1.)
        if test.log_e >= math.log(20): return day
    return None


def test_false_alarms_over_a_life_stay_below_the_level():
    assert np.mean([life(seed) is not None for seed in range(30)]) <= .05


@pytest.mark.parametrize("change", [0, 100])
def test_a_change_is_found_whenever_it_comes(change):
    found = [life(seed, change, change + 25) for seed in range(10)]
    assert sum(f is not None and f >= change for f in found) >= 9, found # a false alarm may come before


def test_the_evidence_is_the_mixture_over_the_days():
    rng, test = np.random.default_rng(0), MeanChangeTest(margin=.3)
    batches = [rng.random(4) for _ in range(6)]
    for b in batches: test.update(b)
    stakes, t = .95 * 2.**(-np.arange(20) / 2), len(batches)
    grown = [[np.prod([1 + s * (x - .3) / .3 for b in batches[j:] for x in b]) for s in stakes] for j in range(t)]
    total = sum(np.mean(g) / ((j + 1) * (j + 2)) for j, g in enumerate(grown)) + 1 / (t + 1)
    assert np.isclose(test.e_value, total)


def test_the_upper_bound_is_one_without_rows_and_falls_with_them():
    assert mean_upper_bound(.2, 0) == 1
    bounds = [mean_upper_bound(.2, n) for n in (10, 100, 1000)]
    assert bounds == sorted(bounds, reverse=True) and bounds[-1] > .2
    assert mean_upper_bound(0., 100) == pytest.approx(1 - .05**.01, abs=1e-6)
