"triggers.yaml: what fits is read, and each mistake is named with its place."
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.config.triggers import parse_week_window, read_triggers
from mlops_nb.core.errors import UserError


def test_no_file_is_no_trigger(tmp_path): assert read_triggers(tmp_path) == {}


@pytest.mark.parametrize("text, sentence", [
    ("a: {when: {any: []}}", "give either any or all"),
    ("a: {when: {any: [{drift: found}], all: [{drift: found}]}}", "give either any or all"),
    ("a: {when: {any: [{}]}}", "a condition has one of the keys"),
    ("a: {when: {any: [{drift: found, age: 60d}]}}", "here are drift and age"),
    ("a: {when: {any: [{new_data: {min_rows: 0}}]}}", "an integer >= 1 is expected"),
    ("a: {when: {any: [{age: 60}]}}", "age is 60"),
    ("a: {when: {any: [{drift: found}]}, cooldown: soon}", "cooldown is 'soon'"),
    ("a: {when: {any: [{drift: found}]}, budget: 8 runs}", "budget is '8 runs'"),
    ("a: {when: {any: [{drift: found}]}, unless: {window: weekend}}", "write it like Fri 16:00-Mon 06:00"),
    ("a: {when: {any: [{drift: found}]}, unless: {window: Fri 16:00-Fri 16:00}}", "whole week or none"),
    ("a: {when: {any: [{drift: found}]}, unless: {timezone: Europe/Wien}}", "does not exist"),
    ("a: {when: {any: [{drfit: found}]}}", "did you mean 'drift'"),
    ("a b: {when: {any: [{drift: found}]}}", "no name of a trigger"),
    ("a: {}", "'when' is missing"),
    ("a: {when: {any: [{drift: found}]}, budget: {}}", "budget is empty"),
    ("a: {when: {any: [{drift: found}]}, budget: {runs: 0 per 30d}}", "write it like 8 per 30d"),
    ("a: {when: {any: [{drift: found}]}, budget: {cost: 0 EUR per 30d}}", "write it like 40 EUR"),
    ("a: {when: {any: [{drift: found}]}, budget: {cost: 40 per 30d}}", "write it like 40 EUR"),
    ("a: {when: {any: [{age: shelf_live}]}}", "age is 'shelf_live'"),
    ("a: {when: {any: [{upstream: broken}]}}", "upstream is 'broken'"),
    ("a: {when: {any: [{code: new}]}}", "code is 'new'"),
    ("a: {when: {any: [{notice: {source: a/b}}]}}", "section 'a.when.any.1.notice': source is 'a/b'"),
    ("a: {when: {any: [{new_objects: {url: x, at_least: 0}}]}}", "at_least"),
    ("a: {when: {any: [{watermark: {url: x, table: t}}]}}", "the key 'column' is missing"),
    ("[1, 2]", "triggers.yaml")])
def test_a_mistake_is_one_sentence(tmp_path, text, sentence):
    (tmp_path / "triggers.yaml").write_text(text)
    with pytest.raises(UserError, match=sentence) as error: read_triggers(tmp_path)
    assert "triggers.yaml" in str(error.value) and "\n" not in str(error.value)


def test_short_forms(tmp_path):
    (tmp_path / "triggers.yaml").write_text("a: {when: {all: [{code: changed}, {age: shelf_life}]}, budget: 8 per 30d}")
    found = read_triggers(tmp_path)["a"]
    assert found.budget.max_runs == (8, "30d") and found.budget.max_cost is None
    assert [c.code and c.code.branch for c in found.when] == ["main", None]
    (tmp_path / "other.yaml").write_text("b: {when: {any: [{drift: found}]}, budget: {cost: 0.5 EUR per 7d}}")
    assert read_triggers(tmp_path, tmp_path / "other.yaml")["b"].budget.max_cost == (.5, "EUR", "7d")
    with pytest.raises(UserError, match="does not exist"): read_triggers(tmp_path, tmp_path / "gone.yaml")


DAYS = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]


@given(*[st.tuples(st.sampled_from(range(7)), st.integers(0, 23), st.integers(0, 59))] * 2)
def test_a_window_is_what_it_says(a, b):
    text = "-".join(f"{DAYS[d]} {h:02}:{m:02}" for d, h, m in (a, b))
    if a == b:
        with pytest.raises(ValueError, match="whole week"): parse_week_window(text)
    else: assert parse_week_window(text) == tuple(d * 1440 + h * 60 + m for d, h, m in (a, b))
