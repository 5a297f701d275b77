"The baseline by segment is what filtering the rows gives; it stays small and is read however old it is."
import msgspec
import numpy as np
import polars as pl
import pytest

from mlops_nb.config.schema import Column, Schema
from mlops_nb.stats.calibration_bins import calibration_bins
from mlops_nb.stats.drift_test import fit_baseline
from mlops_nb.stats.monitoring_baseline import (
    MAX_SEGMENT_COLUMNS,
    MAX_SEGMENT_NUMBERS,
    MAX_SEGMENT_VALUES,
    MIN_SEGMENT_ROWS,
    MonitoringBaseline,
    ScoredRows,
    Segment,
    add_scores,
    find_segments,
    fit_segment_baselines,
)
from mlops_nb.stats.summaries import summarize_columns

COMPUTED = dict(ratio="number", band="category")


def schema_of(segments, **more):
    columns = dict(place=Column("category", nullable=True), age=Column("number", nullable=True),
                   flag=Column("boolean"), code=Column("category", nullable=True), few=Column("integer"),
                   when=Column("timestamp", feature=False), note=Column("text", feature=False), y=Column("number"))
    return Schema("t", "regression", "y", columns | more, segments=segments)


def rows(n=3_000, seed=0):
    r = np.random.default_rng(seed)
    age = np.where(r.random(n) < .1, np.nan, r.normal(40, 12, n))
    code = np.where(r.random(n) < .2, None, np.strings.add("c", r.integers(0, 600, n).astype(str))).tolist()
    return pl.DataFrame(dict(
        place=r.choice(["north", "south", None], n, p=[.6, .3, .1]).tolist(), age=age, flag=r.random(n) < .7, code=code,
        few=r.integers(1, 4, n), when=pl.Series(np.arange(n)).cast(pl.Datetime("us")), note=["text"] * n,
        y=r.normal(size=n), ratio=np.where(r.random(n) < .3, np.nan, age / 3), band=r.choice(["low", "high"], n)))


def segments_of(frame, schema):
    data = fit_baseline(frame, schema, COMPUTED)
    return data, fit_segment_baselines(frame, schema, data, {})


def label(s): return s.column, s.value or s.range


def test_segments_of_every_type_have_their_rows():
    frame = rows()
    found = {label(s): inside for s, inside in find_segments(frame, schema_of(
        ["place", "age", "flag", "few", "when", "note"])).items()}
    assert {k for k in found if k[0] != "age"} == {
        ("place", "north"), ("place", "south"), ("place", None), ("flag", "true"), ("flag", "false"),
        ("few", (None, 2.0)), ("few", (2.0, 3.0)), ("few", (3.0, None))}, "no segment of times and texts"
    for (column, value), inside in found.items():
        if column == "age": continue
        few = {(None, 2.0): 1, (2.0, 3.0): 2, (3.0, None): 3}
        expected = [x is value or x == {"true": True, "false": False}.get(value, few.get(value, value))
                    for x in frame[column].to_list()]
        assert inside.tolist() == expected
    ages = [inside for (column, value), inside in found.items() if column == "age" and value]
    assert len(ages) == 4 and all(600 < a.sum() < 750 for a in ages) and (sum(ages) <= 1).all()
    assert (sum(ages) + found["age", None] == 1).all(), "every row is in one segment of a column"


def test_a_segment_with_few_rows_or_all_rows_has_no_baseline():
    n = 2_000
    names = ["rare"] * (MIN_SEGMENT_ROWS - 1) + ["just"] * MIN_SEGMENT_ROWS
    frame = rows(n).with_columns(place=pl.Series(names + ["usual"] * (n - len(names))), code=pl.lit("same"))
    found = find_segments(frame, schema_of(["place", "code", "place"]))
    assert [label(s) for s in found] == [("place", "usual"), ("place", "just")]
    many = pl.Series(np.strings.add("p", (np.arange(50 * 120) % 50).astype(str)))
    assert len(find_segments(rows(len(many)).with_columns(place=many), schema_of(["place"]))) == MAX_SEGMENT_VALUES


def test_distributions_and_missing_and_unknown_rates_by_segment():
    frame = rows()
    data, found = segments_of(frame, schema_of(["place"]))
    assert [s.segment.value for s in found] == ["north", "south", None] and {*COMPUTED} <= data.columns.keys()
    once = {c for c, n in frame["code"].drop_nulls().value_counts().iter_rows() if n == 1}
    assert once
    for s in found:
        mine = frame.filter(pl.col("place").eq_missing(s.segment.value))
        assert s.rows == len(mine) and s.columns.keys() == data.columns.keys()
        for c, reference in data.columns.items():
            counts = s.columns[c]
            values = mine[c].fill_nan(None) if mine[c].dtype.is_float() else mine[c]
            assert sum(counts) == len(mine) and reference.missing_share(counts) == values.null_count() / len(mine)
        assert data.columns["code"].unknown_share(s.columns["code"]) == pytest.approx(
            mine["code"].is_in(list(once)).sum() / len(mine))
        band = dict(zip(data.columns["band"].categories, s.columns["band"][1:]))
        assert band == dict(mine["band"].value_counts().iter_rows())
        edges = data.columns["ratio"].edges
        ratio = mine["ratio"].drop_nans()
        cells = [((ratio >= a) & (ratio < b)).sum() for a, b in zip([-np.inf, *edges], [*edges, np.inf])]
        moved = np.abs(np.subtract(s.columns["ratio"][1:], cells)).sum() # the extremes of all rows may be here
        assert moved in (0, 2, 4) and s.columns["ratio"][0] == len(mine) - len(ratio)
    for c, reference in data.columns.items():
        assert np.sum([s.columns[c] for s in found], axis=0).tolist() == reference.counts


def test_columns_that_are_empty_or_of_too_many_categories():
    ids = pl.Series([f"id{i}" for i in range(3_000)])
    frame = rows().with_columns(code=ids, age=pl.lit(None, pl.Float64))
    data, found = segments_of(frame, schema_of(["flag"]))
    assert data.columns["code"].unknown_share() is None and data.columns["age"].missing_share() == 1
    for s in found:
        assert s.columns["code"] == [0, s.rows] and s.columns["age"][0] == s.rows == sum(s.columns["age"])
    data, found = segments_of(frame.with_columns(code=pl.lit(None, pl.String)), schema_of(["code", "flag"]))
    assert all(s.segment.column == "flag" and s.columns["code"][0] == s.rows for s in found)


def scored(frame, scores, observed): return ScoredRows(frame, scores, observed)


def test_scores_are_of_the_validation_rows_and_calibration_of_the_test_rows_in_the_same_bins():
    schema, r = schema_of(["place"]), np.random.default_rng(5)
    data, segments = segments_of(rows(), schema)
    valid, test = rows(1_000, 1), rows(1_500, 2)
    s_valid, s_test, y = r.normal(size=1_000), r.normal(size=1_500), r.normal(size=1_500)
    b = add_scores(MonitoringBaseline(data, {}, {}, segments=segments), scored(valid, dict(score=s_valid), {}),
                   scored(test, dict(score=s_test), dict(score=y)))
    histogram = b.scores["score"]
    assert sum(histogram.counts) == 1_000 and sum(b.calibration["score"].rows) == 1_500
    assert b.calibration["score"] == calibration_bins(histogram.edges, s_test, y)
    for s in b.segments:
        mine = test["place"].eq_missing(s.segment.value).to_numpy()
        assert s.calibration["score"] == calibration_bins(histogram.edges, s_test[mine], y[mine])
        assert sum(s.scores["score"]) == valid["place"].eq_missing(s.segment.value).sum()
    assert np.sum([s.scores["score"] for s in b.segments], axis=0).tolist() == histogram.counts


def test_a_segment_with_few_test_rows_has_no_calibration():
    data, segments = segments_of(rows(), schema_of(["place"]))
    test = rows(400, 2)
    b = add_scores(MonitoringBaseline(data, {}, {}, segments=segments), scored(test, dict(score=np.arange(400.)), {}),
                   scored(test, dict(score=np.arange(400.)), dict(score=np.arange(400.))))
    here = {s.segment.value: (test["place"].eq_missing(s.segment.value).sum(), len(s.calibration)) for s in b.segments}
    assert here == {v: (n, int(n >= MIN_SEGMENT_ROWS)) for v, (n, _) in here.items()} and here[None][1] == 0


def test_constant_scores_of_a_regression_have_one_bin_with_all_residuals():
    data, segments = segments_of(rows(), schema_of(["flag"]))
    test = rows(1_000, 3)
    same, y = dict(score=np.full(1_000, 4.0)), np.arange(1_000) % 5.0
    b = add_scores(MonitoringBaseline(data, {}, {}, segments=segments), scored(test, same, {}),
                   scored(test, same, dict(score=y)))
    [i] = np.flatnonzero(b.calibration["score"].rows)
    assert b.calibration["score"].residual_mean()[i] == pytest.approx(-2)
    assert b.calibration["score"].residual_variance()[i] == pytest.approx(np.var(y, ddof=1))
    assert b"NaN" not in (text := msgspec.json.encode(b))
    assert msgspec.json.decode(text, type=MonitoringBaseline) == b


def test_only_the_columns_that_matter_most_are_kept_by_segment():
    n_columns, n = 200, 1_000
    r = np.random.default_rng(0)
    wide = pl.DataFrame(r.normal(size=(n, n_columns)), [f"x{i}" for i in range(n_columns)])
    frame = rows(n).hstack(wide)
    schema = schema_of(["flag"], **{c: Column("number") for c in wide.columns})
    data = fit_baseline(frame, schema)
    strong = [dict(feature=f"x{150 + i}", mean_abs=1.0 + i) for i in range(40)]
    found = fit_segment_baselines(frame, schema, data, dict(features=strong))
    kept = {"y"} | {f"x{150 + i}" for i in range(40 - MAX_SEGMENT_COLUMNS + 1, 40)}
    assert [s.columns.keys() for s in found] == [kept, kept] and len(kept) == MAX_SEGMENT_COLUMNS


def numbers_in(x):
    if isinstance(x, dict): return sum(map(numbers_in, x.values()))
    return sum(map(numbers_in, x)) if isinstance(x, list) else int(isinstance(x, int | float))


def test_all_segments_together_are_bounded_however_many_there_are():
    n, classes = 20_000, [f"score_{i}" for i in range(12)]
    r = np.random.default_rng(0)
    names = {f"s{i}": Column("category") for i in range(6)}
    values = {c: np.strings.add("v", r.integers(0, 20, n).astype(str)) for c in names}
    frame = rows(n).with_columns(**{c: pl.Series(v) for c, v in values.items()})
    schema = schema_of([*names, "flag"], **names)
    data, segments = segments_of(frame, schema)
    assert len(segments) == 6 * 20 + 2
    scores, observed = ({c: r.random(n) for c in classes} for _ in range(2))
    b = add_scores(MonitoringBaseline(data, {}, {}, segments=segments), scored(frame, scores, {}),
                   scored(frame, scores, observed))
    held = [msgspec.to_builtins((s.columns, s.scores, s.calibration)) for s in b.segments]
    assert .8 * MAX_SEGMENT_NUMBERS < numbers_in([list(h) for h in held]) <= MAX_SEGMENT_NUMBERS
    assert len(msgspec.json.encode(b.segments)) < 400_000
    largest = sorted(segments, key=lambda s: -s.rows)[:len(b.segments)]
    assert [s.segment for s in b.segments] == [s.segment for s in largest] and b.segments[0].segment.column == "flag"


def test_a_schema_without_segments_has_none():
    data, segments = segments_of(rows(), schema_of([]))
    assert segments == []
    one = scored(rows(10), dict(score=np.arange(10.)), dict(score=np.arange(10.)))
    assert add_scores(MonitoringBaseline(data, {}, {}), one, one).segments == []


def test_a_row_finds_its_segment_whatever_the_type_of_its_column():
    assert Segment("n", range=(1.0, 3.0)).rows(pl.Series([0, 1, 2, 3, None])).tolist() == [0, 1, 1, 0, 0]
    assert Segment("n").rows(pl.Series([1.0, float("nan"), None])).tolist() == [0, 1, 1]
    assert Segment("b", "true").rows(pl.Series([True, False, None])).tolist() == [1, 0, 0]
    assert Segment("c", "x").rows(pl.Series([None, None], dtype=pl.String)).tolist() == [0, 0]
    assert Segment("c", "x").rows(pl.Series([], dtype=pl.String)).tolist() == []


def test_a_baseline_of_an_older_version_is_read():
    old = b'{"data":{"rows":1,"columns":{"v":{"counts":[0,1],"edges":null,"categories":["a"]}}},"scores":{},' \
          b'"attribution":{"n_rows":1},"training_keys":null}'
    b = msgspec.json.decode(old, type=MonitoringBaseline)
    assert (b.calibration, b.segments, b.data.rows) == ({}, [], 1)


def test_new_rows_are_counted_in_the_bins_of_a_segment():
    "What monitoring does: the same rows again give the same counts, but for what no other training row has seen."
    frame, schema = rows(), schema_of(["place"])
    data, found = segments_of(frame, schema)
    for s in found:
        mine = frame.filter(s.segment.rows(frame["place"]))
        again = summarize_columns(mine, schema, COMPUTED)
        for c, reference in data.columns.items():
            if c in ("code", "age", "ratio", "y"): continue # their extremes and names that occur once
            assert reference.bin_counts(again[c]).tolist() == s.columns[c]
