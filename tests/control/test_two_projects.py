"Two projects, with the same files, on one database."
import signal

import pytest
from support.controlled_project import end, lines, repository, start_controller, until

from mlops_nb.config.settings import ReleaseSettings, Settings
from mlops_nb.control.controller import run_controller
from mlops_nb.control.reconciliation import _plans
from mlops_nb.control.run_identity import pin_run
from mlops_nb.control.run_workflow import request_run
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.executors import list_executors, register_executor, set_executor_state
from mlops_nb.ledger.ledger import Ledger, open_ledger
from mlops_nb.ledger.runs import list_runs, queue_run, run_status


@pytest.fixture
def projects(tmp_path):
    "Two that differ by the name of the endpoint alone."
    return [repository(tmp_path / name, endpoint) for name, endpoint in (("one", "churn"), ("two", "fraud"))]


def test_two_projects_share_a_database_of_workflows(projects, in_postgres):
    controllers, runs = [], []
    try:
        for root in projects: controllers.append(start_controller(root, MLOPS_NB_CONTROL_DATABASE=in_postgres))
        for root in projects: runs.append(request_run(root, "on_demand", "both", "ana")[0])
        assert runs[0] != runs[1]
        for root, run in zip(projects, runs, strict=True):
            ledger = open_ledger(root)
            until(lambda ledger=ledger, run=run: run_status(ledger, run) == "succeeded", 60)
    finally:
        for c in controllers: end(c, signal.SIGTERM)
    for root in projects:
        ended = lines(root / "ended")
        assert ended and len(ended) == len({line.split()[0] for line in ended}), "each step once, in its own project"


def test_a_ledger_is_that_of_one_project(projects, in_sqlite, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", in_sqlite)
    ledger = Ledger(in_sqlite)
    other = register_executor(ledger, "mlops-nb-churn", "1")
    with pytest.raises(UserError, match="mlops-nb-fraud, and its ledger is the one in which mlops-nb-churn works"):
        run_controller(projects[1])
    set_executor_state(ledger, other.id, "lost")
    queue_run(ledger, "r1", {})
    with pytest.raises(UserError, match="a ledger of its own"): run_controller(projects[1])
    assert not list_executors(ledger, "mlops-nb-fraud")


def test_the_name_of_the_project_is_part_of_a_run(projects):
    one, two = (pin_run(root) for root in projects)
    assert (one.code, one.data, one.params) == (two.code, two.data, two.params) and one.id != two.id


def test_a_schedule_asks_for_a_run(tmp_path):
    root = repository(tmp_path / "one")
    with open(root / "settings.ini", "a") as f: f.write("[schedule.nightly]\naction = run\ncron = * * * * * *\n")
    controller, ledger = start_controller(root), open_ledger(root)
    try: until(lambda: [r for r in list_runs(ledger) if r.status == "succeeded"], 60)
    finally: end(controller, signal.SIGTERM)
    run, = list_runs(ledger)
    asked = ledger.find(f"run/{run.id}/queued")
    assert (asked.by, asked.data["trigger"]) == ("schedule nightly", "schedule nightly")
    said = [e.data["message"] for e in ledger.entries("nightly", ("schedule.ended",))]
    assert said and all(run.id in message for message in said), "asked for once, and known by all others"


def test_the_plans_of_a_checkout_of_production_are_looked_at(tmp_path):
    settings = Settings(release=ReleaseSettings(environment="production"))
    assert list(_plans(tmp_path, settings)) == []
