"Conformal quantiles: the promise counted exactly, places at the edges, order, and the figures."
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss

from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.evaluate.metrics import DecisionSettings, pinball_loss, weighted_metric
from mlops_nb.evaluate.prediction_intervals import (
    fit_conformal,
    interval_estimates,
    interval_metrics_of,
    measure_intervals,
)
from mlops_nb.model.calibrators import ConformalCalibrator
from mlops_nb.stats.bootstrap import Resampling

LEVELS = [0.1, 0.5, 0.9]
errors = st.lists(st.integers(-10**6, 10**6), min_size=11, max_size=60, unique=True)


@settings(max_examples=30, deadline=None)
@given(errors, st.sampled_from([[0.1, 0.5, 0.9], [0.2, 0.5, 0.75], [0.25, 0.3, 0.5, 0.9]]), st.integers(0, 5))
def test_of_exchangeable_rows_the_interval_covers_its_level_or_more(found, levels, seed):
    """Each of n + 1 rows is equally likely to be the new one: left out in turn, the shares are probabilities and no
    estimates."""
    y = np.array(found, float)
    q = np.random.default_rng(seed).normal(size=(len(y), len(levels))) * 1000
    inside, below, above = [], [], []
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        corrected = fit_conformal(y[others], q[others], levels).apply(q[i])
        inside.append(corrected[0] <= y[i] <= corrected[-1])
        below.append(y[i] < corrected[0])
        above.append(y[i] > corrected[-1])
    assert np.mean(inside) >= levels[-1] - levels[0] - 1e-12
    assert np.mean(below) <= levels[0] + 1e-12 and np.mean(above) <= 1 - levels[-1] + 1e-12


@settings(max_examples=30, deadline=None)
@given(errors)
def test_of_crossing_free_quantiles_little_more_is_covered(found):
    y = np.array(found, float)
    q = np.tile([-1e7, 0., 1e7], (len(y), 1)) # so far apart that nothing gives way
    inside = [(c := fit_conformal(np.delete(y, i), np.delete(q, i, 0), LEVELS).apply(q[i]))[0] <= y[i] <= c[-1]
              for i in range(len(y))]
    assert np.mean(inside) <= 0.8 + 2 / len(y) + 1e-12


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=4, max_size=4), min_size=1, max_size=9),
       st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), st.integers(0, 3))
def test_corrected_quantiles_rise_keep_the_median_and_are_alike_alone(rows, shifts, median):
    q, shifts = np.array(rows), [*shifts[:median], 0.0, *shifts[median:]]
    c = ConformalCalibrator(shifts, median)
    found = c.apply(q)
    assert (np.diff(found, axis=1) >= 0).all() and np.array_equal(found[:, median], q[:, median])
    plain = q + np.array(shifts)
    assert (found[:, 0] <= plain[:, 0]).all() and (found[:, -1] >= plain[:, -1]).all() # only ever wider
    assert all(np.array_equal(c.apply(row), one) for row, one in zip(q, found))


@pytest.mark.parametrize("level, enough", [(0.9, 9), (0.1, 9), (0.99, 99), (0.05, 19), (0.75, 3)])
def test_too_few_calibration_rows_are_refused_with_the_number_that_is_needed(level, enough):
    levels = sorted([level, 0.5])
    fit_conformal(np.arange(float(enough)), np.zeros((enough, 2)), levels)
    with pytest.raises(UserError, match=f"the quantile {level:g} needs {enough} calibration rows, half of"):
        fit_conformal(np.arange(enough - 1.0), np.zeros((enough - 1, 2)), levels)


def test_ties_are_covered():
    y = np.zeros(50)
    found = fit_conformal(y, np.tile([1., 0., -1.], (50, 1)), LEVELS).apply(np.array([1., 0., -1.]))
    assert found[0] <= 0 <= found[-1]


@pytest.mark.parametrize("level", [0.05, 0.5, 0.9])
def test_pinball_loss_like_scikit_learn(level):
    y, p = np.random.default_rng(0).normal(size=(2, 200))
    assert pinball_loss(y, p, level).mean() == pytest.approx(mean_pinball_loss(y, p, alpha=level))


def rows(n=600, seed=0):
    rng = np.random.default_rng(seed)
    y, kind = rng.normal(size=n), rng.choice(["a", "b"], n)
    return pl.DataFrame({"_target": y, "kind": kind}), np.tile([-1.3, 0., 1.3], (n, 1))


def measured(frame, q, **more):
    schema = Schema("t", "regression", "y", {"kind": Column("category"), "y": Column("number")}, quantiles=LEVELS,
                    segments=["kind"])
    c = ConformalCalibrator([-.1, 0., .1], 1)
    return measure_intervals(schema, frame, c.apply(q), q, c, 100, frame["_target"].to_numpy(), 50, **more)


def test_figures_of_an_interval():
    frame, q = rows()
    found, y = measured(frame, q), frame["_target"].to_numpy()
    assert found.level == 0.8 and found.n_calibration_rows == 100 and found.width.value == pytest.approx(2.8)
    assert found.coverage.value == pytest.approx((np.abs(y) <= 1.4).mean())
    assert found.uncorrected_coverage == pytest.approx((np.abs(y) <= 1.3).mean())
    assert [x.shift for x in found.quantiles] == [-.1, 0., .1]
    assert found.quantiles[2].share_below.value == pytest.approx((y <= 1.4).mean())
    each = [mean_pinball_loss(y, np.full(len(y), at), alpha=level) for at, level in zip([-1.4, 0, 1.4], LEVELS)]
    assert found.pinball_loss.value == pytest.approx(np.mean(each))
    assert found.quantiles[0].pinball_loss.value == pytest.approx(each[0])
    best = [mean_pinball_loss(y, np.full(len(y), np.quantile(y, level)), alpha=level) for level in LEVELS]
    assert found.constant_pinball_loss == pytest.approx(np.mean(best))
    assert {s.value: s.n_rows for s in found.segments} == dict(frame["kind"].value_counts().iter_rows())
    for s in found.segments:
        here = frame["kind"].to_numpy() == s.value
        assert s.coverage.value == pytest.approx((np.abs(y[here]) <= 1.4).mean()) and s.width == pytest.approx(2.8)
        assert s.coverage.low < s.coverage.value < s.coverage.high


def test_rows_of_one_entity_make_the_interval_of_the_coverage_wider():
    frame, q = rows()
    often = pl.concat([frame] * 4)
    alone = measured(often, np.tile(q, (4, 1)))
    together = measured(often, np.tile(q, (4, 1)), resampling=Resampling(clusters=np.tile(np.arange(600), 4)))
    width = lambda e: e.high - e.low
    assert width(together.coverage) == pytest.approx(2 * width(alone.coverage), rel=0.05)
    assert width(together.coverage) == pytest.approx(width(measured(frame, q).coverage), rel=0.02)


def test_a_segment_with_few_rows_is_left_out_and_scores_that_are_no_numbers_are_undefined():
    frame, q = rows()
    few = frame.with_columns(kind=pl.when(pl.int_range(600) < 20).then(pl.lit("c")).otherwise("kind"))
    assert {s.value for s in measured(few, q).segments} == {"a", "b"}
    assert all(e.value is None for e in interval_estimates(frame["_target"].to_numpy(), q * np.nan, LEVELS).values())


def test_metrics_that_bring_their_quantiles():
    frame, q = rows()
    y, settings = frame["_target"].to_numpy(), DecisionSettings(quantiles=LEVELS)
    own, at = interval_metrics_of(q, settings), interval_estimates(y, q, LEVELS)
    for name, e in at.items(): # whatever scores they are given
        assert weighted_metric("regression", name, y, q[:, 1], settings, own)(np.ones(600)) == pytest.approx(e.value)
