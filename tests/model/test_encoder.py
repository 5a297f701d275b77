"The encoder: one row is the batch, order does not matter, and nothing unseen or missing surprises it."
import math
import string

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from mlops_nb.config.params import EncoderParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.model import encoder as module
from mlops_nb.model.encoder import RARE_CODE, UNKNOWN_CODE, Encoder, category_codes, feature_kinds
from mlops_nb.model.features import Features

SCHEMA = Schema("t", "binary", target="y", classes=["a", "b"], columns={
    "name": Column("category", nullable=True), "x": Column("number", nullable=True),
    "i": Column("integer", nullable=True),
    "flag": Column("boolean", nullable=True), "when": Column("timestamp"), "note": Column("text", feature=False),
    "y": Column("category")})
TYPES = {"name": pl.String, "x": pl.Float64, "i": pl.Int64, "flag": pl.Boolean}

names = st.one_of(st.none(), st.sampled_from(["a", "b", "", " ", "A", "ä", "null", "nan", "0"]),
                  st.text(string.printable, max_size=3))
numbers = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True))
rows = st.lists(st.fixed_dictionaries({"name": names, "x": numbers, "i": st.one_of(st.none(),
                                                                                   st.integers(-2**63, 2**63 - 1)),
                                       "flag": st.sampled_from([None, True, False])}), min_size=1, max_size=40)
few = st.builds(EncoderParams, min_category_count=st.integers(1, 4), max_categories=st.integers(1, 5))


def frame(rows): return pl.DataFrame(rows, schema=TYPES)


@settings(max_examples=60, deadline=None)
@given(rows, rows, few)
def test_one_row_is_the_batch_to_the_last_bit(train, new, params):
    encoder = Encoder.fit(frame(train), SCHEMA, params=params)
    batch = encoder.transform(frame(new))
    for i, row in enumerate(new):
        assert encoder.transform(frame([row])).tobytes() == batch[i].tobytes()


@settings(max_examples=40, deadline=None)
@given(rows, few, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(train, params, random):
    shuffled = random.sample(train, len(train))
    assert Encoder.fit(frame(train), SCHEMA, params=params).to_json() == Encoder.fit(frame(shuffled), SCHEMA,
                                                                                     params=params).to_json()


@settings(max_examples=40, deadline=None)
@given(rows, rows, few)
def test_codes_mean_what_they_say(train, new, params):
    encoder = Encoder.fit(frame(train), SCHEMA, params=params)
    counts = {n: sum(r["name"] == n for r in train) for n in {r["name"] for r in train} - {None}}
    for row, code in zip(new, encoder.transform(frame(new))[:, 0], strict=True):
        name = row["name"]
        if name is None: assert math.isnan(code)
        elif name not in counts: assert code == UNKNOWN_CODE
        elif counts[name] < params.min_category_count: assert code == RARE_CODE
        else: assert code >= RARE_CODE
    kept = sorted(c for c in encoder.columns[0].codes.values() if c > RARE_CODE)
    assert kept == list(range(2, 2 + len(kept))) and len(kept) <= params.max_categories


@settings(max_examples=30, deadline=None)
@given(rows, few)
def test_json_round_trip(train, params):
    encoder = Encoder.fit(frame(train), SCHEMA, params=params)
    again = Encoder.from_json(encoder.to_json())
    assert again == encoder and again.to_json() == encoder.to_json()
    assert_array_equal(again.transform(frame(train)), encoder.transform(frame(train)))


def test_the_matrix_is_float64_in_c_order():
    encoder = Encoder.fit(frame([{"name": "a", "x": 1.0, "i": 2, "flag": True}]), SCHEMA)
    X = encoder.transform(frame([{"name": "a", "x": 1.0, "i": 2, "flag": True}] * 3))
    assert X.shape == (3, 4) and X.dtype == np.float64 and X.flags.c_contiguous
    assert encoder.transform(frame([])).shape == (0, 4)


def test_inputs_are_columns_then_features_and_never_target_time_or_text():
    features = Features({}, {"ratio": "number", "kind": "category"}, {"ratio": ["x", "i"], "kind": ["name"]})
    assert list(feature_kinds(SCHEMA, features)) == ["name", "x", "i", "flag", "ratio", "kind"]


def test_no_training_with_a_feature_that_reads_what_the_schema_keeps_from_the_model():
    features = Features({}, {"hint": "number"}, {"hint": ["x"]})
    kept = msgspec.structs.replace(SCHEMA, columns=SCHEMA.columns | {"x": Column("number", feature=False)})
    train = pl.DataFrame(dict(name=["a"], x=[1.0], i=[2], flag=[True], hint=[1.0]))
    Encoder.fit(train, SCHEMA, features)
    with pytest.raises(UserError, match="'hint' reads 'x', which is `feature: false`"):
        Encoder.fit(train, kept, features)


def test_missing_and_infinite_numbers_are_missing():
    encoder = Encoder.fit(frame([{"name": "a", "x": 1.0, "i": 2, "flag": True}]), SCHEMA)
    X = encoder.transform(frame([{"name": None, "x": v, "i": None, "flag": None} for v in (None, math.nan, math.inf,
                                                                                           -math.inf)]))
    assert np.isnan(X).all()


def test_a_column_that_is_all_missing_or_of_type_null():
    empty = pl.DataFrame({"name": [None, None], "x": [None, None], "i": [None, None], "flag": [None, None]})
    encoder = Encoder.fit(empty, SCHEMA)
    assert encoder.columns[0].codes == {} and np.isnan(encoder.transform(empty)).all()
    assert encoder.transform(frame([{"name": "a", "x": 1.0, "i": 1,
                                     "flag": True}]))[0].tolist() == [UNKNOWN_CODE, 1, 1, 1]


def test_physical_types_do_not_matter():
    plain = frame([{"name": n, "x": 0.5, "i": i, "flag": True} for i, n in enumerate("aab")])
    encoder = Encoder.fit(plain, SCHEMA, params=EncoderParams(min_category_count=1))
    other = plain.with_columns(pl.col("name").cast(pl.Categorical), pl.col("x").cast(pl.Float32),
                               pl.col("i").cast(pl.Int8))
    assert_array_equal(encoder.transform(other), encoder.transform(plain))


@pytest.mark.parametrize("column, values", [("x", ["1.5"]), ("i", ["many"]), ("flag", ["yes"]), ("name", [3]),
                                            ("x", [[1.0]])])
def test_a_column_of_another_type_is_named(column, values):
    good = {"name": ["a"], "x": [1.0], "i": [1], "flag": [True]}
    encoder = Encoder.fit(pl.DataFrame(good), SCHEMA)
    with pytest.raises(UserError, match=f"'{column}'"): encoder.transform(pl.DataFrame(good | {column: values}))


def test_a_missing_column_is_named():
    row = {"name": "a", "x": 1.0, "i": 1, "flag": True}
    encoder = Encoder.fit(frame([row]), SCHEMA)
    with pytest.raises(UserError, match="no column 'x'"): encoder.transform(frame([row]).drop("x"))


def test_a_contract_without_inputs():
    schema = Schema("none", "binary", target="y", classes=["a", "b"], columns={"y": Column("category")})
    with pytest.raises(UserError, match="no column for the model"): Encoder.fit(pl.DataFrame({"y": ["a"]}), schema)


def test_an_identifier_as_a_category_stays_small(monkeypatch):
    monkeypatch.setattr(module, "_MAX_RARE_NAMES", 100)
    ids = pl.Series([f"id{i}" for i in range(5000)] + ["often"] * 50)
    codes = category_codes(ids, EncoderParams(min_category_count=10, max_categories=254))
    assert codes["often"] == 2 and len(codes) == 101 and set(codes.values()) == {1, 2}


@pytest.mark.parametrize("text", [b"", b"{", b'{"columns": 3}', b'{"columns": [{"name": "x", "kind": "picture"}]}'])
def test_a_broken_file_is_a_sentence(text):
    with pytest.raises(UserError, match="cannot be read"): Encoder.from_json(text)


def test_the_file_is_plain_json():
    encoder = Encoder.fit(frame([{"name": "a", "x": 1.0, "i": 1, "flag": True}] * 12), SCHEMA)
    assert msgspec.json.decode(encoder.to_json())["columns"][0] == {"name": "name", "kind": "category",
                                                                    "codes": {"a": 2}}
