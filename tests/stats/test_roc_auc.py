"The area under the ROC curve, against the definition: all pairs of an event and another row, ties counting half."
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.stats.bootstrap import Units
from mlops_nb.stats.roc_auc import roc_auc


def by_pairs(y, scores, weights):
    event, other = y == 1, y == 0
    ahead = np.sign(scores[event][:, None] - scores[other][None, :]) / 2 + 0.5
    pairs = weights[event][:, None] * weights[other][None, :]
    return (ahead * pairs).sum() / pairs.sum()


@pytest.mark.parametrize("values", [2, 5, 10_000])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_share_of_pairs_in_the_right_order(values, seed):
    rng = np.random.default_rng(seed)
    y, scores, weights = rng.integers(0, 2, 90), rng.integers(0, values, 90) / values, rng.integers(0, 4, 90) * 1.0
    assert roc_auc(y, scores)(weights) == pytest.approx(by_pairs(y, scores, weights), abs=1e-12)


def test_one_class_has_no_pairs():
    scores = np.array([.2, .4])
    assert np.isnan(roc_auc(np.ones(2), scores)(np.ones(2))) and np.isnan(roc_auc(np.zeros(2), scores)(np.ones(2)))
    assert np.isnan(roc_auc(np.array([0, 1]), scores)(np.array([0., 1.])))


@settings(max_examples=60, deadline=None)
@given(n=st.integers(2, 60), n_units=st.integers(1, 12), levels=st.integers(1, 30), seed=st.integers(0, 10**6))
def test_without_each_entity_like_leaving_it_out(n, n_units, levels, seed):
    "Ties between and within entities; undefined where only one class is left."
    rng = np.random.default_rng(seed)
    y, scores, who = rng.integers(0, 2, n), rng.integers(0, levels, n) / levels, rng.integers(0, n_units, n)
    expected = [roc_auc(y, scores)((who != i) * 1.0) for i in range(n_units)]
    assert roc_auc(y, scores).without(Units(n_units, who)) == pytest.approx(expected, abs=1e-12, nan_ok=True)
