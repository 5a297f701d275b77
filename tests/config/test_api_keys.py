"API keys: what the file holds, who may change it, and which text is which key."
import json
import threading
from datetime import UTC, datetime

import pytest

from mlops_nb.config.api_keys import (
    create_api_key,
    describe_api_key,
    end_of_day,
    find_api_key,
    read_api_keys,
    revoke_api_key,
)
from mlops_nb.core.errors import UserError


@pytest.fixture
def path(tmp_path): return tmp_path / "deep" / "keys.json"


def test_the_file_holds_no_key_and_a_list_shows_none(path):
    texts = [create_api_key(path, f"k{i}", ["read"]) for i in range(20)]
    held = path.read_text() + "".join(map(describe_api_key, read_api_keys(path)))
    assert len(set(texts)) == 20 and not any(part in held for t in texts for part in (t, t.split(".")[1]))


def test_many_people_add_keys_at_once_and_none_is_lost(path):
    threads = [threading.Thread(target=create_api_key, args=(path, f"k{i}", ["read"])) for i in range(12)]
    for t in threads: t.start()
    for t in threads: t.join(20)
    assert sorted(k.name for k in read_api_keys(path)) == sorted(f"k{i}" for i in range(12))


@pytest.mark.parametrize("how, words", [
    (dict(name="a", scopes=["read"]), "already"), (dict(name="", scopes=["read"]), "name"),
    (dict(name="b", scopes=[]), "scope"),
    (dict(name="b", scopes=["red"]), "did you mean 'read'"),
    (dict(name="b", scopes=["read"], requests_per_second=0), "above 0"),
    (dict(name="b", scopes=["read"], requests_per_second=float("inf")), "above 0"),
    (dict(name="b", scopes=["read"], requests_per_second=float("nan")), "above 0")])
def test_a_key_that_cannot_be_made_changes_nothing(path, how, words):
    create_api_key(path, "a", ["read"])
    before = path.read_bytes()
    with pytest.raises(UserError, match=words): create_api_key(path, **how)
    assert path.read_bytes() == before
    with pytest.raises(UserError, match="no key named 'c'"): revoke_api_key(path, "c")


def test_files_of_before_are_read_and_keys_without_new_properties_look_as_before(path):
    path.parent.mkdir()
    old = {"keys": [{"id": "1f", "name": "old", "sha256": "0" * 64, "scopes": ["read"], "requests_per_second": None,
                     "expires_at": None}]}
    path.write_text(json.dumps(old))
    create_api_key(path, "new", ["read"])
    assert [(k.name, k.endpoints) for k in read_api_keys(path)] == [("old", None), ("new", None)]
    assert set(json.loads(path.read_text())["keys"][1]) == {"id", "name", "sha256", "scopes"}


def test_a_day_ends_at_midnight_after_it():
    assert end_of_day("2028-02-29") == datetime(2028, 3, 1, tzinfo=UTC)
    for text in ("2027-02-29", "soon", "", "2027-13-01"):
        with pytest.raises(UserError, match="is not a day"): end_of_day(text)


def test_a_text_is_one_key_or_none(path):
    texts = {name: create_api_key(path, name, ["operate"]) for name in "ab"}
    keys = {k.id: k for k in read_api_keys(path)}
    assert {name: find_api_key(keys, text).name for name, text in texts.items()} == {"a": "a", "b": "b"}
    a, b = texts["a"], texts["b"]
    for text in ("", ".", a + "x", a[:-1], a.upper(), f"{a.split('.')[0]}.{b.split('.')[1]}", keys[a[:12]].sha256):
        assert find_api_key(keys, text) is None
    assert find_api_key({}, a) is None
