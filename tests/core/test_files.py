"Files and folders that are never half-written, whatever happens to the process or the disk; and locks."
import errno
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mlops_nb.core import files
from mlops_nb.core.errors import UserError
from mlops_nb.core.files import atomic_dir, atomic_file, file_lock, try_lock


def leftovers(folder): return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def names(folder): return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# one file

def test_atomic_file_replaces_and_leaves_nothing_beside(tmp_path):
    for text in ("one", "two"):
        with atomic_file(tmp_path / "a" / "x") as p: p.write_text(text)
    assert (tmp_path / "a" / "x").read_text() == "two" and leftovers(tmp_path / "a") == []


@pytest.mark.parametrize("umask, file, folder", [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750), (0o002, 0o664, 0o775),
                                                 (0o077, 0o600, 0o700)])
def test_what_is_written_has_the_rights_that_the_umask_gives(tmp_path, umask, file, folder):
    before = os.umask(umask)
    try:
        with atomic_file(tmp_path / "x") as p: p.write_text("x")
        with atomic_dir(tmp_path / "d") as p: (p / "y").write_text("y")
        for mode in (0o640, 0o600):
            with atomic_file(tmp_path / oct(mode), mode) as p: assert p.stat().st_mode & 0o777 == mode & ~umask
    finally: os.umask(before)
    rights = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("x", "d", "d/y", "0o640", "0o600")}
    assert rights == {"x": file, "d": folder, "d/y": file, "0o640": 0o640 & ~umask, "0o600": 0o600}


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
    assert names(tmp_path / "out") == ["deep/two"] and leftovers(tmp_path) == []


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
    def start(how): return subprocess.Popen([sys.executable, "-c", KILLED, out, how], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE)
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
    assert leftovers(tmp_path) == [other.name] and names(out) == ["deep/part"]


def test_writing_works_where_nothing_can_be_locked(tmp_path, monkeypatch):
    def refuse(*args): raise OSError(errno.EBADF, "Bad file descriptor") # what NFS says
    monkeypatch.setattr(files.fcntl, "flock", refuse)
    (tmp_path / ".out.x.tmp").mkdir()
    with atomic_dir(tmp_path / "out") as d: (d / "x").write_text("1")
    assert leftovers(tmp_path) == [".out.x.tmp"]


def test_a_folder_that_is_being_filled_takes_files_and_folders_that_are_written_atomically(tmp_path):
    with atomic_dir(tmp_path / "a") as outer:
        with atomic_file(outer / "x.json") as f: f.write_text("1")
        with atomic_dir(outer / "b") as inner, atomic_file(inner / "y.json") as f: f.write_text("2")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "x.json", "y.json"]


# locks

HOLDER = """
import sys
from mlops_nb.core.files import file_lock
with file_lock(sys.argv[1]): print('held', flush=True); sys.stdin.read()
"""


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    path = tmp_path / "deep" / "x.lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="somebody has it"), file_lock(path, "somebody has it."): pass
    assert try_lock(path) is None
    holder.kill()
    holder.communicate()
    with file_lock(path, "somebody has it."): pass


def test_a_lock_waits_for_its_turn(tmp_path):
    turns = []
    def take():
        with file_lock(tmp_path / "x.lock"): turns.append("second")
    with file_lock(tmp_path / "x.lock"):
        thread = threading.Thread(target=take)
        thread.start()
        turns.append("first")
    thread.join(20)
    assert turns == ["first", "second"]


def test_shared_locks_stand_side_by_side_and_keep_others_out(tmp_path):
    held = [try_lock(tmp_path, shared=True), try_lock(tmp_path, shared=True)]
    assert None not in held and try_lock(tmp_path) is None
    for fd in held: os.close(fd)
    with file_lock(tmp_path, "a folder can be locked too"): assert try_lock(tmp_path, shared=True) is None


def test_a_file_system_without_locks_is_an_error_unless_a_lock_is_not_required(tmp_path, monkeypatch):
    def refuse(*args): raise OSError(errno.ENOLCK, "No locks available")
    monkeypatch.setattr(files.fcntl, "flock", refuse)
    with pytest.raises(OSError, match="No locks"), file_lock(tmp_path, "held"): pass
    with file_lock(tmp_path, "held", required=False): pass
    with pytest.raises(FileNotFoundError): try_lock(tmp_path / "missing")
