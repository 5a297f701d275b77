"How columns of text are written: found over all values, with what is ambiguous said."
import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.format_inference import find_other_format, infer_text_formats
from mlops_nb.config.schema import Column
from mlops_nb.config.values import parse_value_expr


def reading(values, name="x", **more):
    return infer_text_formats(pl.LazyFrame({name: values, **more}, schema_overrides={name: pl.String}), None)[name]


def read(values, found):
    expr = parse_value_expr(pl.col("x"), pl.String(), found.type, found.missing_values, found.format, found.time_zone)
    return pl.DataFrame({"x": values}, schema={"x": pl.String}).select(expr.alias("x"))["x"].to_list()


D = dt.datetime


@pytest.mark.parametrize("values, type, format, first", [
    (["1.234.567,89", "0,5"], "number", "1.234,5", 1234567.89), (["1 234,5", "12"], "number", "1 234,5", 1234.5),
    (["1\u00a0234,5", "12"], "number", "1 234,5", 1234.5), (["1\u202f234,5", "7,25"], "number", "1 234,5", 1234.5),
    (["1'234.50", "3"], "number", "1'234.5", 1234.5), (["1’234.50", "3"], "number", "1'234.5", 1234.5),
    (["12,34,567.00", "1,250.5"], "number", "1,234.5", 1234567.0), (["1,234,567", "12"], "integer", "1,234.5", 1234567),
    (["€ 1.250,00", "€ 3,50"], "number", "€1.234,5", 1250.0),
    (["1.250,00 €", "-3,50 €"], "number", "1.234,5 €", 1250.0),
    (["$1,250.00", "-$3.50"], "number", "$1,234.5", 1250.0),
    (["CHF 1'250.00", "CHF 3.50"], "number", "CHF 1'234.5", 1250.0),
    (["12,5 %", "7 %"], "number", "1234,5 %", 12.5), (["12.5%", "7%"], "number", "1234.5 %", 12.5),
    (["(1,250.00)", "3.50"], "number", "(1,234.5)", -1250.0), (["1250.5-", "3.5"], "number", "1234.5-", -1250.5),
    (["(5)", "1,250", "0.5"], "number", "(1,234.5)", -5.0), (["\u22125.5", "3"], "number", "1234.5", -5.5),
    (["1e3", "-2.5E-1"], "number", None, 1000.0), (["9007199254740993", "1"], "integer", None, 2**53 + 1),
    (["9.007.199.254.740.993", "0,0"], "integer", "1.234,5", 2**53 + 1),
    (["01.02.21", "31.12.20"], "timestamp", "%d.%m.%y", D(2021, 2, 1)),
    (["20210131", "20201201"], "timestamp", "%Y%m%d", D(2021, 1, 31)),
    (["2021-01-31 10:00:00 UTC", "2021-02-01 00:00:00 UTC"], "timestamp", None, D(2021, 1, 31, 10)),
    (["31-Jan-2021", "1-Feb-2021"], "timestamp", "%d-%b-%Y", D(2021, 1, 31)),
    (["Jan 31, 2021", "May 1, 2021"], "timestamp", "%b %d, %Y", D(2021, 1, 31)),
    (["31/01/2021 05:03 PM", "01/02/2021 11:00 AM"], "timestamp", "%d/%m/%Y %I:%M %p", D(2021, 1, 31, 17, 3)),
    (["31.01.2021 10:00:00.250", "01.02.2021 10:00:00"], "timestamp", "%d.%m.%Y %H:%M:%S%.f",
     D(2021, 1, 31, 10, 0, 0, 250_000)),
    (["31.01.2021 10:00:00+01:00", "01.02.2021 10:00:00+02:00"], "timestamp", "%d.%m.%Y %H:%M:%S%z", D(2021, 1, 31, 9)),
    (["21.5 °C", "-3.0 °C"], "number", "1234.5 °C", 21.5), (["5 kg", "1.250,5 kg"], "number", "1.234,5 kg", 5.0),
    (["120km/h", "80 km/h"], "integer", "1234.5 km/h", 120),
    (["36 months", "60 months"], "integer", "1234.5 months", 36),
    (["1. März 2021", "31. Dez. 2021"], "timestamp", "%d. %b %Y", D(2021, 3, 1)),
    (["1 févr. 2021", "31 août 2021"], "timestamp", "%d %b %Y", D(2021, 2, 1)),
    (["1 mei 2021", "3 okt 2021", *["4 jan 2021"] * 9], "timestamp", "%d %b %Y", D(2021, 5, 1)),
    (["1 de março de 2021", "5 de mayo de 2021"], "timestamp", "%d de %b de %Y", D(2021, 3, 1)),
    (["1-ENE-21", "31-ago-21"], "timestamp", "%d-%b-%y", D(2021, 1, 1)),
    (["1 gennaio 2021", "2 września 2021"], "timestamp", "%d %b %Y", D(2021, 1, 1)),
    (["True", "FALSE", "true"], "boolean", None, True)])
def test_numbers_and_times_as_people_write_them(values, type, format, first):
    found = reading(values)
    assert (found.type, found.format, found.n_unread) == (type, format, 0)
    assert read(values, found)[0] == first


@pytest.mark.parametrize("values", [
    ["007", "12"], ["256.10", "V20", "E849"], ["54E4", "A17", "2.10"], ["9" * 20, "1"], ["1.2.3", "1.2.4"],
    ["True", "False", "Maybe"],
    ["1234567890123456789", "2.5"], ["5 kg", "7 g"], ["5 A4", "7 A4"], ["17A", "18A"],
    ["10 am", "11 am"], ["2 rooms", "3 rooms", "1 room"],
    ["$5", "€7"], ["12-05", "13-05"], ["10:30", "11:45"],
    ["2023-02-30", "x"],
    ["DE44 5001", "DE45 5002"], ["yes", "no"], ["54E4", "12E3"],
    ["660 123 456", "664 555 123"]])
def test_what_is_no_number_stays_text(values): assert reading(values).type == "category"


def test_versions_are_said_to_look_like_numbers():
    assert "codes or versions" in reading(["2.9", "2.10", "3.1"]).checks[0]
    assert not reading(["2.90", "2.10", "3.00"]).checks and not reading(["2.9", "2.0", "3.14"]).checks


@pytest.mark.parametrize("name, type, format", [("created_at", "timestamp", "epoch s"), ("phone", "integer", None)])
def test_seconds_since_1970_are_times_only_by_the_name_of_the_column(name, type, format):
    found = reading(["1612137600", "1612224000"], name=name)
    assert (found.type, found.format) == (type, format)
    assert reading(["1612137600123", "1612224000000"], name="ts").format == "epoch ms"


@pytest.mark.parametrize("values, format, words", [
    (["03/04/2024", "05/06/2024"], "%d/%m/%Y", "day or month first"),
    (["1,250", "2,500"], "1,234.5", "'1,250' is read as the number"),
    (["1.250", "2.500"], None, "'1.250' is read as the number"),
    (["€1.250", "€2.500"], "€1.234,5", "'€1.250' is read as the number")])
def test_what_is_ambiguous_is_said(values, format, words):
    found = reading(values)
    assert found.format == format and len(found.checks) == 1 and words in found.checks[0]


@pytest.mark.parametrize("values, other, format", [
    (["03/04/2024", "05/06/2024"], ["12/31/2024", "01/02/2024"], "%m/%d/%Y"),
    (["1.250", "2.500"], ["0,52", "1,5"], "1.234,5"),
    (["1,250", "2,500"], ["0,52", "1,5"], "1234,5"), (["1,250", "2,500"], ["0.52", "1.5"], "1,234.5")])
def test_another_column_settles_what_is_ambiguous(values, other, format):
    found = reading(values, other=other)
    assert found.format == format and not found.checks


def test_one_value_in_the_last_batch_decides():
    late = ["03/04/2024"] * 200_000 + ["04/13/2024"]
    assert (reading(late).format, reading(late).checks) == ("%m/%d/%Y", [])
    found = reading(["12"] * 200_000 + ["(3)", "1,250.5"])
    assert (found.type, found.format, found.n_unread) == ("number", "(1,234.5)", 0)


def test_times_with_and_without_an_offset_are_said():
    found = reading(["2024-01-01T10:00:00", "2024-01-01T10:00:00+02:00", "2024-01-01T10:00:00Z"])
    assert found.time_zone == "UTC"
    assert "1 times have no offset from UTC and are read as UTC, 2 have one" in found.checks[0]
    assert reading(["2024-01-01T10:00:00Z"] * 3).time_zone is None


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dates(dt.date(1000, 1, 1)), min_size=1, max_size=6),
       st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y"]))
def test_dates_are_read_as_written_or_said_to_be_ambiguous(days, written):
    found = reading([d.strftime(written) for d in days])
    if found.checks: assert "/" in written and all(d.day <= 12 for d in days)
    else: assert [t.date() for t in read([d.strftime(written) for d in days], found)] == days


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=6))
def test_integers_are_read_to_the_last_digit(values):
    found = reading(words := [*map(str, values)])
    if found.type == "integer": assert read(words, found) == values
    elif found.type == "timestamp": assert found.format == "%Y%m%d"
    else: assert found.type == "category" and max(map(abs, values)) > 2**62


WORDS = st.one_of(st.none(), st.integers(-10**20, 10**20).map(str), st.floats().map(repr), st.dates().map(str),
                  st.booleans().map(str),
                  st.from_regex(r"[+-]?\d{0,3}[,.]?\d{0,4}", fullmatch=True),
                  st.from_regex(r"\d\d/\d\d/\d{4}", fullmatch=True),
                  st.text(max_size=4))


@settings(deadline=None, max_examples=80)
@given(st.lists(WORDS, max_size=8), st.randoms(use_true_random=False))
def test_neither_the_order_of_the_values_matters_nor_is_one_lost_without_being_counted(values, shuffle):
    found, again = reading(values), reading(shuffle.sample(values, len(values)))
    assert (found.type, found.format, found.n_unread) == (again.type, again.format, again.n_unread)
    got = read(values, found)
    present = [v for v in values if v is not None and v.strip() and v.strip() not in found.missing_counts]
    assert sum(v is not None for v in got) >= len(present) - found.n_unread


def other(values, column):
    text = pl.Series("x", values)
    parsed = text.to_frame().select(parse_value_expr(pl.col("x"), pl.String(), column.type, (),
                                                     column.format)).to_series()
    return find_other_format(text, parsed, column.type)


def test_a_batch_in_another_order_is_found_and_an_error_is_not():
    days = Column("timestamp", format="%d/%m/%Y")
    found = other(["03/04/2024", "03/25/2024", "05/06/2024"], days)
    assert (found.format, found.n_proofs, found.n_differ, found.place) == ("%m/%d/%Y", 1, 2, 1)
    assert other(["03/04/2024", "25/03/2024", "03/25/2024"], days) is None # one of each: an error
    assert other(["03/04/2024", "soon", "31/02/2024"], days) is None
    amounts = Column("number", format="1234,5")
    assert other(["1,250", "1,250.75", "12"], amounts).format == "1,234.5"
    assert other(["1,25", "1.2.3", "12"], amounts) is None
    assert other(["12", "12,5", "7"], Column("integer")) is None # nothing could be read otherwise
