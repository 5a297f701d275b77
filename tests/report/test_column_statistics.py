"What the data report says of a column: nothing impossible, and numbers written by what they mean."
from datetime import datetime, timedelta

import polars as pl
import pytest

from mlops_nb.config.schema import Column, Schema
from mlops_nb.report.column_statistics import (
    choose_columns,
    column_table,
    describe_column,
    format_distinct,
    read_column_facts,
)


def facts_of(tmp_path, values, type, max_counted_cells=10_000_000, **column):
    pl.DataFrame({"c": values}).write_parquet(tmp_path / "part.parquet")
    return read_column_facts([tmp_path / "part.parquet"], {"c": Column(type, **column)}, max_counted_cells)["c"]


@pytest.mark.parametrize("values, type, at_most", [(range(10_000), "integer", 10_000),
                                                   ([f"k{i}" for i in range(10_000)], "text", 10_000),
                                                   ([i % 3_000 for i in range(10_000)], "integer", 3_000),
                                                   ([None, *range(9_999)], "integer", 9_999)])
def test_an_estimate_is_never_more_than_is_possible(tmp_path, values, type, at_most):
    facts = facts_of(tmp_path, list(values), type, max_counted_cells=0)
    assert not facts.exact and facts.distinct <= at_most and format_distinct(facts).startswith("about ")
    assert format_distinct(facts_of(tmp_path, list(values), type)) == f"{at_most:,}", "few values are counted"


@pytest.mark.parametrize("name, values, column, middle, spread", [
    ("year", [2013, 2014, 2016, 2017], {}, "2014", "2013 to 2017"),
    ("built", [1_850, 2_020], {}, "1850", "1850 to 2020"),
    ("customer_id", [1_000_003, 1_000_001, 1_000_002], dict(feature=False), "1000002", "1000001 to 1000003"),
    ("income", [12_000, 1_250_000, 14_000], {}, "14,000", "12,000 to 1,250,000")])
def test_years_and_identifiers_have_no_thousands_separator(tmp_path, name, values, column, middle, spread):
    assert describe_column(facts_of(tmp_path, values, "integer", **column), name)[:2] == (middle, spread)


def test_the_median_of_dates_is_a_day_on_which_something_happened(tmp_path):
    days = [datetime(2020, 1, 1)] * 3 + [datetime(2021, 1, 1)] * 2
    middle, spread, _ = describe_column(facts_of(tmp_path, days, "timestamp"), "day")
    assert (middle, spread) == ("1 January 2020", "1 January 2020 to 1 January 2021")
    hours = [datetime(2020, 1, 1, 6) + timedelta(hours=i) for i in range(5)]
    middle, spread, _ = describe_column(facts_of(tmp_path, hours, "timestamp"), "at")
    assert (middle, spread) == ("1 January 2020, 08:00", "1 January 2020, 06:00 to 1 January 2020, 10:00")


def test_values_of_any_type_and_none_at_all_are_described(tmp_path):
    empty = facts_of(tmp_path, pl.Series([None, None], dtype=pl.Float64), "number")
    assert describe_column(empty, "c")[:2] == ("–", "–")
    nan = facts_of(tmp_path, [1.5, float("nan"), None], "number")
    assert (nan.missing, nan.distinct) == (2, 1) and describe_column(nan, "c")[1] == "1.50 to 1.50"
    assert describe_column(facts_of(tmp_path, ["b", "a", "b"], "category"), "c")[0] == "b (66.7 %)"
    assert describe_column(facts_of(tmp_path, [True, False], "boolean"), "c")[1] == "false and true"
    assert describe_column(facts_of(tmp_path, ["<i>"], "text"), "c")[1] == "for example “<i>”"


def test_a_wide_table_shows_a_bounded_number_of_columns(tmp_path):
    names = [*(f"x{i}" for i in range(400)), "y"]
    pl.DataFrame({n: [1.0, 2.0] for n in names}).write_parquet(tmp_path / "part.parquet")
    schema = Schema("wide", "regression", "y", {n: Column("number") for n in names})
    assert len(choose_columns(schema)) == 100 and "y" in choose_columns(schema)
    page = column_table([tmp_path / "part.parquet"], schema).text
    assert page.count("<tr>") == 101 and "The 401 columns of the schema" in page and "100 of them are shown" in page
