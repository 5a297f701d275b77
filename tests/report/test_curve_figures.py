"""report.curve_figures: how a classifier ranks, in figures with their tables; a page without scores has none."""
import numpy as np
import polars as pl
import pytest
from support.small_evaluation import small_evaluation

from mlops_nb.evaluate.curves import evaluation_curves, threshold_curve
from mlops_nb.report.curve_figures import curve_points, gains_html, ranking_html


def test_a_binary_task_has_its_curves_and_their_numbers():
    e, tables = small_evaluation("binary")
    ranking, gains = ranking_html(e, tables).text, gains_html(e, tables).text
    assert ranking.count("<svg") == gains.count("<svg") == 2 and "nan" not in ranking + gains
    assert "(in use)" in ranking and "(prevalence)" in ranking and "The tenth of the rows" in gains
    assert all(label in ranking for label in ("false positive rate", "recall (true positive rate)", "precision"))


def test_several_classes_are_drawn_each_against_the_rest():
    e, tables = small_evaluation("multiclass")
    text = ranking_html(e, tables).text
    assert "Each class against the rest" in text and "is found least" in text and not gains_html(e, tables).text
    assert text.index(f">{tables['class_metrics'].sort('recall')['class'][0]}</td>") < text.index("</tr>", text.index(
        "<tbody>"))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_without_curves_there_is_no_section(task):
    e, _ = small_evaluation(task)
    assert ranking_html(e, {}).text == gains_html(e, {}).text == ""


@pytest.mark.parametrize("y", [np.zeros(30), np.ones(30)])
def test_rows_of_one_class_cannot_be_ranked(y):
    e, _ = small_evaluation("binary")
    tables = evaluation_curves("binary", y, np.linspace(0.1, 0.9, 30), e.classes, (e.decision_settings.threshold,))
    assert "of one class" in ranking_html(e, tables).text and "of one class" in gains_html(e, tables).text


def test_the_table_keeps_the_ends_and_the_threshold_in_use():
    rng = np.random.default_rng(0)
    curve = threshold_curve((rng.random(900) < 0.2) * 1.0, rng.random(900), (0.4321,))
    few = curve_points(curve, 0.4321)
    assert len(few) in (20, 21) and 0.4321 in few["threshold"]
    assert few.row(0) == curve.row(0) and few.row(-1) == curve.row(-1)
    assert isinstance(few, pl.DataFrame) and few["threshold"].is_sorted(descending=True)
