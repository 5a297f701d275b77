"Vectors: whatever is sent, one text or one sentence; size and origin are those of the schema."
import math

import msgspec
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from mlops_nb.config.schema import Column, Schema
from mlops_nb.config.schema_inference import infer_schema
from mlops_nb.config.vectors import VectorError, VectorForm, lists_as_text, read_vector, vector_size
from mlops_nb.core.errors import UserError
from mlops_nb.data.column_checks import validate_batch
from mlops_nb.model import vector_encoder
from mlops_nb.model.dataframes import cast_to_schema, to_polars
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.vector_encoder import VectorEncoding, fit_vectors

FORM = VectorForm(3, "minilm", "2")
SCHEMA = Schema("mails", "binary", "y", classes=["a", "b"], columns={
    "v": Column("vector", size=3, producer="minilm", version="2", nullable=True), "y": Column("category")})
finite = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=100, deadline=None)
@given(st.lists(finite, min_size=3, max_size=3))
def test_every_finite_vector_keeps_its_bits_whichever_way_it_comes(x):
    want = np.array(x)
    frame = lists_as_text(pl.DataFrame({"v": [x]}, schema={"v": pl.List(pl.Float64)}))
    for value in (x, tuple(x), want, msgspec.json.encode(x).decode(), {"values": x}, frame["v"][0]):
        assert np.array(msgspec.json.decode(read_vector(value, FORM)), float).tobytes() == want.tobytes()


@settings(max_examples=200, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
                    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=3),
                    max_leaves=8))
def test_anything_else_is_one_sentence(value):
    try: text = read_vector(value, FORM)
    except VectorError as e: assert str(e) and "\n" not in str(e) and len(str(e)) < 250
    else: assert len(msgspec.json.decode(text, type=list[float])) == 3


@pytest.mark.parametrize("value, says", [
    ([1, 2], "has 2 numbers, and the schema says 3"), ([1, 2, 3, 4], "has 4 numbers"), ([], "has 0 numbers"),
    ([1, 2, math.inf], "no finite number"), ([1, 2, None], "no finite number"), ([1, 2, True], "no finite number"),
    ([1, 2, "3"], "no finite number"), ([1, 2, 10**400], "no finite number"), ("[1, 2, 1e999]", "the JSON of a list"),
    ("[" * 100_000, "the JSON of a list"), (7, "no list of numbers"), ({"values": [1, 2, 3], "version": "1"},
    "comes from the version '1', and the schema says '2'"),
    ({"values": [1, 2, 3], "producer": "e5"}, "the producer 'e5'"),
    ({"values": [1, 2, 3], "size": 3}, "has the key 'size'"), ({}, "no list of numbers")])
def test_bad_vectors(value, says):
    with pytest.raises(VectorError, match=says): read_vector(value, FORM)


@pytest.mark.parametrize("column", [pl.Series([[1., 2, 3], [1., 2], None, [1., 2, math.nan]]),
                                    pl.Series(["[1,2,3]", "[1,2]", "", "[1,2,NaN]"])])
def test_validation_quarantines_and_says_why(column):
    frame = pl.DataFrame({"v": column, "y": ["a"] * 4, "_source": ["f"] * 4, "_row": range(4)})
    batch = validate_batch(frame, SCHEMA)
    assert batch.accepted["v"].to_list() == ["[1.0,2.0,3.0]", None] and batch.violations == {"v:type": 2}
    short, odd = batch.quarantined["_reasons"].to_list()
    assert short == ["v: has 2 numbers, and the schema says 3"] and odd[0].startswith("v: ")


def test_frames_of_lists_are_read_and_refused_by_name():
    frame = pl.DataFrame({"v": [[1., 2, 3]]}, schema={"v": pl.Array(pl.Float32, 3)})
    assert cast_to_schema(frame, SCHEMA, ["v"])["v"].to_list() == ["[1.0,2.0,3.0]"]
    with pytest.raises(UserError, match="column 'v' has 2 numbers, and the schema says 3"):
        cast_to_schema(pl.DataFrame({"v": [[1., 2]]}), SCHEMA, ["v"])


@pytest.mark.parametrize("vectors", [
    [[1, 2.5, 3], None], [np.array([1, 2.5, 3], np.float32), np.nan], ["[1, 2.5, 3]", ""],
    [{"values": [1, 2.5, 3], "producer": "minilm", "version": "2"}, pd.NA], [{"values": (1, 2.5, 3)}, "?"]])
def test_pandas_and_dictionaries_hold_vectors_as_people_have_them(vectors):
    schema = structs.replace(SCHEMA, missing_values=["?"])
    for rows in (pd.DataFrame({"v": vectors}), [{"v": v} for v in vectors]):
        found = cast_to_schema(to_polars(rows, schema, ["v"]), schema, ["v"])
        assert found["v"].to_list() == ["[1.0,2.5,3.0]", None]


def test_vectors_of_another_origin_are_refused_in_dictionaries_as_in_requests():
    with pytest.raises(UserError, match="column 'v' comes from the version '3', and the schema says '2'"):
        to_polars([{"v": {"values": [1, 2, 3], "version": 3}}], SCHEMA, ["v"])
    with pytest.raises(UserError, match="column 'v' has 2 numbers"):
        to_polars(pd.DataFrame({"v": [np.zeros(2)]}), SCHEMA, ["v"])


def test_what_a_column_must_say():
    with pytest.raises(ValueError, match="a vector needs 'size'"): Column("vector")
    with pytest.raises(ValueError, match="the type number has no size"): Column("number", size=3)


def test_init_knows_vectors():
    rows = pl.LazyFrame({"v": [[float(i), 1., 2.] for i in range(60)], "y": ["a", "b"] * 30})
    found = infer_schema(rows, "d", "y")
    assert (found.schema.columns["v"].type, found.schema.columns["v"].size) == ("vector", 3)
    assert "v" in found.schema.feature_columns and "producer and version" in found.comments["v"]
    assert vector_size(pl.Series(["[1,2]", "[1,2,3]"])) is None


def vectors(n=60, size=10):
    rows = np.random.default_rng(0).normal(size=(n, size)).tolist()
    return pl.Series("v", [msgspec.json.encode(a).decode() for a in rows])


@pytest.mark.parametrize("most", [4, 10])
def test_a_row_alone_is_the_row_among_others(most):
    found = fit_vectors(vectors(), VectorForm(10), most)
    Z = found.encode(vectors().to_list())
    assert Z.shape == (60, most) and len(found.names) == most
    for v, z in zip(vectors(), Z): assert found.encode([v]).tobytes() == z.tobytes()
    again = msgspec.json.decode(msgspec.json.encode(found), type=VectorEncoding)
    assert again.encode(vectors().to_list()).tobytes() == Z.tobytes()
    assert found.watch([None, vectors()[0]]).shape == (2, 4) and np.isnan(found.watch([None])).all()


@pytest.mark.parametrize("column", [[], [None], ["[1.0,1.0,1.0]"] * 5])
def test_columns_with_nothing_to_learn(column):
    found = fit_vectors(pl.Series(column, dtype=pl.String), FORM, 2)
    assert np.isfinite(found.encode(["[1.0,2.0,3.0]"])).all()


def test_of_wide_vectors_fewer_rows_are_read(monkeypatch):
    monkeypatch.setattr(vector_encoder, "_MAX_FIT_VALUES", 35)
    rows = np.random.default_rng(1).standard_normal((50, 10))
    found = fit_vectors(pl.Series([msgspec.json.encode(row.tolist()).decode() for row in rows]), VectorForm(10), 4)
    np.testing.assert_allclose(found.mean, rows[[0, 24, 49]].mean(0))
    assert len(found.names) == 2 # three rows differ in two directions


def test_an_encoder_of_another_version_is_refused():
    encoder = Encoder.fit(pl.DataFrame({"v": ["[1.0,2.0,3.0]"]}), SCHEMA)
    encoder.check_vectors(SCHEMA)
    other = msgspec.structs.replace(SCHEMA, columns={"v": Column("vector", size=3, producer="minilm", version="3")})
    with pytest.raises(UserError, match="3 numbers of minilm 2, and schema.yaml says 3 numbers of minilm 3"):
        encoder.check_vectors(other)
