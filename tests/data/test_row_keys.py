"Row keys: a hash of what a row says, the same wherever and whenever it is read."
from base64 import b64encode
from datetime import datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.data.row_keys import (
    check_not_learned,
    content_keys,
    hash_column,
    hash_rows,
    key_positions,
    known_share,
    mark_keys,
    mix64,
    sketch_keys,
)

SCHEMA = Schema("d", "binary", "y", classes=["0", "1"], columns=dict(
    x=Column("number", nullable=True), n=Column("integer"), c=Column("category"), at=Column("timestamp"),
    y=Column("category")))


def frame(n=200, seed=0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(dict(x=rng.normal(size=n), n=rng.integers(-5, 10**12, n), c=rng.choice(["a", "b", "ä"], n),
                             at=pl.Series(rng.integers(0, 10**15, n)).cast(pl.Datetime("us")), y="?"))


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 99), st.permutations(list("xnc")))
def test_the_key_of_a_row_depends_on_no_other_row_and_on_no_order_of_columns(seed, columns):
    rows, order = frame(seed=seed), np.random.default_rng(seed).permutation(200)
    assert (hash_rows(rows, columns)[order] == hash_rows(rows[order], list("xnc"))).all()
    assert (content_keys(rows[50:60], SCHEMA) == content_keys(rows, SCHEMA)[50:60]).all()


def test_the_target_is_no_part_of_it_and_everything_else_is():
    rows = frame()
    keys = content_keys(rows, SCHEMA)
    assert (content_keys(rows.with_columns(y=pl.lit("other")), SCHEMA) == keys).all()
    for change in (pl.col("x") + 1e-9, pl.col("n") + 1, pl.col("c") + "b", pl.col("at").dt.offset_by("1us")):
        assert (content_keys(rows.with_columns(change), SCHEMA) != keys).all()


def test_missing_is_a_value_and_columns_are_told_apart():
    assert len({*hash_column(pl.Series([None, 0.0, 1.0, None])).tolist()}) == 3
    assert hash_column(pl.Series([0.0]))[0] == hash_column(pl.Series([-0.0]))[0] # they are equal
    swapped = pl.DataFrame(dict(a=[1, 2], b=[2, 1]))
    assert len({*hash_rows(swapped, ["a", "b"]).tolist()}) == 2


def test_types_of_a_category_do_not_matter_and_times_are_exact():
    text = pl.Series(["a", None, "b"])
    assert (hash_column(text) == hash_column(text.cast(pl.Categorical))).all()
    times = [datetime(2024, 1, 1), datetime(2024, 1, 1, 0, 0, 0, 1)]
    assert len({*hash_column(pl.Series(times)).tolist()}) == 2


def test_positions_are_even_and_change_with_the_seed():
    at = key_positions(mix64(np.arange(100_000, dtype=np.uint64)), 0)
    assert at.min() >= 0 and at.max() < 1
    counts = np.histogram(at, 20, (0, 1))[0]
    assert ((counts - 5_000)**2 / 5_000).sum() < 43.8 # chi-square with 19 degrees of freedom: 1 in 1,000
    assert abs(np.corrcoef(at, key_positions(mix64(np.arange(100_000, dtype=np.uint64)), 1))[0, 1]) < .02


@pytest.mark.parametrize("n", [100, 300_000])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.65, 1.0])
def test_the_share_of_learned_rows_is_found(n, share):
    learned = mix64(np.arange(n, dtype=np.uint64))
    rows = mix64(np.arange(int(n * (1 - share)), int(n * (2 - share)), dtype=np.uint64))
    sketch = sketch_keys(learned[:n // 2], learned[n // 2:], learned[:5])
    assert len(sketch) <= 65_536 and known_share(sketch, rows) == pytest.approx(share, abs=0.02)


def test_a_model_that_learned_the_rows_is_no_measure(tmp_path):
    keys = mix64(np.arange(1_000, dtype=np.uint64))
    check_not_learned(tmp_path, keys, "test") # a folder that says nothing
    write_json(tmp_path / "baseline.json", dict(training_keys=b64encode(sketch_keys(keys[:300])).decode()))
    check_not_learned(tmp_path, keys[290:], "test") # ten copies of 710 rows
    with pytest.raises(UserError, match="trained on about 30% of the test rows"):
        check_not_learned(tmp_path, keys, "test")


@pytest.mark.parametrize("n", [100, 300_000])
def test_rows_that_only_ended_a_training_may_end_the_next(tmp_path, n):
    "As valid rows; as test rows they are known."
    keys = mix64(np.arange(n, dtype=np.uint64))
    train, valid, new = keys[:n // 2], keys[n // 2:n * 3 // 4], keys[n * 3 // 4:]
    sketch = sketch_keys(train, valid)
    fitted = mark_keys(sketch, train)
    assert [known_share(sketch, k, fitted) for k in (train, valid, new)] == [1, 0, 0]
    said = dict(training_keys=b64encode(sketch).decode(), fitted_keys=b64encode(fitted).decode())
    write_json(tmp_path / "baseline.json", said)
    check_not_learned(tmp_path, valid, "valid")
    for split, rows in (("valid", train), ("test", valid)):
        with pytest.raises(UserError, match=f"100% of the {split} rows"): check_not_learned(tmp_path, rows, split)
    write_json(tmp_path / "baseline.json", dict(training_keys=said["training_keys"], fitted_keys=None)) # an older one
    with pytest.raises(UserError, match="100% of the valid rows"): check_not_learned(tmp_path, valid, "valid")
