"The table of what `init` decided: bounded, most important first, the same words as in schema.yaml."
import polars as pl
import pytest

from mlops_nb.config.schema import Column, Schema
from mlops_nb.config.schema_inference import infer_schema
from mlops_nb.config.schema_review import (
    choose_lines,
    count_reasons,
    format_review,
    print_review,
    review_columns,
    split_comment,
)


@pytest.mark.parametrize("comment, parts", [
    ("", ("", "", [])), ("nothing missing", ("nothing missing", "", [])),
    ("1 missing; 3 distinct; not a feature: free text", ("1 missing; 3 distinct", "free text", [])),
    ("not a feature: excluded; CHECK: a; CHECK for a leak: b; c", ("", "excluded", ["a", "for a leak: b; c"])),
    ("2 × 'CHECK' read as missing", ("2 × 'CHECK' read as missing", "", []))])
def test_a_comment_is_taken_apart(comment, parts): assert split_comment(comment) == parts


def wide():
    columns = {f"x{i}": Column("number", feature=i % 5 != 0) for i in range(2500)} | {"y": Column("number"),
                                                                                     "at": Column("timestamp")}
    comments = {n: "nothing missing" + ("" if c.feature else "; not a feature: the same value everywhere")
                + ("; CHECK: look" if n in ("x7", "x2401") else "") for n, c in columns.items()}
    return review_columns(Schema("w", "regression", "y", columns, event_time="at"), comments)


def test_a_table_of_thousands_is_bounded_and_begins_with_what_to_check():
    lines = choose_lines(wide())
    assert len(lines) == 40 and {r.name for r in lines[:2]} == {"x7", "x2401"}
    assert [r.name for r in lines[2:4]] == ["y", "at"] and lines[4].role == "left out: the same value everywhere"
    assert len(format_review(lines).splitlines()) == 41
    assert [len(v) for v in count_reasons(wide()).values()] == [500]
    few = wide()[:40]
    assert choose_lines(few) == few, "where all fit the order of the schema stays"


def test_the_table_says_what_the_comments_of_the_schema_say(capsys):
    rows = 400
    frame = pl.DataFrame(dict(customer_id=[i // 4 for i in range(rows)], color=["[red]", "blue"] * (rows // 2),
                              same=["x"] * rows, amount=[i / 7 for i in range(rows)], y=[i % 3 for i in range(rows)]))
    found = infer_schema(frame.lazy(), "d", "y")
    lines = review_columns(found.schema, found.comments)
    for terminal in (False, True):
        print_review(lines, terminal)
        said = capsys.readouterr().out
        assert "left out: the" in said and "target" in said and "entity" in said and "CHECK" in said
    for row in lines:
        comment = found.comments[row.name]
        assert row.seen in comment and all(c in comment for c in row.check.split("; "))


def test_names_with_brackets_are_no_markup(capsys):
    rows = review_columns(Schema("d", "regression", "y", {"[red]": Column("number"), "y": Column("number")}), {})
    print_review(rows, True)
    assert "[red]" in capsys.readouterr().out
