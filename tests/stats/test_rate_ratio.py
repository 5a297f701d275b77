"The ratio of two rates of events: false alarms under shares and rates that change, power, intervals, published forms."
import math

import numpy as np
import pytest
from scipy.special import betainc, betaln

from mlops_nb.stats.e_process import log_average
from mlops_nb.stats.rate_ratio import RateRatioTest, log_share_bets

ALARM = math.log(20)


def releases(ratio, margin=0., shares=(.1,) * 200, rate=.01, per_look=100, n=600, seed=0):
    "Releases side by side: which ever alarmed, at which look, and the test at the end."
    rng, test, first = np.random.default_rng(seed), RateRatioTest(margin), np.full(n, np.inf)
    for look, share in enumerate(shares):
        now = rate * (1 + .8 * math.sin(look / 5)) # day and night
        mine = rng.binomial(per_look, share, n)
        test.update(rng.binomial(mine, now * ratio), rng.binomial(per_look - mine, now), share)
        first = np.where(test.log_e >= ALARM, np.minimum(first, look + 1), first)
    return np.isfinite(first), first, test


@pytest.mark.parametrize("ratio, margin, shares", [
    (1, 0, (.1,) * 200), (.5, 0, (.1,) * 200), (1.5, .5, (.1,) * 200), (1, 0, (.5,) * 200),
    (1, 0, tuple(np.repeat([.01, .05, .25, .5], 50)))])
def test_false_alarms_over_all_looks_stay_below_the_stated_level(ratio, margin, shares):
    alarmed, _, _ = releases(ratio, margin, shares)
    assert alarmed.mean() < .05


def test_three_times_the_failures_are_caught_in_a_few_thousand_requests():
    alarmed, first, _ = releases(3)
    assert alarmed.mean() > .99 and np.median(first) <= 40 # looks of 100


def test_a_margin_tolerates_what_is_below_it_and_delays_what_is_above():
    (_, _, none), (alarmed, first, _) = releases(1.2, .5, n=100), releases(3, .5, n=300)
    assert (none.log_e < ALARM).all()
    assert alarmed.mean() > .9 and np.median(first) > np.median(releases(3, n=300)[1])


def test_steps_share_one_test_and_the_interval_holds_the_ratio_at_all_looks():
    rng, test, outside = np.random.default_rng(1), RateRatioTest(), np.zeros(300, bool)
    for share in np.repeat([.01, .05, .25, .5], 4):
        mine = rng.binomial(5000, share, 300)
        test.update(rng.binomial(mine, .03), rng.binomial(5000 - mine, .015), share)
        low, high = test.interval(.1)
        outside |= (low > 2) | (high < 2)
    assert test.shares == [.01, .05, .25, .5]
    assert outside.mean() < .1 and np.median(high / low) < 2 and (low > 1).mean() > .95


def test_the_guard_passes_exactly_when_the_upper_end_is_below_its_margin():
    counts = [(3, 40, .1), (9, 120, .1), (18, 80, .25), (60, 70, .5)]
    for margin in (.1, .5, 1, 3):
        test = RateRatioTest(margin)
        for count in counts:
            test.update(*count)
            assert (test.log_e_below >= ALARM) == (test.interval(2 / 20)[1] < 1 + margin)
            assert (test.log_e >= ALARM) == (test.interval(2 / 20)[0] > 1 + margin)


@pytest.mark.parametrize("mine, other, share, a, b", [(12, 28, .1, 2, 18), (0, 50, .1, 1, 9), (40, 10, .5, 5, 5)])
def test_with_a_beta_prior_it_is_the_published_closed_form(mine, other, share, a, b):
    theta = np.linspace(share, 1, 100_001)[1:-1]
    gaps = np.log(theta / (1 - theta)) - math.log(share / (1 - share))
    prior = theta**(a - 1) * (1 - theta)**(b - 1)
    on_grid = log_average(log_share_bets(0., gaps, [(mine, other, share)]), prior / prior.sum())
    cut = math.log1p(-betainc(a + mine, b + other, share)) - math.log1p(-betainc(a, b, share))
    closed = betaln(a + mine, b + other) - betaln(a, b) + cut - mine * math.log(share) - other * math.log1p(-share)
    assert on_grid == pytest.approx(closed, abs=2e-3)


def test_it_agrees_with_ville_on_a_fixed_share():
    "ville's two-sided mixture over all shares, and ours over larger and smaller ones: alike to a small factor."
    ville = pytest.importorskip("ville", reason="ville is not installed: it is in the extra dev")
    rng = np.random.default_rng(0)
    for theta in (.1, .25, .4):
        x = (rng.random(400) < theta) * 1.
        theirs = ville.BernoulliTest(.1, prior=(1, 9)).fit(x).log_e_values_[-1]
        test = RateRatioTest()
        test.update(x.sum(), len(x) - x.sum(), .1)
        assert max(test.log_e, test.log_e_below) - math.log(2) == pytest.approx(theirs, abs=2)


def test_one_arm_only_no_events_and_many_of_them():
    test = RateRatioTest()
    test.update(5, 0, 1.)
    test.update(0, 5, 0.)
    assert test.shares == [] and test.interval() == (0., math.inf)
    test.update(1, 0, .5)
    assert test.interval()[1] == math.inf
    test.update(10**9, 10**9, .5)
    low, high = test.interval()
    assert .98 < low < 1 < high < 1.02
