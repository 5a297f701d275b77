"The loss in AUC: pairs that are used once have the AUC as their mean; false alarms, power, what waits."
import math

import numpy as np
import pytest

from mlops_nb.stats.auc_difference import MAX_WAITING, AucDifference, WaitingRoom, concordance
from mlops_nb.stats.roc_auc import roc_auc

ALARM = math.log(20)


def rows(rng, n, noise=0., rate=.2):
    y = rng.random(n) < rate
    good = rng.normal(size=n) + 1.2 * y
    return y, good, good + noise * rng.normal(size=n)


def test_the_mean_of_the_pairs_is_the_area():
    rng, room, areas = np.random.default_rng(0), WaitingRoom(), []
    y, scores, _ = rows(rng, 40_000)
    scores = scores.round(1) # ties
    for event, score in zip(y, scores):
        met = room.meet(bool(event), [score])
        if met: areas.append(concordance(event, [score], met)[0])
    assert np.mean(areas) == pytest.approx(roc_auc(y * 1, scores)(np.ones(len(y))), abs=.01)


@pytest.mark.parametrize("shadow", [True, False])
def test_false_alarms_and_coverage(shadow):
    alarmed = outside = 0
    for seed in range(40):
        rng, test, wrong = np.random.default_rng(seed), AucDifference(), [False, False]
        for _ in range(6):
            y, good, _ = rows(rng, 200)
            other = good + .3 * rng.normal(size=200)
            first, second = rng.permuted(np.stack([good + .3 * rng.normal(size=200), other]), axis=0)
            if shadow: test.update_paired(y, first, second)
            else: test.update(y, first, rng.random(200) < .2)
            low, high = test.interval()
            wrong = [wrong[0] or test.log_e >= ALARM, wrong[1] or not low <= 0 <= high]
        alarmed, outside = alarmed + wrong[0], outside + wrong[1]
    assert alarmed <= 5 and outside <= 5 # of 40 at 5 %: more comes once in a hundred times


def test_a_worse_model_is_found_in_shadow():
    found = 0
    for seed in range(10):
        test = AucDifference(.01)
        test.update_paired(*rows(np.random.default_rng(seed), 6000, noise=1.))
        found += test.log_e >= ALARM
        assert test.log_e_below < ALARM
    assert found >= 9


def test_a_much_worse_model_is_found_on_its_own_rows():
    rng = np.random.default_rng(0)
    y, good, bad = rows(rng, 20_000, noise=3.)
    challenger = rng.random(20_000) < .3
    test, swapped = AucDifference(), AucDifference()
    test.update(y, np.where(challenger, bad, good), challenger)
    swapped.update(y, np.where(challenger, bad, good), ~challenger)
    assert test.log_e > ALARM and test.loss > .1 and swapped.log_e < 0 and swapped.loss == pytest.approx(-test.loss)


def test_labels_of_one_class_wait_and_are_no_more_than_a_thousand():
    test = AucDifference()
    test.update(np.zeros(3000), np.arange(3000.), np.zeros(3000, bool))
    assert test.log_e == pytest.approx(0, abs=1e-9) and len(test.champion.values) == MAX_WAITING
    assert test.champion.values[-1] == [2999.]
    test.update([1], [2500.], [False])
    assert test.champion.values == [] and test.areas.values == [[.5005]]


def test_identical_scores_lose_nothing():
    rng, test = np.random.default_rng(0), AucDifference(.02)
    y, good, _ = rows(rng, 8000)
    test.update_paired(y, good, good)
    assert test.loss == 0 and test.log_e_below > ALARM
