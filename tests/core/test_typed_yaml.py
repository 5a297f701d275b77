"JSON and YAML as typed structs: what is written can be read, and a mistake names its place."
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import convert_typed, read_json, read_yaml, write_json, yaml_lines

# JSON

def test_read_json_names_the_file(tmp_path):
    with pytest.raises(UserError, match="gate.json does not exist"): read_json(tmp_path / "gate.json")
    write_json(tmp_path / "gate.json", {"a": [1, 2, 3]})
    whole = (tmp_path / "gate.json").read_bytes()
    (tmp_path / "gate.json").write_bytes(whole[:-6])
    with pytest.raises(UserError, match="gate.json cannot be read"): read_json(tmp_path / "gate.json")
    (tmp_path / "gate.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="gate.json cannot be read"): read_json(tmp_path / "gate.json", str)


finite = st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | finite | st.text(),
                           lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10)


@settings(deadline=None, max_examples=50)
@given(value=json_values)
def test_json_round_trip(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("json") / "x.json"
    assert read_json(write_json(path, value)) == value
    assert path.read_bytes() == write_json(path, value).read_bytes()


# YAML

class Leaf(msgspec.Struct):
    name: str = ""
    number: Annotated[float, msgspec.Meta(ge=0, description="how much")] = 0.0
    choice: Literal["left", "right"] | None = None
    words: list[str] = []
    pairs: dict[str, float] = {}


class Root(msgspec.Struct):
    leaf: Leaf = msgspec.field(default_factory=Leaf)
    leaves: dict[str, Leaf] = {}

    def __post_init__(self):
        if self.leaf.name == "forbidden": raise ValueError("the name 'forbidden' is forbidden; choose another.")


AWKWARD = ["no", "Yes", "null", "~", "1", "1e5", "2012-01-31", "emp.var.rate", "education-num", "a: b", "# x", "- x",
           "{", "'", '"', "\\",
           "\n", "\t", "\x00", "\x85", "\u2028", "\ufeff", "😀", "é", " x ", "=", "<<", "!!str"]
words = st.text(max_size=20) | st.sampled_from(AWKWARD)
leaves = st.builds(Leaf, name=words, number=st.floats(0, allow_infinity=False), choice=st.sampled_from(["left", None]),
                   words=st.lists(words, max_size=3),
                   pairs=st.dictionaries(words, st.floats(allow_nan=False), max_size=2))


@settings(deadline=None, max_examples=150)
@given(leaf=leaves.filter(lambda x: x.name != "forbidden"), leaves=st.dictionaries(words, leaves, max_size=2),
       note=st.text(max_size=20))
def test_yaml_round_trip(tmp_path_factory, leaf, leaves, note):
    path = tmp_path_factory.mktemp("yaml") / "x.yaml"
    root = Root(leaf, leaves)
    path.write_text("\n".join(yaml_lines(root, dict.fromkeys(leaves, note))), encoding="utf-8")
    assert read_yaml(path, Root) == root


@pytest.mark.parametrize("text, says", [
    ("leaf: {nam: x}", "section 'leaf': there is no key 'nam'; did you mean 'name'?"),
    ("leef: {}", "there is no key 'leef'; did you mean 'leaf'?"),
    ("leaf: {name: 5}", "section 'leaf': name is 5, but text is expected"),
    ("leaf: {number: -1}", "number is -1, but a number >= 0.0 is expected"),
    ("leaf: {number: many}", "number is 'many', but a number is expected"),
    ("leaf: {choice: up}", "choice is 'up', but one of left, right is expected"),
    ("leaf: {words: [1]}", "words is \\[1\\], but text is expected"),
    ("leaf: {words: one}", "words is 'one', but a list is expected"),
    ("leaf: 5", "section 'leaf' is 5, but a section with keys is expected"),
    ("- 1", "a section with keys is expected"),
    ("leaves: {a: {b: 1}}", "section 'leaves.a': there is no key 'b'"),
    ("leaves: [1]", "leaves is \\[1\\]"),
    ("leaf: {name: forbidden}", "x.yaml: the name 'forbidden' is forbidden"),
    ("leaf: {name: a}\nleaf: {}", "x.yaml, line 2 is not YAML"),
    ("leaf: [", "x.yaml.* is not YAML"),
    ("leaf: !!python/object:os.system {}", "x.yaml.* is not YAML"),
    ("leaf: \x00", "is not YAML")])
def test_a_mistake_in_yaml_is_one_sentence_with_its_place(tmp_path, text, says):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(UserError, match=says) as error: read_yaml(tmp_path / "x.yaml", Root)
    assert "x.yaml" in str(error.value) and "\n" not in str(error.value)


def test_yaml_that_is_no_text_or_no_file(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"leaf: \xff")
    with pytest.raises(UserError, match="not UTF-8"): read_yaml(tmp_path / "x.yaml", Root)
    with pytest.raises(UserError, match="y.yaml does not exist"): read_yaml(tmp_path / "y.yaml", Root)


@pytest.mark.parametrize("text", ["", "# nothing\n", "leaf:\n", "leaf: {}\n"])
def test_an_empty_file_or_section_is_all_defaults(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    assert read_yaml(tmp_path / "x.yaml", Root) == Root()


def test_a_date_stays_the_text_it_is(tmp_path):
    (tmp_path / "x.yaml").write_text("leaf: {name: 2012-01-31, words: [2012-01-31 10:00:00, no]}")
    assert read_yaml(tmp_path / "x.yaml", Root).leaf == Leaf("2012-01-31", words=["2012-01-31 10:00:00", "no"])


def test_text_from_an_ini_file_is_read_when_not_strict():
    assert convert_typed({"number": "1.5"}, Leaf, "x", strict=False).number == 1.5
    with pytest.raises(UserError, match="number is '1.5'"): convert_typed({"number": "1.5"}, Leaf, "x")


def test_a_long_file_is_parsed_once_and_again_after_any_change(tmp_path, monkeypatch):
    from mlops_nb.core import typed_yaml
    monkeypatch.setattr(typed_yaml, "_LONG_TEXT", 10_000) # a tenth
    parsed, load = [], typed_yaml._load_yaml
    monkeypatch.setattr(typed_yaml, "_load_yaml", lambda text: parsed.append(len(text)) or load(text))
    path, lines = tmp_path / "long.yaml", [f"key_{i}: [1, no, 2021-01-01, .inf, null]" for i in range(400)]
    path.write_text("\n".join(lines))
    first = [read_yaml(path), read_yaml(path)]
    assert len(parsed) == 2 and not (tmp_path / ".mlops").exists(), "nothing is kept outside a project"
    (tmp_path / ".mlops").mkdir()
    assert [read_yaml(path), read_yaml(path)] == first and len(parsed) == 3
    path.write_text("\n".join([*lines[:-1], "key_399: other"]))
    assert read_yaml(path)["key_399"] == "other" and read_yaml(path)["key_399"] == "other" and len(parsed) == 4
    (tmp_path / ".mlops/yaml/long.yaml.msgpack").write_bytes(b"damaged")
    assert read_yaml(path)["key_399"] == "other" and len(parsed) == 5


def test_what_cannot_be_kept_is_read_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr("mlops_nb.core.typed_yaml._LONG_TEXT", 10_000)
    (tmp_path / ".mlops").mkdir()
    path = tmp_path / "long.yaml"
    path.write_text("huge: " + "9" * 40 + "\n" + "\n".join(f"key_{i}: 1" for i in range(1_200)))
    assert read_yaml(path) == read_yaml(path) and read_yaml(path)["huge"] == int("9" * 40)
