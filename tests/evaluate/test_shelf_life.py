"How long a model keeps, from pairs of an older and a fresher model on the same rows."
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.core.typed_yaml import write_json
from mlops_nb.evaluate.shelf_life import AgedScore, propose_shelf_life, read_shelf_life


def scores(losses, better="higher", days=30.0):
    "Losses of each age: two pairs of each, a little apart."
    sign = 1 if better == "higher" else -1
    return [AgedScore(k, days * k, .8, .8 - sign * (loss + e)) for k, loss in enumerate(losses, 1) for e in (0, 1e-4)]


@pytest.mark.parametrize("better", ["higher", "lower"])
@pytest.mark.parametrize("losses, days, is_least", [
    ([0, 0, 0], 90, True), ([0, 0, .1], 60, False), ([0, .1, 0], 30, False), ([.1, 0, 0], 15, False),
    ([-.1, -.1], 60, True), ([.005, .005], 60, True)])
def test_the_last_age_that_costs_nothing(better, losses, days, is_least):
    found = propose_shelf_life(scores(losses, better), better, "auc")
    assert (found.days, found.is_least) == (days, is_least) and f"{days} days" in found.sentence


def test_noise_is_no_loss():
    noisy = [AgedScore(1, 30, .8, .7), AgedScore(1, 30, .8, .88)]
    assert propose_shelf_life(noisy, "higher", "auc").is_least


def test_one_pair_of_an_age_says_nothing():
    assert propose_shelf_life([], "higher", "auc") is None
    assert propose_shelf_life([AgedScore(1, 30, .8, .2)], "higher", "auc") is None
    assert propose_shelf_life([*scores([0]), AgedScore(2, 60, .8, .2)], "higher", "auc").days == 30


def test_windows_of_hours_give_one_day_at_least():
    assert propose_shelf_life(scores([0, .2], days=.1), "higher", "auc").days == 1


@given(st.lists(st.floats(-.5, .5), min_size=1, max_size=6), st.floats(.5, 400))
def test_it_is_an_age_that_was_tried_and_never_beyond_the_first_loss(losses, days):
    found = propose_shelf_life(scores(losses, days=days), "higher", "auc")
    good = next((k for k, loss in enumerate(losses) if loss > .0081), len(losses))
    assert 1 <= found.days <= max(1, days * max(good, 1))


def test_the_least_of_all_learners_is_read(tmp_path):
    assert read_shelf_life(tmp_path) == ""
    for name, losses in (("gbdt", [0, 0, .1]), ("net", [0, .1, .1])):
        write_json(tmp_path / "artifacts" / "cross_validation" / name / "cross_validation.json",
                   dict(learner=name, shelf_life=propose_shelf_life(scores(losses), "higher", "auc")))
    assert read_shelf_life(tmp_path) == "30d"
    write_json(tmp_path / "artifacts" / "cross_validation" / "old" / "cross_validation.json", dict(learner="old"))
    assert read_shelf_life(tmp_path) == "30d"
