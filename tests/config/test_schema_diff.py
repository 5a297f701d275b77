"What changed between two schemas: its kind, and a sentence."
import msgspec
import pytest
from hypothesis import given, settings
from support.schemas import schemas

from mlops_nb.config.schema import Column, Schema, schema_hash
from mlops_nb.config.schema_diff import diff_schemas


def copy(schema): return msgspec.convert(msgspec.to_builtins(schema), Schema)


BASE = Schema("d", "binary", "y", {"a": Column("integer", range=(0, 10)), "c": Column("category", domain=["u", "v"]),
              "y": Column("category")}, classes=["n", "p"])


@pytest.mark.parametrize("column, key, value, kind, says", [
    ("a", "type", "number", "widened", "The type of 'a' is number; it was integer."),
    ("y", "type", "text", "retyped", "The type of 'y' is text; it was category."),
    ("a", "range", (0, None), "widened", "is 0 to ∞; it was 0 to 10"),
    ("a", "range", None, "widened", "is not given; it was"),
    ("a", "range", (0, 5), "narrowed", "is 0 to 5"),
    ("a", "range", (-5, 5), "narrowed", "is -5 to 5"),
    ("a", "nullable", True, "widened", "is true; it was false"),
    ("a", "feature", False, "changed", "is false; it was true"),
    ("c", "domain", ["u", "v", "w"], "widened", "The domain of 'c' gained w."),
    ("c", "domain", ["u"], "narrowed", "lost v"),
    ("c", "domain", ["u", "w"], "changed", "gained w and lost v"),
    ("c", "domain", ["v", "u"], "widened", "is in another order"),
    ("c", "domain", None, "widened", "is not given"),
    ("", "target", "a", "changed", "The target of the data set is a; it was y.")])
def test_each_change_is_a_sentence(column, key, value, kind, says):
    new = copy(BASE)
    if column: setattr(new.columns[column], key, value)
    else: setattr(new, key, value)
    changes = diff_schemas(BASE, new)
    assert [(c.column, c.key, c.kind) for c in changes] == [(column, key, kind)]
    assert says in changes[0].message and changes[0].message.endswith(".")
    assert schema_hash(new) != schema_hash(BASE)


def test_columns_that_come_and_go():
    new = copy(BASE)
    new.columns["b"] = new.columns.pop("a")
    assert [(c.column, c.kind) for c in diff_schemas(BASE, new)] == [("a", "removed"), ("b", "added")]


@pytest.mark.parametrize("now", [dict(size=4), dict(producer="q"), dict(version="2")])
def test_another_vector_is_of_another_type(now):
    was = dict(size=3, producer="p", version="1")
    a, b = (Schema("d", "regression", "y", columns={"v": Column("vector", **x)}) for x in (was, was | now))
    assert [(c.key, c.kind) for c in diff_schemas(a, b)] == [(*now, "retyped")]


def test_a_range_of_dates_that_becomes_one_of_numbers_is_told():
    a, b = (Schema("d", "regression", "y", columns={"y": Column("number"), "x": x}) for x in
            (Column("timestamp", range=("2012-01-31", None)), Column("number", range=(0.0, None))))
    assert [(c.key, c.kind) for c in diff_schemas(a, b)] == [("type", "retyped"), ("range", "changed")]


@settings(deadline=None, max_examples=50)
@given(a=schemas(), b=schemas())
def test_no_difference_means_equal(a, b):
    assert diff_schemas(a, a) == []
    assert bool(diff_schemas(a, b)) or a == b
    assert (schema_hash(a) == schema_hash(b)) == (a == b and list(a.columns) == list(b.columns))
