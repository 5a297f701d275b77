"The course over time: an axis that shows where the rows are, and says what lies outside."
from datetime import datetime, timedelta
from types import SimpleNamespace as Some

import numpy as np
import polars as pl
import pytest

from mlops_nb.data.prepare import SplitSummary
from mlops_nb.report.data_figures import (
    TimeCourse,
    choose_step,
    describe_target_course,
    find_time_window,
    plot_rows,
    read_time_course,
    rows_figure,
    target_figure,
    target_html,
)
from mlops_nb.report.figures import subplots

START = datetime(2021, 1, 1)


def prepared(tmp_path, times, targets, task="regression", method="time", classes=None):
    "Files, description and course of rows that are split in order: 60, 20 and 20 of a hundred."
    rows, n = pl.DataFrame(dict(at=times, _target=targets)), len(times)
    cuts, files, parts = [0, n * 6 // 10, n * 8 // 10, n], {}, {}
    for split, low, high in zip(("train", "valid", "test"), cuts, cuts[1:]):
        files[split], part = tmp_path / f"{split}.parquet", rows[low:high]
        part.write_parquet(files[split])
        y, known = part["_target"], part["at"].drop_nulls()
        target = (dict(mean=y.mean(), std=y.std(), min=y.min(), max=y.max()) if task == "regression" else
                  {c: (y == i).sum() for i, c in enumerate(classes)})
        time = (known.min().isoformat(), known.max().isoformat()) if len(known) else None
        parts[split] = SplitSummary(len(part), "", target, time)
    dataset = Some(task=task, classes=classes, used=n, parts=parts, split=Some(method=method))
    return files, dataset, read_time_course(files, dataset, "at" if method != "order" else None)


def hours(n): return [START + timedelta(hours=i) for i in range(n)]


def test_two_rows_of_another_decade_do_not_decide_the_axis(tmp_path):
    times = [datetime(2008, 12, 31)] * 2 + hours(4 * 30 * 24) + [datetime(2090, 1, 1)]
    y = [0.0] * 2 + [17.0] * (len(times) - 3) + [99.0]
    _, dataset, course = prepared(tmp_path, times, y)
    assert course.unit == "week" and 17 <= len(course.labels) <= 19
    assert sum(n.sum() for n in course.rows.values()) == len(times) - 3
    assert course.note == " Not drawn are 2 rows before 1 January 2021 and 1 row after 30 April 2021."
    said = describe_target_course(course, dataset, "y")
    assert said.startswith("The mean of y was 17 in the beginning (28 Dec 2020) and in the end (26 Apr 2021)")
    assert course.note in rows_figure(course, dataset).text and course.note in target_figure(course, dataset, "y").text


def test_a_period_with_few_rows_is_no_end_of_the_headline(tmp_path):
    times = [START - timedelta(days=2), *(START + timedelta(minutes=i) for i in range(20 * 1440))]
    _, dataset, course = prepared(tmp_path, times, [0.0, *np.linspace(10, 20, len(times) - 1)])
    assert course.unit == "day" and course.labels[0] == "30 Dec 2020" and course.rows["train"][:2].tolist() == [1, 0]
    said = describe_target_course(course, dataset, "y")
    assert said.startswith("The mean of y went from 10.2 (1 Jan 2021) to ") and said.endswith("(20 Jan 2021)")
    assert "Without 1 period of less than a tenth" in target_figure(course, dataset, "y").text


def test_a_gap_stays_a_gap(tmp_path):
    times = hours(20 * 24) + [t + timedelta(days=40) for t in hours(20 * 24)]
    _, _, course = prepared(tmp_path, times, [1.0] * len(times))
    n = sum(course.rows.values())
    assert course.unit == "week" and len(course.labels) == len(n) == 10 and n[4:5].tolist() == [0]
    assert course.target["mean"].is_null().to_numpy()[n == 0].all() and n.sum() == len(times)


@pytest.mark.parametrize("span, unit", [(timedelta(hours=1), "minute"), (timedelta(hours=8), "ten minutes"),
                                        (timedelta(days=1), "hour"), (timedelta(days=30), "day"),
                                        (timedelta(days=365), "month"), (timedelta(days=4000), "quarter"),
                                        (timedelta(days=20_000), "year"), (timedelta(days=100_000), "decade")])
def test_there_are_a_dozen_to_a_few_dozen_periods(tmp_path, span, unit):
    times = [START + span * i / 999 for i in range(1000)]
    _, _, course = prepared(tmp_path, times, [1.0] * 1000)
    assert course.unit == unit == choose_step(find_time_window(pl.LazyFrame(dict(when=times))))[1]
    assert 12 <= len(course.labels) <= 62 and sum(n.sum() for n in course.rows.values()) == 1000 and not course.note


@pytest.mark.parametrize("grow", [0, 1, 3])
def test_rows_that_grow_denser_are_drawn_nearly_all(grow):
    times = [START + timedelta(days=1000) * float(x) ** (1 / (1 + grow)) for x in np.linspace(0, 1, 5000)]
    window = find_time_window(pl.LazyFrame(dict(when=times)))
    assert window.before + window.after <= 5


def test_one_moment_and_no_moment_have_no_course(tmp_path):
    files, dataset, course = prepared(tmp_path, [START] * 50, [1.0, 2.0] * 25)
    schema = Some(target="y", columns=["y"])
    assert len(course.labels) == 1 and "<table" in target_html(course, files, dataset, schema).text
    files, dataset, course = prepared(tmp_path, pl.Series([None] * 50, dtype=pl.Datetime("us")), [1.0, 2.0] * 25)
    assert course is None and rows_figure(course, dataset).text == ""
    assert "<table" in target_html(course, files, dataset, schema).text


def test_the_order_of_the_rows_is_a_course_too(tmp_path):
    files, dataset, course = prepared(tmp_path, hours(1029), [0, 1, 1] * 343, "binary", "order", ["no", "yes"])
    assert course.unit == "stretch of 25 rows" and course.labels[1] == "row 26" and len(course.labels) == 42
    assert sum(n.sum() for n in course.rows.values()) == 1029
    assert "The share of “yes”" in target_html(course, files, dataset, Some(target="y", columns=["y"])).text
    assert "row 26" in rows_figure(course, dataset).text or "row 1" in rows_figure(course, dataset).text


def test_classes_are_listed_by_size_where_there_is_no_time(tmp_path):
    times = pl.Series([None] * 100, dtype=pl.Datetime("us"))
    files, dataset, course = prepared(tmp_path, times, [0, 2, 2, 1, 2] * 20, "multiclass", "random", ["a", "b", "c"])
    page = target_html(course, files, dataset, Some(target="a + 1", columns=["a"])).text
    assert page.index("<td>c</td>") < page.index("<td>a</td>") and page.count("60.0 %") == 3


@pytest.mark.parametrize("label", ["2021", "Jan 2024", "12 Jan 2024", "12 Jan 2024, 10:00", "row 1,000,000,000"])
@pytest.mark.parametrize("n", [1, 2, 7, 9, 41])
def test_labels_of_the_time_axis_lie_apart_and_evenly(label, n):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    fig, ax = subplots(height=2.4)
    plot_rows(ax, TimeCourse("day", [label] * n, {"train": np.full(n, 1000)}, pl.DataFrame()))
    FigureCanvasAgg(fig).draw()
    boxes = [x.get_window_extent() for x in ax.get_xticklabels()]
    assert all(a.x1 + 4 < b.x0 for a, b in zip(boxes, boxes[1:])) and len(set(np.diff(ax.get_xticks()))) <= 1
    assert len(boxes) >= min(n, 3)


def test_each_figure_over_time_has_its_table(tmp_path):
    times = [START + timedelta(days=i) for i in range(100)]
    files, dataset, course = prepared(tmp_path, times, np.arange(100.0))
    rows, target = rows_figure(course, dataset).text, target_figure(course, dataset, "y").text
    assert "The same as a table" in rows and rows.count("<tr>") == 1 + len(course.labels)
    assert "Lower quartile" in target and f"<td>{course.labels[-1]}</td>" in target
