"""report.explanation_figures: importance, dependence and interactions of each task, with missing values."""
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from support.small_project import CLASSES, TASKS

from mlops_nb.report.explanation_figures import (
    curve_moves,
    dependence_figure,
    dependence_groups,
    describe_direction,
    importance_figure,
    interaction_figure,
    interaction_strengths_figure,
)


def report(task="binary", features=("number", "category")):
    return SimpleNamespace(task=task, classes=CLASSES[task], n_rows=100, n_test_rows=2000, raw_units="log-odds",
                           top_features=list(features))


def tables(slope=1.0, shape=lambda x: x):
    "A number that is sometimes missing, and a category whose values have no place on a scale."
    x = np.linspace(-1, 1, 60)
    number = pl.DataFrame(dict(feature="number", value=[*x, None], contribution=[*slope * shape(x), 0.3]))
    category = pl.DataFrame(dict(feature="category", value=[None] * 2, contribution=[0.1, -0.1]), schema=number.schema)
    curve = [("number", "-1 to 0", 30, slope * shape(-0.5)), ("number", "0 to 1", 30, slope * shape(0.5)),
             ("number", "(missing)", 5, 0.3), ("category", "<a>", 40, 0.1), ("category", "b", 20, -0.1)]
    dependence = [dict({"class": "high"}, feature=f, label=v, n=n, mean=m, low=m - 0.1, high=m + 0.1)
                  for f, v, n, m in curve]
    return dict(points=pl.concat([number, category]), dependence=pl.DataFrame(dependence))


def title(html): return html.text.split('aria-label="')[1].split('"')[0]


def test_importance_counts_the_features_that_carry_half():
    importance = pl.DataFrame(dict(feature=[f"f{i}" for i in range(25)], mean_abs=[5.0, 3.0, 2.0, *[0.1] * 21, 0.0]))
    html = importance_figure(importance, report())
    assert title(html) == "2 features of 25 carry half of the effect"
    assert "100 of 2,000 test rows. The first 20 are shown. Never used: f24." in html.text
    one = importance_figure(importance.head(1), report())
    assert title(one) == "1 feature of 1 carries half of the effect" and "shown" not in one.text
    idle = importance_figure(importance.with_columns(mean_abs=0.0), report()) # a constant model
    assert "nan" not in idle.text


@pytest.mark.parametrize("task, raised", [("binary", "“leaves”"), ("multiclass", "“high”"), ("regression", "outcome")])
def test_directions_in_words(task, raised):
    found = report(task)
    say = lambda feature, t: describe_direction(feature, found, t, "outcome")
    assert say("number", tables(1)) == f"higher values increase {raised}"
    assert say("number", tables(-1)) == f"higher values decrease {raised}"
    assert say("category", tables()) == f"<a> increases {raised} most"
    valley = say("number", tables(shape=lambda x: x * x - 0.05 * x - 0.5))
    assert valley.startswith(f"higher values decrease {raised} up to about") and valley.endswith("increase it beyond")
    peak = say("number", tables(shape=lambda x: -x * x))
    assert peak.startswith(f"higher values increase {raised} up to about") and peak.endswith("decrease it beyond")
    assert say("number", tables(shape=lambda x: np.sin(6 * x))).startswith("goes up and down: increases")
    assert say("number", tables(0.0)).startswith("no clear direction")


def test_a_line_that_turns_back_is_not_called_monotone_by_its_many_rows():
    # most rows lie where the line falls, so that the ranks correlate by −0.88; then it goes up and up
    value = np.r_[np.repeat(np.arange(5.0), 90), np.repeat(np.arange(5.0, 10), 10)]
    line = np.where(value < 5, -value, value - 9)
    points = pl.DataFrame(dict(feature="number", value=value,
                               contribution=line + np.random.default_rng(0).normal(0, 0.3, len(value))))
    said = describe_direction("number", report(), tables() | dict(points=points), "outcome")
    assert said.startswith("higher values decrease “leaves” up to about") and said.endswith("increase it beyond")


def test_a_dip_that_chance_explains_is_no_turn():
    value = np.repeat(np.arange(12.0), 8)
    turned = 0
    for seed in range(40):
        noise = np.random.default_rng(seed).normal(0, 1, len(value))
        moves = curve_moves(dependence_groups(pl.DataFrame(dict(value=value, contribution=value / 4 + noise))))
        turned += [d for d, _ in moves] != [1]
    assert turned <= 2
    assert not curve_moves(dependence_groups(pl.DataFrame(dict(value=[1.0, 2.0], contribution=[0.0, 0.0]))))


def test_a_feature_that_is_always_missing():
    only_missing = {k: t.filter(pl.lit(False)) for k, t in tables().items()}
    only_missing["dependence"] = tables()["dependence"].filter(pl.col("label") == "(missing)")
    assert describe_direction("number", report(), only_missing, "y") == "it is always missing"


@pytest.mark.parametrize("task", TASKS)
def test_dependence_of_numbers_and_categories(task):
    html = dependence_figure(report(task), tables(), "outcome")
    assert title(html).startswith("number: higher values increase ") and html.text.count('<g id="axes_') == 2
    assert ">missing</text>" in html.text and "&lt;a&gt;" in html.text and "Contribution in log-odds" in html.text
    assert (">number: high</text>" in html.text) == (task == "multiclass")
    one = dependence_figure(report(task, ["category"]), tables(), "outcome")
    assert one.text.count('<g id="axes_') == 1 and "missing" not in one.text


def test_pairs_are_named_and_the_class_that_bends_most_is_drawn():
    pairs = pl.DataFrame(dict(feature=["a"], other_feature=["b"], strength=[0.2], h_squared=[0.25]))
    assert title(interaction_strengths_figure(pairs, "log-odds")) == (
        "a and b act together most: 25.0 % of their joint effect")
    parallel, crossed = ((0, 1), (1, 2)), ((0, 1), (1, 0))
    surface = pl.DataFrame([dict({"class": c}, feature="a", other_feature="b", label=f"a{i}", other_label=group,
                                 value=float(values[i]))
                            for c, lines in enumerate((parallel, crossed, parallel))
                            for group, values in zip(("b1", "(missing)"), lines, strict=True) for i in range(2)])
    html = interaction_figure(surface, report("multiclass"))
    assert title(html) == "What a does depends on b" and "Mean raw score of “mid” over" in html.text
    assert "Mean raw score over" in interaction_figure(surface.filter(pl.col("class") == 0), report()).text
