"Folds of cross-validation: none learns from what comes after it, groups stay whole, and each row judges once at most."
from datetime import datetime, timedelta

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from mlops_nb.config.params import SplitParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.data.folds import assign_blocks, is_time_ordered, split_folds

quick = settings(deadline=None, max_examples=60)
VISITS = Schema(
    "visits",
    "binary",
    "y",
    classes=["no", "yes"],
    entity="patient",
    event_time="day",
    columns={
        "patient": Column("text", feature=False),
        "day": Column("timestamp", feature=False),
        "x": Column("number"),
        "y": Column("category"),
    },
)


def visits(seed, n, days, patients, rate=.4):
    rng = np.random.default_rng(seed)
    start = datetime(2026, 1, 1)
    return pl.DataFrame(
        dict(
            _source="v.csv",
            _row=rng.permutation(n),
            _target=(rng.random(n) < rate).astype(float),
            x=rng.normal(size=n),
            patient=[f"p{i}" for i in rng.integers(0, patients, n)],
            day=[start + timedelta(days=int(d)) for d in rng.integers(0, days, n)],
        )
    )


anything = (
    st.tuples(st.integers(0, 10**6), st.integers(1, 200), st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 8),
    st.floats(0.05, 0.5),
)


@quick
@given(*anything)
def test_no_fold_learns_from_what_comes_later(made, k, share):
    frame = visits(*made)
    for method in ("time", "column", "files"):
        split = SplitParams(method=method, validation=share, column="x", test_files=["*"])
        assert is_time_ordered(split, VISITS)
        seen = np.zeros(len(frame), int)
        for fold in split_folds(frame, split, VISITS, k):
            train, valid, judged = (frame["day"].filter(m) for m in fold)
            seen += fold.held_out
            if len(train) and len(valid): assert train.max() < valid.min()
            for earlier in (train, valid):
                if len(earlier): assert earlier.max() < judged.min()
            assert (frame["day"].filter(fold.train | fold.valid).len()) == (
                frame["day"] < judged.min()
            ).sum()  # all that came before
        assert seen.max() <= 1


@quick
@given(*anything, st.integers(1, 20))
def test_no_window_learns_from_a_label_that_was_not_known_yet(made, k, share, delay):
    frame, late = visits(*made), structs.replace(VISITS, label_delay=f"{delay}d")
    split = SplitParams(method="time", validation=share)
    for fold, plain in zip(split_folds(frame, split, late, k), split_folds(frame, split, VISITS, k), strict=True):
        assert (fold.held_out == plain.held_out).all() and (fold.train <= plain.train).all()
        for earlier, was, later in ((fold.train, plain.train, plain.valid), (fold.valid, plain.valid, plain.held_out)):
            if not later.any(): continue
            known = frame["day"] + timedelta(days=delay) <= frame["day"].filter(later).min()
            assert (earlier <= (was & known.to_numpy())).all()


@quick
@given(*anything)
def test_windows_by_the_order_of_the_rows(made, k, share):
    frame = visits(*made)
    for fold in split_folds(frame, SplitParams(method="order", validation=share), VISITS, k):
        train, valid, judged = (frame["_row"].filter(m) for m in fold)
        assert train.max() < valid.min() and valid.max() < judged.min() if len(valid) else train.max() < judged.min()


@quick
@given(*anything)
def test_no_group_is_in_two_parts_of_a_fold(made, k, share):
    frame = visits(*made)
    found = [*split_folds(frame, SplitParams(method="group", validation=share), VISITS, k)]
    assert (np.sum([f.held_out for f in found], axis=0) == 1).all() # each row is judged once
    for fold in found:
        assert (np.sum(fold, axis=0) == 1).all()
        groups = [set(frame["patient"].filter(m)) for m in fold]
        assert not (groups[0] & groups[1] or groups[0] & groups[2] or groups[1] & groups[2])


@quick
@given(st.integers(0, 10**6), st.integers(20, 400), st.integers(2, 6))
def test_random_folds_hold_each_class_evenly(seed, n, k):
    frame = visits(seed, n, 10, 10)
    found = [*split_folds(frame, SplitParams(method="random"), structs.replace(VISITS, entity=None), k)]
    assert (np.sum([f.held_out for f in found], axis=0) == 1).all()
    for c in (0, 1):
        counts = [int((frame["_target"].to_numpy()[f.held_out] == c).sum()) for f in found]
        assert len(found) < k or max(counts) - min(counts) <= 2


def test_random_folds_do_not_depend_on_the_order_of_the_rows():
    frame = visits(0, 100, 5, 5)
    mixed = frame.sample(fraction=1, shuffle=True, seed=1)
    rows = [
        [{*f.filter(m)["_row"]} for m in next(split_folds(f, SplitParams(method="random"), VISITS, 4))]
        for f in (frame, mixed)
    ]
    assert rows[0] == rows[1]


@quick
@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 9))
def test_blocks_keep_order_and_equal_places_together(place, k):
    place = np.array(place, float)
    block = assign_blocks(place, k)
    assert len(block) == len(place) and set(block) == set(range(block.max(initial=-1) + 1)) and block.max(initial=0) < k
    for i in range(block.max(initial=0)): assert place[block == i].max() < place[block == i + 1].min()


def test_blocks_of_distinct_places_are_of_equal_size():
    assert np.ptp(np.bincount(assign_blocks(np.random.default_rng(0).random(1003), 7))) <= 1
