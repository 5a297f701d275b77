"Databases that go away, disks that fill up and clocks that jump, while controllers work: each run ends once."
import os
import signal
import sqlite3
import subprocess
import sys

import pytest
from support.controlled_project import SHORT_LEASE, end, lines, repository, start_controller, until
from support.controller_kills import ended, kill_at_entries, kill_at_random, new_run, settled

from mlops_nb.control.controller import LEASE_LOST
from mlops_nb.control.run_workflow import request_run
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import list_runs, read_run, run_status


def project(folder, ledger, control, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", ledger)
    monkeypatch.setenv("MLOPS_NB_CONTROL_DATABASE", control)
    return repository(folder)


@pytest.fixture
def sqlite_root(tmp_path, in_sqlite, monkeypatch):
    return project(tmp_path / "project", in_sqlite, in_sqlite.replace("ledger.db", "control.db"), monkeypatch)


@pytest.fixture
def postgres_root(tmp_path, in_postgres, monkeypatch):
    return project(tmp_path / "project", in_postgres, in_postgres, monkeypatch)


def control_uri(): return os.environ["MLOPS_NB_CONTROL_DATABASE"]


def test_killed_where_a_step_begins_and_ends(sqlite_root, controllers):
    "A share of the places; `benchmarks/control_kills.py` takes all of them."
    root = sqlite_root
    assert kill_at_entries(root, [9]) == 2 and len(set(lines(root / "kills"))) == 2
    controllers.append(start_controller(root))
    assert settled(root, control_uri(), controllers) == []


def test_three_controllers_in_postgresql(postgres_root, controllers):
    "One sleeps for longer than its lease, and others are killed."
    root = postgres_root
    (root / "hold gate").touch() # it does not end before its controller is stopped
    controllers.append(start_controller(root, **SHORT_LEASE))
    run = new_run(root, "one")
    until(lambda: "gate 1" in lines(root / "begun"))
    controllers += [start_controller(root) for _ in range(2)]
    controllers[0].send_signal(signal.SIGSTOP)
    (root / "hold gate").unlink()
    until(lambda: ended(root, run))
    controllers[0].send_signal(signal.SIGCONT)
    assert controllers[0].wait(60) == LEASE_LOST
    assert read_run(open_ledger(root), run).attempts == 2
    controllers[0] = start_controller(root)
    kill_at_random(root, controllers, 2, seed=3, longest=.5)
    assert settled(root, control_uri(), controllers) == []


def test_the_database_goes_away_and_comes_back(postgres_root, postgres, controllers):
    "While a step is under way, and while what a killed controller had begun is being taken over."
    root = postgres_root
    (root / "hold gate").touch()
    controllers += [start_controller(root) for _ in range(2)]
    run = new_run(root, "one")
    until(lambda: "gate 1" in lines(root / "begun"))
    postgres.stop()
    try:
        (root / "hold gate").unlink()
        until(lambda: "gate 1" in lines(root / "ended"))
        until(lambda: "cannot be used" in (root / "log.txt").read_text())
    finally: postgres.start()
    end(controllers[0])
    controllers[0] = start_controller(root)
    until(lambda: len(open_ledger(root).entries(kinds=("run.attempt",))) > 1 or ended(root, run))
    until(lambda: (root / "log.txt").read_text().count(" works: ") == 3) # one that starts meanwhile would end
    postgres.stop()
    postgres.start()
    assert settled(root, control_uri(), controllers) == []
    assert read_run(open_ledger(root), run).status == "succeeded"
    postgres.stop()
    try: assert end(controllers[1], signal.SIGTERM) == 0, "it stops at once, though DBOS waits for its database"
    finally: postgres.start()


# ---------------------------------------------------------------- disk and clock


DISK = "24m"


def test_a_full_disk_is_waited_for(small_disk, tmp_path, controllers, monkeypatch):
    "The databases are on it; the run goes on when there is room again."
    places = [f"sqlite:///{small_disk}/{name}.db" for name in ("ledger", "control")]
    root = project(tmp_path / "project", *places, monkeypatch)
    (root / "hold gate").touch()
    controllers.append(start_controller(root))
    run = new_run(root, "one")
    until(lambda: "gate 1" in lines(root / "begun"))
    filler = small_disk / "filler"
    with open(filler, "wb") as f:
        try:
            while True: f.write(bytes(100_000))
        except OSError: pass
    (root / "hold gate").unlink()
    until(lambda: "full" in (root / "log.txt").read_text())
    filler.unlink()
    assert settled(root, control_uri(), controllers) == [] and read_run(open_ledger(root), run).status == "succeeded"


def test_the_clock_of_the_database_jumps_forward(sqlite_root, controllers, monkeypatch):
    """All leases are over at once, which costs restarts. Backward they would end late; a process of the same machine
    that was killed is found by its number."""
    root = sqlite_root
    monkeypatch.setenv("CLOCK", "clock")
    (root / "hold gate").touch()
    controllers += [start_controller(root) for _ in range(2)]
    new_run(root, "one")
    until(lambda: "gate 1" in lines(root / "begun"))
    (root / "clock").write_text("3600")
    (root / "hold gate").unlink()
    end(controllers[0])
    controllers[0] = start_controller(root)
    new_run(root, "two")
    assert settled(root, control_uri(), controllers) == []


# ---------------------------------------------------------------- a ledger or a control database of another day


def copy_sqlite(source, target):
    with sqlite3.connect(source) as a, sqlite3.connect(target) as b: a.backup(b)


def remove_sqlite(path):
    for name in (path, f"{path}-wal", f"{path}-shm"):
        if os.path.exists(name): os.unlink(name)


def test_a_ledger_of_yesterday_is_said_and_written_down_again(sqlite_root, in_sqlite, controllers):
    root, path = sqlite_root, in_sqlite.removeprefix("sqlite:///")
    controllers.append(start_controller(root))
    first = new_run(root, "one")
    until(lambda: ended(root, first))
    (root / "hold gate").touch()
    second = new_run(root, "two")
    until(lambda: lines(root / "begun").count("gate 1") == 2)
    copy_sqlite(path, f"{path}.yesterday") # the second is under way in it, the third is not there
    (root / "hold gate").unlink()
    until(lambda: ended(root, second))
    third = new_run(root, "three")
    assert settled(root, control_uri(), controllers) == []
    end(controllers.pop())
    remove_sqlite(path)
    os.rename(f"{path}.yesterday", path)
    controllers.append(start_controller(root))
    assert settled(root, control_uri(), controllers) == []
    ledger = open_ledger(root)
    assert {r.id: r.status for r in list_runs(ledger)} == dict.fromkeys((first, second, third), "succeeded")
    assert [e.subject for e in ledger.entries(kinds=("ledger.reconciled",))] == [f"run {third}"]
    assert f"The run {third} was not in the ledger" in (root / "log.txt").read_text()
    assert [e.data["reason"] for e in ledger.entries(second, ("run.continued",))] == ["Its workflow had ended."]
    (root / "data.dvc").write_text("version three\n")
    assert request_run(root) == (third, False), "what was trained is not trained again"


def test_a_run_that_only_dbos_knows_ends_there(sqlite_root, in_sqlite, controllers):
    root, path = sqlite_root, in_sqlite.removeprefix("sqlite:///")
    open_ledger(root).append("ledger.began", "test")
    copy_sqlite(path, f"{path}.yesterday")
    (root / "hold gate").touch()
    controllers.append(start_controller(root))
    run = new_run(root, "one")
    until(lambda: "gate 1" in lines(root / "begun"))
    end(controllers.pop())
    remove_sqlite(path)
    os.rename(f"{path}.yesterday", path)
    (root / "hold gate").unlink()
    controllers.append(start_controller(root))
    until(lambda: f"The run {run} is under way in the control database and not in the ledger"
          in (root / "log.txt").read_text())
    assert run_status(open_ledger(root), run) is None
    assert request_run(root) == (run, True)
    assert settled(root, control_uri(), controllers) == [] and ended(root, run)


def test_a_control_database_that_is_lost(sqlite_root, controllers):
    root = sqlite_root
    (root / "hold gate").touch()
    controllers.append(start_controller(root))
    run = new_run(root, "one")
    until(lambda: "gate 1" in lines(root / "begun"))
    end(controllers.pop())
    path = control_uri().removeprefix("sqlite:///")
    remove_sqlite(path)
    (root / "hold gate").unlink()
    controllers.append(start_controller(root))
    assert settled(root, control_uri(), controllers) == [] and read_run(open_ledger(root), run).attempts == 2


# ---------------------------------------------------------------- the process


def test_what_it_imports():
    "A controller lives for months beside a server; what only a stage needs is not in its memory."
    code = "import sys, mlops_nb.control.controller, dbos; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pandas", "torch", "sklearn", "mlflow", "lightgbm", "matplotlib", "dvc", "shap"} & {*loaded}
