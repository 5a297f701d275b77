"Which columns are held against each other in the data report, and that the tables stay bounded and clean."
from types import SimpleNamespace as Some

import numpy as np
import polars as pl
import pytest
from support.html_pages import self_contained

from mlops_nb.config.schema import Column, Schema
from mlops_nb.data.splits import SplitCheck
from mlops_nb.report.association_tables import (
    MAX_ASSOCIATED,
    association_matrix,
    associations_html,
    duplicates_html,
    read_associated_columns,
    target_associations,
)
from mlops_nb.report.html import render_page, sanitize_html


def sampled(tmp_path, rows, target, task="binary", entity=None, **kinds):
    "A schema of these columns, and what is read of the rows."
    columns = {c: kinds.get(c, Column("number" if rows[c].dtype.is_numeric() else "category")) for c in rows.columns}
    schema = Schema("s", task, target, classes=["0", "1"] if task == "binary" else None, entity=entity, columns=columns)
    for i, part in enumerate((rows[:100], rows[100:])): part.write_parquet(tmp_path / f"part-{i}.parquet")
    return schema, read_associated_columns(sorted(tmp_path.glob("*.parquet")), schema)


@pytest.fixture
def rows():
    rng, n = np.random.default_rng(0), 400
    plan, x = rng.integers(0, 3, n), rng.normal(size=n)
    return pl.DataFrame(dict(who=[f"w{i // 2}" for i in range(n)], name=[f"n{i}" for i in range(n)], x=x, y=2 * x + 1,
                             plan=[f"<b>{p}" for p in plan], city=[f"c{p}" for p in plan], same=np.ones(n),
                             note=["hello"] * n, bought=(x + plan > 1).astype(int)))


def test_names_texts_and_constant_columns_take_no_part_and_a_class_is_no_number(tmp_path, rows):
    schema, sample = sampled(tmp_path, rows, "bought", entity="who", note=Column("text"), bought=Column("integer"))
    assert sample.columns == ["x", "y", "plan", "city", "bought"] and sample["bought"].dtype == pl.String
    assert {a.first: a.measure for a in target_associations(sample, "bought")} == {
        "x": "correlation ratio", "y": "correlation ratio", "plan": "Cramér's V", "city": "Cramér's V"}
    number = sampled(tmp_path, rows, "bought", "regression", bought=Column("integer"))[1]
    assert number["bought"].dtype.is_numeric()


def test_the_tables_name_the_closest_first_and_escape_what_the_data_says(tmp_path, rows):
    schema, sample = sampled(tmp_path, rows.rename({"plan": "<i>plan"}), "bought", note=Column("text"))
    html = associations_html(sample, schema).text
    assert "<i>" not in html and "<td>x</td><td>y</td><td>Spearman correlation</td>" in html
    assert html.index("<td>x</td><td>y</td>") < html.index("Spearman correlation of numbers")
    assert "bought" in html and html.count('class="matrix"') == 2
    assert "color-mix" in self_contained(render_page("t", sanitize_html(html))).styles[-1]


def test_many_columns_are_cut_to_those_that_tell_of_the_target(tmp_path):
    rng = np.random.default_rng(1)
    rows = pl.DataFrame({f"c{i}": rng.normal(size=300) for i in range(60)})
    rows = rows.with_columns(y=pl.col("c50") + pl.col("c7") * 0.5)
    schema, sample = sampled(tmp_path, rows, "y", "regression")
    html = associations_html(sample, schema).text
    assert len(sample.columns) == 61 and len(html) < 60_000 and f"Of the {MAX_ASSOCIATED} columns that say most" in html
    assert html.index("<td>c50</td>") < html.index("<td>c7</td>")
    assert f"The first {MAX_ASSOCIATED} of 60 are shown" in html and "c50</th>" in html


def test_nothing_is_shown_where_there_is_nothing_to_compare(tmp_path, rows):
    schema, sample = sampled(tmp_path, rows.select("same", "bought"), "bought", bought=Column("integer"))
    assert associations_html(sample, schema).text == ""
    assert duplicates_html(Some(used=400, split_check=SplitCheck(0)), sample).text == ""


def test_an_unknown_association_is_a_dash_and_a_sign_is_not_told_by_colour_alone():
    found = [Some(first="a", second="b", value=None), Some(first="a", second="c", value=-0.456),
             Some(first="b", second="c", value=1.0)]
    html = association_matrix(found, ["a", "b", "c"], "All.").text
    assert ">–</td>" in html and "var(--orange) 25%" in html and ">−0.46<" in html and "var(--blue) 55%" in html


def test_repeated_rows_and_columns_are_told(tmp_path, rows):
    sample = sampled(tmp_path, rows.with_columns(again=pl.col("x")), "bought", note=Column("text"))[1]
    html = duplicates_html(Some(used=400, split_check=SplitCheck(0, repeated_rows=8, repeated_across_splits=3)), sample)
    assert "8 (2.0 %)" in html.text and "<td>3</td>" in html.text and "<td>x and again</td>" in html.text
