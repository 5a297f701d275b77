"Controllers that are killed, stopped, raced and upgraded: each run ends once, on SQLite and on PostgreSQL."
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.controlled_project import ENV, SHORT_LEASE, end, git, lines, repository, start_controller, suspend, until

from mlops_nb.control.controller import LEASE_LOST, has_controller
from mlops_nb.control.run_workflow import request_run
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.ledger.executors import list_executors, process_start
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import RUN_ENDS, cancel_run, list_runs, read_run, requeue_run
from mlops_nb.monitor.alerts import list_alerts


def project(tmp_path, uri, monkeypatch):
    "A project whose ledger and control database are in the database of the test."
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    monkeypatch.setenv("MLOPS_NB_CONTROL_DATABASE", uri.replace("ledger.db", "control.db"))
    return repository(tmp_path / "project")


@pytest.fixture
def root(tmp_path, uri, monkeypatch):
    "In both databases: what rests on how they lock, count and tell the time."
    return project(tmp_path, uri, monkeypatch)


@pytest.fixture
def sqlite_root(tmp_path, in_sqlite, monkeypatch): return project(tmp_path, in_sqlite, monkeypatch)


def ended(root, run): return read_run(open_ledger(root), run).status in RUN_ENDS


def effects(root):
    "Each effect that is written down, and how often a run was ended."
    found = open_ledger(root).entries(kinds=("effect.done", "run.ended"))
    return Counter((e.subject, e.key.partition("/ended/")[0]) for e in found)


def test_one_run_for_all_who_ask(root, controllers):
    def ask(name): return request_run(root, by=name)
    with ThreadPoolExecutor(4) as pool: asked = [*pool.map(ask, "abcd")]
    assert len({id for id, _ in asked}) == 1 and [new for _, new in asked].count(True) == 1
    controllers += [start_controller(root) for _ in range(2)]
    run = asked[0][0]
    until(lambda: ended(root, run))
    found = read_run(open_ledger(root), run)
    assert (found.status, found.attempts, found.facts["bundle"]) == ("succeeded", 1, "a1b2")
    steps = ["data.dvc 1", "validate 1", "gate 1", "deploy 1", "report 1"]
    assert lines(root / "begun") == lines(root / "ended") == steps
    assert f"refs/mlops-nb/runs/{run}" in git(root, "for-each-ref") and not list((root / ".mlops/runs").iterdir())
    assert git(root, "status", "--short") == "" and request_run(root) == (run, False)


def test_no_more_runs_at_once_than_are_allowed(root, controllers, monkeypatch):
    "By all controllers together."
    monkeypatch.setenv("MLOPS_NB_CONTROL_MAX_RUNS", "2")
    (root / "hold data.dvc").touch()
    (root / "fail validate").write_text("column age is missing")  # a short run is enough
    runs = []
    for i in range(3):
        (root / "data.dvc").write_text(f"version {i}\n")
        runs.append(request_run(root)[0])
    controllers += [start_controller(root, STEP_SECONDS="0") for _ in range(2)]
    until(lambda: len(lines(root / "begun")) == 2)
    (root / "hold data.dvc").unlink()
    until(lambda: all(ended(root, r) for r in runs))
    under_way, most = set(), 0
    for e in open_ledger(root).entries(kinds=("step.started", "run.ended")):
        (under_way.add if e.kind == "step.started" else under_way.discard)(e.subject)
        most = max(most, len(under_way))
    assert most == 2


def test_on_another_machine_a_run_has_all_that_was_done_on_the_lost_one(sqlite_root, controllers):
    "It has a clone of its own, and no working tree of the run."
    root, other = sqlite_root, sqlite_root.parent / "clone"
    git(root, "clone", "-q", ".", str(other))
    (root / "hold deploy").touch()
    controllers.append(start_controller(root, HOST="a", **SHORT_LEASE))
    run, _ = request_run(root)
    until(lambda: "deploy 1" in lines(root / "begun"))
    end(controllers[0])
    controllers.append(start_controller(other, HOST="b"))
    until(lambda: ended(root, run))
    (root / "hold deploy").unlink() # the step of the lost machine ends, too
    assert (read_run(open_ledger(root), run).status, lines(other / "ended")) == (
        "succeeded", ["data.dvc 2", "validate 2", "gate 2", "deploy 2", "report 2"])
    assert set(effects(root).values()) == {1}


def test_killed_at_random_each_run_ends_once(sqlite_root, controllers):
    "Three in PostgreSQL are killed in test_controller_faults.py, and hundreds in benchmarks/control_kills.py."
    root, rng, kills = sqlite_root, random.Random(11), 4
    controllers += [start_controller(root), start_controller(root)]
    runs = []
    for i in range(kills):
        if i % 2 == 0:
            (root / "data.dvc").write_text(f"version {i}\n")
            runs.append(request_run(root)[0])
        begun = len(lines(root / "begun"))
        until(lambda begun=begun: len(lines(root / "begun")) > begun or all(ended(root, r) for r in runs))
        time.sleep(rng.uniform(0, .3))
        victim = rng.randrange(2)
        end(controllers[victim])
        controllers[victim] = start_controller(root)
    until(lambda: all(ended(root, r) for r in runs))
    assert len(set(runs)) == 2 and {r.status for r in list_runs(open_ledger(root))} == {"succeeded"}
    assert set(effects(root).values()) == {1}, "an effect is written down once, and so is the end of a run"
    assert Counter(kind for _, kind in effects(root))[f"run/{runs[0]}/deploy"] == 1
    again = Counter(line.split()[0] for line in lines(root / "ended"))
    assert max(again.values()) <= len(runs) + kills, "a step runs again where it was killed, and else not"


def test_a_controller_that_slept_does_nothing_more(root, uri, controllers):
    (root / "hold gate").touch()  # it does not end before the controller is stopped
    controllers.append(start_controller(root, **SHORT_LEASE))
    run, _ = request_run(root)
    until(lambda: "gate 1" in lines(root / "begun"))
    suspend(controllers[0], uri, uri.replace("ledger.db", "control.db"))
    (root / "hold gate").unlink()
    controllers.append(start_controller(root))
    until(lambda: ended(root, run))
    before = open_ledger(root).entries(run)
    controllers[0].send_signal(signal.SIGCONT)
    assert controllers[0].wait(60) == LEASE_LOST
    assert "its work went to others" in (root / "log.txt").read_text()
    late = open_ledger(root).entries(run)[len(before):]
    assert not [e for e in late if e.kind != "step.ended"], "only the end of what it had begun may still be told"
    assert read_run(open_ledger(root), run).attempts == 2 and effects(root)[(run, f"run/{run}")] == 1
    assert not {"deploy 1", "report 1"} & {*lines(root / "begun")}


def test_a_cancelled_run_ends_with_all_its_processes(sqlite_root, controllers, monkeypatch):
    root = sqlite_root
    monkeypatch.setenv("STEP_SECONDS", "600")
    controllers.append(start_controller(root))
    run, _ = request_run(root)
    until(lambda: lines(root / "begun"))
    note = root / ".mlops" / "runs" / run / ".mlops" / "process.json"
    until(note.exists)
    process = read_json(note, dict)
    cancel_run(open_ledger(root), run, by="ana", reason="wrong data")
    until(lambda: ended(root, run))
    assert read_run(open_ledger(root), run).status == "cancelled" and not note.exists()
    assert process["start"] and process_start(process["pid"]) != process["start"], "it is no more"
    assert list_alerts(root) == [], "nobody is woken for what a person did"
    assert request_run(root) == (run, False), "and it stays cancelled"


def test_a_failed_step_leaves_all_as_it_was_and_can_be_resumed(sqlite_root, controllers):
    root = sqlite_root
    (root / "fail validate").write_text("column age is missing")
    controllers.append(start_controller(root))
    run, _ = request_run(root)
    until(lambda: ended(root, run))
    found = read_run(open_ledger(root), run)
    assert (found.status, found.facts["step"]) == ("failed", "validate") and "column age is missing" in found.message
    assert lines(root / "begun") == ["data.dvc 1", "validate 1"], "neither tried again nor gone on with"
    until(lambda: list_alerts(root))
    assert "column age is missing" in list_alerts(root)[0].finding.summary
    (root / "fail validate").unlink()
    requeue_run(open_ledger(root), run)
    until(lambda: ended(root, run))
    assert read_run(open_ledger(root), run).status == "succeeded" and "deploy 2" in lines(root / "ended")


def test_an_upgrade_in_the_middle_of_a_run(sqlite_root, controllers, monkeypatch):
    "What old code had begun is begun anew by the new code, once no process with the old code lives."
    root = sqlite_root
    monkeypatch.setenv("STEP_SECONDS", "0.5")
    controllers.append(start_controller(root, CODE_VERSION="old"))
    run, _ = request_run(root)
    until(lambda: "validate 1" in lines(root / "ended"))
    end(controllers[0])
    controllers.append(start_controller(root, CODE_VERSION="new"))
    until(lambda: ended(root, run))
    assert read_run(open_ledger(root), run).status == "succeeded"
    assert set(effects(root).values()) == {1}


def test_stopping_gives_the_work_back_at_once(sqlite_root, controllers, monkeypatch):
    root = sqlite_root
    monkeypatch.setenv("STEP_SECONDS", "0.5")
    controllers.append(start_controller(root))
    run, _ = request_run(root)
    until(lambda: lines(root / "begun"))
    assert end(controllers[0], signal.SIGTERM) == 0 and not has_controller(root)
    controllers.append(start_controller(root))
    until(lambda: ended(root, run))
    assert read_run(open_ledger(root), run).status == "succeeded"
    assert [e.state for e in list_executors(open_ledger(root), "mlops-nb-churn")] == ["live"]
    end(controllers[1])
    assert not has_controller(root), "one that was killed is none, though nobody has said so"


def test_without_git_it_is_a_sentence(tmp_path):
    (tmp_path / "schema.yaml").touch()
    done = subprocess.run([sys.executable, "-c", "from mlops_nb.cli import main; main()", "run", "now"], cwd=tmp_path,
                          capture_output=True, text=True, env=ENV, timeout=120)
    assert done.returncode == 1 and "git" in done.stderr and "Traceback" not in done.stderr
