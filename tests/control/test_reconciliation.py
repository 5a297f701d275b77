"A ledger that knows less than what is around it: what is written down again, what is said, what goes on."
import json
import os
from datetime import UTC, datetime, timedelta

import pytest
from support.controlled_project import git, repository

from mlops_nb.config.settings import read_settings
from mlops_nb.control.pruning import prune, prune_logs, prune_results, prune_workflows
from mlops_nb.control.reconciliation import continue_open_run, find_results, reconcile, restore_run
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.ledger.executors import register_executor, set_executor_state
from mlops_nb.ledger.ledger import Ledger
from mlops_nb.ledger.runs import cancel_run, end_run, queue_run, read_run, run_status
from mlops_nb.ledger.waiting_runs import suspend_run
from mlops_nb.release.release_plan import ReleasePlan, ReleaseStep, Variant, plan_path

BUNDLE = "ab" * 32


@pytest.fixture
def ledger(uri): return Ledger(uri)


@pytest.fixture
def root(tmp_path): return repository(tmp_path / "project")


@pytest.fixture
def workflow(tmp_path):
    "A workflow of the name that runs have, in a DBOS of its own."
    from dbos import DBOS
    DBOS(config=dict(name="churn", system_database_url=f"sqlite:///{tmp_path}/control.db", log_level="ERROR",
                     run_admin_server=False))

    @DBOS.workflow(name="pipeline_run")
    def pipeline_run(run):
        if run == "broken": raise ValueError(run)
    DBOS.launch()
    yield pipeline_run
    DBOS.destroy(destroy_registry=True)


def done(workflow, id, run=None):
    from dbos import DBOS, SetWorkflowID
    with SetWorkflowID(id): handle = DBOS.start_workflow(workflow, run or id)
    try: handle.get_result()
    except ValueError: assert run == "broken"


def waits(workflow, id):
    from dbos import DBOS, SetWorkflowID
    with SetWorkflowID(id): DBOS.enqueue_workflow("nobody-listens", workflow, id)


def results(root, run, gate=None, message="Version 3 was released."):
    "The commit that a run leaves."
    git(root, "checkout", "-q", "--detach")
    if gate is not None:
        (root / "artifacts").mkdir(exist_ok=True)
        (root / "artifacts" / "gate.json").write_text(json.dumps(gate))
        git(root, "add", "-f", "artifacts/gate.json")
    git(root, "commit", "-q", "--allow-empty", "-m", f"Run {run}: {message}")
    git(root, "update-ref", f"refs/mlops-nb/runs/{run}", "HEAD")
    commit = git(root, "rev-parse", "HEAD").strip()
    git(root, "checkout", "-q", "-")
    return commit


def reconciled(root, ledger): return reconcile(root, ledger, read_settings(root), "churn")


# ---------------------------------------------------------------- results of runs


@pytest.mark.parametrize("gate, status", [(None, "succeeded"), (dict(passed=True, bundle=BUNDLE), "succeeded"),
                                          (dict(passed=False, bundle=BUNDLE), "rejected")])
def test_a_run_is_written_down_again_as_its_gate_says(root, ledger, gate, status):
    commit = results(root, "r1", gate)
    assert find_results(root) == {"r1": commit} and restore_run(root, ledger, "r1", commit) == status
    run = read_run(ledger, "r1")
    assert (run.status, run.message, run.facts["results"]) == (status, "Version 3 was released.", commit)
    assert run.facts["bundle"] == (gate or {}).get("bundle", "")
    assert run.git_commit == git(root, "rev-parse", f"{commit}^").strip()
    assert run.params_version == git(root, "rev-parse", f"{commit}:params.yaml").strip()


def test_a_run_that_the_ledger_knows_is_left_alone(root, ledger, workflow):
    results(root, "r1")
    queue_run(ledger, "r1", {})
    assert reconciled(root, ledger) == [] and run_status(ledger, "r1") == "queued"


def test_what_cannot_be_read_is_a_sentence_and_holds_nothing_up(root, ledger, workflow):
    git(root, "rm", "-q", "data.dvc")
    git(root, "commit", "-qm", "no data")
    results(root, "r1")
    git(root, "revert", "--no-edit", "HEAD")
    results(root, "r2")
    found = reconciled(root, ledger)
    assert len(found) == 2 and "data.dvc" in found[0] and "written down again as succeeded" in found[1]
    assert run_status(ledger, "r1") is None and run_status(ledger, "r2") == "succeeded"


def test_each_difference_is_an_entry_once(root, ledger, workflow):
    results(root, "r1")
    waits(workflow, "r2")
    assert len(reconciled(root, ledger)) == 2
    assert len(reconciled(root, ledger)) == 1, "r2 still is under way"
    entries = ledger.entries(kinds=("ledger.reconciled",))
    assert sorted(e.subject for e in entries) == ["run r1", "run r2"] and {e.by for e in entries} == {"controller"}


def test_without_git_there_is_nothing_to_find(tmp_path, ledger, workflow):
    (tmp_path / "plain").mkdir()
    assert find_results(tmp_path / "plain") == {} and reconciled(tmp_path / "plain", ledger) == []
    assert prune_results(tmp_path / "plain", datetime.now(UTC), lambda run: False) == 0


# ---------------------------------------------------------------- workflows


def test_an_open_run_whose_workflow_is_over_goes_on_once(ledger, workflow):
    queue_run(ledger, "r1", {})
    done(workflow, "r1")
    assert continue_open_run(ledger, "r1", "r1") and continue_open_run(ledger, "r1", "r1")
    assert len(ledger.entries("r1", ("run.continued",))) == 1
    waits(workflow, "r1-1")
    assert not continue_open_run(ledger, "r1", "r1"), "the next one is under way"


def test_one_that_failed_as_a_workflow_goes_on(ledger, workflow):
    queue_run(ledger, "r1", {})
    done(workflow, "r1", "broken")
    assert continue_open_run(ledger, "r1", "r1") and run_status(ledger, "r1") == "queued"


def test_what_is_over_or_waits_or_is_unknown_does_not_go_on(ledger, workflow):
    for run in ("r1", "r2", "r3"): done(workflow, run)
    queue_run(ledger, "r1", {})
    end_run(ledger, "r1", ledger.begin_attempt("r1", "a"), "failed", "no rows")
    queue_run(ledger, "r2", {})
    suspend_run(ledger, "r2", ledger.begin_attempt("r2", "a"), "for approval")
    assert [continue_open_run(ledger, run, run) for run in ("r1", "r2", "r3", "r4")] == [False] * 4
    assert [run_status(ledger, run) for run in ("r1", "r2", "r3")] == ["failed", "waiting", None]


def test_one_that_is_to_be_cancelled_stays_so(ledger, workflow):
    queue_run(ledger, "r1", {})
    cancel_run(ledger, "r1", reason="wrong data")
    done(workflow, "r1")
    assert continue_open_run(ledger, "r1", "r1") and run_status(ledger, "r1") == "cancelling"


# ---------------------------------------------------------------- releases and bundles


def test_a_plan_of_a_release_that_the_ledger_does_not_know(root, ledger, workflow):
    path = plan_path(root, read_settings(root))
    plan = ReleasePlan("churn", 3, [Variant("champion", BUNDLE)], release=ReleaseStep("rel-7", 1))
    write_json(path, plan)
    found = reconciled(root, ledger)
    assert "release rel-7, which the ledger does not know" in found[0] and "rollback" in found[0]
    assert f"holds no bundle {BUNDLE}" in found[1]
    ledger.append("release.started", "rel-7", {})
    assert len(reconciled(root, ledger)) == 1, "the bundle is not there still"


# ---------------------------------------------------------------- pruning


def test_what_is_old_goes_and_what_answers_stays(root, ledger, workflow, monkeypatch):
    monkeypatch.setenv("GIT_COMMITTER_DATE", "2020-01-05T12:00:00Z")
    for run in ("r1", "r2"): results(root, run)
    monkeypatch.delenv("GIT_COMMITTER_DATE")
    results(root, "r3")
    for run, bundle in (("r1", "cd" * 32), ("r2", BUNDLE)):
        queue_run(ledger, run, {})
        end_run(ledger, run, ledger.begin_attempt(run, "a"), "succeeded", "Released.", bundle=bundle)
    write_json(plan_path(root, read_settings(root)), ReleasePlan("churn", 3, [Variant("champion", BUNDLE)]))
    old = register_executor(ledger, "churn", "v1", lease_seconds=-91 * 86400)
    live = register_executor(ledger, "churn", "v1", lease_seconds=-91 * 86400)
    set_executor_state(ledger, old.id, "ended")
    done(workflow, "r1")
    found = prune(root, ledger, read_settings(root), "churn")
    assert found == dict(executors=1, workflows=0, logs=0, results=1) and {*find_results(root)} == {"r2", "r3"}
    assert [r["id"] for r in ledger.query("SELECT id FROM executors")] == [live.id]
    assert prune(root, ledger, read_settings(root), "churn")["results"] == 0
    assert run_status(ledger, "r1") == "succeeded", "the ledger keeps all"


def test_workflows_under_way_and_those_of_others_stay(workflow):
    from dbos import DBOS
    for id in ("r1", "r2", "r3"): done(workflow, id)
    waits(workflow, "r4")
    later = datetime.now(UTC) + timedelta(hours=1)
    assert [prune_workflows("other", later), prune_workflows("churn", later, batch=2)] == [0, 3]
    assert [w.workflow_id for w in DBOS.list_workflows()] == ["r4"]


def test_logs_go_by_their_last_change(root):
    logs = root / ".mlops" / "logs"
    logs.mkdir(parents=True)
    for name, at in (("r1.log", 0), ("r2.log", 2e9), ("control.jsonl", 0)):
        (logs / name).touch()
        os.utime(logs / name, (at, at))
    assert prune_logs(root, datetime(2026, 1, 1, tzinfo=UTC)) == 1
    assert sorted(p.name for p in logs.iterdir()) == ["control.jsonl", "r2.log"]
