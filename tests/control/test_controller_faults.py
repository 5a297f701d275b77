"Databases that go away, disks that fill up and clocks that jump, while controllers work: each run ends once."
import os
import signal

import pytest
from support.controlled_project import end, lines, repository, start_controller, until
from support.controller_kills import ended, kill_at_entries, kill_at_random, new_run, settled

from mlops_nb.control.controller import LEASE_LOST
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import read_run


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


@pytest.fixture
def controllers():
    "Ended with the test, however it goes."
    running = []
    yield running
    for process in running: end(process)


def control_uri(): return os.environ["MLOPS_NB_CONTROL_DATABASE"]


def test_killed_where_a_step_begins_and_ends(sqlite_root, controllers):
    "A share of the places; `benchmarks/control_kills.py` takes all of them."
    root = sqlite_root
    assert kill_at_entries(root, (1, 9)) == 4 and len(set(lines(root / "kills"))) == 4
    controllers.append(start_controller(root))
    assert settled(root, control_uri()) == []


def test_three_controllers_in_postgresql(postgres_root, controllers):
    controllers += [start_controller(postgres_root) for _ in range(3)]
    kill_at_random(postgres_root, controllers, 4, seed=3, longest=.5)
    assert settled(postgres_root, control_uri()) == []


def test_of_three_controllers_in_postgresql_one_sleeps(postgres_root, controllers, monkeypatch):
    root = postgres_root
    monkeypatch.setenv("MLOPS_NB_CONTROL_LEASE_SECONDS", "5")
    (root / "hold gate").touch() # it does not end before its controller is stopped
    controllers += [start_controller(root) for _ in range(3)]
    run = new_run(root, "one")
    until(lambda: "gate 1" in lines(root / "begun"))
    ledger = open_ledger(root)
    worker = ledger.entries(run, ("run.attempt",))[0].data["executor"]
    sleeper = next(c for c in controllers if f"-{c.pid}-" in worker)
    sleeper.send_signal(signal.SIGSTOP)
    (root / "hold gate").unlink()
    until(lambda: ended(root, run))
    sleeper.send_signal(signal.SIGCONT)
    assert sleeper.wait(60) == LEASE_LOST
    assert read_run(ledger, run).attempts == 2 and settled(root, control_uri()) == []


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
    controllers.append(start_controller(root))
    until(lambda: len(open_ledger(root).entries(kinds=("run.attempt",))) > 1 or ended(root, run))
    postgres.stop()
    postgres.start()
    assert settled(root, control_uri()) == []
    assert read_run(open_ledger(root), run).status == "succeeded"
