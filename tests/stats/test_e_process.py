"What all tests of the live judge share: averages of e-values, the state, and the ends of confidence sequences."
import json
import math

import msgspec
import numpy as np
import pytest

from mlops_nb.stats.auc_difference import AucDifference
from mlops_nb.stats.betting_mean import BettingMean
from mlops_nb.stats.e_process import EProcess, bisect, log_average, scalar_or_array
from mlops_nb.stats.rate_ratio import RateRatioTest
from mlops_nb.stats.safe_two_by_two import SafeTwoByTwo
from mlops_nb.stats.share_test import ShareTest
from mlops_nb.stats.treatment_effect import AsymptoticEffect, BettingEffect

SHARES = {"champion": .9, "challenger": .1}
LOOKS = { # an empty test, and how it is given `n` units of one look
    "rate ratio": (RateRatioTest, lambda t, rng, n: t.update(np.int64(n // 20), n // 9, .1)),
    "safe 2x2": (SafeTwoByTwo, lambda t, rng, n: t.update(n // 20, n // 10, n // 9, n - n // 10)),
    "mean": (BettingMean, lambda t, rng, n: t.update(rng.uniform(-1, 1, n))),
    "shares": (ShareTest, lambda t, rng, n: t.update({"champion": n - n // 8, "challenger": n // 8}, SHARES)),
    "effect": (AsymptoticEffect, lambda t, rng, n: t.update(rng.normal(size=n), rng.random(n) < .4, .4)),
    "bounded effect": (BettingEffect, lambda t, rng, n: t.update(rng.random(n), rng.random(n) < .4, .4)),
    "auc": (AucDifference, lambda t, rng, n: t.update(rng.random(n) < .3, rng.random(n), rng.random(n) < .5)),
}


@pytest.mark.parametrize("name", LOOKS)
def test_the_state_is_json_and_continues_where_it_was(name):
    "Kept after the second look and read again, the test ends like one that was never interrupted."
    make, look = LOOKS[name]
    whole, kept = make(), make()
    for i in range(4):
        look(whole, np.random.default_rng(i), 500)
        look(kept, np.random.default_rng(i), 500)
        if i == 1: kept = type(kept).from_state(json.loads(json.dumps(kept.to_state())))
    assert kept.log_e == whole.log_e and type(kept.log_e) is float and math.isfinite(whole.e_value)
    assert json.loads(json.dumps(kept.to_state())) == json.loads(json.dumps(whole.to_state()))
    assert type(kept).from_state(msgspec.json.decode(msgspec.json.encode(whole))) == kept
    if hasattr(whole, "log_e_below"): assert kept.log_e_below == whole.log_e_below
    if hasattr(whole, "interval"): assert kept.interval(.1) == whole.interval(.1)


@pytest.mark.parametrize("name", LOOKS)
def test_a_look_without_units_changes_nothing(name):
    make, look = LOOKS[name]
    test = make()
    look(test, np.random.default_rng(0), 0)
    assert test.log_e == pytest.approx(0, abs=1e-9)
    for i in range(3): look(test, np.random.default_rng(i), 400)
    before = test.log_e
    look(test, np.random.default_rng(9), 0)
    assert test.log_e == before


@pytest.mark.parametrize("name", LOOKS)
def test_the_state_of_another_test_is_refused(name):
    state = LOOKS[name][0]().to_state() | {"margin": "much", "shares": "all", "steps": "one"}
    with pytest.raises(msgspec.ValidationError): type(LOOKS[name][0]()).from_state(state)


def test_averages_of_large_small_and_no_evidence():
    half = np.array([.5, .5])
    assert log_average(np.array([2000., 0]), half) == pytest.approx(2000 - math.log(2))
    assert log_average(np.array([-2000., -2000.]), half) == pytest.approx(-2000)
    assert log_average(np.array([-np.inf, -np.inf]), half) == -np.inf
    assert log_average(np.array([np.inf, 0.]), half) == np.inf
    many = log_average(np.zeros((3, 4, 2)), half)
    assert many.shape == (3, 4) and type(log_average(np.zeros(2), half)) is float


def test_an_e_value_is_a_float_however_large():
    class Sure(EProcess):
        log_e = 5000.
    assert math.isfinite(Sure().e_value) and type(Sure().e_value) is float
    assert type(scalar_or_array(np.int64(3))) is int


def test_the_end_of_an_interval_is_on_the_safe_side():
    end = bisect(lambda x: 10 - x, 3, 0., 100.)
    assert 10 - end >= 3 and end == pytest.approx(7)
    assert bisect(lambda x: 10 - x, 3, 8., 100.) == 8 # nothing is rejected
