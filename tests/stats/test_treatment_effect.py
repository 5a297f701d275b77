"The effect of a variant under recorded propensities: false alarms, coverage, power, shares that change."
import math

import numpy as np
import pytest

from mlops_nb.stats.treatment_effect import AsymptoticEffect, BettingEffect

ALARM = math.log(20)
STEPS = np.repeat([.02, .1, .5], 8)


def releases(test, draw, effect=0., shares=STEPS, n=200, size=250, seed=0):
    "Outcomes that drift from look to look; which releases alarmed, and which interval ever missed the effect."
    rng, alarmed, missed = np.random.default_rng(seed), np.zeros(n, bool), np.zeros(n, bool)
    for look, share in enumerate(shares):
        took = rng.random((n, size)) < share
        test.update(draw(rng, took, look), took, share)
        low, high = test.interval(.1)
        alarmed |= test.log_e >= ALARM
        missed |= (low > effect) | (high < effect)
    return alarmed.mean(), missed.mean()


def normal(effect): return lambda rng, took, look: rng.normal(look / 4, 1, took.shape) + effect * took
def lognormal(rng, took, look): return rng.lognormal(0, 1, took.shape) + look / 4
def bounded(effect): return lambda rng, took, look: ((rng.random(took.shape) < .1 + .002 * look + effect * took)
                                                     * rng.random(took.shape))


def rare(rng, took, look): return (rng.random(took.shape) < .005) * 1.


@pytest.mark.parametrize("draw", [normal(0), lognormal, rare])
def test_asymptotic_false_alarms_and_coverage(draw):
    alarmed, missed = releases(AsymptoticEffect(), draw)
    assert alarmed < .05 and missed < .1


def test_a_challenger_that_has_not_sold_yet_is_not_said_to_sell_less():
    "One unit in two hundred buys: the variance of few outcomes of the challenger alone would be far too small."
    test = AsymptoticEffect()
    _, missed = releases(test, rare, shares=(.02,) * 40)
    assert missed < .1


def test_betting_false_alarms_and_coverage():
    alarmed, missed = releases(BettingEffect(), bounded(0))
    assert alarmed < .05 and missed < .1
    assert releases(BettingEffect(.03), bounded(.06))[0] < .05 # half of it is lost: an effect of 0.03


def test_an_effect_is_found_and_estimated():
    test = AsymptoticEffect()
    alarmed, missed = releases(test, normal(.3), .3)
    assert alarmed > .95 and missed < .1 and abs(np.mean(test.effect) - .3) < .02
    test = BettingEffect()
    assert releases(test, bounded(.2), .1)[0] > .95 and abs(np.mean(test.effect) - .1) < .01


def test_a_plain_difference_of_means_would_be_wrong_here():
    "Outcomes rise while the share does: without the propensities the challenger seems better."
    rng, test, rows = np.random.default_rng(0), AsymptoticEffect(), []
    for look, share in enumerate(STEPS):
        took = rng.random(4000) < share
        y = rng.normal(look / 4, 1, 4000)
        test.update(y, took, share)
        rows.append((y, took))
    y, took = map(np.concatenate, zip(*rows))
    assert y[took].mean() - y[~took].mean() > 1 and abs(test.effect) < .05


def test_one_update_may_hold_several_shares_and_units_by_rule_do_not_count():
    rng = np.random.default_rng(1)
    share = rng.choice([0., .1, .5, 1.], 4000)
    took, y = rng.random(4000) < share, rng.random(4000)
    whole, random_only = BettingEffect(), BettingEffect()
    whole.update(y, took, share)
    random_only.update(*(x[(share > 0) & (share < 1)] for x in (y, took, share)))
    assert whole.to_state() == random_only.to_state()


def test_nothing_is_said_of_few_units_or_constant_outcomes():
    few, constant = AsymptoticEffect(), AsymptoticEffect()
    few.update(np.r_[np.zeros(900), np.ones(99)], np.arange(999) >= 900, .1) # 99 units of the challenger
    constant.update(np.full(5000, 3.), np.arange(5000) % 2 == 0, .5)
    for test in (few, constant): assert (test.log_e, test.interval()) == (0, (-math.inf, math.inf))
    bounded = BettingEffect(.05)
    bounded.update(np.full(5000, .3), np.random.default_rng(0).random(5000) < .5, .5)
    assert bounded.log_e_below > ALARM > bounded.log_e


def test_outcomes_out_of_bounds_are_an_error():
    with pytest.raises(ValueError, match="between 0 and 1; found 0 to 2"):
        BettingEffect().update([0, 2], [True, False], .5)


def test_it_agrees_with_ville_at_one_share():
    ville = pytest.importorskip("ville", reason="ville is not installed: it is in the extra dev")
    rng = np.random.default_rng(2)
    took = rng.random(20_000) < .5
    y = rng.normal(size=20_000) + .1 * took
    test = AsymptoticEffect()
    test.update(y, took, .5)
    theirs = ville.AsymptoticABTest(t_opt=5000).fit(y, took)
    low, high = theirs.interval()
    assert test.effect == pytest.approx(theirs.estimate_[-1], abs=1e-3)
    assert high - low == pytest.approx(np.diff(test.interval()).item(), rel=.05)


def test_units_that_stand_for_several_change_the_estimate_and_not_the_level():
    rng = np.random.default_rng(5)
    took, west = rng.random((2, 4000)) < .5
    y = np.clip(rng.normal(.3, .1, 4000) + .1 * (took & west), 0, 1) # only in the west, of which a quarter is seen
    seen = ~west | (rng.random(4000) < .25)
    times = np.where(west, 4., 1.)
    for of in (AsymptoticEffect, BettingEffect):
        once, several, scaled = of(), of(), of()
        once.update(y[seen], took[seen], .5)
        several.update(y[seen], took[seen], .5, times[seen])
        scaled.update(y[seen], took[seen], .5, np.full(seen.sum(), 3.))
        assert once.effect < .03 < .045 < several.effect < .055
        assert scaled.effect == pytest.approx(once.effect)
        assert scaled.interval(.1) == pytest.approx(once.interval(.1))
