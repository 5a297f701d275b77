"The probe's file of counters: it goes on across restarts, and says what was asked in all."
import threading
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import server as serving

from mlops_nb.config.settings import Settings
from mlops_nb.monitor.counter_queries import Selector
from mlops_nb.monitor.counter_samples import counter_values, sample_counters
from mlops_nb.monitor.store import MonitorStore
from mlops_nb.serve.probe import Probe, run_probe


@pytest.fixture(scope="module")
def root(tmp_path_factory): return serving.project(tmp_path_factory.mktemp("probed"))


@pytest.fixture
def file(root):
    path = root / ".mlops/probe.prom"
    path.unlink(missing_ok=True)
    return path


def probe(root, endpoint=""):
    found = Probe(root, "http://127.0.0.1:9", timeout_seconds=1)  # nobody is there: each request fails
    found.endpoint = endpoint or found.endpoint
    return found


def failed(path):
    return {s.labels["endpoint"]: s.value for f in text_string_to_metric_families(path.read_text())
            for s in f.samples if s.name.endswith("requests_total") and s.labels["result"] == "failed"}


def durations(path):
    return {(s.name, s.labels.get("le", "")): s.value for f in text_string_to_metric_families(path.read_text())
            for s in f.samples if f.type == "histogram"}


def test_a_probe_that_is_started_anew_goes_on(root, file):
    for _ in range(3): run_probe(probe(root), every_seconds=.01, max_requests=2)
    assert failed(file) == {serving.ENDPOINT: 6}
    found, name = durations(file), "mlops_nb_probe_duration_seconds_"
    assert found[name + "count", ""] == found[name + "bucket", "+Inf"] == 6 and found[name + "sum", ""] > 0


def test_a_request_from_cron_every_minute_is_seen_by_monitoring(root, file, tmp_path):
    store, now = MonitorStore(f"duckdb:///{tmp_path}/monitor.duckdb"), datetime.now(UTC)
    for minute in range(4):
        run_probe(probe(root), max_requests=1)
        with store.transaction() as t:
            sample_counters(t, root, Settings(), [Selector("mlops_nb_probe_requests_total")],
                            now + timedelta(minutes=minute))
    with store.transaction() as t: grown = counter_values(t, now + timedelta(minutes=9))
    assert sum(grown.values()) == 3  # since the first look


def test_probes_in_one_folder_add_up(root, file):
    threads = [threading.Thread(target=run_probe, args=(probe(root), .01, 0, 10)) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join(30)
    assert failed(file) == {serving.ENDPOINT: 30}


def test_the_series_of_an_earlier_endpoint_stay_at_rest(root, file):
    run_probe(probe(root, "earlier"), max_requests=1)
    run_probe(probe(root), max_requests=1)
    assert failed(file) == {"earlier": 1, serving.ENDPOINT: 1}


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b"mlops_nb_probe_requests_total{endpoint=", b"# TYPE a counter"])
def test_a_damaged_file_is_replaced(root, file, content):
    file.write_bytes(content)
    run_probe(probe(root), max_requests=1)
    assert failed(file) == {serving.ENDPOINT: 1}


def test_a_file_that_cannot_be_written_is_said_and_the_probe_asks_on(root, file, capsys):
    file.mkdir()
    try: run_probe(probe(root), every_seconds=.01, max_requests=2)
    finally: file.rmdir()
    assert "probe.prom" in capsys.readouterr().err
