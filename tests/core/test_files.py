"Errors in words, and files that are never half-written, whatever happens to the process or the disk."
import errno
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Annotated, Literal

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core import files
from mlops_nb.core.errors import UserError, did_you_mean, describe_os_error
from mlops_nb.core.files import atomic_dir, atomic_file
from mlops_nb.core.manifest import file_hashes, sha256_file, combine_hashes
from mlops_nb.core.typed_yaml import convert_typed, read_json, read_yaml, write_json, yaml_lines


def leftovers(folder): return [p.name for p in folder.iterdir() if p.name.startswith(".")]


# errors

def test_did_you_mean():
    assert did_you_mean("learning_rat", ["learning_rate"]) == "; did you mean 'learning_rate'?"
    assert did_you_mean("zzz", ["a", "b"]) == "; known are a, b."
    assert did_you_mean("zzz", []) == "; there are none."
    assert "and 38 more" in did_you_mean("zzz", [f"column{i}" for i in range(50)])


@pytest.mark.parametrize("code, says", [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission"), (errno.EROFS, "read-only"),
                                        (errno.ENOENT, "no such file")])
def test_os_sentence_says_what_and_where(code, says):
    sentence = describe_os_error(OSError(code, os.strerror(code), "data/x.parquet"))
    assert says in sentence and sentence.startswith("data/x.parquet: ") and "\n" not in sentence


# one file

def test_atomic_file_replaces_and_leaves_nothing_beside(tmp_path):
    for text in ("one", "two"):
        with atomic_file(tmp_path / "a" / "x") as p: p.write_text(text)
    assert (tmp_path / "a" / "x").read_text() == "two" and leftovers(tmp_path / "a") == []
    assert (tmp_path / "a" / "x").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt(), ValueError()])
def test_atomic_file_keeps_the_old_content_when_writing_fails(tmp_path, error):
    (tmp_path / "x").write_text("old")
    with pytest.raises(type(error)), atomic_file(tmp_path / "x") as p:
        p.write_text("ne")
        raise error
    assert (tmp_path / "x").read_text() == "old" and leftovers(tmp_path) == []


def test_full_disk_at_fsync_keeps_the_old_content(tmp_path, monkeypatch):
    (tmp_path / "x").write_text("old")
    def full(path): raise OSError(errno.ENOSPC, "No space left", str(path))
    monkeypatch.setattr(files, "fsync_path", full)
    with pytest.raises(OSError), atomic_file(tmp_path / "x") as p: p.write_text("new")
    with pytest.raises(OSError), atomic_dir(tmp_path / "d") as d: (d / "y").write_text("new")
    assert (tmp_path / "x").read_text() == "old" and not (tmp_path / "d").exists() and leftovers(tmp_path) == []


# a folder

@pytest.mark.parametrize("exchange", [True, False])
def test_atomic_dir_replaces_whole_folders(tmp_path, monkeypatch, exchange):
    if not exchange: monkeypatch.setattr(files, "_swap_paths", lambda a, b: False)
    for name in ("one", "two"):
        with atomic_dir(tmp_path / "out") as d:
            (d / "deep").mkdir()
            (d / "deep" / name).write_text(name)
    assert list(file_hashes(tmp_path / "out")) == ["deep/two"] and leftovers(tmp_path) == []


def test_atomic_dir_keeps_the_old_folder_when_writing_fails(tmp_path):
    with atomic_dir(tmp_path / "out") as d: (d / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_dir(tmp_path / "out") as d:
        (d / "x").write_text("new")
        raise ZeroDivisionError
    assert (tmp_path / "out" / "x").read_text() == "old" and leftovers(tmp_path) == []


@pytest.mark.skipif(sys.platform != "linux", reason="names are exchanged in one step on Linux only")
def test_readers_never_find_the_folder_missing(tmp_path):
    with atomic_dir(tmp_path / "out") as d: (d / "x").write_text("0")
    stop, missing, looks = threading.Event(), [], []
    def look():
        while not stop.is_set():
            looks.append(1)
            if not os.path.exists(tmp_path / "out"): missing.append(1)
    thread = threading.Thread(target=look)
    thread.start()
    for i in range(60):
        with atomic_dir(tmp_path / "out") as d: (d / "x").write_text(str(i))
    stop.set()
    thread.join()
    assert looks and not missing and (tmp_path / "out" / "x").read_text() == "59"


WRITER = """
import sys
from pathlib import Path
from mlops_nb.core.files import atomic_dir, atomic_file
folder = Path(sys.argv[1])
for i in range(1, 10**9):
    with atomic_dir(folder / 'out') as d:
        for name in 'abc': (d / name).write_text(str(i) * 1000)
    with atomic_file(folder / 'one') as p: p.write_text(str(i) * 1000)
    if i == 1: print('ready', flush=True)
"""


@pytest.mark.parametrize("delay", [0.0, 0.013, 0.031, 0.05, 0.087])
def test_sigkill_leaves_one_whole_generation(tmp_path, delay):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    assert writer.stdout.readline() == b"ready\n"
    time.sleep(delay)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    texts = {name: (tmp_path / "out" / name).read_text() for name in "abc"} # none is missing
    assert len(set(texts.values())) == 1
    whole = texts["a"]
    assert whole == whole[:len(whole) // 1000] * 1000
    one = (tmp_path / "one").read_text()
    assert one == one[:len(one) // 1000] * 1000


# JSON and hashes

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


def test_a_folders_hash_sees_every_change(tmp_path):
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    seen = {combine_hashes(file_hashes(tmp_path))}
    for change in (lambda: (tmp_path / "a").write_text("3"), lambda: (tmp_path / "a").rename(tmp_path / "c"),
                   lambda: (tmp_path / "d").write_text(""), lambda: (tmp_path / "b").unlink()):
        change()
        now = combine_hashes(file_hashes(tmp_path))
        assert now not in seen
        seen.add(now)
    assert sha256_file(tmp_path / "d") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


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


AWKWARD = ["no", "Yes", "null", "~", "1", "1e5", "2012-01-31", "emp.var.rate", "education-num", "a: b", "# x", "- x", "{", "'", '"', "\\",
           "\n", "\t", "\x00", "\x85", "\u2028", "\ufeff", "😀", "é", " x ", "=", "<<", "!!str"]
words = st.text(max_size=20) | st.sampled_from(AWKWARD)
leaves = st.builds(Leaf, name=words, number=st.floats(0, allow_infinity=False), choice=st.sampled_from(["left", None]),
                   words=st.lists(words, max_size=3), pairs=st.dictionaries(words, st.floats(allow_nan=False), max_size=2))


@settings(deadline=None, max_examples=150)
@given(leaf=leaves.filter(lambda x: x.name != "forbidden"), leaves=st.dictionaries(words, leaves, max_size=2), note=st.text(max_size=20))
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


KILLED = """
import os, signal, sys
from pathlib import Path
from mlops_nb.core.files import atomic_dir, atomic_file
out = Path(sys.argv[1])
with atomic_dir(out) as d, atomic_file(out.with_suffix('.json')) as f:
    (d / 'deep').mkdir(); (d / 'deep' / 'part').write_text('half'); f.write_text('half')
    if sys.argv[2] == 'kill': os.kill(os.getpid(), signal.SIGKILL)
    print('writing', flush=True); sys.stdin.read()
"""


def test_the_next_writer_removes_what_a_killed_one_left_and_nothing_else(tmp_path):
    out, other = tmp_path / "out", tmp_path / ".outer.x1.tmp"
    other.write_text("of somebody else")
    def start(how): return subprocess.Popen([sys.executable, "-c", KILLED, out, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    start("kill").communicate()
    dead = leftovers(tmp_path)
    assert len(dead) == 3
    alive = start("wait")
    assert alive.stdout.readline() == b"writing\n"
    busy = leftovers(tmp_path)
    assert len(busy) == 3 and not set(busy) & set(dead) - {other.name} # it swept, and writes
    with atomic_dir(out) as d: (d / "x").write_text("whole")
    with atomic_file(out.with_suffix(".json")) as f: f.write_text("whole")
    assert leftovers(tmp_path) == busy # the living one keeps its own
    alive.communicate()
    assert leftovers(tmp_path) == [other.name] and list(file_hashes(out)) == ["deep/part"]


def test_writing_works_where_nothing_can_be_locked(tmp_path, monkeypatch):
    def refuse(*args): raise OSError(errno.EBADF, "Bad file descriptor") # what NFS says
    monkeypatch.setattr(files.fcntl, "flock", refuse)
    (tmp_path / ".out.x.tmp").mkdir()
    with atomic_dir(tmp_path / "out") as d: (d / "x").write_text("1")
    assert leftovers(tmp_path) == [".out.x.tmp"]


def test_a_folder_that_is_being_filled_takes_files_and_folders_that_are_written_atomically(tmp_path):
    with atomic_dir(tmp_path / "a") as outer:
        write_json(outer / "x.json", 1)
        with atomic_dir(outer / "b") as inner: write_json(inner / "y.json", 2)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "x.json", "y.json"]
