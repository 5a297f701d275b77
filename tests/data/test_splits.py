"Splits: what each method promises, for any data, and what a person hears when it cannot be kept."
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.params import SplitParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.data.row_keys import content_keys
from mlops_nb.data.splits import (
    SPLIT_NAMES,
    assign_splits,
    check_split_overlap,
    count_repeated_rows,
    is_in_last_share,
    rarest_labels,
    row_positions,
    split_key_columns,
)

COLUMNS = dict(who=Column("category", nullable=True), team=Column("integer"), at=Column("timestamp"),
               y=Column("category"),
               fold=Column("category", feature=False))
TIMED = Schema(dataset="d", task="binary", target="y", classes=["no", "yes"], entity="who", event_time="at",
               columns=COLUMNS)
PLAIN = Schema(dataset="d", task="binary", target="y", classes=["no", "yes"], columns=COLUMNS)
NUMBER = Schema(dataset="d", task="regression", target="team", columns=COLUMNS)


def rows(n=500, seed=0, days=40, people=60, sources=3):
    rng = np.random.default_rng(seed)
    frame = pl.DataFrame(dict(_source=[f"f{i % sources}.csv" for i in range(n)], _row=[i // sources for i in range(n)],
                              who=[f"p{i}" for i in rng.integers(0, people, n)], team=rng.integers(0, 20, n),
                              _target=rng.integers(0, 2, n) * 1., y="?",
                              at=[datetime(2024, 1, 1) + timedelta(days=int(d)) for d in rng.integers(0, days, n)]))
    return frame.with_columns(fold=pl.Series(rng.choice([*SPLIT_NAMES, "train"], n)))


def split(frame, schema, **kw):
    params = SplitParams(**kw)
    part = assign_splits(frame, params, schema)
    parts = {p: frame.filter(part == p) for p in SPLIT_NAMES}
    assert sum(map(len, parts.values())) == len(frame) == len(part)
    return parts, check_split_overlap(parts, params, schema)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 8), min_size=2, max_size=60), st.floats(.01, .5))
def test_the_cut_is_the_closest_one_that_tears_nothing(position, share):
    position = np.array(position)
    mask = is_in_last_share(position, share)
    values = np.unique(position)
    if len(values) < 2: assert not mask.any(); return
    assert position[~mask].max() < position[mask].min()
    best = min(abs((position >= v).sum() - share * len(position)) for v in values[1:])
    assert abs(mask.sum() - share * len(position)) <= best + 1e-9


@settings(deadline=None, max_examples=25)
@given(st.integers(30, 300), st.integers(0, 10), st.integers(5, 60), st.sampled_from([.1, .2, .33]))
def test_time(n, seed, days, share):
    frame = rows(n, seed, days)
    try: parts, check = split(frame, TIMED, method="time", test=share, validation=share)
    except UserError as e: assert "would be empty" in str(e) or "in no training row" in str(e); return
    assert check.in_time_order and check.overlapping_times == 0
    at = {split: rows["at"] for split, rows in parts.items()}
    assert at["train"].max() < at["valid"].min() <= at["valid"].max() < at["test"].min()


@settings(deadline=None, max_examples=25)
@given(st.integers(100, 400), st.integers(0, 10), st.integers(5, 80))
def test_group(n, seed, people):
    frame = rows(n, seed, people=people)
    parts, check = split(frame, TIMED, method="group", seed=seed)
    assert check.overlapping_groups == 0
    sets = [set(p["who"]) for p in parts.values()]
    assert len(set.union(*sets)) == sum(map(len, sets))
    other = {p: f["team"].unique().to_list() for p, f in split(frame, PLAIN, method="group", column="team")[0].items()}
    assert not set(other["train"]) & set(other["test"])


@pytest.mark.parametrize("method", ["time", "order", "group", "random", "column", "files"])
def test_the_part_of_a_row_does_not_depend_on_the_order_of_reading(method):
    frame = rows()
    kw = dict(column=dict(column="fold"), files=dict(test_files=["f2.*"])).get(method, {})
    schema = TIMED if method in ("time", "group") else PLAIN
    a = frame.with_columns(part=assign_splits(frame, SplitParams(method=method, **kw), schema))
    mixed = frame.sample(fraction=1, shuffle=True, seed=5)
    b = mixed.with_columns(part=assign_splits(mixed, SplitParams(method=method, **kw), schema))
    assert a.sort("_source", "_row").equals(b.sort("_source", "_row"))


def test_order_takes_the_end_of_the_last_file():
    parts, _ = split(rows(300, sources=3), PLAIN, method="order", test=.2, validation=.25)
    assert {k: len(v) for k, v in parts.items()} == dict(train=180, valid=60, test=60)
    assert set(parts["test"]["_source"]) == {"f2.csv"} and parts["test"]["_row"].min() == 40


def test_random_shares_and_seed():
    frame = rows(4000).with_columns(team=pl.int_range(4000))
    parts, _ = split(frame, PLAIN, method="random")
    assert all(abs(len(parts[s]) - n) < 100 for s, n in dict(train=2560, valid=640, test=800).items())
    again, other = (assign_splits(frame, SplitParams(method="random", seed=s), PLAIN) for s in (0, 1))
    assert again.equals(assign_splits(frame, SplitParams(method="random"), PLAIN)) and not again.equals(other)


@pytest.mark.parametrize("schema, method", [(PLAIN, "random"), (TIMED, "random"), (TIMED, "group")])
def test_rows_that_arrive_move_no_old_one(schema, method):
    frame = rows(1500).with_columns(team=pl.int_range(1500))
    old, params = frame[::2], SplitParams(method=method)
    after = assign_splits(frame, params, schema)
    assert assign_splits(old, params, schema).equals(after[::2])
    renamed = old.with_columns(_source=pl.lit("a.csv"), _row=pl.int_range(len(old)), _target=1 - pl.col("_target"))
    assert assign_splits(renamed, params, schema).equals(after[::2]) # by what a row says, not where it stands


def test_the_hash_is_the_same_for_ever():
    keys = pl.DataFrame(dict(_source=["a"] * 12, _row=range(12), _target=[0., 1.] * 6,
                             who=[f"p{i}" for i in range(12)]))
    place = row_positions(keys, SplitParams(method="group"), TIMED)
    assert place[:3].round(6).tolist() == [0.049975, 0.220424, 0.65438]


def test_an_entity_is_in_one_random_split_and_rows_without_one_are_alone():
    parts, check = split(rows(2000, people=200), TIMED, method="random")
    assert check.overlapping_entities == 0 and all(len(p) > 100 for p in parts.values())
    assert check.known_entity_share == 0
    by_file, seen = split(rows(2000, people=200), TIMED, method="files", test_files=["f2.csv"])
    before = set(by_file["train"]["who"]) | set(by_file["valid"]["who"])
    people = set(by_file["test"]["who"])
    assert seen.known_entity_share == pytest.approx(len(people & before) / len(people)) and seen.known_entity_share > .9
    nobody = rows(2000).with_columns(who=pl.lit(None, pl.String))
    parts, _ = split(nobody, TIMED, method="random")
    assert abs(len(parts["test"]) - 400) < 80


@pytest.mark.parametrize("method", ["random", "group", "time"])
def test_copies_of_a_row_are_in_one_split(method):
    frame = rows(800, sources=1).with_columns(team=pl.int_range(800))
    both = pl.concat([frame, frame[::2].with_columns(_source=pl.lit("copy.csv"))])
    parts, _ = split(both, PLAIN if method == "random" else TIMED, method=method)
    keys = {s: content_keys(p, PLAIN) for s, p in parts.items()}
    assert count_repeated_rows(keys) == (400, 0)


def test_copies_across_files_are_counted():
    frame = rows(800, sources=1).with_columns(team=pl.int_range(800))
    both = pl.concat([frame, frame[:300].with_columns(_source=pl.lit("test.csv"))])
    parts, _ = split(both, PLAIN, method="files", test_files=["test.csv"])
    assert count_repeated_rows({s: content_keys(p, PLAIN) for s, p in parts.items()}) == (300, 300)


@pytest.mark.parametrize("seed", range(5))
def test_very_small_data_has_usable_splits(seed):
    frame = rows(12).with_columns(_target=pl.Series([1.] * 3 + [0.] * 9), team=pl.int_range(12))
    parts, _ = split(frame, PLAIN, method="random", seed=seed)
    assert all((p["_target"] == 1).sum() == 1 for p in parts.values())


def test_a_class_of_one_row_is_learnt_from_and_of_three_is_everywhere():
    schema = Schema(dataset="d", task="multiclass", target="y", classes=["a", "b", "c"], columns=COLUMNS)
    frame = rows(104).with_columns(_target=pl.Series([2.] + [1.] * 3 + [0.] * 100))
    parts, _ = split(frame, schema, method="random")
    assert (parts["train"]["_target"] == 2).sum() == 1 and all((p["_target"] == 1).sum() == 1 for p in parts.values())


def test_regression_at_random_needs_no_classes():
    parts, _ = split(rows(100).with_columns(_target=pl.Series(np.arange(100.))), NUMBER, method="random")
    assert all(10 < len(parts[s]) < 35 for s in ("valid", "test"))


def test_column_names_the_parts_and_valid_may_be_missing():
    frame = rows()
    parts, _ = split(frame, PLAIN, method="column", column="fold")
    assert all((p["fold"] == name).all() for name, p in parts.items())
    loud = frame.with_columns(fold=pl.when(pl.col("fold") == "test").then(pl.lit(" TEST ")).otherwise(pl.lit("Train")))
    parts, _ = split(loud, PLAIN, method="column", column="fold")
    assert (len(parts["test"]) == (frame["fold"] == "test").sum()
            and abs(len(parts["valid"]) / (len(frame) - len(parts["test"])) - .2) < .01)
    for bad in ("holdout", None):
        wrong = frame.with_columns(fold=pl.when(pl.col("_row") == 3).then(pl.lit(bad)).otherwise("fold"))
        with pytest.raises(UserError, match=f"holds {bad!r}; it may say only"):
            split(wrong, PLAIN, method="column", column="fold")


def test_files_and_the_validation_part_by_time_or_at_random():
    frame = rows()
    for schema in (PLAIN, TIMED):
        parts, _ = split(frame, schema, method="files", test_files=["f[12].csv"])
        assert set(parts["test"]["_source"]) == {"f1.csv", "f2.csv"} and set(parts["valid"]["_source"]) == {"f0.csv"}
    assert parts["train"]["at"].max() < parts["valid"]["at"].min()


@pytest.mark.parametrize("schema, kw, says", [
    (PLAIN, dict(method="time"), "name `event_time` in schema.yaml"),
    (PLAIN, dict(method="group"), "needs a group"),
    (PLAIN, dict(method="group", column="teams"), "did you mean 'team'"),
    (PLAIN, dict(method="column", column="nope"), "there is no column 'nope'"),
    (PLAIN, dict(method="column", column="team"), "feature: false"),
    (PLAIN, dict(method="files", test_files=["f1.csv", "x*"]), "'x*' matches no source file"),
    (PLAIN, dict(method="files", test_files=["*"]), "the valid split would be empty"),
    (TIMED, dict(method="time", test=.8), "prepare.split.test is 0.8"),
    (TIMED, dict(method="time", test=0.), "prepare.split.test is 0"),
    (TIMED, dict(method="time", validation=1.), "prepare.split.validation is 1"),
])
def test_what_cannot_work_is_one_sentence(schema, kw, says):
    with pytest.raises(UserError) as e: split(rows(), schema, **kw)
    assert says in str(e.value) and "\n" not in str(e.value)


def test_empty_parts_and_absent_classes():
    with pytest.raises(UserError, match="the test split would be empty.*1 different times"):
        split(rows().with_columns(at=datetime(2024, 1, 1)), TIMED, method="time")
    with pytest.raises(UserError, match="the test split would be empty"): split(rows(people=1), TIMED, method="group")
    with pytest.raises(UserError, match="the class 'yes' of 'y' is in no training row"):
        split(rows().sort("at").with_columns(_target=(pl.col("at") > datetime(2024, 2, 3)) * 1.), TIMED, method="time")
    with pytest.raises(UserError, match="is 3 in every training row"):
        split(rows().with_columns(_target=3.), NUMBER, method="order")


def test_rows_without_a_group_stay_together():
    frame = rows().with_columns(who=pl.when(pl.col("_row") % 3 == 0).then(None).otherwise("who"))
    part = assign_splits(frame, SplitParams(method="group"), TIMED)
    assert part.filter(frame["who"].is_null()).n_unique() == 1


def test_the_check_finds_what_it_is_there_for():
    frame = rows()
    for method in ("time", "group"):
        params = SplitParams(method=method)
        parts, _ = split(frame, TIMED, method=method)
        row = parts["test"][:1]
        twice = parts | dict(train=pl.concat([parts["train"], row]))
        with pytest.raises(UserError, match="duplicate_rows=1"): check_split_overlap(twice, params, TIMED)
        straddling = parts | dict(train=pl.concat([parts["train"], row.with_columns(_row=pl.lit(10**6, pl.Int64))]))
        with pytest.raises(UserError, match="does not hold"): check_split_overlap(straddling, params, TIMED)
    parts, _ = split(frame, TIMED, method="time")
    with pytest.raises(UserError, match="in_time_order=False"):
        check_split_overlap(dict(train=parts["test"], valid=parts["valid"], test=parts["train"]),
                            SplitParams(method="time"), TIMED)


def test_key_columns():
    assert split_key_columns(SplitParams(method="random"), PLAIN) == []
    assert split_key_columns(SplitParams(method="random"), TIMED) == ["at", "who"]
    assert split_key_columns(SplitParams(method="group"), TIMED) == ["at", "who"]
    assert split_key_columns(SplitParams(method="column", column="fold"), TIMED) == ["at", "fold"]


def test_rows_of_the_rarest_label_are_dealt_out_together():
    y = np.array([[1, 0, 0], [1, 1, np.nan], [0, 0, 0], [1, 0, 1], [1, 1, 1], [np.nan, np.nan, 0]])
    assert rarest_labels(y).tolist() == [2, 0, 3, 1, 0, 3] # of four, two and two rows
