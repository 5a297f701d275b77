"Figures, thresholds and calibration of each label, against the binary task on the rows of which it is known."
import numpy as np
import pytest
from msgspec import structs

from mlops_nb.config.params import CostParams, EvaluateParams
from mlops_nb.evaluate.curves import evaluation_curves
from mlops_nb.evaluate.decision_threshold import choose_threshold, measure_calibration
from mlops_nb.evaluate.label_evaluation import calibrate_labels, choose_thresholds, evaluate_labels, label_metrics
from mlops_nb.evaluate.metrics import DecisionSettings, EvaluatedRows, estimate_metrics
from mlops_nb.evaluate.slice_discovery import error_measures
from mlops_nb.stats.bootstrap import Resampling

COSTS, NAMES = CostParams(false_positive=1, false_negative=2), ["a", "b", "c"]


def data(n=1200, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.uniform(size=(n, 3)) ** [1, 2, 4]
    y = (rng.uniform(size=p.shape) < p).astype(float)
    y[rng.uniform(size=n) < .4, 1] = np.nan
    return y, p


Y, P = data()
WHO = np.arange(1200) // 3
ROWS = EvaluatedRows("multilabel", Y, P, DecisionSettings(costs=COSTS, thresholds=[.3, .4, .5]),
                     Resampling(200, clusters=WHO), NAMES)


def known(k):
    m = ~np.isnan(Y[:, k])
    return m, Y[m, k], P[m, k], np.unique(WHO[m], return_inverse=True)[1]


@pytest.mark.parametrize("k", range(3))
def test_a_label_is_judged_as_a_binary_task_of_its_known_rows(k):
    found = evaluate_labels({"valid": ROWS, "test": ROWS}, COSTS)[k]
    _, y, p, who = known(k)
    at = ROWS.decision_settings.thresholds[k]
    expected = estimate_metrics("binary", y, p, DecisionSettings(at, COSTS), Resampling(200, clusters=who))
    assert found.metrics["test"] == expected and found.label == NAMES[k]
    assert found.n_known["test"] == len(y) and found.n_events["test"] == y.sum()
    (without, false), (missed, hit) = found.confusion_matrix
    assert (hit, false) == (y[p >= at].sum(), (1 - y[p >= at]).sum()) and without + missed == (p < at).sum()
    assert label_metrics([found], "test")[f"roc_auc.{NAMES[k]}"] == expected["roc_auc"].value


def test_thresholds_are_those_of_each_label():
    expected = [choose_threshold(y, p, COSTS, who) for _, y, p, who in map(known, range(3))]
    assert choose_thresholds(Y, P, COSTS, WHO) == expected


def test_only_what_is_wrong_is_calibrated():
    sure = P.copy()
    sure[:, 2] = P[:, 2]**2 / (P[:, 2]**2 + (1 - P[:, 2])**2)
    plain, why, each = calibrate_labels(ROWS, EvaluateParams())
    assert plain is None and why.method == "none" and len(each) == 3
    found, why, each = calibrate_labels(ROWS._replace(scores=sure), EvaluateParams())
    assert found.labels[:2] == [None, None] and found.labels[2] is not None and why.method == "by label"
    assert np.abs(found.apply(sure)[:, 2] - P[:, 2]).mean() < np.abs(sure[:, 2] - P[:, 2]).mean() / 2
    assert all(n in why.message for n in NAMES)


def test_the_calibration_of_all_is_their_mean_error_and_the_worst_excess():
    each = [measure_calibration("binary", y, p, ["0", "1"], .95, who, 3)[0] for _, y, p, who in map(known, range(3))]
    found, table = measure_calibration("multilabel", Y, P, NAMES, .95, WHO)
    assert found.expected_calibration_error == pytest.approx(np.mean([x.expected_calibration_error for x in each]))
    assert found.excess_error == max(x.excess_error for x in each)
    assert table["class"].unique(maintain_order=True).to_list() == NAMES
    empty = np.full_like(Y, np.nan)
    assert measure_calibration("multilabel", empty, P, NAMES)[0].expected_calibration_error is None


def test_curves_of_each_label():
    tables = evaluation_curves("multilabel", Y, P, NAMES, (.3, .4, .5))
    for k, n in enumerate(NAMES):
        _, y, p, _ = known(k)
        row = tables["class_metrics"].row(k, named=True)
        assert (row["class"], row["n_rows"], row["n_predicted"]) == (n, y.sum(), (p >= [.3, .4, .5][k]).sum())
        assert row["recall"] == pytest.approx(y[p >= [.3, .4, .5][k]].sum() / y.sum())
        one = evaluation_curves("binary", y, p, ["0", n], ([.3, .4, .5][k],))["threshold_curve"]
        assert tables["threshold_curve"].filter(tables["threshold_curve"]["class"] == n).equals(one)
    assert evaluation_curves("multilabel", Y, np.full_like(P, np.nan), NAMES, (.5, .5, .5)) == {}


def test_errors_of_rows_are_means_of_the_known_labels():
    found = error_measures("multilabel", Y[:50], P[:50])
    assert found["under_predicted"] == pytest.approx(np.nanmean(Y[:50] - P[:50], 1))
    assert np.array_equal(found["over_predicted"], -found["under_predicted"])


def test_taking_rows_keeps_entities_together():
    some = ROWS.take(np.arange(300, 900)).of_label(1)
    m = ~np.isnan(Y[300:900, 1])
    assert len(some.y) == m.sum() and some.n_clusters() == len(np.unique(WHO[300:900][m]))
    assert structs.asdict(some.decision_settings)["threshold"] == .4
