"Numbers and times of one format: what is written like that is read, and nothing else."
from datetime import datetime

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.schema import Column
from mlops_nb.config.text_formats import (
    EPOCH_FORMATS,
    NumberFormat,
    has_offset_expr,
    parse_number_format,
    plain_number_expr,
    read_in_turn,
    read_times,
)


def plain(values, format):
    frame = pl.DataFrame({"x": values}, schema={"x": pl.String})
    return frame.select(plain_number_expr(pl.col("x"), format)).to_series().to_list()


@pytest.mark.parametrize("text, parts", [
    ("1234.5", NumberFormat(".")), ("1.234,5", NumberFormat(",", ".")), ("1 234,5", NumberFormat(",", " ")),
    ("€ 1'234.5", NumberFormat(".", "'", "€")), ("1234,5 %", NumberFormat(",", suffix="%")),
    ("($1,234.5)", NumberFormat(".", ",", "$", negative="()")), ("1234.5-", NumberFormat(".", negative="5-"))])
def test_a_format_is_written_as_its_number(text, parts): assert parse_number_format(text) == parts


@pytest.mark.parametrize("type, format, says", [
    ("number", "1,234,5", "write the number 1234.5"), ("number", "(1234.5", "write the number"),
    ("number", "#,##0.00", "write the number"),
    ("integer", "%d", "write the number"), ("timestamp", "dd.mm.yyyy", "has no letters of strftime"),
    ("category", "1234,5", "the type category has no format"), ("boolean", "%Y", "has no format")])
def test_a_format_that_is_none_is_refused(type, format, says):
    with pytest.raises(ValueError, match=says): Column(type, format=format)


@pytest.mark.parametrize("zone, type, says", [("Europe/Wien", "timestamp", "is unknown"),
                                              ("UTC", "number", "has no time_zone")])
def test_a_zone_that_is_none_is_refused(zone, type, says):
    with pytest.raises(ValueError, match=says): Column(type, time_zone=zone)


@pytest.mark.parametrize("format, values", [
    ("1,234.5", ["1,23", "12,34", "1.234,5", "1,2345", "a1", "1 234", ""]), ("1.234,5", ["1,234.5", "1.23", "12.34,5"]),
    ("1234,5", ["1.5", "1.234,5", "1,5,5"]), ("$1,234.5", ["5", "€5", "5$"]), ("1234.5 %", ["5", "5 ‰"]),
    ("1234.5", ["(5)", "5-", "--5", "5 5"])])
def test_what_is_written_otherwise_is_not_read(format, values): assert plain(values, format) == [None] * len(values)


@settings(deadline=None, max_examples=80)
@given(st.decimals(-10**9, 10**9, places=2), st.sampled_from([(".", ","), (",", "."), (",", "\u00a0"), (",", "\u202f"),
                                                              (".", "'"), (".", "\u2019")]),
       st.sampled_from(["-{}", "({})", "{}-", "\u2212{}"]), st.sampled_from(["{}", "€ {}", "{} €"]))
def test_every_number_comes_back(value, signs, negative, money):
    decimal, thousands = signs
    text = f"{abs(value):,.2f}".replace(",", "\0").replace(".", decimal).replace("\0", thousands)
    text = money.format(text)
    if value < 0: text = negative.format(text)
    sign = {"\u00a0": " ", "\u202f": " ", "\u2019": "'"}.get(thousands, thousands)
    format = {"({})": "({})", "{}-": "{}-"}.get(negative, "{}").format(money.format(f"1{sign}234{decimal}5"))
    assert float(plain([text], format)[0]) == float(value)


def test_years_have_the_digits_of_their_format():
    assert read_times(pl.Series(["01.02.21", "01.02.2021"]), "%d.%m.%Y").to_list() == [None, datetime(2021, 2, 1)]
    assert read_times(pl.Series(["24-01-05", "0009-01-05"])).to_list() == [None, datetime(9, 1, 5)]


@pytest.mark.parametrize("format", EPOCH_FORMATS)
def test_times_since_1970(format):
    at = datetime(2021, 2, 1, 12, 30, 15)
    number = str(int((at - datetime(1970, 1, 1)).total_seconds()) * EPOCH_FORMATS[format])
    assert read_times(pl.Series([number, "soon"]), format).to_list() == [at, None]


def test_summer_time_of_a_zone():
    texts = pl.Series(["2024-01-01 12:00", "2024-07-01 12:00", "2024-03-31 02:30", "2024-07-01 12:00+00:00"])
    assert read_times(texts, None, "Europe/Vienna").to_list() == [datetime(2024, 1, 1, 11), datetime(2024, 7, 1, 10),
                                                                  None, datetime(2024, 7, 1, 12)]


def test_an_offset_is_told_from_the_end_of_a_date():
    texts = ["31-01-2021", "2021-01-31", "2021-01-31 10:00", "2021-01-31 10:00-0500", "2021-01-31T10:00:00.5Z",
             "10:00:00 UTC"]
    got = pl.DataFrame({"x": texts}).select(has_offset_expr(pl.col("x"))).to_series().to_list()
    assert got == [False, False, False, True, True, True]


def test_later_readers_see_what_is_left():
    seen = []
    def reader(keep):
        def read(values):
            seen.append(values.to_list())
            return values.replace_strict(dict.fromkeys(keep, 1), default=None, return_dtype=pl.Int64)
        return read
    got = read_in_turn(pl.Series(["a", None, "b", "c"]), [reader("a"), reader("b"), reader("c"), reader("d")])
    assert got.to_list() == [1, None, 1, 1] and seen[1:] == [["b", "c"], ["c"]]
