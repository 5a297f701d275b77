"A whole run, of every monitor, with each database: what one finds the other finds."
from datetime import timedelta

import pytest
from support.counted_project import at_hour, pack, project, requests

from mlops_nb.config.params import Params, write_params
from mlops_nb.config.slo import write_default_slos
from mlops_nb.monitor.results import budget_results, newest_checks, quality_results, traffic_results
from mlops_nb.monitor.run import run_monitor
from mlops_nb.prediction_log.segments import Feedback
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.report.monitoring_tables import read_monitoring_summary


@pytest.fixture
def answered(tmp_path):
    bundle = project(tmp_path, pack(tmp_path / "packed"))
    write_params(Params(), tmp_path / "params.yaml")
    write_default_slos(tmp_path, "churn")
    log = PredictionLogWriter(tmp_path / "predictions", 0)
    for record in requests(300, bundle, hour=9): log.append(record)
    for i in range(200):
        log.append(Feedback(id=f"1-{i}", time=int(at_hour(12).timestamp() * 1e6), endpoint="churn",
                            label="leaves" if i % 3 else "stays"))
    log.close()
    return tmp_path


def test_every_monitor_runs(answered, store, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_MONITOR_STORE", store.uri)
    first, second = (run_monitor(answered, at_hour(13) + timedelta(days=d)) for d in (0, 4))
    assert (first.counted.rows, first.counted.labels, second.counted.rows) == (300, 200, 0)
    assert not [f.summary for f in second.findings if f.rule == "monitor_failed"]
    start, end = at_hour(0), at_hour(0) + timedelta(days=5)
    assert traffic_results(store, "churn", start, end)["rows"].sum() == 300
    assert {"estimated", "weighted"} <= {*quality_results(store, "churn", start, end)["method"]}
    assert newest_checks(store).height > 5 and budget_results(store, end).height == 7
    assert read_monitoring_summary(answered, store, "churn", start, end).rows == 300
