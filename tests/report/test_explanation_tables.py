"""report.explanation_tables: reasons in words for each task, with missing values and rows without any reason."""
from types import SimpleNamespace

import polars as pl
import pytest
from support.small_project import CLASSES, TASKS

from mlops_nb.explain.attributions import ExplainedRow, FeatureContribution
from mlops_nb.explain.local_surrogate import LocalSurrogate, SurrogateTerm
from mlops_nb.explain.stage import AttributionError
from mlops_nb.report.explanation_tables import (
    additivity_html,
    best_explained_table,
    describe_reasons,
    explanation_conclusion,
    format_cell,
    ranked_importance,
    surrogates_table,
    top_features_table,
    worst_predicted_table,
)

REASONS = [("charge", 92.5, 0.5), ("plan", None, -0.25), ("<age>", 40, 0.2), ("new", True, 0.1), ("fifth", 1, 0.09)]


def row(*reasons, surrogate=None):
    reasons = [FeatureContribution(*r) for r in reasons]
    return ExplainedRow("july.csv", 1233, {}, 0.7312, "mid", 4.5, 1.31, -0.2, 1.0, reasons, 0.9, surrogate)


def report(task="binary", *rows):
    return SimpleNamespace(task=task, classes=CLASSES[task], n_rows=10, raw_units="log-odds", top_features=["plan"],
                           additivity_error=0.0, best_explained=list(rows), worst_predicted=list(rows),
                           attribution_error=None)


def test_reasons_name_the_four_strongest_in_both_directions():
    assert describe_reasons(row(*REASONS)) == (
        "up, because charge is 92.5 (+0.50), <age> is 40 (+0.20) and new is True (+0.10); "
        "down, because plan is missing (−0.25)")
    down_first = describe_reasons(row(("a", "x", -1.0), ("b", "y", 0.04))) # what is below a twentieth is not said
    assert down_first == "down, because a is x (−1)"
    for nothing in (row(), row(("a", 1, 0.0))):
        assert describe_reasons(nothing) == "nothing about this row moves it away from the average"


@pytest.mark.parametrize("value, text", [(None, "missing"), (0.123456, "0.123"), (12345, "12,345"), (True, "True"),
                                         ("x", "x")])
def test_values(value, text): assert format_cell(value) == text


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_each_task(task):
    found = report(task, row(*REASONS))
    predicted = dict(binary="73.1 % for “leaves”", multiclass="“mid” with 73.1 %", regression="0.731")[task]
    best, worst = best_explained_table(found).text, worst_predicted_table(found).text
    for text in (best, worst): assert f">{predicted}</td>" in text and "july.csv, row 1,234" in text
    assert "&lt;age&gt; is 40" in best and "would get −0.200." in best
    assert ("Absolute error</th>" in worst) == (task == "regression") == ("Log loss" not in worst)
    assert best_explained_table(report(task)).text == worst_predicted_table(report(task)).text == ""


def test_local_surrogates_are_shown_where_there_are_any():
    terms = [SurrogateTerm("charge", 9.0, 0.5, True), SurrogateTerm("plan", None, -0.2, False)]
    fitted = row(*REASONS, surrogate=LocalSurrogate(None, -0.1, 0.4, terms))
    text = surrogates_table(report("binary", fitted, row())).text
    assert text.count("july.csv") == 2 and "more charge (+0.50) and not plan missing (−0.20)" in text
    assert "<td>0 %; " in text # a fit worse than the mean is no fit, and the warning stands beside it
    assert surrogates_table(report("binary", row())).text == ""


def test_the_conclusion_counts_all_classes_together():
    importance = pl.DataFrame({"feature": ["plan", "age", "plan"], "class": [None, None, "high"],
                               "mean_abs": [0.3, 0.1, 9.0]})
    overall = ranked_importance(importance)
    assert overall["feature"].to_list() == ["plan", "age"]
    said = explanation_conclusion(report(), overall)
    assert said.startswith("The model goes most by plan and age: together 100 % of")
    assert len(ranked_importance(importance.tail(1))) == 1
    idle = explanation_conclusion(report(), overall.with_columns(mean_abs=0.0))
    assert "together 0 % of what moves" in idle


def test_ranks_in_the_previous_run():
    importance = pl.DataFrame(dict(feature=["plan", "age"], mean_abs=[0.3, 0.1]))
    points = pl.DataFrame(schema=dict(feature=pl.String, value=pl.Float64, contribution=pl.Float64))
    dependence = pl.DataFrame({"feature": ["plan"] * 2, "class": ["leaves"] * 2, "label": ["basic", "plus"],
                               "mean": [0.2, -0.1]})
    found, tables = report(), dict(points=points, dependence=dependence)
    text = top_features_table(found, importance, tables, "y", ["x", "plan"]).text
    assert "basic increases “leaves” most" in text and "75.0 %" in text
    assert "not among the first" in text and ">2<" in text
    assert "not among" not in top_features_table(found, importance, tables, "y", []).text


def test_estimates_say_their_error_and_trees_say_none():
    found = report()
    assert "estimates" not in additivity_html(found).text
    found.attribution_error = AttributionError(256, 50, {"plan": .03, "<age>": .05}, .07, .011)
    text = additivity_html(found).text
    assert "estimates from 256 train rows" in text and "0.0400 log-odds on average and 0.0500 for &lt;age&gt;" in text
    assert "that of the average 0.0700" in text and "missed the scores by 0.0110" in text and "50 rows" in text
