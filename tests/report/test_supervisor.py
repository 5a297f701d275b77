"The supervisor: limits, nothing left behind, and an end that is always known."
import sys
import threading

import psutil
import pytest

from mlops_nb.report.supervisor import SupervisedEnd, last_line, run_supervised


def run(folder, code, **more):
    limits = dict(timeout_seconds=60) | more
    return run_supervised([sys.executable, "-c", code], folder, cwd=folder, **limits)


def test_exit_code_and_last_words(tmp_path):
    assert run(tmp_path, "import sys; print('one'); sys.exit('two')") == SupervisedEnd("", 1)
    assert last_line(tmp_path) == "two"


def test_a_command_that_dies_by_a_signal_has_its_number(tmp_path):
    assert run(tmp_path, "import os; os.kill(os.getpid(), 9)").exit_code == -9


def test_what_it_has_started_ends_with_it(tmp_path):
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600'], start_new_session=True); print(p.pid)"
    assert run(tmp_path, child).exit_code == 0
    assert not psutil.pid_exists(int(last_line(tmp_path)))


@pytest.mark.parametrize("limits, why", [(dict(timeout_seconds=1), "time limit"), (dict(max_memory_mib=1), "1 MiB")])
def test_limits(tmp_path, limits, why):
    end = run(tmp_path, "import time; time.sleep(600)", **limits)
    assert why in end.stopped and end.exit_code is None


def test_it_is_ended_when_it_is_told_to(tmp_path):
    stop = threading.Event()
    sleeper = "open('begun', 'w').write('x')\nimport time; time.sleep(600)"
    thread = threading.Thread(target=lambda: run(tmp_path, sleeper, stop_event=stop))
    thread.start()
    while not (tmp_path / "begun").exists(): thread.join(.05)
    stop.set()
    thread.join(60)
    assert not thread.is_alive()


def test_a_supervisor_that_was_killed_counts_as_a_failure(tmp_path):
    end = run(tmp_path, "import os; os.kill(os.getppid(), 9)")
    assert end.exit_code is None and "killed or crashed" in end.stopped


def test_its_environment_is_the_given_one(tmp_path):
    run(tmp_path, "import os; print(os.environ.get('A_WORD'))", env=dict(A_WORD="here"))
    assert last_line(tmp_path) == "here"
