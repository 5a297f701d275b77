"Findings become alerts once, whatever happens between; silences, inhibition, storms, faults of the ledger."
import json
import os
import resource
import signal
import threading
from datetime import UTC, datetime, timedelta

import pytest

import mlops_nb.monitor.alert_updates as updates
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor.alert_updates import format_alert, format_alert_list, update_alerts
from mlops_nb.monitor.alerts import (
    MAX_ALERTS_OF_A_RULE,
    ack_alert,
    close_alert,
    find_alert,
    list_alerts,
    read_alerts,
    silence,
)
from mlops_nb.monitor.findings import Finding

NINE = datetime(2026, 11, 3, 9, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
SETTINGS = "[alert.team]\nkind = file\npath = team.jsonl\ngroup_minutes = 0\nmax_per_hour = 1000\n"


def found(subject="plan", severity="ticket", rule="drift", **more):
    return Finding(rule=rule, subject=subject, endpoint="churn", severity=severity, started_at=NINE,
                   summary=f"{subject} moved.", **more)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "settings.ini").write_text(SETTINGS)
    return tmp_path


def sent(root, route="team"):
    path = root / f"{route}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def told(root, route="team"): return [(a["id"], a["event"]) for m in sent(root, route) for a in m["alerts"]]


def states(root): return {a.id: a.status for a in read_alerts(open_ledger(root)).alerts.values()}


def test_a_finding_is_told_once_and_its_end_once(root):
    for n in range(4): update_alerts(root, [found()], NINE + n * HOUR)
    for n in range(4, 9): update_alerts(root, [], NINE + n * HOUR)
    assert told(root) == [("A1", "ticket"), ("A1", "resolved")] and states(root) == {"A1": "resolved"}


def test_flapping_opens_once_and_a_return_after_hours_opens_again(root):
    for n in range(8): update_alerts(root, [found()] if n % 2 else [], NINE + n * HOUR)
    assert told(root) == [("A1", "ticket")]
    for n in range(8, 12): update_alerts(root, [], NINE + n * HOUR)
    update_alerts(root, [found()], NINE + 12 * HOUR)
    assert told(root) == [("A1", "ticket"), ("A1", "resolved"), ("A2", "ticket")]


def test_who_has_a_flapping_alert_keeps_it(root):
    update_alerts(root, [found(severity="page")], NINE)
    ack_alert(root, "a1", "ana", NINE)
    update_alerts(root, [], NINE + HOUR)
    [alert] = update_alerts(root, [found(severity="page")], NINE + 2 * HOUR)
    assert (alert.acked_by, alert.status) == ("ana", "acked")


def test_a_ticket_that_becomes_a_page_is_told_again_and_needs_somebody_again(root):
    update_alerts(root, [found()], NINE)
    ack_alert(root, "A1", "ana", NINE)
    [alert] = update_alerts(root, [found(severity="page")], NINE + HOUR)
    assert told(root) == [("A1", "ticket"), ("A1", "page")] and alert.status == "open"
    [alert] = update_alerts(root, [found()], NINE + 2 * HOUR)  # and a page stays one
    assert alert.finding.severity == "page" and len(told(root)) == 2


def test_a_closed_alert_stays_closed_while_it_holds(root):
    update_alerts(root, [found(severity="page")], NINE)
    close_alert(root, "1", "a promotion", "ana", NINE)
    for n in range(1, 9): update_alerts(root, [found(severity="page")], NINE + n * HOUR)
    assert told(root) == [("A1", "page")] and states(root) == {"A1": "closed"}
    for n in (40, 50): update_alerts(root, [], NINE + n * HOUR)
    update_alerts(root, [found(severity="page")], NINE + 60 * HOUR)
    assert told(root)[-1] == ("A2", "page")


def test_a_silence_has_an_end_and_then_people_are_told(root):
    silence(root, "plan", "3h", "new tariffs", "ana", NINE)
    for n in range(3): update_alerts(root, [found(severity="page")], NINE + n * HOUR)
    assert not sent(root) and "silenced until Tue 03 Nov 12:00 UTC by ana: new tariffs" in format_alert_list(root, NINE)
    update_alerts(root, [found(severity="page")], NINE + 3 * HOUR)
    assert told(root) == [("A1", "page")]
    for duration, why, says in (("0h", "x", "no length"), ("31d", "x", "longest is 30d"), ("1h", "", "Say why")):
        with pytest.raises(UserError, match=says): silence(root, "plan", duration, why)


def test_a_broken_column_silences_its_drift_and_what_follows_until_it_is_mended(root):
    broken, effects = found("data_gb", rule="missing"), [found("data_gb"), found("score", "page", "prediction_drift")]
    update_alerts(root, [broken, *effects], NINE)
    assert [(m["severity"], [a["rule"] for a in m["alerts"]]) for m in sent(root)] == [("page", ["missing"])]
    update_alerts(root, [*effects], NINE + HOUR)  # mended, and they still drift: then it was not the cause
    assert [a["rule"] for a in sent(root)[-1]["alerts"]] == ["drift"]
    assert sent(root)[-1]["severity"] == "page"  # it explains a page


def test_what_explains_each_other_in_a_circle_is_told():
    from mlops_nb.monitor.alerts import Alert, AlertState
    names, state = "abcde", AlertState()
    for i, n in enumerate(names):
        f = found(n, rule="volume", depends_on=[f"volume:churn:{names[(i + 1) % 4]}"])  # a b c d in a circle, e outside
        state.alerts[n] = Alert(id=n, finding=f, opened_at=NINE, raised_at=NINE)
    assert state.explanations() == {} and len(state.audible(NINE)) == 5


def test_a_storm_is_bounded_and_summarised(root):
    storm = [found(f"c{i:05}", "page") for i in range(10_000)] + [found("plan", rule="quality")]
    start = datetime.now()
    held = update_alerts(root, storm, NINE)
    assert datetime.now() - start < timedelta(seconds=30)
    assert len(held) == MAX_ALERTS_OF_A_RULE + 2 and len(sent(root)) == 1
    message = sent(root)[0]
    assert len(message["text"]) < 10_000 and len(message["alerts"]) <= 100
    assert "more; see mlops-nb alert list" in message["text"]
    summary = next(a.finding.summary for a in held if a.finding.subject == "many findings")
    assert summary.startswith("9950 more findings of drift")
    entries = len(open_ledger(root).entries())
    update_alerts(root, storm, NINE + HOUR)
    assert len(open_ledger(root).entries()) == entries  # nothing new
    update_alerts(root, storm[:1], NINE + 2 * HOUR)
    assert [a.status for a in list_alerts(root, NINE + 2 * HOUR)].count("open") == 1


def test_two_runs_at_once_open_one_alert_for_each_finding(root):
    findings = [found(f"c{i}") for i in range(12)]
    errors = []
    def run(order):
        try: update_alerts(root, order, NINE)
        except BaseException as e: errors.append(e)
    threads = [threading.Thread(target=run, args=(o,)) for o in (findings, findings[::-1], findings[6:] + findings[:6])]
    for t in threads: t.start()
    for t in threads: t.join(60)
    alerts = read_alerts(open_ledger(root)).alerts
    assert not errors and sorted(a.finding.subject for a in alerts.values()) == sorted(f.subject for f in findings)
    assert [*alerts] == [f"A{i}" for i in range(1, 13)]


@pytest.mark.parametrize("moment, before", [("deliver_all", 0), ("_write_sent", 1)])
def test_killed_between_ledger_and_delivery(root, moment, before):
    "Before anything is sent, and after it was sent and before that is written down."
    child = os.fork()
    if not child:
        setattr(updates, moment, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
        update_alerts(root, [found(severity="page")], NINE)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(sent(root)) == before and states(root) == {"A1": "open"}
    update_alerts(root, None, NINE + MINUTE)  # nobody has looked since
    assert told(root) == [("A1", "page")]  # the file knows the key of the second
    update_alerts(root, None, NINE + 2 * MINUTE)
    assert len(sent(root)) == 1


def test_a_full_disk_of_the_ledger_does_not_silence_a_page(root, capsys):
    update_alerts(root, [found()], NINE)
    hook = []
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(updates, "deliver_all", lambda jobs, root: hook.extend(jobs) or [""] * len(jobs))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, was[1]))
        try:
            with pytest.raises(UserError, match="cannot be used|disk is full"):
                update_alerts(root, [found(), found("score", "page")], NINE + HOUR)
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, was)
    [(name, _, message)] = hook
    assert name == "team" and "score moved." in message.text and "Alerts cannot be written down" in message.text
    assert "plan" not in message.text  # a ticket waits
    update_alerts(root, [found(), found("score", "page")], NINE + 2 * HOUR)
    assert told(root)[-1] == ("A2", "page")


def test_an_id_is_found_as_people_type_it(root):
    update_alerts(root, [found(), found("data_gb")], NINE)
    state = read_alerts(open_ledger(root))
    assert {find_alert(state, i).id for i in ("a2", "A2", "2", " a2 ")} == {"A2"}
    with pytest.raises(UserError, match="no alert 'A3'; known are A2, A1"): find_alert(state, "A3")
    update_alerts(root, [], NINE + HOUR)
    for act in (lambda: ack_alert(root, "a1"), lambda: close_alert(root, "a1", "x")):
        with pytest.raises(UserError, match="is over since"): act()
    with pytest.raises(UserError, match="Say what it was"): close_alert(root, "a1", " ")


ROTA = """timezone: Europe/Vienna
people:
  ana: {routes: [ana]}
  bo: {routes: [bo], timezone: Europe/Lisbon}
shifts: [{people: [ana, bo], turn_days: 1, start: "09:00", end: "09:00", first_day: "2026-11-03"}]
quiet_hours: {start: "19:00", end: "08:00"}
escalation: [{after_minutes: 15, to: next}, {after_minutes: 30, to: everybody}]
"""


@pytest.fixture
def team(root):
    (root / "oncall.yaml").write_text(ROTA)
    (root / "settings.ini").write_text(
        SETTINGS + "".join(f"[alert.{n}]\nkind = file\npath = {n}.jsonl\n" for n in ("ana", "bo")))
    return root


def test_a_night_of_escalation(team):
    three = datetime(2026, 11, 4, 2, tzinfo=UTC)  # 03:00 in Vienna, ana's turn
    findings = [found(severity="page"), found("data_gb")]
    for minute in range(0, 50, 5):
        update_alerts(team, findings if minute % 30 == 0 else None, three + minute * MINUTE)
    assert told(team, "ana") == [("A1", "page"), ("A1", "step2")]
    assert told(team, "bo") == [("A1", "step1"), ("A1", "step2")]
    assert [m["at"][11:16] for m in sent(team, "bo")] == ["02:15", "02:30"]
    assert "Wed 04 Nov 02:15 WET" not in sent(team, "ana")[0]["text"] and "WET" in sent(team, "bo")[0]["text"]
    assert told(team) == [("A1", "page")]  # the ticket waits for eight o'clock
    update_alerts(team, None, three + 5 * HOUR)
    assert told(team) == [("A1", "page"), ("A2", "ticket")]


def test_who_acknowledges_ends_the_escalation_and_who_takes_over_is_not_woken(team):
    three = datetime(2026, 11, 4, 2, tzinfo=UTC)
    update_alerts(team, [found(severity="page")], three)
    ack_alert(team, "A1", "ana", three + 5 * MINUTE)
    for n in range(1, 8): update_alerts(team, [found(severity="page")], three + n * HOUR)  # bo's turn from nine on
    assert told(team, "bo") == [] and told(team, "ana") == [("A1", "page")]


def test_a_page_that_nobody_has_goes_to_who_takes_over(team):
    (team / "oncall.yaml").write_text(ROTA[:ROTA.index("escalation")] + "escalation: []\n")
    eight = datetime(2026, 11, 4, 7, 30, tzinfo=UTC)
    for n in (0, 1): update_alerts(team, [found(severity="page")], eight + n * HOUR)
    assert (told(team, "ana"), told(team, "bo")) == ([("A1", "page")], [("A1", "page")])


def test_a_rota_with_a_hole_or_a_mistake_is_said_at_once_and_wakes_everybody(team):
    (team / "oncall.yaml").write_text(ROTA.replace("turn_days", "days: [mon], turn_days"))
    held = update_alerts(team, [found(severity="page")], NINE + 12 * HOUR)  # a Tuesday evening
    assert [a.finding.rule for a in held if "Nobody is on call from Tue 03 Nov" in a.finding.summary] == ["rota"]
    assert told(team, "ana") == told(team, "bo") != []
    assert "On call: NOBODY" in format_alert_list(team, NINE + 12 * HOUR)
    (team / "oncall.yaml").write_text(ROTA.replace("ana, bo", "ana, b"))
    held = update_alerts(team, [found("data_gb", severity="page")], NINE + 24 * HOUR)
    assert any("everybody is told" in a.finding.summary for a in held)
    assert all(("A3", "page") in told(team, r) or ("A4", "page") in told(team, r) for r in ("ana", "bo", "team"))


def test_groups_and_limits_of_a_route(root):
    (root / "settings.ini").write_text(SETTINGS.replace("minutes = 0", "minutes = 30").replace("1000", "3"))
    for n in range(12): update_alerts(root, [found(f"c{i}") for i in range(n + 1)], NINE + 5 * n * MINUTE)
    assert [len(m["alerts"]) for m in sent(root)] == [1, 6]  # at 9:00 and 9:30
    pages = [found(f"p{i}", "page") for i in range(12)]
    for n in range(12): update_alerts(root, pages[:n + 1], NINE + (10 + n / 60) * HOUR)
    assert [len(m["alerts"]) for m in sent(root)[-3:]] == [1, 1, 1]  # the hour's three
    update_alerts(root, pages, NINE + 11.5 * HOUR)
    told_pages = {id for id, event in told(root) if event == "page"}
    assert len(told_pages) == 12  # the rest in one message, when the hour was over


def test_the_list_says_what_somebody_needs_at_three(team):
    three = datetime(2026, 11, 4, 2, tzinfo=UTC)
    f = found(severity="page", causes=["data_gb is empty"], next_command="mlops-nb monitor show drift", runbook="drift")
    update_alerts(team, [f], three)
    text = format_alert_list(team, three + 47 * MINUTE, reader="ana")
    for words in ("On call: ana until Wed 04 Nov 09:00 CET, then bo", "PAGE   A1", "nobody has it", "runbook: drift",
                  "likely: data_gb is empty", "mlops-nb alert ack A1, then mlops-nb monitor show drift"):
        assert words in text
    assert "09:00 WET" not in text and "WET" in format_alert_list(team, three, reader="bo")
    assert all(len(line) < 120 for line in text.splitlines())
    assert "told on ana" in format_alert(team, "A1", three) and "incident: I1" in format_alert(team, "A1", three)
