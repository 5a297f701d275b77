"Steps of requests: from the files of a server's counters, over restarts, for endpoints that are known."
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from support.counted_project import project

from mlops_nb.monitor.bin_counts import LATENCY_EDGES_US
from mlops_nb.monitor.log_counts import append_counts
from mlops_nb.monitor.record_counts import RECORD_COUNTS
from mlops_nb.monitor.step_latency import STEPS, count_steps, step_results
from mlops_nb.serve.metrics import LATENCY_BUCKETS, Metrics

NOW = datetime(2026, 11, 2, 12, 20, tzinfo=UTC)


@pytest.fixture
def root(tmp_path, store):
    project(tmp_path)
    seen = pl.DataFrame(dict(bundle="b", variant="champion", segment_column="", segment_value="", kind="outcome",
                             name="outcome", cells=7, hour=datetime(2026, 11, 2, 11), cell=1, n=5))
    with store.transaction() as t:
        append_counts(t, "churn", seen.select(pl.col(c).cast(type_) for c, type_ in RECORD_COUNTS.items()))
    return tmp_path


def observe(metrics, seconds, endpoint="churn", variant="champion"):
    for step, s in seconds.items(): metrics.step_duration(endpoint, variant, step).observe(s)


def results(store, hours=.5):
    return step_results(store, "churn", NOW - timedelta(hours=1), NOW + timedelta(hours=hours))


def test_each_bucket_of_the_server_ends_at_an_edge():
    assert {round(b * 1e6) for b in LATENCY_BUCKETS} <= {*LATENCY_EDGES_US}


def test_looks_add_up_over_processes_hours_and_restarts(root, store):
    metrics = [Metrics(root / "predictions", i) for i in range(2)]
    for m in metrics: observe(m, dict(read=.00005, decode=.0002, predict=.02, record=30, answer=.0001))
    count_steps(root, store, NOW)
    found = results(store)
    assert found["step"].to_list() == STEPS and set(found["requests"]) == {2}
    assert found.filter(step="predict").row(0)[3:] == (25, 25, 25)  # the bucket from 10 to 25 ms
    assert found.filter(step="record")["p99_ms"][0] is None  # more than ten seconds
    count_steps(root, store, NOW)  # nothing came since
    assert set(results(store)["requests"]) == {2}
    observe(metrics[0], dict(predict=.3))
    count_steps(root, store, NOW + timedelta(hours=1))
    later = results(store, 2).filter(step="predict")
    assert later["requests"][0] == 3 and later["p99_ms"][0] == 500 and results(store)["requests"][2] == 2
    for path in (root / "predictions/metrics").glob("*.db"): path.unlink()
    again = Metrics(root / "predictions", 0)
    observe(again, dict(predict=.02))
    count_steps(root, store, NOW + timedelta(hours=1))
    assert results(store, 2).filter(step="predict")["requests"][0] == 4


def test_variants_apart_and_endpoints_that_nobody_counted_left_out(root, store):
    metrics = Metrics(root / "predictions", 0)
    observe(metrics, dict(predict=.001))
    observe(metrics, dict(predict=.1), variant="challenger")
    observe(metrics, dict(predict=.1), endpoint="other", variant="other")
    observe(metrics, dict(predict=.1), variant="")  # refused before a variant was chosen
    count_steps(root, store, NOW)
    assert results(store).select("variant", "p50_ms").rows() == [("challenger", 100), ("champion", 1)]
    assert store.query("SELECT DISTINCT endpoint FROM series")["endpoint"].to_list() == ["churn"]


def test_without_a_server_there_is_nothing(root, store):
    count_steps(root, store, NOW)
    assert results(store).height == 0
