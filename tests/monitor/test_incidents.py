"An incident writes itself: one for each endpoint that pages, closed when its pages are over, told from the ledger."
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor.alert_updates import describe_incident, format_incident_list, update_alerts
from mlops_nb.monitor.alerts import ack_alert, close_alert, read_alerts, silence
from mlops_nb.monitor.causes import likely_causes
from mlops_nb.monitor.findings import Finding
from mlops_nb.monitor.incidents import incident_alerts, incident_cost, note_incident, read_incidents
from mlops_nb.monitor.record_counts import OUTCOMES
from mlops_nb.monitor.store import open_monitor_store

NINE = datetime(2026, 11, 3, 9, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def found(subject="plan", severity="page", endpoint="churn", rule="quality", **more):
    return Finding(rule=rule, subject=subject, endpoint=endpoint, severity=severity, started_at=NINE,
                   summary=f"{subject} fell.", **more)


def incidents(root): return read_incidents(open_ledger(root))


def subjects(root, id): return [a.finding.subject for a in incident_alerts(incidents(root)[id],
                                                                            read_alerts(open_ledger(root)))]


def test_tickets_open_none_and_a_page_opens_one_that_takes_in_the_rest(tmp_path):
    update_alerts(tmp_path, [found("early", "ticket")], NINE)
    assert not incidents(tmp_path)
    update_alerts(tmp_path, [found("early", "ticket"), found("auc")], NINE + 30 * MINUTE)
    late = [found("early", "ticket"), found("auc"), found("loss"), found("late", "ticket")]
    update_alerts(tmp_path, [*late, found("sales", endpoint="bikes")], NINE + HOUR)
    assert subjects(tmp_path, "I1") == ["early", "auc", "loss", "late"] and subjects(tmp_path, "I2") == ["sales"]
    assert len(incidents(tmp_path)) == 2


def test_it_ends_when_the_last_page_does_and_a_later_page_opens_another(tmp_path):
    both = [found("auc"), found("loss")]
    update_alerts(tmp_path, both, NINE)
    update_alerts(tmp_path, both[:1], NINE + HOUR)
    for n in range(2, 6): update_alerts(tmp_path, [], NINE + n * HOUR)
    assert incidents(tmp_path)["I1"].closed_at == NINE + 2 * HOUR
    update_alerts(tmp_path, both, NINE + 9 * HOUR)
    assert [*incidents(tmp_path)] == ["I1", "I2"] and incidents(tmp_path)["I2"].closed_at is None
    for id in ("A3", "A4"): close_alert(tmp_path, id, "known", "ana", NINE + 10 * HOUR)
    update_alerts(tmp_path, both, NINE + 11 * HOUR)
    assert incidents(tmp_path)["I2"].closed_at == NINE + 10 * HOUR and len(incidents(tmp_path)) == 2
    assert "GOING ON" not in format_incident_list(tmp_path)


def test_a_flapping_page_is_one_incident(tmp_path):
    for n in range(10): update_alerts(tmp_path, [found()] if n % 2 == 0 else [], NINE + n * HOUR)
    assert len(incidents(tmp_path)) == 1


def test_a_silenced_page_opens_none_until_the_silence_ends(tmp_path):
    silence(tmp_path, "plan", "2h", "known", "ana", NINE)
    for n in range(4):
        update_alerts(tmp_path, [found()], NINE + n * HOUR)
        assert len(incidents(tmp_path)) == (n >= 2)


def test_what_it_cost_is_counted(tmp_path):
    store, cells = open_monitor_store(tmp_path), len(OUTCOMES) + 1
    start = NINE.replace(tzinfo=None)
    with store.transaction() as t:
        t.append("series", pl.DataFrame([dict(
            series_id=1, endpoint="churn", bundle="b", variant="champion", segment_column="", segment_value="",
            kind="outcome", name="outcome", cells=cells)]))
        def count(hour, cell, n): t.append("counts", pl.DataFrame(dict(series_id=1, hour=hour, cell=[cell], n=[n])))
        for week in range(1, 5): count(start - timedelta(weeks=week), 1, 1000 + week)
        count(start, 1, 300)
        count(start, 2, 40)
        t.append("slo_budgets", pl.DataFrame(dict(slo="availability", measured_at=[start - HOUR, start + HOUR],
                                                  objective=.99, good=1., bad=0., budget_left=[.8, .3])))
    update_alerts(tmp_path, [found(rule="heartbeat")], NINE)
    for n in range(1, 4): update_alerts(tmp_path, [], NINE + n * HOUR)
    cost = incident_cost(store, incidents(tmp_path)["I1"], read_alerts(open_ledger(tmp_path)), NINE + 3 * HOUR)
    assert (cost.answered, cost.failed, cost.usual) == (300, 40, 1002.5) and cost.budgets == {"availability": (.8, .3)}
    page = describe_incident(tmp_path, now=NINE + 3 * HOUR)[1]
    assert "about 702 are missing" in page and "80% left before, 30% after" in page


def test_the_review_has_times_people_and_what_is_to_change(tmp_path):
    ledger = open_ledger(tmp_path)
    update_alerts(tmp_path, [found(), found("late", "ticket")], NINE + 5 * MINUTE)
    ack_alert(tmp_path, "A1", "ana", NINE + 12 * MINUTE)
    note_incident(tmp_path, "", "The meters were down.", by="bo", now=NINE + 20 * MINUTE)
    note_incident(tmp_path, "i1", "Refuse empty batches.", True, "bo", NINE + 21 * MINUTE)
    close_alert(tmp_path, "A1", "empty column", "ana", NINE + 50 * MINUTE)
    update_alerts(tmp_path, [found()], NINE + HOUR)
    id, page = describe_incident(tmp_path, now=NINE + HOUR)
    for words in ("taken: Tue 03 Nov 09:12 UTC, 12 min after it began", "ended: Tue 03 Nov 09:50 UTC, 50 min",
                  "- A1: empty column (ana)", "- Refuse empty batches. (bo)", "09:20 UTC · bo: The meters were down.",
                  "ana: acknowledged A1", "monitoring: A1 page: plan fell."): assert words in page, words
    with pytest.raises(UserError, match="The note is empty"): note_incident(tmp_path, "I1", " ")
    assert len(ledger.entries(kinds=("incident.closed",))) == 1


def test_the_first_cause_is_the_broken_column_then_the_release_then_the_meaning_of_the_labels(tmp_path):
    from mlops_nb.ledger.ledger import LedgerEntry
    def change(at): return LedgerEntry(1, at.isoformat(), "ana", "release.step", "r1", "", {})
    fell, broken = found("auc"), found("data_gb", rule="missing", endpoint="", owner="metering")
    other = found("x", rule="missing", endpoint="bikes")
    stepped = [change(NINE - HOUR)]
    assert likely_causes(fell, [fell, broken, other], stepped, None, NINE)[0] == "data_gb fell. (metering)"
    assert "release r1: took its next step" in likely_causes(fell, [fell, other], stepped, None, NINE)[0]
    for at in (NINE - 25 * HOUR, NINE + MINUTE):  # a day before, or after it began
        assert "concept drift" in likely_causes(fell, [fell, other], [change(at)], None, NINE)[0]
    assert likely_causes(found(causes=["own"]), [broken], [], None, NINE) == ["own", "data_gb fell. (metering)"]
