"Do the units of the variants have the plan's shares? False alarms under steps, losses that are found, closed form."
import math

import numpy as np
import pytest
from scipy.stats import dirichlet_multinomial, multinomial

from mlops_nb.stats.share_test import ShareTest, log_share_mismatch

VOID = math.log(1000)


def releases(steps, logged=1., per_look=500, n=2000, level=math.log(20), seed=0):
    "Releases side by side over steps of (challenger, third); which of them ever reached the level."
    rng, test, void = np.random.default_rng(seed), ShareTest(), np.zeros(n, bool)
    for b, c in steps:
        dealt = rng.multinomial(per_look, [b, c, 1 - b - c], n)
        test.update({"b": rng.binomial(dealt[:, 0], logged), "c": dealt[:, 1], "a": dealt[:, 2]},
                    {"a": 1 - b - c, "b": b, "c": c})
        void |= test.log_e >= level
    return void.mean()


def test_false_alarms_over_changing_shares():
    steps = [(.01, 0.)] * 10 + [(.05, .01)] * 10 + [(.25, .01)] * 10
    assert releases(steps) < .05 and releases(steps, level=VOID) < .004


@pytest.mark.parametrize("logged", [0., .8])
def test_units_that_are_not_logged_are_found(logged):
    assert releases([(.05, .01)] * 20 + [(.25, .01)] * 30, logged, n=300, level=VOID) > .95


def test_it_is_the_ratio_of_two_distributions():
    units, shares = np.array([830, 130, 40]), np.array([.85, .1, .05])
    expected = dirichlet_multinomial.logpmf(units, 100 * shares, 1000) - multinomial.logpmf(units, 1000, shares)
    assert log_share_mismatch(units, shares) == pytest.approx(expected)


def test_a_unit_without_a_share_is_proof_and_weights_do_as_well_as_shares():
    test, weights = ShareTest(), ShareTest()
    test.update({"a": 9, "b": 1}, {"a": .9, "b": .1})
    weights.update({"b": 1, "a": 9}, {"b": 10, "a": 90})
    assert weights.log_e == test.log_e
    test.update({"c": 0}, {"a": 1.})
    assert test.log_e == pytest.approx(weights.log_e)
    test.update({"c": 1}, {"a": 1.})
    assert test.log_e == math.inf


def test_steps_multiply_and_a_step_that_comes_again_goes_on():
    halves, whole = ShareTest(), ShareTest()
    shares = {"a": .5, "b": .5}
    for units in ({"a": 40, "b": 60}, {"a": 35, "b": 65}):
        halves.update(units, shares)
        halves.update({"a": 99, "b": 1}, {"a": .99, "b": .01})
    whole.update({"a": 75, "b": 125}, shares)
    whole.update({"a": 198, "b": 2}, {"a": .99, "b": .01})
    assert len(halves.steps) == 2 and halves.log_e == pytest.approx(whole.log_e)
