"Services that are kept running: restarted, given up, stopped, and gone with the supervisor."
import os
import signal
import subprocess
import sys
import threading

from support.controlled_project import lines, repository, until

from mlops_nb.control.service_supervisor import SupervisedService, request_first_run, supervise
from mlops_nb.ledger.executors import process_start
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import read_run
from mlops_nb.release.release_plan import ReleasePlan

NOTE = "import os, time; open('{}', 'a').write(str(os.getpid()) + chr(10)); "


def service(name, then, **more):
    return SupervisedService(name, [sys.executable, "-c", NOTE.format(name) + then], **more)


def run_in_thread(root, services, stop, **more):
    found = []
    thread = threading.Thread(target=lambda: found.append(supervise(root, services, stop, **more)), daemon=True)
    thread.start()
    return thread, found


def gone(pid): return not process_start(int(pid))


def test_what_is_killed_starts_again_and_all_end_when_told(tmp_path, capfd):
    names, stop = ("server", "controller"), threading.Event()
    thread, found = run_in_thread(tmp_path, [service(n, "time.sleep(600)") for n in names], stop, pauses=(.05,) * 5)
    until(lambda: lines(tmp_path / "server") and lines(tmp_path / "controller"))
    os.kill(int(lines(tmp_path / "server")[0]), signal.SIGKILL)
    until(lambda: len(lines(tmp_path / "server")) == 2)
    stop.set()
    thread.join(60)
    assert found == [0] and len(lines(tmp_path / "controller")) == 1, "the other one was left alone"
    assert all(gone(pid) for n in names for pid in lines(tmp_path / n))
    assert "server     ended with exit code -9; it starts again in 0.05 seconds." in capfd.readouterr().out


def test_one_that_may_not_start_yet_is_no_failure(tmp_path):
    stop, opened = threading.Event(), tmp_path / "opened"
    thread, found = run_in_thread(tmp_path, [service("server", "time.sleep(600)", may_start=opened.exists),
                                             service("controller", "time.sleep(600)")], stop)
    until(lambda: lines(tmp_path / "controller"))
    assert not lines(tmp_path / "server")
    opened.touch()
    until(lambda: lines(tmp_path / "server"))
    stop.set()
    thread.join(60)
    assert found == [0]


def test_one_that_never_stays_up_ends_all_with_an_error(tmp_path, capfd):
    fails, works = service("controller", "raise SystemExit('no such database')"), service("server", "time.sleep(600)")
    code = supervise(tmp_path, [works, fails], threading.Event(), pauses=(.01, .01))
    said = capfd.readouterr()
    assert code == 1 and len(lines(tmp_path / "controller")) == 3
    assert "controller ended 3 times in a row, last with exit code 1" in said.err
    assert said.out.count("controller no such database") == 3
    assert all(gone(pid) for pid in lines(tmp_path / "server"))


def test_what_does_not_end_in_time_is_killed(tmp_path):
    stop = threading.Event()
    deaf = service("server", "import signal; signal.signal(15, signal.SIG_IGN); open('deaf', 'w'); time.sleep(600)")
    thread, found = run_in_thread(tmp_path, [deaf], stop, stop_seconds=.2)
    until((tmp_path / "deaf").exists)
    stop.set()
    thread.join(60)
    assert found == [0]
    until(lambda: gone(lines(tmp_path / "server")[0]))


def test_a_killed_supervisor_leaves_no_service(tmp_path):
    command = service("server", "time.sleep(600)").command
    code = ("import threading; from mlops_nb.control.service_supervisor import SupervisedService, supervise; "
            f"supervise('.', [SupervisedService('server', {command!r})], threading.Event())")
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
    monkeypatch.setattr("mlops_nb.control.service_supervisor.read_history", lambda path: [ReleasePlan])
    assert request_first_run(root) == ""
