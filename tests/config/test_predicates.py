"Conditions on a row: what they say, one row and many alike, and what is refused."
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.trained_project import schema

from mlops_nb.config.predicates import RowPredicate
from mlops_nb.core.errors import UserError

SCHEMA = schema("binary")


@pytest.mark.parametrize("when, value, fits", [
    ({"x": 1}, 1.0, True), ({"x": 1}, None, False), ({"x": None}, None, True), ({"x": None}, 0.0, False),
    ({"x": [0, 1]}, 1.0, True),
    ({"x": [0, 1]}, 1.1, False), ({"x": [None, 1]}, -9.0, True), ({"x": [None, None]}, None, False),
    ({"x": [None, None]}, 3.0, True),
    ({"count": [2, None]}, 2, True), ({"count": [2, None]}, None, False), ({"count": [2.5, None]}, 3, True),
    ({"place": "東京"}, "東京", True), ({"place": " a "}, "a", True),
    ({"place": ["a", None]}, None, True),
    ({"place": ["a", "b"]}, "ab", False), ({"known": True}, True, True), ({"known": [False, None]}, True, False),
    ({"when": ["2026-01-01", "2026-02-01"]}, datetime(2026, 2, 1), True),
    ({"when": ["2026-01-01", "2026-02-01"]}, datetime(2026, 2, 1, 1), False),
    ({"when": "2026-01-01T01:00:00+01:00"}, datetime(2026, 1, 1), True)])
def test_what_a_condition_says(when, value, fits):
    [name] = when
    match = RowPredicate(when, SCHEMA, "rule 1")
    assert match.matches_row({name: [value]}, 0) is fits and match.matching_rows({name: [value]}, 1).tolist() == [fits]
    assert RowPredicate({}, SCHEMA, "rule 1").matches_row({}, 0) # no condition: every row


def test_a_column_that_was_not_sent_is_missing():
    assert RowPredicate({"x": None}, SCHEMA, "r").matches_row({}, 0)
    assert not RowPredicate({"x": [0, 1]}, SCHEMA, "r").matches_row({}, 0)


@given(st.lists(st.tuples(st.none() | st.floats(-3, 3), st.none() | st.sampled_from(["a", "b", "c"])), min_size=1),
       st.none() | st.floats(-3, 3), st.lists(st.none() | st.sampled_from(["a", "b"]), min_size=1))
def test_all_columns_must_fit_one_row_and_many_alike(rows, low, places):
    columns = {"x": [r[0] for r in rows], "place": [r[1] for r in rows]}
    match = RowPredicate({"x": [low, 2], "place": places}, SCHEMA,
                         "rule 1") if low is None or low <= 2 else RowPredicate({"place": places}, SCHEMA, "r")
    said = match.matching_rows(columns, len(rows)).tolist()
    assert said == [match.matches_row(columns, i) for i in range(len(rows))]
    if low is None: assert said == [x is not None and x <= 2 and p in places for x, p in rows]


@pytest.mark.parametrize("when, words", [
    ({"amonut": 1}, "does not have"), ({"coutn": 1}, "did you mean 'count'"), ({"x": "1"}, "schema says number"),
    ({"x": True}, "number"),
    ({"x": [1]}, "[low, high]"), ({"x": [1, 2, 3]}, "[low, high]"), ({"x": [2, 1]}, "[low, high]"),
    ({"x": []}, "[low, high]"),
    ({"x": float("nan")}, "nan"), ({"x": [[1], 2]}, "number"), ({"place": []}, "list of values"),
    ({"place": 3}, "category"),
    ({"place": [["a"]]}, "category"), ({"known": "yes"}, "boolean"), ({"when": "yesterday"}, "timestamp"),
    ({"when": 5}, "timestamp"),
    ({"when": ["2026-02-01", "2026-01-01"]}, "timestamp"), ({"id": [1, 2]}, "text"),
    ({"count": 2.5}, "integer"), ({"count": 10**30}, "integer")])
def test_what_can_never_be_true_is_refused(when, words):
    with pytest.raises(UserError) as e: RowPredicate(when, SCHEMA, "rule 1 of r.json")
    assert words in str(e.value) and "rule 1 of r.json" in str(e.value)


def test_a_time_without_a_zone_is_utc():
    at = datetime(2026, 7, 1, 12, tzinfo=UTC).isoformat()
    assert RowPredicate({"when": at}, SCHEMA, "r").matches_row({"when": [datetime(2026, 7, 1, 12)]}, 0)
