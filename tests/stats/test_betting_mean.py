"Means of bounded values by betting: false alarms, coverage at all looks, power, and how wide beside ville."
import math

import numpy as np
import pytest

from mlops_nb.stats.betting_mean import BettingMean

ALARM = math.log(20)
DRAWS = { # name: (draw, mean, bounds)
    "differences of scores": (lambda rng, size: .1 * np.clip(rng.normal(size=size), -5, 5), 0., (-1, 1)),
    "rare losses": (lambda rng, size: (rng.random(size) < .02) * 1., .02, (0, 1)),
    "skewed": (lambda rng, size: rng.beta(.3, 6, size), .3 / 6.3, (0, 1)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_false_alarms_and_coverage_over_all_looks(name):
    draw, mean, (low, high) = DRAWS[name]
    rng, test = np.random.default_rng(0), BettingMean(mean, low, high)
    wrong = np.zeros((3, 500), bool)
    for size in [1, 3, 10, 40] + [100] * 15:
        test.update(draw(rng, (500, size)))
        ends = test.interval(.1)
        wrong |= [test.log_e >= ALARM, test.log_e_below >= ALARM, (ends[0] > mean) | (ends[1] < mean)]
    assert wrong[0].mean() < .05 and wrong[1].mean() < .05 and wrong[2].mean() < .1


def test_power_of_a_tenth_of_a_standard_deviation():
    rng, test, first = np.random.default_rng(1), BettingMean(), np.full(300, np.inf)
    for look in range(1, 31):
        test.update((.01 + .1 * rng.normal(size=(300, 100))).clip(-1, 1))
        first = np.where(test.log_e >= ALARM, np.minimum(first, look), first)
    assert np.isfinite(first).mean() > .95 and np.median(first) <= 15


def test_batches_do_not_matter():
    rng = np.random.default_rng(2)
    x = rng.uniform(-.5, .6, 1000)
    one, many = BettingMean(.02), BettingMean(.02)
    one.update(x)
    for part in np.split(x, [1, 7, 300, 300, 900]): many.update(part)
    assert many.log_e == pytest.approx(one.log_e) and many.interval() == pytest.approx(one.interval())
    assert many.mean == pytest.approx(x.mean())


def test_its_interval_beside_those_of_ville():
    "A fifth wider than their empirical Bernstein interval, which is tuned to one level; and not too good to be true."
    ville = pytest.importorskip("ville", reason="ville is not installed: it is in the extra dev")
    x = np.random.default_rng(3).beta(2, 6, 2000)
    test = BettingMean(.25, 0, 1)
    test.update(x)
    widths = [np.diff(ends).item() for ends in (
        test.interval(), ville.EmpiricalBernsteinCS().fit(x).interval(), ville.BettingCS(grid=500).fit(x).interval())]
    assert .9 * widths[2] < widths[0] < 1.3 * widths[1]


def test_constant_values():
    same = BettingMean(.01)
    same.update(np.zeros(3000))
    assert same.log_e_below > ALARM and same.log_e < 0
    low, high = same.interval()
    assert low <= 0 <= high < .02
    edge = BettingMean(.5, 0, 1)
    edge.update(np.ones(20))
    assert edge.log_e > ALARM and edge.interval()[1] == 1


def test_values_and_margins_out_of_bounds_are_errors():
    test = BettingMean(.1, 0, 1)
    for bad in ([.5, 1.01], [-.01], [math.nan]):
        with pytest.raises(ValueError, match="values must lie between 0 and 1"): test.update(bad)
    assert test.n == 0 and math.isnan(test.mean)
    for margin in (0, 1, -3):
        with pytest.raises(ValueError, match="must lie between 0 and 1"): BettingMean(margin, 0, 1)
