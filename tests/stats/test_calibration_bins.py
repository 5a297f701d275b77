"Calibration bins are what plain Python counts, and merge into those of all rows."
import bisect
import statistics

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.stats.calibration_bins import CalibrationBins, calibration_bins


def by_hand(edges, scores, observed):
    "Rows, mean score, mean observed, mean and variance of the residual, mean squared error of each bin."
    bins = [[] for _ in range(len(edges) + 1)]
    for s, y in zip(scores, observed): bins[bisect.bisect_right(edges, s)].append((s, y))
    out = []
    for pairs in bins:
        residual = [y - s for s, y in pairs]
        out.append((len(pairs), *([statistics.fmean(x) for x in zip(*pairs)] or [0, 0]),
                    statistics.fmean(residual) if pairs else np.nan,
                    statistics.variance(residual) if len(pairs) > 1 else np.nan,
                    statistics.fmean(r * r for r in residual) if pairs else np.nan))
    return np.array(out, float).T


def measured(bins):
    return [bins.rows, bins.mean_score, bins.mean_observed, bins.residual_mean(), bins.residual_variance(),
            bins.mean_squared_error()]


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_each_figure_is_the_one_counted_by_hand(task):
    r = np.random.default_rng(0)
    scores = r.random(500).round(2) if task == "binary" else r.normal(20, 9, 500)
    observed = (r.random(500) < scores).astype(float) if task == "binary" else scores + r.normal(1, 3, 500)
    edges = [.1, .25, .5, .5000001, .75, 2.] if task == "binary" else [10., 15., 30., 1e9]
    for got, expected in zip(measured(calibration_bins(edges, scores, observed)), by_hand(edges, scores, observed)):
        assert np.asarray(got) == pytest.approx(expected, rel=1e-9, abs=1e-9, nan_ok=True)


def test_a_score_at_an_edge_lies_above_it():
    assert calibration_bins([.2, .5], np.array([.2, .19, .5]), np.zeros(3)).rows == [1, 1, 1]


def test_no_rows_one_row_and_constant_scores():
    none = calibration_bins([1., 2.], np.array([]), np.array([]))
    assert none == CalibrationBins([0, 0, 0], [0.0] * 3, [0.0] * 3, [0.0] * 3)
    one = calibration_bins([1.], np.array([3.]), np.array([5.]))
    assert one.residual_mean()[1] == 2 and np.isnan(one.residual_variance()).all() and one.mean_squared_error()[1] == 4
    same = calibration_bins([7., 7.5], np.full(5, 7.), np.array([5., 6., 7., 8., 9.]))
    assert same.rows == [0, 5, 0] and same.residual_mean()[1] == 0 and same.residual_variance()[1] == 2.5


def test_rows_that_are_not_finite_are_left_out_and_huge_ones_stay_numbers():
    big = 1e308
    scores, observed = [-big, big, big, np.nan, 1.0, np.inf], [big, -big, big, 1, np.nan, 1]
    bins = calibration_bins([0.], np.array(scores), np.array(observed))
    assert bins.rows == [1, 2] and bins.mean_score == [-big, big] and bins.mean_observed == [big, 0]
    text = msgspec.json.encode(bins)
    assert b"null" not in text and msgspec.json.decode(text, type=CalibrationBins) == bins
    assert msgspec.json.decode(msgspec.json.encode(bins.merge(bins)), type=CalibrationBins).rows == [2, 4]


def test_bins_of_another_score_are_refused():
    with pytest.raises(ValueError, match="2 bins cannot be merged with 3; count both with the same edges"):
        calibration_bins([1.], np.ones(3), np.ones(3)).merge(calibration_bins([1., 2.], np.ones(3), np.ones(3)))


EDGES = [-1.0, 0.0, 2.5]
ROW = st.tuples(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4))


@given(st.lists(st.lists(ROW, max_size=30), min_size=1, max_size=4))
@settings(deadline=None, max_examples=100)
def test_batches_merge_into_the_bins_of_all_rows_in_any_order(batches):
    def counted(pairs): return calibration_bins(EDGES, *np.array(pairs, float).reshape(-1, 2).T)
    whole = counted([pair for batch in batches for pair in batch])
    for order in (batches, batches[::-1]):
        merged = counted(order[0])
        for batch in order[1:]: merged = merged.merge(counted(batch))
        assert merged.rows == whole.rows
        for name in ("mean_score", "mean_observed", "residual_m2"):
            assert getattr(merged, name) == pytest.approx(getattr(whole, name), rel=1e-9, abs=1e-6)
