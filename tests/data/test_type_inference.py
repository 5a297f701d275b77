"The type of a text column follows from all its values, and no value is lost by it."
import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import UserError
from mlops_nb.data.type_inference import (
    RESERVED_COLUMNS,
    TEXT_FORMATS,
    apply_text_formats,
    check_column_names,
    convert_text_batches,
    infer_text_formats,
    strip_text,
)


def texts(*values): return pl.DataFrame({"x": values}, schema={"x": pl.String})


def format_of(*batches):
    return infer_text_formats([pl.DataFrame({"x": b}, schema={"x": pl.String}) for b in batches])["x"]


@pytest.mark.parametrize("values, expected", [
    (["1", "-2", "+3"], [1, -2, 3]), (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
    (["true", "FALSE", None], [True, False, None]),
    (["0", "1"], [0, 1]), (["00501", "10001"], ["00501", "10001"]), (["0.5", "-0"], [0.5, -0.0]),
    (["007.5"], ["007.5"]),
    (["9223372036854775807"], [2**63 - 1]), (["9223372036854775808"], ["9223372036854775808"]),
    (["inf", "-Infinity"], [float("inf"), -float("inf")]), (["nan", "1"], [None, 1.0]),
    (["1_000", "0x10"], ["1_000", "0x10"]),
    (["39,9", "1,25"], [39.9, 1.25]), (["1,234", "5,678"], ["1,234", "5,678"]),
    (["1,234,567"], ["1,234,567"]), (["1,234.5"], ["1,234.5"]), (["2024-02-29"], [dt.date(2024, 2, 29)]),
    (["2023-02-29"], ["2023-02-29"]),
    (["24.12.2023"], [dt.date(2023, 12, 24)]), (["03/04/2024"], ["03/04/2024"]),
    (["13/04/2024", "03/04/2024"], [dt.date(2024, 4, 13), dt.date(2024, 4, 3)]),
    (["12/31/2024 01:00:00 PM"], [dt.datetime(2024, 12, 31, 13)]),
    (["24.12.2023 10:05"], [dt.datetime(2023, 12, 24, 10, 5)]),
    (["2024-01-01T10:00:00.250"], [dt.datetime(2024, 1, 1, 10, 0, 0, 250_000)]),
    (["2024-01-01 10:00:00+02:00"], [dt.datetime(2024, 1, 1, 8)]),
    (["2024-01-01T10:00:00Z"], [dt.datetime(2024, 1, 1, 10)]),
    (["0001-01-01", "9999-12-31"], [dt.date(1, 1, 1), dt.date(9999, 12, 31)]),
    (["24-01-05"], ["24-01-05"]),
    (["2024-01-01", "2024-01-01 10:00:00"], ["2024-01-01", "2024-01-01 10:00:00"]), (["$5", "7%"], ["$5", "7%"])])
def test_the_format_of_a_column(values, expected):
    got = apply_text_formats(pl.DataFrame({"x": values}), {"x": format_of(values)})["x"].to_list()
    assert got == expected and [type(v) for v in got] == [type(v) for v in expected]


def test_one_value_in_the_last_batch_decides():
    assert format_of(["1"] * 1000, ["2"] * 1000, ["3", "4.5"]) == "number"
    assert format_of(["1"] * 1000, [None], ["x"]) is None
    assert format_of(["1234567890123456789"], ["2.5"]) is None # as a float it would lose digits
    assert format_of([None], [None]) == "empty"
    assert format_of(["1"] * 100 + ["x"]) is None # beyond the first glance


WORDS = st.one_of(st.none(), st.integers(-10**20, 10**20).map(str), st.floats().map(repr), st.dates().map(str),
                  st.booleans().map(str),
                  st.from_regex(r"[+-]?\d{0,3}[,.]?\d{0,4}", fullmatch=True),
                  st.from_regex(r"\d\d/\d\d/\d{4}", fullmatch=True),
                  st.text(max_size=4))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.lists(WORDS, max_size=5), min_size=1, max_size=4))
def test_typing_never_loses_a_value(batches):
    "Whatever the batches, a value that was there is there afterwards (nan excepted), and all batches have one type."
    frames = [pl.DataFrame({"x": b}, schema={"x": pl.String}).select(pl.col("x").str.strip_chars().replace("", None))
              for b in batches]
    formats = infer_text_formats(frames)
    typed = [apply_text_formats(f, formats) for f in frames]
    assert len({f.schema["x"] for f in typed}) == 1
    for before, after in zip(frames, typed, strict=True):
        words = before["x"].drop_nulls().str.to_lowercase().str.strip_chars("+-")
        assert after["x"].null_count() == before["x"].null_count() + (words == "nan").sum() * (formats["x"] == "number")


@settings(deadline=None, max_examples=60)
@given(st.lists(st.floats(allow_nan=False), min_size=1))
def test_floats_are_read_to_the_last_bit(values):
    words = [repr(v) for v in values]
    assert apply_text_formats(pl.DataFrame({"x": words}), {"x": "number"})["x"].to_list() == values


def test_formats_are_null_on_null():
    for parse in TEXT_FORMATS.values():
        assert pl.DataFrame({"x": [None]}, schema={"x": pl.String}).select(parse(pl.col("x"))).item() is None


def test_formats_are_inferred_by_column_even_where_a_batch_lacks_one():
    first, second = pl.DataFrame({"a": ["1"], "b": ["x"]}), pl.DataFrame({"a": ["2.5"], "c": ["true"]})
    formats = infer_text_formats([first, second])
    assert formats == {"a": "number", "b": None, "c": "boolean"}
    got = apply_text_formats(second, formats)
    assert got.to_dict(as_series=False) == {"a": [2.5], "b": [None], "c": [True]}
    assert got.schema == {"a": pl.Float64, "b": pl.String, "c": pl.Boolean}


def test_an_empty_column_has_the_type_null():
    assert apply_text_formats(texts(None, None), {"x": "empty"}).schema == {"x": pl.Null}
    assert infer_text_formats([texts()]) == {"x": "empty"} and infer_text_formats([]) == {}


@settings(deadline=None, max_examples=80)
@given(st.lists(WORDS, max_size=8), st.lists(st.integers(0, 8), max_size=3), st.randoms(use_true_random=False))
def test_neither_the_batches_nor_the_order_of_the_values_matter(values, cuts, random):
    ends = [0, *sorted(c for c in cuts if c < len(values)), len(values)]
    batches = [strip_text(texts(*values[i:j])) for i, j in zip(ends, ends[1:], strict=False)]
    shuffled = random.sample(values, len(values))
    assert infer_text_formats(batches) == infer_text_formats([strip_text(texts(*shuffled))])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dates(dt.date(1000, 1, 1)), min_size=1, max_size=6),
       st.sampled_from(["%Y-%m-%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y"]))
def test_dates_are_read_as_written_or_stay_text(days, written):
    "Text only where every day could be a month: never one date for another."
    words = [d.strftime(written) for d in days]
    fmt = infer_text_formats([texts(*words)])["x"]
    if fmt is None: assert "/" in written and all(d.day <= 12 for d in days)
    else: assert apply_text_formats(texts(*words), {"x": fmt})["x"].to_list() == days


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(-2**63, 2**63 - 1), min_size=1, max_size=6))
def test_integers_are_read_to_the_last_digit(values):
    words = texts(*map(str, values))
    assert infer_text_formats([words]) == {"x": "integer"}
    assert apply_text_formats(words, {"x": "integer"})["x"].to_list() == values


def test_blanks_are_stripped_and_nothing_is_null():
    got = strip_text(texts(" a ", "", "  ", "\t", None, "b c", "\u00a0d\n"))
    assert got["x"].to_list() == ["a", None, None, None, None, "b c", "d"]


def test_a_text_is_read_twice_and_converted_batch_by_batch():
    passes = []
    def read():
        passes.append(0)
        return iter([texts("1", "2"), texts(None), texts("2.5")])
    batches = list(convert_text_batches(read))
    assert len(passes) == 2 and [b["x"].to_list() for b in batches] == [[1.0, 2.0], [None], [2.5]]
    assert {b.schema["x"] for b in batches} == {pl.Float64()}


@pytest.mark.parametrize("name", RESERVED_COLUMNS)
def test_reserved_names_are_refused(name):
    with pytest.raises(UserError, match=f"x.csv has a column '{name}', which is reserved; rename it"):
        check_column_names(["a", name], "x.csv")


def test_a_name_may_come_once_and_its_case_counts():
    check_column_names(["a", "A", "a ", "_sources"], "x.csv")
    with pytest.raises(UserError, match="x.csv names the column 'a' 3 times"):
        check_column_names(["a", "b", "a", "a"], "x.csv")
