"Performance of a regression before labels: intervals hold as often as they say, and odd rows do no harm."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.stats.calibration_bins import calibration_bins
from mlops_nb.stats.regression_estimate import (
    MAX_CELLS,
    MIN_DONORS,
    estimate_regression,
    fit_binned_residuals,
    residual_donors,
)

EDGES = [2., 4., 6., 8.]


def figures(s):
    def of(y):
        error = y - s
        return dict(rmse=float(np.sqrt((error**2).mean())), mae=float(np.abs(error).mean()),
                    r2=float(1 - (error**2).sum() / ((y - y.mean())**2).sum()))
    return of


def rows(rng, n, low=1, high=10):
    s = rng.uniform(low, high, n)
    return s, s + rng.normal(.2, .3 * s)


@pytest.mark.parametrize("binned", [False, True])
def test_intervals_hold(binned):
    "Of 60 cohorts whose rows are larger than those of the test set, at 95 %."
    held = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        s, y = rows(rng, 1000)
        new, came = rows(rng, 200, 5, 10)
        known = fit_binned_residuals(calibration_bins(EDGES, s, y), EDGES) if binned else residual_donors(s, y)
        found, real = estimate_regression(figures(new), new, known), figures(new)(came)
        held.append([e.low <= real[m] <= e.high for m, e in found.items()])
    assert (np.mean(held, 0) >= .86).all(), np.mean(held, 0)  # 3.3 standard deviations below


def test_the_same_seed_gives_the_same_figures():
    rng = np.random.default_rng(0)
    s, y = rows(rng, 300)
    a, b = (estimate_regression(figures(s), s, residual_donors(s, y)) for _ in range(2))
    assert a == b


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=400), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_cells_have_rows_and_any_row_has_a_finite_outcome(predictions, seed):
    rng, s = np.random.default_rng(seed), np.array(predictions)
    donors = residual_donors(s, s + rng.normal(size=len(s)), rng.uniform(.05, 20, len(s)))
    n = np.diff(donors.starts)
    assert n.sum() == len(s) and len(n) <= MAX_CELLS and (n > 0).all() and (len(n) == 1 or len(s) >= 2 * MIN_DONORS)
    asked = np.concatenate([s, [-1e9, 0, 1e9]])
    assert np.isfinite(donors.draw(asked, rng)).all()


def test_where_errors_do_not_grow_residuals_are_borrowed_as_they_are():
    rng = np.random.default_rng(0)
    s = np.repeat(5., 200)
    donors = residual_donors(s, s + rng.choice([-1., 2.], 200))
    assert set(np.round(donors.draw(s, rng), 9)) == {4., 7.}
    exact = residual_donors(s, s)
    assert (exact.draw(s, rng) == s).all()


def test_a_weight_says_how_often_a_row_is_borrowed():
    s, y = np.zeros(4), np.array([1., 1., 1., 2.])
    donors, rng = residual_donors(s, y, np.array([1., 1., 1., 9.])), np.random.default_rng(0)
    share = np.mean([(donors.draw(np.zeros(50), rng) == 2).mean() for _ in range(400)])
    assert .6 < share < .8  # 9 of 12, drawn towards the middle by the few rows


def test_bins_with_few_rows_are_joined():
    rng = np.random.default_rng(0)
    s, y = rows(rng, 500)
    sparse = s[(s < 2) | (s > 6)]
    of = lambda x: fit_binned_residuals(calibration_bins(EDGES, x, x + 1.), EDGES)
    known = of(sparse)
    assert known.rows.sum() == len(sparse) and known.rows.min() >= MIN_DONORS
    assert len(known.edges) == len(known.rows) - 1
    assert np.allclose(known.means, 1) and np.allclose(known.variances, 0, atol=1e-6)
    assert of(s[:MIN_DONORS - 1]) is None and of(s[:0]) is None and len(of(s[:MIN_DONORS]).rows) == 1
    whole = fit_binned_residuals(calibration_bins(EDGES, s, y), EDGES)
    at = np.searchsorted(whole.edges, s, side="right")
    for i in range(len(whole.rows)):
        assert whole.variances[i] == pytest.approx(np.var((y - s)[at == i], ddof=1))


def test_a_figure_that_cannot_be_computed_is_none():
    s = np.zeros(50)
    found = estimate_regression(lambda y: dict(nothing=np.nan, one=1.), s, residual_donors(s, s))
    assert found["nothing"].value is found["nothing"].low is None and found["one"].value == 1
