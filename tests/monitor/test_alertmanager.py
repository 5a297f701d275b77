"The bridge to a real Alertmanager: alerts, acknowledgements, silences and ends travel both ways."
from datetime import UTC, datetime, timedelta

import pytest
from support.services import AlertmanagerService

from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor.alert_updates import update_alerts
from mlops_nb.monitor.alerts import ack_alert, read_alerts, silence
from mlops_nb.monitor.findings import Finding

MINUTE = timedelta(minutes=1)


@pytest.fixture(scope="module")
def manager():
    with AlertmanagerService() as service: yield service


@pytest.fixture
def root(tmp_path, manager):
    (tmp_path / "settings.ini").write_text(
        f"[monitor]\nalertmanager = {manager.url}\n[alert.team]\nkind = file\npath = team.jsonl\n")
    return tmp_path


@pytest.fixture
def now(): return datetime.now(UTC).replace(microsecond=0)


def found(subject, now, **more):
    return Finding(rule="drift", subject=subject, endpoint="churn", started_at=now, summary=f"{subject} moved.", **more)


def post(manager, name, now, ends=None, **labels):
    manager.get("/api/v2/alerts", [dict(
        labels=dict(alertname=name, **labels), annotations=dict(summary=f"{name} fires"), startsAt=now.isoformat(),
        **(dict(endsAt=ends.isoformat()) if ends else {}))])


def listed(manager, **labels):
    "The alerts that Alertmanager holds with these labels, and whether each is suppressed."
    return [(a["labels"].get("mlops_nb_id"), a["status"]["state"]) for a in manager.get("/api/v2/alerts")
            if labels.items() <= a["labels"].items()]


def test_ours_are_posted_and_end_there(root, manager, now):
    update_alerts(root, [found("ours", now, severity="page")], now)
    assert [id for id, _ in listed(manager, subject="ours", severity="page", alertname="drift")] == ["A1"]
    held = update_alerts(root, [found("ours", now, severity="page")], now)
    assert len(held) == 1  # our own alert does not come back as one of theirs
    update_alerts(root, [], now)
    assert listed(manager, subject="ours") == []


def test_theirs_get_an_id_here_and_end_here(root, manager, now):
    post(manager, "DiskFull", now, instance="db-1", severity="critical", team="db")
    post(manager, "Burn", now, sloth_slo="availability", sloth_service="churn", window="1h", severity="page")
    own = Finding(rule="slo_burn", subject="availability", endpoint="churn", started_at=now, severity="page",
                  labels={"window": "1h"}, summary="20 times too fast")
    held = {a.finding.key: a.finding.severity for a in update_alerts(root, [own], now)}
    assert held["DiskFull:db-1{instance=db-1,source=alertmanager,team=db}"] == "page"
    assert [k for k in held if "availability" in k] == ["slo_burn:churn:availability{window=1h}"]
    assert listed(manager, alertname="slo_burn") == []  # and nothing is posted twice
    for name, labels in (("DiskFull", dict(instance="db-1", severity="critical", team="db")),
                         ("Burn", dict(sloth_slo="availability", sloth_service="churn", window="1h", severity="page"))):
        post(manager, name, now - MINUTE, ends=now, **labels)
    assert not [a for a in update_alerts(root, [], now) if "DiskFull" in a.finding.key]


def test_an_acknowledgement_and_a_silence_are_pushed_once(root, manager, now):
    update_alerts(root, [found("pushed", now), found("quiet", now)], now)
    ack_alert(root, "A1", "ana", now)
    silence(root, "quiet", "8h", "new tariffs", "bo", now)
    for n in range(2): update_alerts(root, [found("pushed", now), found("quiet", now)], now + n * MINUTE)
    sent = [(s["createdBy"], s["comment"], s["matchers"][0]["value"]) for s in manager.get("/api/v2/silences")
            if s["createdBy"] in ("ana", "bo")]
    assert sorted(sent) == [("ana", "ACK [mlops-nb]", "A1"), ("bo", "new tariffs [mlops-nb]", "quiet")]


def test_what_people_do_there_is_read_back(root, manager, now):
    findings = [found(s, now, severity="page") for s in ("a", "theirs", "c")]
    update_alerts(root, findings, now)
    def quiet(value, who, comment, name="subject"):
        return manager.get("/api/v2/silences", dict(
            matchers=[dict(name=name, value=value, isRegex=False, isEqual=True)], createdBy=who, comment=comment,
            startsAt=datetime.now(UTC).isoformat(), endsAt=(now + 60 * MINUTE).isoformat()))["silenceID"]
    quiet("A1", "cy", "ack, on my way", "mlops_nb_id")
    id = quiet("theirs", "dee", "maintenance")
    manager.get("/api/v2/silences", dict(matchers=[dict(name="job", value=".+", isRegex=True)], createdBy="eve",
                                         comment="all", startsAt=now.isoformat(), endsAt=(now + MINUTE).isoformat()))
    for n in range(1, 3): update_alerts(root, findings, now + n * MINUTE)
    state = read_alerts(open_ledger(root))
    acked = [a for a in state.alerts.values() if a.acked_by]
    assert [(a.id, a.acked_by) for a in acked] == [("A1", "cy")]
    assert [(s.subject, s.by) for s in state.silences] == [("theirs", "dee")]
    kinds = [e.kind for e in open_ledger(root).entries(kinds=("alert.acked", "alert.silenced"))]
    assert kinds.count("alert.acked") == kinds.count("alert.silenced") == 1
    import urllib.request
    urllib.request.urlopen(urllib.request.Request(f"{manager.url}/api/v2/silence/{id}", method="DELETE"), timeout=10)
    update_alerts(root, findings, now + 3 * MINUTE)
    [ended] = read_alerts(open_ledger(root)).silences
    assert ended.until <= datetime.now(UTC)  # ended there, ended here


def test_one_that_is_gone_ends_nothing(root, manager, now):
    post(manager, "Theirs", now, instance="db-2", severity="warning")
    update_alerts(root, [], now)
    (root / "settings.ini").write_text("[monitor]\nalertmanager = http://127.0.0.1:9\n")
    held = {a.finding.rule for a in update_alerts(root, [found("plan", now)], now + MINUTE)}
    assert held >= {"Theirs", "alertmanager", "drift"}
    post(manager, "Theirs", now - MINUTE, ends=now, instance="db-2", severity="warning")
