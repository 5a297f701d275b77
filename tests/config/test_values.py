"Reading values: columns of any dtype, single values of JSON, and that both mean the same."
from datetime import date, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.values import (
    POLARS_TYPES,
    SCALAR_PARSERS,
    TYPE_NAMES,
    WHITESPACE,
    is_missing_expr,
    known_spellings,
    parse_iso_timestamp,
    parse_value_expr,
    respell,
    typed_missing_values,
)


def test_every_type_has_a_dtype_a_name_and_a_reader():
    assert set(POLARS_TYPES) == set(TYPE_NAMES) == {*SCALAR_PARSERS, "vector"} # read by their form


INTEGER_TEXT = ([" 12 ", "3.0", "1e3", "-7", "9223372036854775807", "x", "", "?", None, "1.5", "inf"],
                [12, 3, 1000, -7, 9223372036854775807, None, None, None, None, None, None])


@pytest.mark.parametrize("type, raw, read", [
    ("integer", *INTEGER_TEXT),
    ("integer", [1.0, 2.5, float("nan"), float("inf"), 1e300, None], [1, None, None, None, None, None]),
    ("integer", pl.Series([1, 200], dtype=pl.UInt8), [1, 200]),
    ("integer", [True, None], [1, None]),
    ("number", ["1.5", "1e-3", "inf", "nan", "1,5", "?", " 2"], [1.5, 0.001, None, None, None, None, 2.0]),
    ("number", [1, None], [1.0, None]),
    ("number", [float("inf"), float("nan"), 2.0], [None, None, 2.0]),
    ("boolean", ["true", "No", "Y", "0", "2", "?"], [True, False, True, False, None, None]),
    ("boolean", [1, 0, 2], [True, False, None]),
    ("boolean", [1.0, 0.0, None], [True, False, None]),
    ("category", [" a ", "", "?", "b"], ["a", None, None, "b"]),
    ("category", [1, 2], ["1", "2"]),
    ("category", [1.0, 2.5, float("nan")], ["1", "2.5", None]),
    ("category", [True, None], ["true", None]),
    ("category", pl.Series(["a", None], dtype=pl.Categorical), ["a", None]),
    ("text", ["a", " "], ["a", None]),
    ("timestamp", ["2012-01-31", "2012-01-31T10:00:01", "2012-01-31 10:00", "2012-02-30", "?"],
     [datetime(2012, 1, 31), datetime(2012, 1, 31, 10, 0, 1), datetime(2012, 1, 31, 10), None, None]),
    ("timestamp", ["2012-01-31T10:00:00Z", "2012-01-31T10:00:00+02:00"],
     [datetime(2012, 1, 31, 10), datetime(2012, 1, 31, 8)]),
    ("timestamp", [date(2012, 1, 31)], [datetime(2012, 1, 31)]),
    ("timestamp", pl.Series([datetime(2012, 1, 31, 10)], dtype=pl.Datetime("ns")), [datetime(2012, 1, 31, 10)]),
    ("timestamp", [datetime(2012, 1, 31, 10, tzinfo=ZoneInfo("Europe/Vienna"))], [datetime(2012, 1, 31, 9)]),
    ("timestamp", [20120131], [None]),
    *((t, pl.Series([None, None], dtype=pl.Null), [None, None]) for t in POLARS_TYPES)])
def test_values_are_read_as_the_columns_type(type, raw, read):
    frame = pl.DataFrame({"y": raw})
    parsed = parse_value_expr(pl.col("y"), frame.schema["y"], type, ["?"]).alias("y")
    got = frame.lazy().select(parsed).collect(engine="streaming")
    assert got["y"].to_list() == read and got.schema["y"] == POLARS_TYPES[type]


VIENNA = timezone(timedelta(hours=2))
times = st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1))
texts = st.text(max_size=8) | st.sampled_from([" a ", "\x1cb", "12", "12.0", "\u3000x\u2003", "\xa0"])
scalars = {
    "integer": st.integers(-2**63, 2**63 - 1) | st.integers(-2**50, 2**50).map(float),
    "number": st.integers(-2**53, 2**53) | st.floats(allow_nan=False, allow_infinity=False), "boolean": st.booleans(),
    "category": texts | st.integers(-2**63, 2**63 - 1) | st.integers(-10**14, 10**14).filter(bool).map(float),
    "text": texts,
    "timestamp": times.map(datetime.isoformat) | times.map(lambda t: t.replace(tzinfo=VIENNA).isoformat())
    | times.map(lambda t: str(t.date()))}


@settings(deadline=None, max_examples=200)
@given(data=st.data(), type=st.sampled_from(sorted(scalars)))
def test_a_single_value_means_what_it_means_in_a_column(data, type):
    value = data.draw(scalars[type])
    frame = pl.DataFrame({"v": [value]})
    [[in_column]] = frame.select(parse_value_expr(pl.col("v"), frame.schema["v"], type)).rows()
    alone = SCALAR_PARSERS[type](value)
    # a blank text is a missing value, which the caller looks for
    assert alone == in_column or (alone == "" and in_column is None)


@pytest.mark.parametrize("type, value", [
    ("number", "12"), ("number", True), ("integer", 2.5), ("integer", 2**63), ("integer", float("inf")),
    ("integer", "3"), ("boolean", 1),
    ("boolean", "yes"), ("category", True), ("category", [1]), ("category", 2.5), ("text", {}), ("timestamp", 20240131),
    ("timestamp", "yesterday")])
def test_a_value_of_another_json_type_is_none_of_this_type(type, value):
    with pytest.raises((TypeError, ValueError, OverflowError)): SCALAR_PARSERS[type](value)


def test_polars_strips_the_whitespace_that_is_stripped_alone():
    odd = [chr(i) for i in range(0x3100) if not 0xD800 <= i < 0xE000]
    stripped = pl.DataFrame({"c": odd}).select(pl.col("c").str.strip_chars())["c"].to_list()
    assert {c for c, left in zip(odd, stripped) if not left} == set(WHITESPACE)


def test_a_time_with_a_zone_becomes_utc():
    assert parse_iso_timestamp("2024-01-01T02:00:00+02:00") == parse_iso_timestamp("2024-01-01") == datetime(2024, 1, 1)


def test_words_for_missing_are_values_of_the_columns_type():
    assert typed_missing_values(("?", "-999", "2024-01-01"), pl.Int64()) == [-999]
    assert typed_missing_values(("?", "2024-01-01"), pl.Datetime("us")) == [datetime(2024, 1, 1)]
    frame = pl.DataFrame({"n": [1, -999, None], "c": pl.Series(["?", "a", None], dtype=pl.Categorical)})
    missing = frame.select(is_missing_expr(pl.col(n), t, ["?", "-999"]) for n, t in frame.schema.items())
    assert missing.to_dict(as_series=False) == {"n": [False, True, True], "c": [True, False, True]}


@pytest.mark.parametrize("word, known", [
    ("yes", "Yes"), (" YES ", "Yes"), ("Ko\u0308ln", "K\u00f6ln"), ("san  josé", "San José"), ("ＹＥＳ", "Yes"),
    ("maybe", None), ("Yes", None)])
def test_another_spelling_of_a_known_category(word, known):
    assert known_spellings([word], ["Yes", "No", "K\u00f6ln", "San José"]).get(word) == known


def test_a_spelling_of_two_categories_is_of_none():
    assert known_spellings(["YES"], ["Yes", "yes"]) == {}
    assert respell(pl.Series(["YES", "no", None]), ("Yes", "yes", "No")).to_list() == ["YES", "No", None]


def test_a_number_that_means_missing_may_be_written_otherwise():
    frame = pl.DataFrame({"x": ["-999", "-999.0", "5"]})
    parsed = frame.select(parse_value_expr(pl.col("x"), pl.String(), "number", ["-999"]))
    assert parsed["x"].to_list() == [None, None, 5.0]
    assert frame.select(is_missing_expr(pl.col("x"), pl.String(), ["-999"], "number"))["x"].to_list() == [True, True,
                                                                                                          False]
    assert typed_missing_values(("nan", "inf"), pl.Float64()) == []
