"Toil and delivery metrics on both databases: whose action counts, what is a change, what is no figure."
from datetime import UTC, datetime, timedelta

import pytest

from mlops_nb.ledger.ledger import RUN_VARIABLE, Ledger, act_as, user_name
from mlops_nb.ledger.people import AUTOMATIONS, automate_next, count_actions, delivery_metrics
from mlops_nb.ledger.runs import cancel_run, queue_run, record_step

START = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def ledger(uri): return Ledger(uri)


def end_release(ledger, id, how, commit="", committed_at=""):
    if commit:
        ledger.append("bundle.registered", f"b{id}", dict(git_commit=commit, committed_at=committed_at),
                      key=f"registered/b{id}")
    about = dict(bundle=f"b{id}", environment="production", endpoint="churn")
    ledger.append("release.started", id, about, by="controller")
    ledger.append(f"release.{how}", id, dict(reason="so", bundle=f"b{id}"), by="judge", key=f"{id}/end")


def test_nothing_happened(ledger):
    found = delivery_metrics(ledger, START)
    assert count_actions(ledger, START) == [] and automate_next([]) is None
    assert found.promoted == 0
    assert {found.rolled_back_share, found.lead_time_hours, found.restore_hours} == {None}


def test_only_what_a_person_did_counts(ledger):
    queue_run(ledger, "r1", dict(trigger="on_demand", commit="c", data="d", params="p"), by="ana")
    queue_run(ledger, "r2", dict(trigger="retrain", commit="c", data="d", params="q"), by="controller")
    cancel_run(ledger, "r1", "bo", "wrong data")
    attempt = ledger.begin_attempt("r2", "x")
    with record_step(ledger, "r2", attempt, "deploy"): ledger.append("release.started", "rel-1", dict(bundle="b"))
    with act_as("judge"): ledger.append("release.promoted", "rel-1", dict(bundle="b"), key="rel-1/end")
    ledger.append("release.started", "rel-2", dict(bundle="c"), by="ana")
    ledger.append("alert.opened", "A1", dict(severity="page"), by="monitor")
    ledger.append("alert.acked", "A1", {}, by="bo")
    found = {a.kind: (a.count, a.people) for a in count_actions(ledger, START)}
    assert found == {"run.queued": (1, ["ana"]), "run.cancelling": (1, ["bo"]), "release.started": (1, ["ana"]),
                     "alert.acked": (1, ["bo"])}
    assert count_actions(ledger, START, datetime.now(UTC) - timedelta(hours=1)) == []
    people = ledger.query("SELECT name, action, subject, reason FROM people ORDER BY seq")
    assert people[1] == dict(name="bo", action="run.cancelling", subject="r1", reason="wrong data")


def test_the_most_frequent_that_can_be_automated_comes_first(ledger):
    for n in range(5): ledger.append("approval.given", f"rel-{n}", dict(step=1), by="ana")
    for n in range(3): ledger.append("alert.silenced", f"A{n}", {}, by="bo" if n else "ana")
    first, second = count_actions(ledger, START)
    assert (first.kind, first.automate, second.people) == ("approval.given", "", ["bo", "ana"])
    assert automate_next([first, second]) is second and second.automate == AUTOMATIONS["alert.silenced"]


def test_the_first_release_of_a_commit_is_the_change(ledger):
    now = datetime.now(UTC)
    two_hours, ten_hours = ((now - timedelta(hours=h)).isoformat() for h in (2, 10))
    end_release(ledger, "1", "rolled_back", "c1", ten_hours)
    end_release(ledger, "2", "promoted", "c1", ten_hours)
    end_release(ledger, "3", "promoted", "c1", ten_hours)  # new data, the same commit
    end_release(ledger, "4", "promoted", "c2", two_hours)
    end_release(ledger, "5", "promoted")  # nobody knows of which commit
    found = delivery_metrics(ledger, START)
    assert (found.promoted, found.rolled_back, found.changes) == (4, 1, 2)
    assert found.lead_time_hours == pytest.approx(6, abs=0.1) and found.rolled_back_share == pytest.approx(1 / 5)
    later = delivery_metrics(ledger, now + timedelta(hours=1), now + timedelta(hours=2))
    assert (later.promoted, later.changes, later.rolled_back_share) == (0, 0, None)
    assert delivery_metrics(ledger, now - timedelta(days=60)).releases_per_30_days == pytest.approx(2, rel=0.01)


def test_time_to_restore_is_that_of_incidents(ledger):
    for id, hours in (("I1", 1), ("I2", 3), ("I3", 9)):
        ledger.append("incident.opened", id, dict(at="2026-01-01T00:00:00+00:00"))
        ledger.append("incident.closed", id, dict(at=f"2026-01-01T0{hours}:00:00+00:00"))
    ledger.append("incident.opened", "I4", dict(at="2026-01-01T00:00:00+00:00"))
    found = delivery_metrics(ledger, datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC))
    assert (found.restore_hours, found.incidents) == (3, 3)
    assert delivery_metrics(ledger, datetime(2026, 2, 1, tzinfo=UTC)).incidents == 0


def test_the_tables_for_people(ledger):
    end_release(ledger, "1", "rolled_back")
    ledger.append("release.started", "2", dict(bundle="b2", environment="staging", endpoint="churn"), by="ana")
    ledger.append("approval.given", "2", dict(step=1), by="bo")
    ledger.append("alert.opened", "A1", dict(severity="page", rule="drift"), key="alert/A1")
    ledger.append("alert.resolved", "A1", {})
    ledger.append("trigger.evaluated", "retrain", dict(outcome="fired", clause="age", run="r1"), by="controller")
    assert [(r["id"], r["status"], r["outcome"]) for r in ledger.query("SELECT * FROM releases ORDER BY seq")] == [
        ("1", "rolled_back", "so"), ("2", "open", None)]
    assert ledger.query("SELECT release, step, name FROM approvals") == [dict(release="2", step=ledger.query(
        "SELECT step FROM approvals")[0]["step"], name="bo")]
    assert [(a["id"], a["status"]) for a in ledger.query("SELECT * FROM alerts")] == [("A1", "resolved")]
    assert [(d["decision"], d["reason"]) for d in ledger.query("SELECT * FROM decisions ORDER BY seq")] == [
        ("release.rolled_back", "so"), ("fired", "age")]


def test_who_acts(monkeypatch):
    me = user_name()
    with act_as("judge"): assert user_name() == "judge"
    monkeypatch.setenv(RUN_VARIABLE, "r1")
    assert user_name() == "controller" != me
