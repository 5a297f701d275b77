"""report.decision_figures: what decisions come to, for each task, and where no decision can be taken."""
import numpy as np
import polars as pl
import pytest
from support.small_evaluation import small_evaluation
from support.small_project import TASKS

from mlops_nb.report.decision_figures import confusion_figure, decision_figure, error_figure


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_its_figure(task):
    e, tables = small_evaluation(task)
    text = decision_figure(e, tables).text
    said = dict(binary="What the decisions on the test set cost", multiclass="The most frequent confusions.",
                regression="Half of the predictions are off by less than")
    assert text.count("<svg") == 1 and said[task] in text and "nan" not in text


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
    assert "100 % accuracy" in confusion_figure(e).text and "frequent" not in confusion_figure(e).text


def test_of_many_rows_some_are_drawn():
    y = np.arange(4000.0)
    text = error_figure(pl.DataFrame(dict(_target=y, score=y + y % 11))).text
    assert "off by less than 5, and nine in ten by less than 9" in text and "2,000 of 4,000 test rows" in text
