"Shift of scores over cells: false alarms above and at the floor, what is found, and when a guard passes."
import math

import numpy as np
import pytest

from mlops_nb.stats.score_shift import ScoreShift, cell_ranks

ALARM = math.log(20)
EDGES = np.array([-1.28, -.84, -.52, -.25, 0, .25, .52, .84, 1.28]) # deciles of the normal distribution


def releases(shift, spread=1., floor=0., share=.3, n=100, looks=12, size=400, seed=0):
    rng, test, alarmed = np.random.default_rng(seed), ScoreShift([.1] * 10, floor), np.zeros(n, bool)
    for _ in range(looks):
        took = rng.random((n, size)) < share
        scores = rng.normal(size=(n, size)) * np.where(took, spread, 1) + shift * took
        test.update(np.searchsorted(EDGES, scores), took, share)
        alarmed |= test.log_e >= ALARM
    return alarmed.mean(), test


@pytest.mark.parametrize("shift, floor", [(0, 0), (.07, .02)])
def test_false_alarms_without_a_shift_and_at_the_floor(shift, floor):
    assert releases(shift, floor=floor)[0] < .08 # of 100 at 5 %


@pytest.mark.parametrize("shift, spread", [(.25, 1), (-.25, 1), (0, 1.4), (0, .7)])
def test_higher_lower_more_and_less_extreme_scores_are_found(shift, spread):
    assert releases(shift, spread, n=30)[0] > .9


def test_a_guard_passes_where_nothing_differs_and_not_where_something_does():
    rng, took = np.random.default_rng(0), np.random.default_rng(1).random(60_000) < .3
    same, wide = ScoreShift([.1] * 10, .02), ScoreShift([.1] * 10, .02)
    scores = rng.normal(size=60_000)
    same.update(np.searchsorted(EDGES, scores), took, .3)
    wide.update(np.searchsorted(EDGES, scores * np.where(took, 1.5, 1)), took, .3)
    assert same.log_e_below > ALARM > wide.log_e_below and wide.log_e > ALARM
    assert same.interval()[0] < 0 < same.interval()[1]


def test_ranks_of_cells_with_unequal_shares_and_a_floor_out_of_range():
    assert cell_ranks([2, 6, 2]) == pytest.approx([.1, .5, .9])
    with pytest.raises(ValueError, match="from 0 to below 0.5"): ScoreShift([1, 1], -.1)


def test_scores_that_are_all_in_one_cell_do_not_differ():
    test = ScoreShift([.5, .5], .05)
    test.update(np.zeros(4000, int), np.random.default_rng(0).random(4000) < .5, .5)
    assert test.log_e < 0 and test.log_e_below > ALARM
