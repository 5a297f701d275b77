"The panel: controls made from the contract, and an answer that follows them."
import re

import ipywidgets as w
import polars as pl
import pytest
from support.trained_project import CLASSES, schema, trained

from mlops_nb.config.schema import Column
from mlops_nb.explain.counterfactuals import read_reference_rows
from mlops_nb.explain.what_if import read_row
from mlops_nb.model.policy import Policy
from mlops_nb.report.what_if_widget import WhatIfPanel, column_control
from mlops_nb.train.stage import open_trained_predictor


@pytest.fixture(scope="module", params=CLASSES)
def asked(request, tmp_path_factory):
    task = request.param
    root = trained(tmp_path_factory.mktemp(task), task, n=500)
    predictor = open_trained_predictor(root)
    predictor.policy = Policy(task, CLASSES[task], .5 if task == "binary" else None)
    return predictor, root, read_reference_rows(root, predictor)


@pytest.fixture
def panel(asked):
    predictor, root, near = asked
    test = root / "artifacts/prepared/test.parquet"
    whole = pl.read_parquet(test).select(pl.all_horizontal(pl.col("x", "place", "count").is_not_null())).to_series()
    return WhatIfPanel(predictor, read_row(predictor, whole.arg_true()[0] + 1, test), near)


def text(panel): return re.sub(r"<svg.*?</svg>|<[^>]*>", " ", panel.page.value, flags=re.S)


def test_there_is_a_control_for_each_input_and_nothing_has_changed(panel):
    assert list(panel.controls) == panel.predictor.inputs and not panel.found.changes
    assert {c: k.get_value() for c,
            k in panel.controls.items() if c != "when"} == {c: panel.row[c][0] for c in panel.controls if c != "when"}
    kinds = {c: type(k.input_widgets[0]) for c, k in panel.controls.items()}
    assert kinds == {"x": w.FloatSlider, "count": w.IntSlider, "place": w.Dropdown, "known": w.Checkbox, "when": w.Text}
    assert "after the change" not in text(panel) and "<svg" in panel.page.value


def test_the_answer_follows_the_controls(panel):
    before, pages = panel.found.before, {panel.page.value}
    for c, value in (("count", 49), ("count", 1), ("place", "Örebro"), ("known", not panel.row["known"][0]),
                     ("when", "2026-04-03 12:00")):
        panel.controls[c].input_widgets[0].value = value
        pages.add(panel.page.value)
        row = panel.row.with_columns(pl.lit(x.after if x.column != "when"
                                            else None).cast(panel.row.schema[x.column]).alias(x.column)
                                     for x in panel.found.changes if x.column != "when")
        if c != "when": assert panel.found.after.score == panel.predictor.predict(row)[0].max()
    assert len(pages) == 6 and panel.found.before == before and "after the change" in text(panel)
    assert {x.column for x in panel.found.changes} >= {"count", "known", "when"}


def test_back_where_it_was_nothing_is_changed(panel):
    page, count = panel.page.value, panel.controls["count"].input_widgets[0]
    was, count.value = count.value, 50 - count.value
    assert panel.page.value != page
    count.value = was
    assert panel.page.value == page and not panel.found.changes


def test_what_may_be_missing_can_be_made_missing(panel):
    slider, missing = panel.controls["x"].input_widgets
    missing.value = True
    assert [(x.column, x.after) for x in panel.found.changes] == [("x", None)]
    missing.value, slider.value = False, slider.max
    assert panel.found.changes[0].after == slider.max
    panel.controls["place"].input_widgets[0].value = None
    panel.controls["when"].input_widgets[0].value = ""
    assert {x.column for x in panel.found.changes if x.after is None} >= {"place"} - ({"place"}
                                                                                      if panel.row["place"][0] is None
                                                                                      else set())


def test_a_value_that_cannot_be_is_a_sentence_and_no_answer(panel):
    found = panel.found
    panel.controls["when"].input_widgets[0].value = "<b>tomorrow</b>"
    assert "when: &lt;b&gt;tomorrow&lt;/b&gt; is not a date or time" in panel.page.value and panel.found is found
    panel.controls["when"].input_widgets[0].value = "2026-03-01"
    assert "is not a date" not in panel.page.value and panel.found is not found


def test_controls_stay_where_rows_are(asked):
    *_, near = asked
    x = column_control("x", schema("binary").columns["x"], near.rows["x"], 9.5).input_widgets[0]
    assert -4 < x.min < -1 and x.max == 9.5 == x.value # the contract would allow -10
    assert column_control("c", Column("integer", nullable=True), pl.Series([1, 2, None]), None).get_value() is None
    assert column_control("c", Column("number"), pl.Series([7.0, 7.0]), 7.0).get_value() == 7
    # nothing to slide over
    assert column_control("c", Column("number", nullable=True), pl.Series([None], dtype=pl.Float64),
                          None).get_value() == ""
    box = column_control("c", Column("category", domain=["a", "b"]), pl.Series(["a"]), "z").widget
    assert [v for _, v in box.options] == ["a", "b", "z"] and box.value == "z" # a category that came later
    assert [v for _, v in column_control("c", Column("boolean", nullable=True), pl.Series([True]),
                                         None).widget.options] == [False, True, None]
