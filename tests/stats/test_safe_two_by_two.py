"The safe 2x2 test: its bets are fair for all pairs of rates of the null hypothesis; false alarms and power."
import math

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.stats.safe_two_by_two import SafeTwoByTwo, TwoByTwoBlocks, nearest_null_rate

ALARM = math.log(20)
RATE = st.floats(.01, .95)


@settings(max_examples=200, deadline=None)
@given(champion=RATE, challenger=RATE, units=st.tuples(st.integers(1, 50), st.integers(1, 50)),
       ratio=st.sampled_from([.5, .9, 1., 1.1, 2.]), a=st.floats(0, 1), b=st.floats(0, 1))
def test_no_pair_of_rates_of_the_null_hypothesis_makes_the_bet_favourable(champion, challenger, units, ratio, a, b):
    "The mean of the likelihood ratio of a block, for a rival above the edge and for one below."
    t = nearest_null_rate(champion, challenger, *units, ratio)
    above = challenger > ratio * champion
    if ratio * t >= 1 or (b > ratio * a if above else b < ratio * a): return
    one = lambda true, bet, null: true * bet / null + (1 - true) * (1 - bet) / (1 - null)
    assert units[0] * math.log(one(a, champion, t)) + units[1] * math.log(one(b, challenger, ratio * t)) <= 1e-7


def test_the_nearest_pair_of_equal_rates_is_the_common_rate():
    assert nearest_null_rate(.2, .6, 30, 10, 1.) == pytest.approx(.3)
    assert nearest_null_rate(.2, .4, 30, 10, 2.) == pytest.approx(.2) # is on the edge itself
    assert nearest_null_rate(0., 0., 30, 10, 1.) == 0


def releases(challenger, champion, margin=0., share=.1, looks=150, n=300, seed=0):
    rng, test, first = np.random.default_rng(seed), SafeTwoByTwo(margin), np.full(n, np.inf)
    for look in range(looks):
        mine = rng.binomial(100, share, n)
        day = 1 + .5 * math.sin(look / 5)
        test.update(rng.binomial(mine, challenger * day), mine, rng.binomial(100 - mine, champion * day), 100 - mine)
        first = np.where(test.log_e >= ALARM, np.minimum(first, look + 1), first)
    return np.isfinite(first).mean(), np.median(first), test


@pytest.mark.parametrize("challenger, champion, margin", [(.01, .01, 0), (.4, .4, 0), (.15, .1, .5), (.005, .01, 0)])
def test_false_alarms_over_all_looks_stay_below_the_stated_level(challenger, champion, margin):
    assert releases(challenger, champion, margin)[0] < .05


def test_it_catches_rare_and_frequent_events():
    rare, frequent = releases(.03, .01, n=300), releases(.6, .5, n=300, looks=100)
    assert rare[0] > .98 and rare[1] <= 40 and frequent[0] > .95 and frequent[1] <= 40


def test_the_other_direction_lets_a_guard_pass():
    alike, worse = releases(.1, .1, .5, .5, n=200)[2], releases(.15, .1, .5, .5, n=200)[2]
    assert (alike.log_e_below >= ALARM).mean() > .95 > .05 > (worse.log_e_below >= ALARM).mean()


def test_blocks_without_one_of_the_two_and_constant_outcomes_prove_nothing():
    test = SafeTwoByTwo()
    test.update(3, 10, 0, 0)
    test.update(0, 0, 9, 90)
    assert test.log_e == pytest.approx(0, abs=1e-12)
    for events in (0, 1):
        constant = SafeTwoByTwo()
        for _ in range(50): constant.update(10 * events, 10, 90 * events, 90)
        assert constant.log_e < 1 and constant.log_e_below < 1


def units(rng, n, share, challenger, champion):
    mine = rng.random(n) < share
    return rng.random(n) < np.where(mine, challenger, champion), mine, np.full(n, share)


def test_blocks_do_not_depend_on_the_looks():
    rng, rows = np.random.default_rng(0), []
    for share in (.02, .5): rows.append(units(rng, 4000, share, .3, .2))
    events, mine, share = (np.concatenate(x) for x in zip(*rows))
    once, often, kept = (TwoByTwoBlocks([SafeTwoByTwo(.1), SafeTwoByTwo(-.1)]) for _ in range(3))
    once.update(events, mine, share)
    cuts = np.sort(rng.choice(8000, 300, replace=False))
    for part in zip(*(np.split(x, cuts) for x in (events, mine, share))):
        often.update(*part)
        kept.update(*part)
        kept = msgspec.json.decode(msgspec.json.encode(kept), type=TwoByTwoBlocks)
    assert once == often == kept
    assert once.counts == ((events & mine).sum(), mine.sum(), (events & ~mine).sum(), (~mine).sum())
    assert sum(b[1] + b[3] for b in once.open.values()) <= 2 * 8000 / 50


def test_shares_and_rates_that_change_together_raise_no_alarm():
    "By night the rate is four times as high, and more of the requests are the challenger's."
    alarms = 0
    for seed in range(30):
        rng, blocks, worst = np.random.default_rng(seed), TwoByTwoBlocks([SafeTwoByTwo()]), 0
        for share, rate in [(.05, .1), (.5, .4)] * 5:
            blocks.update(*units(rng, 400, share, rate, rate))
            worst = max(worst, blocks.tests[0].log_e)
        alarms += worst >= ALARM
    assert alarms <= 3


def test_a_variant_that_nobody_asks_proves_nothing():
    blocks = TwoByTwoBlocks([SafeTwoByTwo()])
    blocks.update(np.ones(500, bool), np.zeros(500, bool), .01)
    assert blocks.counts == (0, 0, 500, 500) and blocks.tests[0].log_e == pytest.approx(0)
