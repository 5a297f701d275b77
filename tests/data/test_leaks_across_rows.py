"Columns that name whom rows are about, and columns that are filled later, are found; honest ones are left alone."
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace

from mlops_nb.config.schema import Column, Schema
from mlops_nb.data.leakage import LeakFinding
from mlops_nb.data.leaks_across_rows import (
    find_entity_columns,
    find_late_columns,
    find_raw_leaks,
    join_findings,
    value_agreement,
)

CLASSES = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": None}


def schema(columns, task="binary", **keys):
    columns = {n: c if isinstance(c, Column) else Column(c) for n, c in columns.items()}
    return Schema("d", task, "y", {"y": Column("number"), **columns}, classes=CLASSES[task], **keys)


def target(rng, task, n, share=0.3):
    if task == "regression": return rng.normal(size=n)
    return (rng.random(n) < share).astype(float) if task == "binary" else rng.integers(0, 3, n).astype(float)


def entities(columns, y, types, task="binary", **keys):
    frame = pl.DataFrame({**columns, "_target": y}).lazy()
    return [f.column for f in find_entity_columns(frame, schema(types, task), **keys)]


# whom rows are about

@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("each", [2, 6, 30])
def test_a_number_whose_rows_share_the_target_names_whom_they_are_about(task, each):
    rng = np.random.default_rng(each)
    who = np.repeat(rng.permutation(50_000)[:200], each)
    y = np.repeat(target(rng, task, 200), each)
    order = rng.permutation(len(who))
    columns = dict(figure=who, mark=[f"c{i}" for i in who], noise=rng.integers(0, 100, len(who)),
                   salary=np.repeat(rng.lognormal(8, 1, 200).round(2), each))
    types = dict(figure="integer", mark="category", noise="integer", salary="number")
    found = entities({n: np.array(v)[order] for n, v in columns.items()}, y[order], types, task)
    assert found == ["figure", "mark", "salary"], "what is the same in all visits of a person knows him as well"


def test_a_large_table_is_judged_by_the_rows_of_some_values():
    rng = np.random.default_rng(1)
    who = np.repeat(rng.permutation(10**6)[:30_000], 5)
    y, order = np.repeat(target(rng, "binary", 30_000), 5), rng.permutation(150_000)
    columns = dict(figure=who[order], noise=rng.integers(0, 40_000, 150_000))
    assert entities(columns, y[order], dict(figure="integer", noise="integer")) == ["figure"]


@pytest.mark.parametrize("task", CLASSES)
def test_strong_measurements_and_categories_do_not_name_anybody(task):
    rng = np.random.default_rng(2)
    n = 6000
    y = target(rng, task, n)
    columns = dict(copied=(y * 300 + 5 * rng.normal(size=n)).astype(int),
                   strong=(y * 40 + 30 * rng.normal(size=n)).astype(int),
                   place=rng.integers(0, 260, n), category=[f"c{i}" for i in rng.integers(0, 200, n)],
                   rounded=rng.normal(size=n).round(2))
    types = dict(copied="integer", strong="integer", place="integer", category="category", rounded="number")
    assert entities(columns, y, types, task) == []


def test_a_code_with_many_rows_each_that_tells_the_target_names_nobody():
    "As places do, of which each has another mean: the target is not the same in all rows of one."
    rng = np.random.default_rng(3)
    place = rng.integers(0, 250, 20_000)
    y = (rng.random(20_000) < rng.beta(1, 1, 250)[place]).astype(float)
    assert entities(dict(place=place), y, dict(place="integer")) == []


def test_copied_rows_name_nobody():
    rng = np.random.default_rng(4)
    y, x, k = target(rng, "binary", 800), rng.normal(size=800), rng.integers(0, 10**6, 800)
    columns, types = dict(x=np.tile(x, 3), k=np.tile(k, 3)), dict(x="number", k="integer")
    assert entities(columns, np.tile(y, 3), types) == []


def test_who_is_named_already_is_not_looked_for():
    rng = np.random.default_rng(5)
    who, y = np.repeat(np.arange(300), 4), np.repeat(target(rng, "binary", 300), 4)
    frame = pl.DataFrame(dict(who=who, visit=np.tile(np.arange(4), 300), _target=y)).lazy()
    s = schema(dict(who="integer", visit="integer"))
    assert [f.column for f in find_entity_columns(frame, s)] == ["who"]
    assert find_entity_columns(frame, replace(s, entity="who")) == []


@pytest.mark.parametrize("seed", range(10))
def test_noise_names_nobody(seed):
    rng = np.random.default_rng(seed)
    n = 1000
    y = target(rng, "binary", n, 0.02 + 0.05 * (seed % 3))
    columns = {f"k{i}": rng.integers(0, 20 * (i + 1), n) for i in range(40)}
    columns |= {f"c{i}": [f"c{v}" for v in rng.integers(0, 300, n)] for i in range(10)}
    types = {c: "integer" if c[0] == "k" else "category" for c in columns}
    assert entities(columns, y, types) == []


def test_agreement_is_that_of_the_definition():
    values, y = pl.Series([1, 1, 2, 2, 2, 5]), np.array([[1.0], [0], [1], [1], [0], [0]])
    z = y[:, 0] - y.mean()
    mates = [z[1], z[0], (z[3] + z[4]) / 2, (z[2] + z[4]) / 2, (z[2] + z[3]) / 2]
    beside = [z[2:5].mean()] * 2 + [(z[0] + z[1] + z[5]) / 3] * 3 + [z[2:5].mean()]
    assert value_agreement(values, y) == pytest.approx(((z[:5] * mates).sum() / (z[:5] ** 2).sum(),
                                                        (z * beside).sum() / (z ** 2).sum()))


# filled later

def stories(rng, kind, n=20_000, span=1000):
    "Days, the target and one column of a table that was taken on the last day."
    day, y = np.sort(rng.integers(0, span, n)), rng.random(n) < 0.2
    age = span - day
    after = lambda mean: rng.exponential(mean, n) < age # has it happened by now?
    honest, half = rng.random(n) < 0.1 + 0.3 * y, day < span / 2
    columns = {
        "closed in a month": np.where(y & after(30), "closed", "open"),
        "amount recovered": np.where(y & after(20) & (rng.random(n) < 0.8), rng.integers(10, 90, n), 0),
        "date, for most": np.where(rng.random(n) < 0.1 + 0.6 * y, day + 25.0, np.nan),
        "score, later": np.where(age > 60, y + rng.normal(size=n), np.nan),
        "honest": honest.astype(int),
        "drifts down": (rng.random(n) < (0.1 + 0.3 * y) * (1.2 - day / span)).astype(int),
        "rare drift": (rng.random(n) < (0.02 + 0.06 * y) * (1.3 - day / span)).astype(int),
        "season": (rng.random(n) < (0.05 + 0.3 * y) * (1 + np.cos(day / 365.25 * 2 * np.pi)) / 2).astype(int),
        "introduced": np.where(half, np.nan, y + rng.normal(size=n)),
        "year": 2020 + day // 365, "month": day // 30 % 12,
        "noise, later": np.where(age > 60, rng.normal(size=n), np.nan),
        "weekly waves": (rng.random(n) < (0.1 + 0.3 * y) * rng.gamma(8, 1 / 8, span // 7 + 1)[day // 7]).astype(int)}
    values = columns[kind]
    if kind == "date, for most": values = np.where(np.nan_to_num(values, nan=np.inf) < span, values, np.nan)
    return day, y, values


LATE = ["closed in a month", "amount recovered", "date, for most", "score, later"]
HONEST = ["honest", "drifts down", "rare drift", "season", "introduced", "year", "month", "noise, later",
          "weekly waves"]


def on_days(day): return pl.select(pl.datetime(2022, 1, 1) + pl.duration(days=pl.lit(pl.Series(day)))).to_series()


def late(kind, seed):
    day, y, values = stories(np.random.default_rng([seed, (LATE + HONEST).index(kind)]), kind)
    values = pl.Series(values).fill_nan(None) if values.dtype.kind == "f" else pl.Series(values)
    frame = pl.DataFrame(dict(at=on_days(day), x=values, _target=y.astype(float)))
    type = "category" if values.dtype == pl.String else "number" if values.dtype.is_float() else "integer"
    s = schema(dict(at="timestamp", x=Column(type, nullable=True)), event_time="at")
    return find_late_columns(frame.lazy(), s)


@pytest.mark.parametrize("kind", LATE)
def test_columns_that_are_filled_later_are_found(kind):
    "In 20,000 rows of a thousand days; the delays are three to eight weeks."
    found = [late(kind, seed) for seed in range(6)]
    assert sum([f.kind for f in fs] == ["after the outcome"] and fs[0].blocks for fs in found) >= 5
    assert "of the newest rows" in next(filter(None, found))[0].message


@pytest.mark.parametrize("kind", HONEST)
def test_honest_changes_are_no_finding(kind):
    assert not [f.message for seed in range(8) for f in late(kind, seed)]


def test_labels_that_are_not_known_yet_do_not_hide_it():
    day, y, values = stories(np.random.default_rng(7), "closed in a month")
    at = on_days(day)
    known = pl.Series(y.astype(float)).to_frame("v").select(pl.when(pl.Series(day < 900)).then("v")).to_series()
    frame = pl.DataFrame(dict(at=at, x=values, _target=known)).lazy()
    s = schema(dict(at="timestamp", x="category"), event_time="at")
    assert [f.column for f in find_late_columns(frame, s)] == ["x"]
    assert find_late_columns(frame, replace(s, event_time=None)) == []
    assert find_late_columns(frame.head(200), s) == [], "too few rows to say"


def test_monthly_snapshots_are_compared_by_month():
    rng = np.random.default_rng(8)
    month, y = np.repeat(np.arange(1, 11), 500), rng.random(5000) < 0.2
    settled = np.where(y & (month < 10), 1, 0)
    at = pl.Series([datetime(2024, int(m), 1) for m in month])
    frame = pl.DataFrame(dict(at=at, settled=settled, honest=rng.integers(0, 2, 5000), _target=y.astype(float))).lazy()
    s = schema(dict(at="timestamp", settled="integer", honest="integer"), event_time="at")
    assert [f.column for f in find_late_columns(frame, s)] == ["settled"]


# together

def test_one_finding_a_column_and_what_is_certain_first():
    hint = LeakFinding("a", "name", 0.5, "", "", blocks=False)
    sure, sums = LeakFinding("a", "after the outcome", 0.4, "", ""), LeakFinding("b", "sum", 1.0, "", "")
    assert join_findings([hint, sums], [sure]) == [sums, sure]
    assert join_findings([sure], [LeakFinding("a", "entity", 1.0, "", "")]) == [sure]
    assert join_findings([hint]) == [hint]


def test_raw_data_is_searched_in_all_ways():
    rng = np.random.default_rng(9)
    who, sick = np.repeat(rng.permutation(9000)[:400], 5), np.repeat(rng.random(400) < 0.3, 5)
    at = [datetime(2024, 1, 1) + timedelta(hours=int(h)) for h in rng.permutation(2000)]
    raw = pl.DataFrame(dict(at=at, who=who, duration=sick * 2 + rng.normal(size=2000), y=sick.astype(int),
                            copied=np.where(sick, "x", "z"))).lazy()
    s = Schema("d", "binary", "y", dict(at=Column("timestamp"), who=Column("integer"), duration=Column("number"),
               copied=Column("category"), y=Column("integer")), classes=["0", "1"], event_time="at")
    assert {f.column: f.kind for f in find_raw_leaks(raw, s)} == dict(copied="target copy", who="entity",
                                                                      duration="name")
