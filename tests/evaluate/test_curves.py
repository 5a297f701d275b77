"Points of the curves: exact counts, bounded in number, and the same areas as scikit-learn's."
import numpy as np
import polars as pl
import pytest
from sklearn.metrics import average_precision_score, precision_recall_fscore_support, roc_auc_score, roc_curve

from mlops_nb.evaluate.curves import (
    MAX_CLASSES,
    MAX_POINTS,
    class_metrics,
    confusion_by_threshold,
    evaluation_curves,
    histogram_by_class,
    residual_histogram,
    residuals_by_prediction,
    threshold_curve,
)


def _problem(n, prevalence, n_scores=None, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < prevalence).astype(float)
    p = 1 / (1 + np.exp(-(rng.normal(size=n) + 2 * y - 3)))
    return y, p if n_scores is None else np.round(p * n_scores) / n_scores


@pytest.mark.parametrize('problem', [(60, .3), (5_000, .4, 20), (20_000, .002), (3_000, .5)])
def test_every_point_is_a_point_of_the_whole_roc_curve(problem):
    y, p = _problem(*problem)
    curve = threshold_curve(y, p)
    fpr, tpr, at = roc_curve(y, p, drop_intermediate=False)
    whole = {(round(a, 12), round(b, 12)) for a, b in zip(fpr, tpr)}
    points = [(round(a, 12), round(b, 12)) for a, b in curve.select('false_positive_rate', 'recall').iter_rows()]
    assert set(points) <= whole and points == sorted(points)
    assert points[0] == (0, 0) and points[-1] == (1, 1)
    assert len(points) == len(whole) if len(whole) <= MAX_POINTS else len(points) <= MAX_POINTS
    assert curve['threshold'][1:].is_in(at).all()


def test_the_curve_of_a_rare_event_is_dense_where_its_precision_is_decided():
    y, p = _problem(50_000, .002)
    curve = threshold_curve(y, p)
    assert curve['recall'].diff().max() <= 4 / (MAX_POINTS - 1) + 1 / y.sum()
    assert len(curve.filter(pl.col('selection_rate') < .01)) > 30 # evenly by rank: 2
    area = np.trapezoid(curve['recall'], curve['false_positive_rate'])
    assert abs(area - roc_auc_score(y, p)) < 1e-3


def test_counts_are_exact_at_a_threshold_that_was_asked_for():
    y, p = _problem(2_000, .3)
    table = confusion_by_threshold(y, p, include=(.123, .5, np.inf)).filter(pl.col('threshold').is_in([.123, .5]))
    for t, *counts in table.iter_rows():
        act = p >= t
        assert counts == [(act & (y == 1)).sum(), (act & (y == 0)).sum(), (~act & (y == 1)).sum(),
                          (~act & (y == 0)).sum()]
    assert len(table) == 2


def test_tied_scores_are_never_split():
    curve = confusion_by_threshold(np.array([0, 1, 1, 0.]), np.full(4, .3))
    assert curve.rows()[1:] == [(.3, 2, 2, 0, 0)]
    assert curve['threshold'][0] > 1


@pytest.mark.parametrize('y', [np.zeros(4), np.ones(4)])
def test_one_class_alone_has_no_rate_of_the_other(y):
    curve = threshold_curve(y, np.array([.1, .2, .3, .4]))
    undefined = 'recall' if y[0] == 0 else 'false_positive_rate'
    assert curve[undefined].null_count() == len(curve) == 5


def test_gains_and_lift_agree_with_counting():
    y, p = _problem(4_000, .2)
    for row in threshold_curve(y, p).sample(20, seed=0).iter_rows(named=True):
        act = p >= row['threshold']
        assert row['selection_rate'] == pytest.approx(act.mean())
        if act.any(): assert row['lift'] == pytest.approx(y[act].mean() / y.mean())


def test_each_row_is_in_one_bin_of_the_histogram():
    y, p = _problem(3_000, .3)
    shape = histogram_by_class(y, p)
    assert (shape['n_positive'].sum(), shape['n_negative'].sum()) == (y.sum(), (1 - y).sum())
    assert shape['from'][0] == p.min() and shape['to'][-1] == p.max()
    assert histogram_by_class(y, np.full(3_000, .4))['n_positive'].sum() == y.sum()


def test_class_metrics_are_scikit_learns():
    rng = np.random.default_rng(0)
    y, scores = rng.integers(0, 4, 600), rng.dirichlet(np.ones(4), 600)
    scores[np.arange(600), y] += .3
    scores /= scores.sum(1, keepdims=True)
    found = class_metrics(y, scores, list('abcd'))
    of = precision_recall_fscore_support(y, scores.argmax(1), zero_division=np.nan)
    for name, expected in zip(('precision', 'recall', 'f1', 'n_rows'), of): assert found[name].to_list() == (
        pytest.approx(expected))
    assert found['roc_auc'].to_list() == pytest.approx([roc_auc_score(y == k, scores[:, k]) for k in range(4)])
    assert found['average_precision'].to_list() == pytest.approx(
        [average_precision_score(y == k, scores[:, k]) for k in range(4)])


def test_a_class_that_never_occurs_has_no_figures():
    found = class_metrics(np.array([0, 1]), np.array([[.9, .1, 0], [.2, .8, 0]]), list('abc'))
    assert found.row(2, named=True) == {'class': 'c', 'n_rows': 0, 'n_predicted': 0, 'precision': None, 'recall': None,
                                        'f1': None, 'roc_auc': None, 'average_precision': None}


def test_many_classes_have_curves_for_the_most_frequent_only():
    rng = np.random.default_rng(0)
    y = np.r_[np.arange(60), np.repeat(np.arange(40, 60), 5)]
    tables = evaluation_curves('multiclass', y, rng.dirichlet(np.ones(60), len(y)), [f'c{i}' for i in range(60)])
    drawn = tables['threshold_curve']['class'].unique(maintain_order=True).to_list()
    assert drawn == [f'c{i}' for i in range(40, 60)] and len(drawn) == MAX_CLASSES
    assert len(tables['class_metrics']) == 60


def test_residuals_keep_every_row():
    rng = np.random.default_rng(0)
    y, s = rng.normal(size=1_000), rng.normal(size=1_000)
    s[0] = 1e9
    assert residual_histogram(y, s)['n_rows'].sum() == 1_000
    assert residual_histogram(y, s)['from'][0] > -10
    table = residuals_by_prediction(y, s)
    assert table['n_rows'].sum() == 1_000
    assert (table['mean'] * table['n_rows']).sum() == pytest.approx((y - s).sum())
    assert residual_histogram(y, y)['n_rows'].sum() == 1_000


@pytest.mark.parametrize(('task', 'scores'), [('binary', [.1, np.nan]), ('regression', [np.inf, 1]),
                                              ('multiclass', [[.1, .9], [np.nan, .4]])])
def test_scores_that_are_no_numbers_have_no_curves(task, scores):
    assert evaluation_curves(task, np.array([0, 1.]), np.array(scores), ['a', 'b']) == {}
    assert evaluation_curves(task, np.zeros(0), np.array(scores)[:0], ['a', 'b']) == {}
