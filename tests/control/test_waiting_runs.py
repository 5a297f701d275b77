"A run that waits for its release, with real controllers: it holds no worker, and any of them goes on with it."
import os
import subprocess
import sys

import pytest
from support.controlled_project import ENV, STAND_IN, end, lines, repository, until

from mlops_nb.control.run_workflow import request_run
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import RUN_ENDS, cancel_run, read_run, run_status
from mlops_nb.ledger.waiting_runs import waits_for

# the release of a run is what a file says, where there is one; no command of a step is a process of its own here
RELEASE = """
def run_process(command, *_):
    with open('ended', 'a') as f: f.write(command[-1] + chr(10))
run_workflow.run_process = run_process
from mlops_nb.control.run_release import ReleaseProgress
def progress(root, ledger, run):
    said = Path(root, 'release ' + run)
    state = said.read_text() if said.exists() else 'released'
    return ReleaseProgress(state, 'It is ' + state + '.', {'production': '1'})
run_workflow._release_progress = progress
controller.run_controller("""


@pytest.fixture
def root(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    monkeypatch.setenv("MLOPS_NB_CONTROL_DATABASE", uri.replace("ledger.db", "control.db"))
    return repository(tmp_path / "project")


@pytest.fixture
def start(root):
    running, code = [], STAND_IN.replace("controller.run_controller(", RELEASE)
    def begin():
        with open(root / "log.txt", "ab") as log:
            running.append(subprocess.Popen([sys.executable, "-c", code], cwd=root, env=ENV | {**os.environ},
                                            stdout=log, stderr=subprocess.STDOUT))
        return running[-1]
    yield begin
    for process in running: end(process)


def new_run(root, text):
    (root / "data.dvc").write_text(text)
    return request_run(root)[0]


def test_a_run_that_waits_lets_others_pass_and_outlives_its_controller(root, start):
    ledger, first = open_ledger(root), new_run(root, "version 1\n")
    (root / f"release {first}").write_text("waiting")
    controller = start()
    until(lambda: run_status(ledger, first) == "waiting")
    assert waits_for(ledger, first) == "It is waiting."
    second = new_run(root, "version 2\n")
    until(lambda: run_status(ledger, second) in RUN_ENDS)
    assert (run_status(ledger, first), run_status(ledger, second)) == ("waiting", "succeeded")
    end(controller)
    start()
    (root / f"release {first}").write_text("released")
    until(lambda: run_status(ledger, first) in RUN_ENDS)
    found = read_run(ledger, first)
    assert (found.status, found.attempts, found.facts["releases"]) == ("succeeded", 2, {"production": "1"})
    done = 2 * ["data.dvc", "validate", "gate", "deploy", "report"]
    assert sorted(lines(root / "ended")) == sorted(done), "what was done is not done again"
    third = new_run(root, "version 3\n")
    (root / f"release {third}").write_text("waiting")
    until(lambda: run_status(ledger, third) == "waiting")
    cancel_run(ledger, third, by="ana")
    until(lambda: run_status(ledger, third) in RUN_ENDS)
    assert read_run(ledger, third).status == "cancelled"
