"Counting in cells: against a loop over the rows, for whatever values come."
import math
from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.monitor.bin_counts import (
    LATENCY_EDGES_US,
    CellColumn,
    cell_numbers,
    count_cells_by_group,
    count_columns,
    latency_histogram,
    named_histogram,
    segment_column,
    segment_label,
    share_below,
)
from mlops_nb.stats.drift_test import ReferenceHistogram
from mlops_nb.stats.monitoring_baseline import Segment

NAMES = ["a", "b", "c", "d", "ü | ?"]
START = datetime(2026, 11, 1)


def cell_of_number(edges, x):
    "What `cell_numbers` promises, of one number."
    if x is None or math.isnan(x): return 0
    return 1 + sum(x >= e for e in edges)


def cell_of_name(reference, x):
    groups = [*([c] for c in reference.categories), *(reference.groups or [])]
    if x is None: return 0
    return next((i for i, names in enumerate(groups, 1) if x in names), len(groups) + 1)


NUMBERS = st.one_of(st.none(), st.floats(), st.integers(-5, 5).map(float))


@settings(max_examples=60, deadline=None)
@given(values=st.lists(NUMBERS, max_size=20), edges=st.lists(st.floats(-9, 9), min_size=1, max_size=40, unique=True))
def test_numbers(values, edges):
    edges = sorted(edges)
    reference = ReferenceHistogram([0] * (len(edges) + 2), edges=edges)
    cells = [cell_of_number(edges, x) for x in values]
    assert cell_numbers(reference, pl.Series(values, dtype=pl.Float64)).tolist() == cells
    texts = pl.Series([x if x is None else repr(x) for x in values], dtype=pl.String) # another model's column mixed in
    assert cell_numbers(reference, texts).tolist() == cells


def test_numbers_of_other_types():
    reference = ReferenceHistogram([0] * 4, edges=[0., 2.])
    for values, cells in ((pl.Series([-1, 0, None, 9]), [1, 2, 0, 3]), (pl.Series([True, None]), [2, 0]),
                          (pl.Series([None, None]), [0, 0]), (pl.Series(["many", "1e0"]), [0, 2]),
                          (pl.Series([2**53], dtype=pl.UInt64), [3])):
        assert cell_numbers(reference, values).tolist() == cells


@settings(max_examples=60, deadline=None)
@given(values=st.lists(st.one_of(st.none(), st.sampled_from([*NAMES, "new", ""])), max_size=20), n=st.integers(0, 5),
       grouped=st.booleans())
def test_categories(values, n, grouped):
    groups = [NAMES[n:]] if grouped and NAMES[n:] else None
    reference = ReferenceHistogram([0] * (n + 2 + len(groups or [])), categories=NAMES[:n], groups=groups)
    found = cell_numbers(reference, pl.Series(values, dtype=pl.String)).tolist()
    assert found == [cell_of_name(reference, x) for x in values]


def test_categories_that_came_as_other_types():
    reference = named_histogram(["true", "5"])
    assert cell_numbers(reference, pl.Series([True, False, None])).tolist() == [1, 3, 0]
    assert cell_numbers(reference, pl.Series([5, 6])).tolist() == [2, 3]
    assert cell_numbers(reference, pl.Series([None, None])).tolist() == [0, 0]
    assert cell_numbers(reference, pl.Series(["true"], dtype=pl.Categorical)).tolist() == [1]


ROWS = st.lists(st.tuples(st.integers(0, 60 * 30), st.sampled_from([*NAMES, None]), NUMBERS), max_size=40)


@settings(max_examples=30, deadline=None)
@given(rows=ROWS)
def test_a_table_by_hour_and_segment(rows):
    "Each row is in its hour, its segment and its cell, and in no other."
    frame = pl.DataFrame(rows, dict(minute=pl.Int64, name=pl.String, x=pl.Float64), orient="row")
    times = pl.Series([START + timedelta(minutes=m) for m in frame["minute"]], dtype=pl.Datetime("us", "UTC"))
    references = dict(name=named_histogram(NAMES[:3]), x=ReferenceHistogram([0] * 4, edges=[0., 2.]))
    known = [Segment("name", "a"), Segment("name", "b"), Segment("name")]
    segments = segment_column("name", known, frame["name"])._replace(columns=[{"x"}, {"x", "name"}, set()])
    expected = Counter()
    for minute, name, x in rows:
        hour = START + timedelta(hours=minute // 60)
        cells = dict(name=cell_of_name(references["name"], name), x=cell_of_number([0., 2.], x))
        for column, cell in cells.items():
            expected["", "", column, hour, cell] += 1
            if name == "a" and column == "x": expected["name", "a", column, hour, cell] += 1
            if name == "b": expected["name", "b", column, hour, cell] += 1
    found = count_columns([CellColumn("column", c, frame[c], r) for c, r in references.items()], times, [segments])
    columns = ["segment_column", "segment_value", "name", "hour", "cell"]
    assert found.select(columns).n_unique() == found.height
    assert dict(zip(found.select(columns).iter_rows(), found["n"])) == expected
    assert found["cells"].to_list() == [len(references[c].counts) for c in found["name"]]


def test_segments_of_numbers():
    known = [Segment("x", range=(None, 1)), Segment("x", range=(1, 5.5)), Segment("x", range=(5.5, None)), Segment("x")]
    found = segment_column("x", known, pl.Series([0., 1., 5.5, None, math.nan]))
    assert found.numbers.tolist() == [0, 1, 2, 3, 3]
    assert found.labels == ["x < 1", "1 ≤ x < 5.5", "5.5 ≤ x", "(missing)"]
    assert segment_label(Segment("x", "")) == ""


def test_many_groups_take_no_more_memory_than_rows():
    "A clock that jumps makes hours without end."
    groups, n_groups = np.array([0, 10**12, 10**12, 7]), 10**12 + 1
    group, cell, n = count_cells_by_group(groups, n_groups, np.array([1, 2, 2, 0]), 3)
    assert list(zip(group, cell, n)) == [(0, 1, 1), (7, 0, 1), (10**12, 2, 2)]


def test_latencies_below_a_limit():
    assert {1e3 * ms for ms in (1, 5, 10, 50, 100, 250, 500, 1000, 2000, 5000)} <= {*LATENCY_EDGES_US}
    took = np.random.default_rng(0).lognormal(10, 1, 5000)
    counts = np.bincount(cell_numbers(latency_histogram(), pl.Series(took)), minlength=len(latency_histogram().counts))
    for ms in (10, 25, 50, 100): assert share_below(counts, ms) == (took < 1000 * ms).mean()
    assert math.isnan(share_below(counts * 0, 50))
