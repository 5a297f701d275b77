"Services that are kept running: restarted, given up, stopped, and gone with the supervisor."
import os
import signal
import subprocess
import sys
import threading

from support.controlled_project import lines, repository, until

from mlops_nb.control.supervisor import request_first_run, supervise
from mlops_nb.ledger.executors import process_start
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import read_run
from mlops_nb.release.release_plan import ReleasePlan

NOTE = "import os, time; open('{}', 'a').write(str(os.getpid()) + chr(10)); "


def command(name, then): return [sys.executable, "-c", NOTE.format(name) + then]


def run_in_thread(root, commands, stop, **more):
    found = []
    thread = threading.Thread(target=lambda: found.append(supervise(root, commands, stop, **more)), daemon=True)
    thread.start()
    return thread, found


def gone(pid): return not process_start(int(pid))


def test_what_is_killed_starts_again_and_all_end_when_told(tmp_path, capfd):
    stop, commands = threading.Event(), {n: command(n, "time.sleep(600)") for n in ("server", "controller")}
    thread, found = run_in_thread(tmp_path, commands, stop, pauses=(.05,) * 5)
    until(lambda: lines(tmp_path / "server") and lines(tmp_path / "controller"))
    os.kill(int(lines(tmp_path / "server")[0]), signal.SIGKILL)
    until(lambda: len(lines(tmp_path / "server")) == 2)
    stop.set()
    thread.join(60)
    assert found == [0] and len(lines(tmp_path / "controller")) == 1, "the other one was left alone"
    assert all(gone(pid) for n in commands for pid in lines(tmp_path / n))
    assert "server     ended with exit code -9; it starts again in 0.05 seconds." in capfd.readouterr().out


def test_one_that_never_stays_up_ends_all_with_an_error(tmp_path, capfd):
    fails, works = command("controller", "raise SystemExit('no such database')"), command("server", "time.sleep(600)")
    code = supervise(tmp_path, dict(server=works, controller=fails), threading.Event(), pauses=(.01, .01))
    said = capfd.readouterr()
    assert code == 1 and len(lines(tmp_path / "controller")) == 3
    assert "controller ended 3 times in a row, last with exit code 1" in said.err
    assert said.out.count("controller no such database") == 3
    assert all(gone(pid) for pid in lines(tmp_path / "server"))


def test_what_does_not_end_in_time_is_killed(tmp_path):
    stop = threading.Event()
    deaf = command("server", "import signal; signal.signal(15, signal.SIG_IGN); open('deaf', 'w'); time.sleep(600)")
    thread, found = run_in_thread(tmp_path, dict(server=deaf), stop, stop_seconds=.2)
    until((tmp_path / "deaf").exists)
    stop.set()
    thread.join(60)
    assert found == [0]
    until(lambda: gone(lines(tmp_path / "server")[0]))


def test_a_killed_supervisor_leaves_no_service(tmp_path):
    code = ("import sys, threading; from mlops_nb.control.supervisor import supervise; "
            f"supervise('.', dict(server={command('server', 'time.sleep(600)')!r}), threading.Event())")
    supervisor = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    try: until(lambda: lines(tmp_path / "server"))
    finally: supervisor.kill()
    supervisor.wait(60)
    until(lambda: gone(lines(tmp_path / "server")[0]))


def test_the_first_run_is_asked_for_once_and_only_where_no_model_answers(tmp_path, monkeypatch):
    root = repository(tmp_path / "project")
    monkeypatch.setenv("MLOPS_NB_RELEASE_ENVIRONMENT", "staging")
    assert request_first_run(root) == "", "staging gets what is offered to it"
    monkeypatch.delenv("MLOPS_NB_RELEASE_ENVIRONMENT")
    run = request_first_run(root)
    assert run and request_first_run(root) == run
    assert read_run(open_ledger(root), run).trigger_name == "first_model"
    monkeypatch.setattr("mlops_nb.control.supervisor.read_history", lambda path: [ReleasePlan])
    assert request_first_run(root) == ""
