"""Whatever arrives in whatever order: nothing is lost, nothing runs twice, and the past reads as it was."""
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.triggered_project import data, finish, outcome, project, runs

from mlops_nb.config.triggers import read_triggers
from mlops_nb.control.notices import record_notice
from mlops_nb.control.trigger_conditions import CodeFacts, MetricLoss, SourceFacts
from mlops_nb.control.trigger_evaluation import evaluate_triggers, explain_trigger, pause_trigger
from mlops_nb.control.trigger_facts import OutsideFacts, last_outside, read_facts, read_outside, write_outside
from mlops_nb.control.trigger_history import TriggerHistory
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import cancel_run, open_runs
from mlops_nb.monitor.alerts import AlertState, compare_findings, read_alerts, write_changes
from mlops_nb.monitor.findings import Finding

TRIGGERS = """
retrain: {when: {any: [{new_data: {min_rows: 3}}, {notice: {source: w}}]}, unless: {data_quality: veto}, cooldown: 2h}
repair: {when: {any: [{upstream: repaired}]}}
nightly: {when: {any: [{schedule: {cron: "0 3 * * *"}}]}, budget: 2 per 7d}
"""
ACTIONS = st.lists(st.one_of(
    st.tuples(st.just("data"), st.integers(1, 4)), st.tuples(st.just("notice"), st.integers(0, 2)),
    st.tuples(st.just("end"), st.sampled_from(["succeeded", "failed", "rejected", "cancelled"])),
    st.tuples(st.just("pause"), st.integers(1, 30)), st.tuples(st.just("alert"), st.booleans()),
    st.tuples(st.just("wait"), st.integers(1, 30))), min_size=3, max_size=9)


def alert(root, holds, now):
    ledger, state = open_ledger(root), read_alerts(open_ledger(root))
    found = [Finding(rule="volume", subject="orders", summary="Too few.", started_at=now)] if holds else []
    write_changes(ledger, state, compare_findings(state, found, now), now)


def act(root, files, do, how, now):
    "One action; the time after it."
    if do == "data": files[f"f{len(files)}"] = how
    if do == "data": data(root, **files)
    elif do == "notice": record_notice(root, "w", key=str(how))
    elif do == "end": finish(root, how)
    elif do == "pause": pause_trigger(root, "retrain", now + timedelta(hours=how), "x")
    elif do == "alert": alert(root, how, now)
    return now + timedelta(hours=how if do == "wait" else 0, minutes=1)


def same_facts(root, now):
    ledger, triggers = open_ledger(root), read_triggers(root)
    facts = read_facts(root, ledger, triggers, last_outside(ledger), now)
    history = TriggerHistory.read(ledger, datetime.now(UTC))
    for name in triggers:
        one, other = (msgspec.to_builtins(f) for f in (facts[name], history.facts(name, now)))
        assert one == other | dict(seen=one["seen"]), name


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
def test_nothing_is_lost_and_nothing_runs_twice(tmp_path_factory, actions):
    "Random arrivals, ends of runs, notices, pauses and alerts; at the end each file is in a run."
    root, files, now = project(tmp_path_factory.mktemp("t") / "p", TRIGGERS), {}, datetime.now(UTC)
    data(root)
    evaluate_triggers(root, now)
    for do, how in actions:
        now = act(root, files, do, how, now)
        paused = read_facts(root, open_ledger(root), read_triggers(root), OutsideFacts(), now)["retrain"].paused_until
        before = len(runs(root))
        found = evaluate_triggers(root, now)
        if paused and now < paused: assert found["retrain"].outcome not in ("fired", "same_run")
        assert len(runs(root)) - before <= 1 and len(open_runs(open_ledger(root))) <= 1
        same_facts(root, now)
    act(root, files, "data", 4, now)  # enough for a run, when nothing holds it back any more
    for _ in range(4):
        finish(root)
        alert(root, False, now)
        now += timedelta(days=8)
        evaluate_triggers(root, now)
    finish(root)
    had = [set(open_ledger(root).find(f"run/{r.id}/queued").data["data_files"]) for r in runs(root)]
    assert set().union(*had) == {f"{name:x<64}"[:16] for name in files}, "each file is in a run"
    assert len({(r.data_version, r.git_commit) for r in runs(root)}) == len(runs(root)), "no two are the same"
    assert len(open_ledger(root).entries(kinds=("run.queued",))) == len(runs(root))


def test_what_was_repaired_asks_for_one_run(tmp_path):
    root, now = project(tmp_path / "p", "repair: {when: {any: [{upstream: repaired}]}}"), datetime.now(UTC)
    data(root, a=1)
    alert(root, True, now)
    assert outcome(root, name="repair") == ("not_due", "when")
    assert "orders is broken" in explain_trigger(root, "repair")
    alert(root, False, now)
    assert outcome(root, name="repair") == ("fired", "upstream") and outcome(root, name="repair")[0] == "not_due"
    finish(root)
    alert(root, True, now + timedelta(days=1))
    alert(root, False, now + timedelta(days=2))
    assert outcome(root, name="repair") == ("same_run", "upstream"), "the data are the same as before"
    assert outcome(root, name="repair") == ("not_due", "when")


def test_what_was_repaired_before_the_trigger_is_not_its_affair(tmp_path):
    root, now = project(tmp_path / "p", "repair: {when: {any: [{upstream: repaired}]}}"), datetime.now(UTC)
    alert(root, True, now)
    alert(root, False, now)
    assert outcome(root, name="repair") == ("not_due", "when")


def test_a_cancelled_run_stays_cancelled_until_something_new_comes(tmp_path):
    root = project(tmp_path / "p", "retrain: {when: {any: [{drift: found}, {new_data: {min_rows: 1}}]}}")
    data(root, a=1)
    ledger, now = open_ledger(root), datetime.now(UTC)
    found = [Finding(rule="drift", subject="tariff", summary="It moved.", started_at=now)]
    write_changes(ledger, AlertState(), compare_findings(AlertState(), found, now), now)
    assert outcome(root) == ("fired", "drift")
    cancel_run(ledger, runs(root)[0].id)
    finish(root, "cancelled")
    for _ in range(3): assert outcome(root) == ("same_run", "drift")
    assert len(runs(root)) == 1 and len(ledger.entries("retrain", ("trigger.evaluated",))) == 2
    data(root, a=1, b=1)
    assert outcome(root) == ("fired", "drift") and len(runs(root)) == 2


def test_a_pause_that_ended_is_never_made_up_for_and_what_came_in_it_is(tmp_path):
    root = project(tmp_path / "p", 'retrain: {when: {any: [{schedule: {cron: "0 6 * * *"}}, {notice: {source: w}}]}}')
    now = datetime.now(UTC)
    evaluate_triggers(root, now)
    pause_trigger(root, "retrain", now + timedelta(days=3), "holidays")
    assert outcome(root, now + timedelta(days=2)) == ("suppressed", "paused")
    later = now + timedelta(days=3, minutes=1)
    if later.hour != 6: assert outcome(root, later) == ("not_due", "when")
    pause_trigger(root, "retrain", later + timedelta(days=3), "holidays")
    record_notice(root, "w")
    assert outcome(root, later + timedelta(days=1)) == ("suppressed", "paused")
    data(root, a=1)
    assert outcome(root, later + timedelta(days=3, minutes=1)) == ("fired", "notice")
    tomorrow = later + timedelta(days=4, minutes=2)
    finish(root)
    data(root, a=1, b=1)
    assert outcome(root, tomorrow) == ("fired", "schedule")


def test_a_pause_that_is_ended_early_is_not_made_up_for_either(tmp_path):
    root = project(tmp_path / "p", 'retrain: {when: {any: [{schedule: {cron: "* * * * *"}}]}}')
    now = datetime.now(UTC)
    evaluate_triggers(root, now - timedelta(days=2))
    pause_trigger(root, "retrain", now + timedelta(days=9), "holidays")
    pause_trigger(root, "retrain", now - timedelta(days=1), "they are over")
    facts = read_facts(root, open_ledger(root), read_triggers(root), OutsideFacts(), datetime.now(UTC))["retrain"]
    assert facts.since >= now - timedelta(seconds=1) and facts.paused_until <= facts.at
    same_facts(root, datetime.now(UTC))


def test_only_what_has_changed_outside_is_written(tmp_path):
    root = project(tmp_path / "p")
    ledger = open_ledger(root)
    at = datetime(2026, 11, 30, tzinfo=UTC)
    one = OutsideFacts(files={"a": 1}, sources={"s": SourceFacts(new=1, text="at 5")},
                       code={"main": CodeFacts(commit="c")}, metrics={"f1": MetricLoss(worse=.1, until=at)},
                       model_since=at, shelf_life="45d")
    write_outside(ledger, OutsideFacts(), one)
    assert last_outside(ledger) == one
    write_outside(ledger, one, msgspec.structs.replace(one, sources={"s": SourceFacts(new=1, text="at 6")}))
    assert len(ledger.entries("triggers")) == 2, "a watermark of a busy table moves all the time"
    two = msgspec.structs.replace(one, files={"b": 2})
    write_outside(ledger, one, two)
    assert last_outside(ledger) == two and len(ledger.entries("triggers")) == 3
    assert TriggerHistory.read(ledger, datetime.now(UTC)).outside == two


def test_an_explanation_of_the_past_goes_by_the_definition_and_the_values_of_then(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    root = project(tmp_path / "p")
    data(root, a=60)
    evaluate_triggers(root)
    data(root, a=60, b=30)
    evaluate_triggers(root)
    then = datetime.now(UTC)
    (root / "triggers.yaml").write_text("retrain: {when: {all: [{new_data: {min_rows: 5000}}, {drift: found}]}}")
    evaluate_triggers(root)
    said = explain_trigger(root, "retrain", then)
    assert "60 new rows; 100 are needed" in said and "and at " in said and "90 new rows; 100 are needed" in said
    assert "90 new rows; 5,000 are needed" in explain_trigger(root, "retrain", datetime.now(UTC))
    (root / "triggers.yaml").unlink()
    assert explain_trigger(root, "retrain", then) == said, "a trigger that is gone has a past"


@pytest.mark.parametrize("branch, sentence", [("main", "there is no branch main"), ("master", "no run had master")])
def test_code_that_no_run_had(tmp_path, branch, sentence):
    from support.controlled_project import git
    root = project(tmp_path / "p", f"retrain: {{when: {{any: [{{code: {{branch: {branch}}}}}]}}}}")
    git(root, "branch", "-M", "master")
    data(root, a=1)
    triggers, ledger = read_triggers(root), open_ledger(root)
    found = read_outside(root, ledger, triggers, OutsideFacts()).code[branch]
    assert sentence in explain_trigger(root, "retrain")
    if branch == "main":
        assert found.error
        return
    assert outcome(root) == ("fired", "code") and outcome(root) == ("not_due", "when")
    finish(root)
    (root / "README.md").write_text("Words.")
    git(root, "add", "-A")
    git(root, "commit", "-qm", "words")
    assert outcome(root) == ("not_due", "when"), "documentation is no code"
    (root / "features.py").write_text("x = 1")
    git(root, "commit", "-qam", "features")
    git(root, "checkout", "-q", "--detach", "HEAD~1")
    assert outcome(root) == ("not_due", "when") and "not checked out here" in explain_trigger(root, "retrain")
    git(root, "checkout", "-q", "master")
    assert outcome(root) == ("fired", "code")
    finish(root)
    git(root, "reset", "-q", "--hard", "HEAD~2")  # a forced push: an earlier commit, which a run had
    assert outcome(root) == ("not_due", "when")


def test_the_shelf_life_is_that_of_the_last_back_test_of_a_run(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    root = project(tmp_path / "p", "retrain: {when: {any: [{age: shelf_life}]}}")
    ledger, triggers = open_ledger(root), read_triggers(root)
    assert read_outside(root, ledger, triggers, OutsideFacts()).shelf_life == ""
    for days in (60, 45): ledger.append("step.ended", "r1", dict(facts=dict(shelf_life_days=days), status="done"))
    assert read_outside(root, ledger, triggers, OutsideFacts()).shelf_life == "45d"
