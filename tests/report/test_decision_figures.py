"""report.decision_figures: what decisions come to, for each task, and where no decision can be taken."""
import numpy as np
import polars as pl
import pytest
from support.small_evaluation import small_evaluation
from support.small_project import TASKS

from mlops_nb.config.params import CostParams
from mlops_nb.evaluate.curves import residual_histogram, residuals_by_prediction
from mlops_nb.evaluate.metrics import DecisionSettings
from mlops_nb.report.decision_figures import confusion_figure, decision_figure, error_figure, residual_spread_figure


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_its_figure(task):
    e, tables = small_evaluation(task)
    text = decision_figure(e, tables).text
    said = dict(binary="set evaluate.costs in params.yaml", multiclass="The most frequent confusions.",
                regression="Half of the predictions are off by less than")
    assert text.count("<svg") == (3 if task == "regression" else 1) and said[task] in text and "nan" not in text


def test_what_nobody_set_a_cost_for_is_counted_in_errors():
    e, tables = small_evaluation("binary")
    text = decision_figure(e, tables).text
    assert "errors fewer per 1,000 rows" in text and "Fewer errors" in text and "Cost of one" not in text
    e.decision_settings = DecisionSettings(e.decision_settings.threshold, CostParams(false_negative=5))
    text = decision_figure(e, tables).text
    assert "less per 1,000 rows" in text and "Cost of one" in text and "evaluate.costs" not in text


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_scores_that_are_no_numbers_decide_nothing(task):
    e, tables = small_evaluation(task)
    e.decision_costs = e.confusion_matrix = None
    assert decision_figure(e, tables).text == "<p>No decision can be taken on scores that are not numbers.</p>"


def test_a_model_that_saves_nothing_is_said_to():
    e, tables = small_evaluation("binary")
    for s in e.decision_costs.savings.values(): s.value = -1.0
    e.threshold = None
    text = decision_figure(e, tables).text
    assert "Decisions by the model save nothing against acting on" in text and "in the orange range: –." in text


def test_many_classes_get_a_table_and_no_matrix():
    e, _ = small_evaluation("multiclass")
    e.classes, counts = [f"<c{i}>" for i in range(16)], np.eye(16, dtype=int) * 10
    counts[3, 5], counts[0, 0] = 4, 0 # no row is of class 0
    e.confusion_matrix = counts.tolist()
    text = confusion_figure(e).text
    assert "<svg" not in text and "most often “&lt;c3&gt;” is taken for “&lt;c5&gt;”" in text and "28.6 %" in text
    e.classes, e.confusion_matrix = ["a", "b"], [[3, 0], [0, 4]]
    text = confusion_figure(e).text
    assert "100 % of the rows are decided rightly</fig" in text.replace("<small>", "</fig") and "frequent" not in text


def test_each_cell_of_a_matrix_has_its_count_and_its_share():
    e, _ = small_evaluation("multiclass")
    e.classes, e.confusion_matrix = ["month-to-month", "one-year", "two-year"], [[6, 2, 0], [1, 3, 0], [0, 0, 0]]
    text = confusion_figure(e).text
    assert all(cell in text for cell in ("6 (75.0 %)", "2 (25.0 %)", "1 (25.0 %)", "3 (75.0 %)"))


def test_of_many_rows_some_are_drawn():
    y = np.arange(4000.0)
    shape = residual_histogram(y, y + y % 11)
    text = error_figure(pl.DataFrame(dict(_target=y, score=y + y % 11)), shape).text
    assert "off by less than 5, and nine in ten by less than 9" in text and "572 of 4,000 test rows" in text
    assert len(text) < 100_000


@pytest.mark.parametrize("spread, said", [(lambda y: y, "times as wide among the largest"),
                                          (lambda y: 1 / y, "times as wide among the smallest"),
                                          (lambda y: 1 + 0 * y, "spread about equally")])
def test_where_the_errors_are_larger_is_said(spread, said):
    s = np.linspace(10, 100, 2000)
    y = s + spread(s) * np.tile([-1.0, -0.5, 0.5, 1.0], 500)
    assert said in residual_spread_figure(residuals_by_prediction(y, s)).text
    assert "<svg" in residual_spread_figure(residuals_by_prediction(y, np.full(2000, 3.0))).text # one bin
