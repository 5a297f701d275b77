"Steps as processes: limits, what hides, what was left, and what is tried again."
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.controlled_project import until

from mlops_nb.control.step_process import (
    STEP_VARIABLE,
    StepCancelled,
    StepFailed,
    end_leftover,
    is_out_of_memory,
    may_pass_next_time,
    run_process,
    with_retries,
)
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.ledger.executors import process_start

linux = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="what hides is found through /proc")

# children: an ordinary one, one in a session of its own, one without a parent, and one without an environment too
HIDE = """
import os, subprocess, sys, time
def note(pid):
    with open('pids', 'a') as f: f.write(f'{pid}\\n')
note(subprocess.Popen(['sleep', '600']).pid)
note(subprocess.Popen(['sleep', '600'], start_new_session=True).pid)
for count, env in ((3, dict(os.environ)), (4, {})):
    if not os.fork():
        os.setsid()
        if os.fork(): os._exit(0)
        note(os.getpid())
        os.execve('/bin/sleep', ['sleep', '600'], env)
    while len(open('pids').readlines()) < count: time.sleep(.01)
time.sleep({seconds})
"""


def pids(folder):
    path = folder / "pids"
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def is_alive(pid):
    try: return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError: return False


def run(folder, code, timeout_seconds=300, is_cancelled=lambda: False, mib=0):
    run_process([sys.executable, "-c", code], folder, {**os.environ}, folder / "log", folder / "note", timeout_seconds,
                is_cancelled, mib)


@linux
@pytest.mark.parametrize("how", ["ends", "cancelled", "fails"])
def test_what_hides_ends_with_its_step(tmp_path, how):
    code = HIDE.replace("{seconds}", "600" if how == "cancelled" else "0")
    if how == "ends": run(tmp_path, code)
    elif how == "cancelled":
        with pytest.raises(StepCancelled): run(tmp_path, code, is_cancelled=lambda: len(pids(tmp_path)) == 4)
    else:
        with pytest.raises(StepFailed, match="no rows"): run(tmp_path, code + "sys.exit('no rows')")
    until(lambda: len(pids(tmp_path)) == 4 and not any(map(is_alive, pids(tmp_path))))
    assert not (tmp_path / "note").exists()


@linux
def test_a_step_that_forks_on_and_on_is_ended(tmp_path):
    "What is stopped starts nothing, so looks are bounded. There are 60 at most: looks at more take ever longer."
    code = """
import os, time
def breed():
    open(f'pid{os.getpid()}', 'w').close()
    while True:
        if len(os.listdir()) < 60 and not os.fork(): os.setsid(); breed()
        time.sleep(.1)
breed()
"""
    def cancelled(): return len([*tmp_path.glob("pid*")]) > 20
    with pytest.raises(StepCancelled): run(tmp_path, code, is_cancelled=cancelled)
    until(lambda: not any(is_alive(int(p.name[3:])) for p in tmp_path.glob("pid*")))


@linux
def test_the_memory_of_all_processes_counts(tmp_path):
    one = "import subprocess, sys; x = bytearray(90 * 2**20); "
    two = one + "subprocess.run([sys.executable, '-c', 'x = bytearray(90 * 2**20); import time; time.sleep(600)'])"
    run(tmp_path, one + "import time; time.sleep(1.2)", mib=160)
    with pytest.raises(StepFailed, match="160 MiB are allowed; raise step_max_memory_mib in settings.ini") as e:
        run(tmp_path, two, mib=160)
    assert is_out_of_memory(e.value) and not may_pass_next_time(e.value), "the same again would end the same"


@linux
@pytest.mark.parametrize("keeper_dies", [True, False])
def test_what_a_killed_controller_left_is_ended(tmp_path, keeper_dies):
    "At once, without anybody's doing; and by the next attempt where the kernel has ended the process between."
    code = HIDE.replace("{seconds}", "600")
    controller = subprocess.Popen([sys.executable, "-c", f"""
import os, sys
from pathlib import Path
from mlops_nb.control.step_process import run_process
run_process([sys.executable, '-c', {code!r}], Path('.'), dict(os.environ), Path('log'), Path('note'), 600,
            lambda: False)
"""], cwd=tmp_path)
    until(lambda: len(pids(tmp_path)) == 4 and (tmp_path / "note").exists())
    hidden = Path(f"/proc/{pids(tmp_path)[3]}/cmdline")
    until(lambda: hidden.read_bytes().startswith(b"sleep")) # before, it still has the mark of its parent
    left = read_json(tmp_path / "note", dict)
    assert process_start(left["pid"]) == left["start"] and all(map(is_alive, pids(tmp_path)))
    controller.send_signal(signal.SIGSTOP) # it must not see what becomes of the keeper
    if keeper_dies: os.kill(left["pid"], signal.SIGKILL)
    controller.kill()
    controller.wait()
    if keeper_dies: end_leftover(tmp_path / "note")
    marked = pids(tmp_path)[:3] if keeper_dies else pids(tmp_path) # without keeper and environment it is a stranger
    until(lambda: not any(map(is_alive, marked)))
    for pid in pids(tmp_path):
        if is_alive(pid): os.kill(pid, signal.SIGKILL)
    end_leftover(tmp_path / "note") # there is none any more


@linux
def test_a_process_that_begins_another_program_is_known_by_its_mark(tmp_path, monkeypatch):
    "Its environment is empty for a moment; one look then would lose it for good."
    empty, plain = iter([b"", b"", b""]), Path.read_bytes
    other = subprocess.Popen(["sleep", "600"], env={STEP_VARIABLE: "0123456789abcdef"}, start_new_session=True)
    try:
        until(lambda: STEP_VARIABLE.encode() in Path(f"/proc/{other.pid}/environ").read_bytes())
        monkeypatch.setattr(Path, "read_bytes", lambda path: next(empty, None) if path.name == "environ" and str(
            other.pid) in path.parts and empty.__length_hint__() else plain(path))
        (tmp_path / "note").write_text('{"pid": 1, "start": "0", "mark": "0123456789abcdef"}')
        end_leftover(tmp_path / "note")
        assert other.wait(60) == -signal.SIGKILL
    finally: other.kill(); other.wait()


def test_a_note_of_another_process_ends_nobody(tmp_path):
    other = subprocess.Popen(["sleep", "600"])
    try:
        (tmp_path / "note").write_text(f'{{"pid": {other.pid}, "start": "1", "mark": "0123456789abcdef"}}')
        end_leftover(tmp_path / "note")
        assert other.poll() is None and not (tmp_path / "note").exists()
    finally: other.kill(); other.wait()
    (tmp_path / "torn").write_text("{")
    end_leftover(tmp_path / "torn")


def test_a_signal_is_an_exit_code(tmp_path):
    with pytest.raises(StepFailed, match="failed with exit code 137") as e:
        run(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert is_out_of_memory(e.value) and may_pass_next_time(e.value)


@pytest.mark.parametrize("said, again, memory", [
    ("ERROR: Unable to acquire lock.", True, False), ("database is locked", True, False),
    ("Connection reset by peer", True, False), ("mlops-nb stage train, exited with -9", True, True),
    ("the memory of cuda is not enough for this net", False, True), ("column age is missing", False, False)])
def test_what_is_tried_again(said, again, memory):
    error = StepFailed(said)
    assert (may_pass_next_time(error), is_out_of_memory(error)) == (again, memory)
    tries = []
    def fail():
        tries.append(1)
        raise error
    with pytest.raises(StepFailed): with_retries(fail, lambda: False, (0, 0))
    assert len(tries) == (3 if again else 1)
    with pytest.raises(StepFailed): with_retries(fail, lambda: True, (0, 0)) # nobody waits for a run that is cancelled
    assert len(tries) == (4 if again else 2)
