"""The story of monitoring: weeks of traffic with a broken column, a new category, another mix of customers, an outage
at three in the morning and another truth. Each is one incident with the right cause, and nobody is woken besides."""
from datetime import UTC, datetime, timedelta

import pytest
from support.release_project import project
from support.replayed_traffic import DAY, ReplayedTraffic, replay, subscriber_pools

from mlops_nb.config.settings import read_settings
from mlops_nb.config.slo import write_default_slos
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor.alerts import read_alerts
from mlops_nb.monitor.incidents import read_incidents

pytestmark = pytest.mark.timeout(1800) # forty runs of the monitor
START = datetime(2026, 3, 2, tzinfo=UTC)
PLANNED = {6: ("broken column", 2), 10: ("new category", 2), 14: ("covariate shift", 2), 21: ("concept drift", 9)}
OUTAGE = 18, (3, 4)
DAYS = 31


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    "The incidents in their order, each with the alerts of its time; and all alerts."
    root = tmp_path_factory.mktemp("monitoring") / "p"
    ids, pools = project(root, ("champion",)), subscriber_pools()
    write_default_slos(root, read_settings(root).release.endpoint)
    traffic = ReplayedTraffic(root, root / "bundles" / ids["champion"], pools["usual"])
    replay(root, traffic, START, DAYS, PLANNED, pools, OUTAGE)
    ledger = open_ledger(root)
    return [*read_incidents(ledger).values()], read_alerts(ledger).alerts


def began(day, hour=0): return START + day * DAY + timedelta(hours=hour)


def test_five_incidents_and_no_other_page(told):
    incidents, alerts = told
    assert len(incidents) == 5, [(i.opened_at, alerts[i.alert].finding.summary) for i in incidents]


@pytest.mark.parametrize("number, day, within, rule, subject", [
    (0, 6, 2, "missing", "charge"), (1, 10, 2, "drift", "plan"), (2, 14, 2, "drift", "tenure"),
    (3, 18, 1, "slo_burn", "availability-probe")])
def test_each_is_seen_in_time_and_has_the_right_cause(told, number, day, within, rule, subject):
    incidents, alerts = told
    first = alerts[incidents[number].alert].finding
    assert (first.rule, first.subject) == (rule, subject), first.summary
    assert began(day) <= incidents[number].opened_at <= began(day + within)
    if rule == "slo_burn": assert first.causes[0].startswith("churn has answered nobody since 2026-03-20 03:00 UTC")


def test_another_truth_is_seen_when_its_labels_come(told):
    incidents, alerts = told
    first = alerts[incidents[4].alert].finding
    assert first.rule in ("quality", "calibration") and began(21) <= incidents[4].opened_at <= began(21 + 10)
    assert "plan" in " ".join([first.summary, *first.causes])
