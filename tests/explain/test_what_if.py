"What if: values typed by hand, predictions before and after, and what is printed."
import json

import numpy as np
import polars as pl
import pytest
from support.trained_project import schema

from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.explain.what_if import (
    format_value,
    parse_changes,
    parse_json_row,
    parse_values,
    print_what_if,
    read_row,
    what_if,
)


def row_of(predictor, root, i=0): return read_row(predictor, i + 1, root / "artifacts/prepared/test.parquet")


@pytest.mark.parametrize(
    "values, says",
    [
        ({"xx": 1}, "there is no column 'xx'; did you mean 'x'?"),
        ({"x": "high"}, "x: high is not a number"),
        ({"x": 11}, "x: 11 is above 10"),
        ({"x": "-10.5"}, "x: -10.5 is below -10"),
        ({"x": "inf"}, "x: inf is infinite"),
        ({"count": 2.5}, "count: 2.5 is not an integer"),
        ({"count": ""}, "count: missing"),
        ({"count": None}, "count: missing"),
        ({"known": "so"}, "known: so is not true or false"),
        ({"when": "soon"}, "when: soon is not a date or time"),
        ({"x": [1, 2]}, "give one value"),
        ({"count": 10**400}, "larger than any column"),
    ],
)
def test_what_cannot_be_is_refused(values, says):
    with pytest.raises(UserError) as e: parse_values(schema("binary"), values)
    assert says in str(e.value)


def test_a_category_outside_the_domain_is_a_typing_error():
    s = schema("binary")
    s.columns["place"].domain = ["Amsterdam", "Örebro"]
    with pytest.raises(UserError, match="Amsterdan is a new category; did you mean 'Amsterdam'?"):
        parse_values(s, {"place": "Amsterdan"})


def test_texts_are_read_as_a_delivery_is():
    got = parse_values(
        schema("binary"), {"x": " 2.5 ", "count": "7", "place": "?", "known": "yes", "when": "2026-03-01T10:00:00Z"}
    )
    assert got.row(0)[:4] == (2.5, 7, None, True) and str(got["when"][0]) == "2026-03-01 10:00:00"
    assert parse_values(schema("binary"), {"x": 2.5, "known": False, "place": None}).row(0) == (2.5, False, None)


def test_vectors_are_given_as_in_a_request_and_long_values_are_cut():
    mails = Schema("mails", "regression", "y", {"v": Column("vector", size=2, producer="p"), "y": Column("number")})
    for v in ([1, 2], "[1, 2]", {"values": [1, 2], "producer": "p"}):
        assert parse_values(mails, {"v": v}).row(0) == ("[1.0,2.0]",)
    for v, says in (([1], "v: has 1 numbers"), ({"values": [1, 2], "producer": "q"}, "v: comes from the producer 'q'")):
        with pytest.raises(UserError, match=says): parse_values(mails, {"v": v})
    assert format_value("a" * 61) == "a" * 59 + "…" and format_value("a" * 60) == "a" * 60


def test_changes_must_be_read_by_the_model(asked):
    predictor, *_ = asked
    assert (
        parse_changes(predictor, ["place=a=b", "x="]) == {"place": "a=b", "x": None}
        and parse_changes(predictor, []) == {}
    )
    for text, says in (
        ("note=hm", "the model does not read 'note'"),
        ("x", "'x' is no change"),
        ("=1", "there is no column ''"),
    ):
        with pytest.raises(UserError, match=says): parse_changes(predictor, [text])


def test_rows_come_from_files_and_json(asked, tmp_path):
    predictor, root, _ = asked
    values = row_of(predictor, root).row(0, named=True)
    assert parse_json_row(predictor, json.dumps(values, default=str)).row(0, named=True) == values
    for number in (0, -1, 10_000):
        with pytest.raises(UserError, match=f"has no row {number}; its rows are 1 to"):
            row_of(predictor, root, number - 1)
    with pytest.raises(UserError, match="does not exist"): read_row(predictor, 1, tmp_path / "none.parquet")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="cannot be read as Parquet"): read_row(predictor, 1, tmp_path / "torn.parquet")
    for text in ("[1]", "{", "1e999"):
        with pytest.raises(UserError, match="no JSON object"): parse_json_row(predictor, text)
    with pytest.raises(UserError, match="has no column"): parse_json_row(predictor, "{}")


def test_the_answers_are_the_predictors(asked):
    predictor, root, near = asked
    row = row_of(predictor, root)
    found = what_if(predictor, row, {"count": 50, "place": "Örebro"}, near)
    assert {c.column: c.after for c in found.changes} == {"count": 50, "place": "Örebro"}
    changed = row.with_columns(count=pl.lit(50), place=pl.lit("Örebro"))
    for frame, answer, side in (
        (row, found.before, "contribution_before"),
        (changed, found.after, "contribution_after"),
    ):
        score = predictor.predict(frame)[0]
        assert answer.score == score.max()
        if predictor.schema.task != "regression": assert answer.decision == predictor.decide(score[None])[0]
        k = predictor.predict(row)[0].argmax() if score.ndim else ...
        assert np.isclose(predictor.predict_raw(frame)[0][k], answer.raw_score)
        assert np.isclose(found.base_value + sum(getattr(e, side) for e in found.effects), answer.raw_score)
    assert {e.feature for e in found.effects} == set(predictor.feature_names)
    moved = [abs(e.contribution_after - e.contribution_before) for e in found.effects]
    assert moved == sorted(moved, reverse=True)


def test_a_change_of_a_column_changes_the_features_made_from_it(asked):
    predictor, root, near = asked
    row = row_of(predictor, root).with_columns(x=pl.lit(1.0), count=pl.lit(4))
    seen = {e.feature: (e.before, e.after) for e in what_if(predictor, row, {"count": 2}, near).effects}
    assert seen["ratio"] == (.25, .5) and seen["count"] == (4, 2) and seen["known"][0] == seen["known"][1]


def test_without_a_change_nothing_moves(asked):
    predictor, root, near = asked
    found = what_if(predictor, row_of(predictor, root), {}, near)
    assert (
        found.before == found.after
        and not found.changes
        and all(e.contribution_before == e.contribution_after for e in found.effects)
    )


def test_where_no_row_has_another_answer_it_is_said(asked, capsys):
    predictor, root, near = asked
    same = (
        predictor.decide(near.scores) == predictor.decide(near.scores)[0]
        if predictor.schema.task != "regression"
        else slice(None)
    )
    lonely = type(near)(
        near.rows.filter(same) if not isinstance(same, slice) else near.rows,
        near.sources,
        near.scores[same],
        near.ranges,
    )
    row = lonely.rows[:1]
    found = what_if(predictor, row, {}, lonely, 1e9)
    assert found.nearest_counterfactual is None and found.sparse_counterfactual is None
    print_what_if(found)
    assert "None of the rows that it was compared with has" in capsys.readouterr().out


def test_what_is_printed_adds_up(asked, capsys):
    predictor, root, near = asked
    found = what_if(predictor, row_of(predictor, root), {"count": 50}, near)
    print_what_if(found, max_features=2)
    out = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line.split() for line in out.split("The nearest")[0].splitlines()}
    ends = ("others", "on average", "raw score", *predictor.feature_names)
    figures = {name: [float(x) for x in line[-3:]] for name, line in lines.items() if name.endswith(ends)}
    total = figures.pop("raw score")
    assert len(figures) == 4 and np.allclose(np.sum([*figures.values()], 0), total, atol=.005)
    assert "The nearest real row with" in out and "The fewest changes found" in out
