"The release of a run: it waits without a worker, goes on by itself, and leaves production as it was where it fails."
import json
import shutil

import pytest
from support.controlled_project import repository

from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.api_keys import create_api_key
from mlops_nb.config.params import Params, ReleaseParams, read_params, write_params
from mlops_nb.config.settings import environment_settings, read_settings
from mlops_nb.control import run_workflow
from mlops_nb.control.controller import find_requests
from mlops_nb.control.run_workflow import execute_run, look_at_waiting_runs, request_run
from mlops_nb.core.errors import UserError
from mlops_nb.examples.subscribers import pack_subscriber_bundle
from mlops_nb.ledger.ledger import Ledger, open_ledger
from mlops_nb.ledger.runs import cancel_run, read_run, requeue_run, run_status
from mlops_nb.ledger.waiting_runs import waits_for
from mlops_nb.release.approvals import give_approval
from mlops_nb.release.judge import Verdict
from mlops_nb.release.release_plan import live_variant, plan_path, promote_bundle, read_plan, store_path
from mlops_nb.release.releases import list_releases, roll_back_release, start_release

SETTINGS = """[release]
endpoint = churn
[control]
release_to = {to}
[people]
owners = ana, bo
[production]
approve = start: 1 of owners
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    return [store_bundle(pack_subscriber_bundle(root / str(n), n), root / "bundles") for n in (3, 4)]


@pytest.fixture
def root(tmp_path, made):
    "The first bundle answers in development and in production; a run is about to release the second."
    root = repository(tmp_path / "project")
    shutil.copytree(made[0].parent, root / "bundles")
    settle(root, "production")
    promote_bundle(plan_path(root, read_settings(root)), "churn", made[0].name)
    there = environment_settings(read_settings(root), "production")
    store_bundle(made[0], store_path(root, there))
    promote_bundle(plan_path(root, there), "churn", made[0].name)
    return root


def settle(root, to, **release):
    (root / "settings.ini").write_text(SETTINGS.format(to=to))
    write_params(Params(release=ReleaseParams(**dict(staging_runs=1) | release)), root / "params.yaml")


@pytest.fixture
def commands(root, made, monkeypatch):
    "In place of the commands of a run what they come to, without training and registry; gives what was run."
    done = []
    monkeypatch.setattr("mlops_nb.release.releases.reconcile_registry", lambda *_: "")
    def command(root, ledger, run, attempt, name, *_, **how):
        done.append(name)
        artifacts = run_workflow.run_folder(root, run) / "artifacts"
        if artifacts.parent.exists(): artifacts.mkdir(exist_ok=True)
        bundle = made[1].name
        if name == "train": (artifacts / "gate.json").write_text(json.dumps(dict(bundle=bundle, passed=True)))
        if name == "check": open_ledger(root).append("staging.passed", bundle)
        if name != "deploy": return
        path, release = plan_path(root, read_settings(root)), None
        if read_params(root / "params.yaml").release.strategy == "canary":
            found = [r for r in list_releases(root) if r.status == "open"]
            release = found[0] if found else start_release(root, bundle)
        elif live_variant(read_plan(path)).bundle != bundle: promote_bundle(path, "churn", bundle)
        (artifacts / "metrics.json").write_text(json.dumps(dict(test=dict(roc_auc=.8), valid=dict(roc_auc=.81))))
        (artifacts / "deployment.json").write_text(json.dumps(dict(
            bundle=bundle, deployed=release is None, message="Version 2.", release=release.id if release else "",
            model_version="2")))
    monkeypatch.setattr(run_workflow, "_run_command", command)
    return done


def live(root, environment):
    plan = read_plan(plan_path(root, environment_settings(read_settings(root), environment)))
    return plan and live_variant(plan).bundle


def test_a_run_goes_all_the_way_and_waits_for_a_person(root, made, commands):
    ledger, new, old = open_ledger(root), made[1].name, made[0].name
    run, _ = request_run(root, reason="new tariffs", by="ana")
    execute_run(root, run, "host-a")
    assert run_status(ledger, run) == "waiting" and "needs 1 more of owners (ana, bo)" in waits_for(ledger, run)
    assert (live(root, "development"), live(root, "staging"), live(root, "production")) == (new, new, old)
    assert not list((root / ".mlops/runs").iterdir()) and find_requests(ledger) == ({}, find_requests(ledger)[1])
    assert look_at_waiting_runs(root) == [], "nobody has approved"
    release = next(r for r in list_releases(root) if r.environment == "production")
    assert (release.started_by, release.reason) == ("controller", "new tariffs")
    give_approval(root, release, "start", create_api_key(root / ".mlops/keys.json", "bo", ["operate"]))
    assert look_at_waiting_runs(root) == [run] and list(find_requests(ledger)[0]) == [f"{run}-1"]
    execute_run(root, run, "host-b")
    found = read_run(ledger, run)
    assert (found.status, live(root, "production")) == ("succeeded", new)
    assert found.message == "Version 2 was released. It answers in development, staging, production."
    assert {*found.facts["releases"]} == {"staging", "production"} and found.facts["previous_bundle"] == ""
    assert found.facts["metrics"] == {"roc_auc": .8} and found.facts["metrics_valid"] == {"roc_auc": .81}
    assert commands == ["checkout", "validate", "train", "check", "deploy", "report"], "each once"


@pytest.mark.parametrize("action, ends, answers", [("promote", "succeeded", 1), ("roll_back", "rejected", 0)])
def test_the_judge_decides_about_a_run(root, made, commands, monkeypatch, action, ends, answers):
    settle(root, "", strategy="canary", steps=[10, 100], min_step_hours=0)
    ledger, verdicts = open_ledger(root), [Verdict("go_on", "12 of 500 customers.")]
    monkeypatch.setattr("mlops_nb.release.judge.judge_release", lambda *_: verdicts[0])
    run, _ = request_run(root)
    execute_run(root, run, "host-a")
    assert "12 of 500 customers." in waits_for(ledger, run) and look_at_waiting_runs(root) == []
    verdicts[0] = Verdict(action, "It loses less.")
    assert look_at_waiting_runs(root) == [run]
    execute_run(root, run, "host-a")
    found = read_run(ledger, run)
    assert (found.status, live(root, "development")) == (ends, made[answers].name)
    assert ("is rolled back: It loses less." in found.message) == (ends == "rejected")


def test_who_cancels_a_run_that_waits_takes_its_release_back(root, made, commands):
    ledger = open_ledger(root)
    run, _ = request_run(root)
    execute_run(root, run, "host-a")
    cancel_run(ledger, run, by="ana")
    assert list(find_requests(ledger)[0]) == [f"{run}-1"], "somebody has to end it"
    execute_run(root, run, "host-b")
    found = read_run(ledger, run)
    assert found.status == "cancelled" and "Its release " in found.message and live(root, "production") == made[0].name
    assert [r.status for r in list_releases(root) if r.environment == "production"] == ["withdrawn"]
    assert look_at_waiting_runs(root) == []


def run_whose_report_fails(root, monkeypatch):
    command = run_workflow._run_command
    def fail(*args):
        if args[4] == "report": raise run_workflow.StepFailed("no space left")
        command(*args)
    monkeypatch.setattr(run_workflow, "_run_command", fail)
    run, _ = request_run(root)
    execute_run(root, run, "host-a")
    return read_run(open_ledger(root), run)


def test_a_run_that_fails_after_its_release_began_rolls_it_back(root, made, commands, monkeypatch):
    settle(root, "", strategy="canary", steps=[10, 100])
    found = run_whose_report_fails(root, monkeypatch)
    assert found.status == "failed" and found.message.startswith("Step report failed: no space left\nIts release ")
    assert live(root, "development") == made[0].name and list_releases(root)[-1].status == "rolled_back"


def test_what_answers_already_is_said_when_a_run_fails(root, commands, monkeypatch):
    settle(root, "")
    assert "had been released before, and answers." in run_whose_report_fails(root, monkeypatch).message


@pytest.mark.parametrize("rows, ends, made_again", [("", "succeeded", 0), ("rows.csv", "succeeded", 1),
                                                    ("rows.csv", "rejected", 0)])
def test_rows_that_are_looked_up_are_scored_with_the_new_model(root, commands, monkeypatch, rows, ends, made_again):
    settle(root, "", strategy="canary", steps=[10, 100], min_step_hours=0)
    text = (root / "settings.ini").read_text().replace("[control]\n", f"[control]\nlookup_rows = {rows}\n")
    (root / "settings.ini").write_text(text)
    action = "promote" if ends == "succeeded" else "roll_back"
    monkeypatch.setattr("mlops_nb.release.judge.judge_release", lambda *_: Verdict(action, "It is known."))
    run, _ = request_run(root)
    execute_run(root, run, "host-a")
    while run_status(open_ledger(root), run) == "waiting":
        look_at_waiting_runs(root)
        execute_run(root, run, "host-a")
    assert (read_run(open_ledger(root), run).status, commands.count("tables")) == (ends, made_again)


def test_a_release_that_is_refused_fails_the_run(root, commands, monkeypatch):
    "Also where it is refused while the run waits: it is taken up to say so."
    ledger, run = open_ledger(root), request_run(root)[0]
    execute_run(root, run, "host-a")
    def refuse(*_): raise UserError("No trusted key has signed it.")
    monkeypatch.setattr(run_workflow, "advance_run_release", refuse)
    assert look_at_waiting_runs(root) == [run]
    execute_run(root, run, "host-a")
    found = read_run(ledger, run)
    assert (found.status, found.facts["step"]) == ("failed", "release") and "No trusted key" in found.message


def test_another_release_comes_first(root, made, commands, tmp_path):
    third = store_bundle(pack_subscriber_bundle(tmp_path / "third", 5), root / "environments/production/bundles")
    for _ in range(1): open_ledger(root).append("staging.passed", third.name)
    other = start_release(root, third.name, by="bo", environment="production")
    run, _ = request_run(root)
    execute_run(root, run, "host-a")
    assert f"The release {other.id} of {third.name[:12]} to production is open" in waits_for(open_ledger(root), run)
    roll_back_release(root, other, "not now", "bo")
    assert look_at_waiting_runs(root) == [] and list_releases(root)[-1].bundle == made[1].name


def test_a_run_that_was_rolled_back_can_be_resumed(root, made, commands):
    "The model is known as rolled back, so nothing releases it again by itself."
    ledger, run = open_ledger(root), request_run(root)[0]
    execute_run(root, run, "host-a")
    roll_back_release(root, list_releases(root)[-1], "by hand", "bo")
    assert look_at_waiting_runs(root) == [run]
    execute_run(root, run, "host-a")
    assert read_run(ledger, run).status == "rejected"
    requeue_run(ledger, run)
    execute_run(root, run, "host-a")
    assert read_run(ledger, run).status == "rejected" and live(root, "production") == made[0].name


class Killed(BaseException): pass


def test_killed_at_each_entry_of_the_ledger_a_run_goes_on(root, made, commands, monkeypatch):
    "Before each entry and after it, in the steps and in the looks; each effect is there once."
    plain, ledger, run = Ledger.append, open_ledger(root), request_run(root)[0]
    count = dict(left=0, before=True)
    def append(self, kind, *args, **kw):
        count["left"] -= 1
        if count["left"] == 0 and count["before"]: raise Killed
        found = plain(self, kind, *args, **kw)
        if count["left"] == 0: raise Killed
        return found
    monkeypatch.setattr(Ledger, "append", append)
    done = set() # what DBOS remembers of a workflow
    def step(run, attempt, name):
        if name in done: return ""
        waits = run_workflow.run_step(root, run, attempt, name, "host-a")
        done.add(name)
        return waits
    def work():
        if run_status(ledger, run) == "waiting":
            done.clear()
            release = next(r for r in list_releases(root) if r.environment == "production")
            if release.status == "open" and not ledger.entries(release.id, ("approval.given",)):
                key = create_api_key(root / ".mlops/keys.json", "bo", ["operate"])
                with monkeypatch.context() as m:
                    m.setattr(Ledger, "append", plain)
                    give_approval(root, release, "start", key)
            look_at_waiting_runs(root)
        execute_run(root, run, "host-a", step)
    for i in range(90):
        if run_status(ledger, run) in run_workflow.RUN_ENDS: break
        count.update(left=1 + i % 5, before=i % 2 == 0)
        try: work()
        except Killed: pass
    else: pytest.fail("it does not end")
    found = read_run(ledger, run)
    assert (found.status, live(root, "production")) == ("succeeded", made[1].name) and found.attempts > 5
    keys = [e.key for e in ledger.entries(run, ("effect.done",))]
    assert len(keys) == len({*keys}) and len([r for r in list_releases(root) if r.environment == "production"]) == 1
