"""report.training_figures: trials (some broken off), their parameters (some missing) and learning curves."""
import math
from types import SimpleNamespace

import polars as pl
import pytest
from support.small_evaluation import training

from mlops_nb.config.params import GbdtSearchSpace
from mlops_nb.report.training_figures import learning_curves_figure, place_in_range, tuning_html
from mlops_nb.train.tuning import TuningResult

METRIC = "log_loss"
SPACES = SimpleNamespace(gbdt=GbdtSearchSpace())


def trials(n):
    rows = [dict(learner="gbdt", trial=t, loss=0.5 + t % 7 / 50, complete=t % 5 > 0, parameter=p, value=v)
            for t in range(n) for p, v in (("learning_rate", 0.01 * (t + 1)), ("objective", float(t % 2)),
                                           ("num_leaves", None if t == 1 else 4.0 + t))]
    return pl.DataFrame(rows, schema_overrides=dict(value=pl.Float64))


def tuned(best_loss, **best): return TuningResult("s", 8, 2, 0.55, best_loss, best, {})


def test_nothing_tuned_is_said():
    assert tuning_html({}, trials(0), SPACES, METRIC).text == (
        "<p>Nothing was tuned: tune.n_trials in params.yaml is 0.</p>")


def test_the_search_is_drawn_with_its_gain_and_its_best_parameters():
    html = tuning_html(dict(gbdt=tuned(0.5, num_leaves=12, objective="poisson")), trials(10), SPACES, METRIC).text
    assert html.count("<svg") == 2 and "nan" not in html
    assert "gbdt: 10 trials brought the validation loss from 0.55000 to 0.50000" in html
    assert "The best parameters: num leaves 12 and objective poisson" in html
    assert "Log loss on the validation set; 2 trials were broken off" in html and "Too few finished trials" in html


def test_a_search_without_gain_and_of_one_trial():
    html = tuning_html(dict(gbdt=tuned(0.55)), trials(2), SPACES, METRIC).text # trial 0 was broken off
    assert "no trial of 10 was better" in html and "The best parameters: those of params.yaml" in html


@pytest.mark.parametrize("value, search_range, place", [
    (0.1, [0.01, 1.0, "log"], 0.5), (3, [1, 5], 0.5), (1, ["a", "b", "c"], 0.5), (0, ["a"], 0), (5, [1, 5], 1)])
def test_places_in_a_range(value, search_range, place):
    assert place_in_range(value, search_range) == pytest.approx(place)
    assert math.isnan(place_in_range(None, search_range))


def test_learning_curves_say_what_ended_the_training():
    stopped = learning_curves_figure([training("gbdt")], "gbdt").text
    assert "It stopped improving after 30 trees" in stopped and stopped.count('<g id="axes_') == 1
    limited = learning_curves_figure([training("gbdt"), training("net", 40, 40)], "net").text
    assert "Its best was at epoch 30; the limit of 40 epochs ended the training" in limited
    assert "dvc exp run -S train.net.max_epochs=80" in limited and "dvc exp run" not in stopped
    assert limited.count('<g id="axes_') == 2
