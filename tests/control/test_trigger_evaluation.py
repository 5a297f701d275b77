"Triggers: each clause, nothing lost and nothing twice, and an explanation with the values of then."
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.triggered_project import data, finish, outcome, project

from mlops_nb.config.triggers import Trigger
from mlops_nb.control.trigger_conditions import OpenFinding, TriggerFacts, evaluate_trigger
from mlops_nb.control.trigger_evaluation import evaluate_triggers, explain_trigger, format_triggers, pause_trigger
from mlops_nb.control.trigger_policy import check_triggers
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import list_runs, queue_run

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)  # a Monday


def trigger(*conditions, how="any", **more):
    return msgspec.convert(dict(when={how: [*conditions]}, **more), Trigger)


def facts(**known): return TriggerFacts(**dict(at=NOON, since=NOON - timedelta(hours=1)) | known)


@pytest.mark.parametrize("condition, known, fires", [
    ({"new_data": {"min_rows": 10}}, dict(new_rows=10), True),
    ({"new_data": {"min_rows": 10}}, dict(new_rows=9), False),
    ({"age": "60d"}, dict(model_since=NOON - timedelta(days=60)), True), ({"age": "60d"}, {}, False),
    ({"age": "60d"}, dict(model_since=NOON - timedelta(days=59)), False),
    ({"drift": "found"}, dict(findings=[OpenFinding("drift", "tariff")]), True),
    ({"drift": "found"}, dict(findings=[OpenFinding("quality", "tariff")]), False),
    ({"degraded": {"metric": "roc_auc", "by": .01}}, dict(findings=[OpenFinding("quality", "roc_auc", .02)]), True),
    ({"degraded": {"metric": "roc_auc", "by": .01}}, dict(findings=[OpenFinding("quality", "roc_auc", .005)]), False),
    ({"degraded": {"metric": "roc_auc", "by": .01}}, dict(findings=[OpenFinding("quality", "log_loss", .5)]), False),
    ({"schedule": {"cron": "30 11 * * *"}}, {}, True), ({"schedule": {"cron": "30 12 * * *"}}, {}, False),
    ({"schedule": {"cron": "30 12 * * *", "timezone": "Europe/Vienna"}}, {}, True)])
def test_conditions(condition, known, fires):
    assert evaluate_trigger(trigger(condition), facts(**known)).outcome == ("fired" if fires else "not_due")


def test_any_and_all():
    both = {"new_data": {"min_rows": 10}}, {"drift": "found"}
    assert evaluate_trigger(trigger(*both), facts(new_rows=10)).clause == "new_data"
    assert evaluate_trigger(trigger(*both, how="all"), facts(new_rows=10)).outcome == "not_due"
    found = facts(new_rows=10, findings=[OpenFinding("attribution_drift", "tariff")])
    assert evaluate_trigger(trigger(*both, how="all"), found).outcome == "fired"


@pytest.mark.parametrize("more, known, clause", [
    ({}, dict(running=["r1"]), "running"), (dict(unless={"running": False}), dict(running=["r1"]), None),
    (dict(unless={"window": "Mon 11:00-Mon 13:00"}), {}, "window"),
    (dict(unless={"window": "Mon 12:00-Mon 13:00", "timezone": "Europe/Vienna"}), {}, None),
    (dict(unless={"window": "Fri 16:00-Mon 12:01"}), {}, "window"),
    (dict(unless={"window": "Fri 16:00-Mon 12:00"}), {}, None),
    (dict(unless={"data_quality": "veto"}), dict(findings=[OpenFinding("volume", "day")]), "data_quality"),
    ({}, dict(findings=[OpenFinding("volume", "day")]), None),
    *((dict(unless={"data_quality": "veto"}), dict(findings=[OpenFinding(rule, "x")]), "data_quality")
      for rule in ("schema", "contract", "corrupt", "missing", "data_freshness")),
    (dict(unless={"data_quality": "veto"}), dict(findings=[OpenFinding("value_skew", "x")]), None),
    (dict(unless={"slo_budget": "exhausted"}), dict(frozen_slos=["latency"]), "slo_budget"),
    (dict(cooldown="24h"), dict(asked_at=[NOON - timedelta(hours=23)]), "cooldown"),
    (dict(cooldown="24h"), dict(asked_at=[NOON - timedelta(hours=24)]), None),
    (dict(budget="2 per 30d"), dict(asked_at=[NOON - timedelta(days=d) for d in (1, 29)]), "budget"),
    (dict(budget="2 per 30d"), dict(asked_at=[NOON - timedelta(days=d) for d in (1, 30)]), None),
    ({}, dict(paused_until=NOON + timedelta(seconds=1), paused_why="holidays"), "paused"),
    ({}, dict(paused_until=NOON), None)])
def test_what_holds_a_run_back(more, known, clause):
    found = evaluate_trigger(trigger({"new_data": {}}, **more), facts(new_rows=1, **known))
    assert (found.outcome, found.clause) == (("suppressed", clause) if clause else ("fired", "new_data"))


def test_a_schedule_of_each_minute_that_was_held_back_for_a_year():
    "It is due, at the newest of half a million times, without an error about so many."
    known = facts(since=NOON - timedelta(days=365), running=["r1"])
    found = evaluate_trigger(trigger({"schedule": {"cron": "* * * * *"}}), known)
    assert (found.outcome, found.clause) == ("suppressed", "running") and "2026-11-30 12:00" in found.tree[1]
    yearly = trigger({"schedule": {"cron": "0 0 24 12 *"}})
    assert "was due at 2025-12-24 00:00" in evaluate_trigger(yearly, known).tree[1]


@given(st.lists(st.integers(0, 60 * 24 * 40), max_size=12), st.integers(1, 5), st.integers(1, 30))
def test_a_budget_is_never_exceeded(minutes, runs, days):
    "Evaluations at any times: within no period there are more runs than the budget has."
    t, asked = trigger({"new_data": {}}, budget=f"{runs} per {days}d"), []
    for m in sorted(minutes):
        at = NOON + timedelta(minutes=m)
        known = TriggerFacts(at=at, since=at, new_rows=1, asked_at=asked[::-1])
        if evaluate_trigger(t, known).outcome == "fired": asked.append(at)
    for i, first in enumerate(asked):
        assert sum(a - first < timedelta(days=days) for a in asked[i:]) <= runs


# ---------------------------------------------------------------- in a project


@pytest.fixture
def root(tmp_path): return project(tmp_path / "project")


def test_new_data_fires_once_and_what_comes_meanwhile_is_gathered(root):
    data(root, a=60)
    assert outcome(root) == ("not_due", "when")
    data(root, a=60, b=60)
    assert outcome(root) == ("fired", "new_data")
    assert outcome(root) == ("not_due", "when"), "the run has these rows"
    data(root, a=60, b=60, c=70)
    data(root, a=60, b=60, c=70, d=70)
    assert outcome(root) == ("suppressed", "running")
    finish(root)
    assert outcome(root) == ("fired", "new_data") and len(list_runs(open_ledger(root))) == 2
    finish(root, "cancelled")
    assert outcome(root) == ("not_due", "when"), "cancelled stays cancelled until something new comes"
    data(root, a=60, b=60, c=50, d2=65, e=50)
    assert outcome(root)[0] == "fired", "a file that was replaced is new"


def test_what_one_trigger_asks_for_is_under_way_for_those_after_it(root):
    (root / "triggers.yaml").write_text("".join(f"{name}: {{when: {{any: [{{new_data: {{min_rows: {n}}}}}]}}}}\n"
                                                for name, n in (("a", 9), ("b", 1), ("c", 99))))
    data(root, a=50)
    found = evaluate_triggers(root)
    assert {k: (e.outcome, e.clause) for k, e in found.items()} == {
        "a": ("fired", "new_data"), "b": ("not_due", "when"), "c": ("not_due", "when")}
    assert "new_data: 0 new rows; 1 are needed" in "\n".join(found["b"].tree), "the run of the first has them"
    assert f"yes running: {found['a'].run}" in "\n".join(found["b"].tree)


def test_a_file_that_shrank_is_new(root):
    data(root, a=200)
    assert outcome(root)[0] == "fired"
    finish(root)
    data(root, a2=150)
    assert outcome(root)[0] == "fired"


SCHEDULE = 'retrain: {when: {any: [{schedule: {cron: "0 6 * * *"}}]}}'


def test_a_schedule_without_anything_new_is_the_same_run(root, uri, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    (root / "triggers.yaml").write_text(SCHEDULE)
    now = datetime.now(UTC)
    assert outcome(root, now)[0] == "not_due"
    assert outcome(root, now + timedelta(days=1))[0] == "fired"
    finish(root)
    later = now + timedelta(days=9)
    assert outcome(root, later)[0] == "same_run" and len(list_runs(open_ledger(root))) == 1


def test_a_paused_schedule_does_not_catch_up(root, monkeypatch):
    (root / "triggers.yaml").write_text(SCHEDULE)
    now = datetime.now(UTC)
    evaluate_triggers(root, now)
    pause_trigger(root, "retrain", now + timedelta(days=3), "holidays", by="ana")
    assert outcome(root, now + timedelta(days=2)) == ("suppressed", "paused")
    assert "holidays" in explain_trigger(root, "retrain", datetime.now(UTC))
    with pytest.raises(UserError, match="no trigger 'other'"): pause_trigger(root, "other", now, "x")


def test_only_changes_are_written_and_an_explanation_has_the_values_of_then(root):
    data(root, a=60)
    for _ in range(5): evaluate_triggers(root)
    before = datetime.now(UTC)
    data(root, a=60, b=61)
    evaluate_triggers(root)
    entries = open_ledger(root).entries("retrain", ("trigger.evaluated",))
    assert [e.data["outcome"] for e in entries] == ["not_due", "fired"] and entries[1].data["facts"]["new_rows"] == 121
    assert "60 new rows; 100 are needed" in explain_trigger(root, "retrain", before)
    assert "121 new rows" in explain_trigger(root, "retrain", datetime.now(UTC))
    assert "0 new rows" in explain_trigger(root, "retrain") and "fired by new_data" in format_triggers(root)
    with pytest.raises(UserError, match="was not evaluated before"):
        explain_trigger(root, "retrain", before - timedelta(days=9))
    assert open_ledger(root).query("SELECT name, outcome FROM trigger_evaluations")[1]["outcome"] == "fired"


def test_what_lists_shows_can_be_written_down(root):
    (root / "triggers.yaml").unlink()
    (root / "triggers.yaml").write_text(format_triggers(root).partition("\n")[2])
    assert "not evaluated yet" in format_triggers(root) and outcome(root) == ("not_due", "when")


def test_a_budget_counts_the_runs_of_its_trigger_and_not_the_newest_of_all(root):
    (root / "triggers.yaml").write_text("retrain: {when: {any: [{new_data: {min_rows: 1}}]}, budget: 1 per 30d}")
    data(root, a=1)
    assert outcome(root)[0] == "fired"
    finish(root)
    for i in range(210): queue_run(open_ledger(root), f"x{i}", dict(trigger="on_demand"))
    with pytest.MonkeyPatch.context() as m:
        m.setattr("mlops_nb.control.trigger_facts.open_runs", lambda ledger: [])
        assert outcome(root) == ("suppressed", "budget")


def test_a_schedule_that_is_never_due_is_refused_at_the_start(root):
    (root / "triggers.yaml").write_text('a: {when: {any: [{schedule: {cron: "0 0 31 2 *"}}]}}')
    with pytest.raises(UserError, match="trigger 'a': '0 0 31 2 \\*' is never due"): check_triggers(root)
    (root / "triggers.yaml").write_text('a: {when: {any: [{schedule: {cron: "0 0 1 1 *", timezone: Mars/Base}}]}}')
    with pytest.raises(UserError, match="Mars/Base"): check_triggers(root)
    for text in ('{cron: "0 6 * *"}', '{cron: "0 6 * * *", timezone: Mars/Base}'):  # written while a controller works
        (root / "triggers.yaml").write_text(f"a: {{when: {{any: [{{schedule: {text}}}]}}}}")
        with pytest.raises(UserError, match="five fields|Mars/Base"): evaluate_triggers(root)
