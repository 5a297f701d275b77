"The run of all monitors: one that fails stops no other, and a store that is gone is told and ends no alert."
from datetime import UTC, datetime, timedelta

import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor import run
from mlops_nb.monitor.alerts import read_alerts
from mlops_nb.monitor.findings import Finding
from mlops_nb.monitor.run import run_monitor

NOON = datetime(2026, 11, 3, 12, tzinfo=UTC)
LATE = Finding(rule="data_freshness", subject="data", summary="The newest row is three days old.", started_at=NOON)


def held(root): return {a.finding.subject for a in read_alerts(open_ledger(root)).held()}


@pytest.fixture
def project(tmp_path, monkeypatch):
    "A project of which one monitor finds something."
    monkeypatch.setattr(run, "MONITORS", {"data": lambda *_: [LATE]})
    return tmp_path


def test_a_store_that_is_gone_is_an_alert_and_ends_none(project):
    run_monitor(project, NOON)
    assert held(project) == {"data"}
    store = project / ".mlops" / "monitor.duckdb"
    store.unlink()
    store.mkdir()
    with pytest.raises(UserError, match="The store of monitoring, .* cannot be used"):
        run_monitor(project, NOON + timedelta(hours=1))
    assert held(project) == {"data", "store"}
    store.rmdir()
    run_monitor(project, NOON + timedelta(hours=2))
    assert held(project) == {"data"}
