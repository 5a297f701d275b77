"The metrics of several processes: what was counted stays, and the text is what Prometheus reads."
import shutil
import signal
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as TheirCounter
from prometheus_client import Histogram as TheirHistogram
from prometheus_client.parser import text_string_to_metric_families

from mlops_nb.prediction_log.leases import acquire_lease, release_lease
from mlops_nb.serve import metrics as module
from mlops_nb.serve.metrics import LATENCY_BUCKETS, Metrics


def samples(text, name=""):
    "{(sample, labels): value} of a page."
    found = (s for family in text_string_to_metric_families(text.decode()) for s in family.samples)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for s in found if s.name.startswith(name)}


@pytest.fixture
def lease_id(tmp_path):
    lease_id = acquire_lease(tmp_path, 4)
    yield lease_id
    release_lease(tmp_path, lease_id)


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.one_of(st.sampled_from(LATENCY_BUCKETS), st.floats(0, 100)), max_size=20),
       label=st.text(st.characters(exclude_categories=["Cs"]), max_size=10))
def test_the_page_says_what_the_library_would_say(tmp_path_factory, values, label):
    folder, theirs = tmp_path_factory.mktemp("m"), CollectorRegistry()
    ours = Metrics(folder, 0)
    histogram = TheirHistogram("mlops_nb_request_duration_seconds", "x", ["endpoint", "variant", "route"],
                               registry=theirs, buckets=LATENCY_BUCKETS)
    counter = TheirCounter("mlops_nb_scored_rows", "x", ["endpoint", "variant"], registry=theirs)
    for v in values:
        ours.request_duration(label, "v", "predict").observe(v)
        histogram.labels(label, "v", "predict").observe(v)
        ours.scored_rows(label, "a").inc(v)
        counter.labels(label, "a").inc(v)
    from prometheus_client import generate_latest
    want = {k: v for k, v in samples(generate_latest(theirs)).items() if not k[0].endswith("_created")}
    got = {k: v for k, v in samples(ours.render()).items()
           if k[0].startswith(("mlops_nb_request_duration", "mlops_nb_scored_rows"))}
    assert got.keys() == want.keys()
    assert all(got[k] == pytest.approx(want[k]) for k in want)


CHILD = """
import os, sys, time
from mlops_nb.serve.metrics import Metrics
from mlops_nb.prediction_log.leases import acquire_lease
lease_id = acquire_lease(sys.argv[1], 2)
metrics, n = Metrics(sys.argv[1], lease_id), 0
metrics.in_flight_requests.set(5)
while True:
    metrics.requests("churn", "champion", "predict", 200).inc()
    metrics.request_duration("churn", "v", "predict").observe(0.001)
    n += 1
    if n % 100 == 0: print(lease_id, n, flush=True)
"""


def test_counters_go_on_over_kills(tmp_path, lease_id):
    "What was counted stays; a counter never goes down; gauges go with their process."
    own, before, least = Metrics(tmp_path, lease_id), 0, 0
    own.requests("churn", "champion", "predict", 200).inc(7)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path], stdout=subprocess.PIPE, text=True)
        try:
            said = [child.stdout.readline().split() for _ in range(3)][-1]
            page = samples(own.render(), "mlops_nb_in_flight_requests")
            assert sum(page.values()) == 5
        finally: child.send_signal(signal.SIGKILL)
        more = child.stdout.read().splitlines()
        child.wait()
        assert int(said[0]) == 1 - lease_id
        least += int(more[-1].split()[1] if more and len(more[-1].split()) == 2 else said[1]) // 100 * 100
        page = samples(own.render())
        now = next(v for (name, _), v in page.items() if name == "mlops_nb_requests_total")
        assert now >= max(before, least + 7)
        before = now
        observed = next(v for (name, _), v in page.items() if name == "mlops_nb_request_duration_seconds_count")
        assert now - 7 - 4 <= observed <= now - 7
        assert sum(v for (name, _), v in page.items() if name == "mlops_nb_in_flight_requests") == 0


def test_a_bundle_that_no_longer_answers_is_not_named(tmp_path, lease_id):
    m = Metrics(tmp_path, lease_id)
    m.bundle_processes("churn", "champion", "old", "live").set(1)
    m.bundle_processes("churn", "champion", "old", "live").set(0)
    m.bundle_processes("churn", "champion", "new", "live").set(1)
    assert [dict(labels)["bundle"] for _, labels in samples(m.render(), "mlops_nb_bundle_processes")] == ["new"]
    assert not samples(Metrics(tmp_path, lease_id).render(), "mlops_nb_bundle_processes")  # another process


def test_a_million_labels_have_a_bound(tmp_path, lease_id, monkeypatch):
    monkeypatch.setattr(module, "_FILE_BYTES", dict(counter=100_000, histogram=200_000, gauge=100_000))
    m = Metrics(tmp_path, lease_id)
    for i in range(3000):
        m.schema_violations("churn", f"column-{i}" * 5).inc()
        m.requests("churn", "a", f"guess-{i}", 404).inc()
        m.request_duration(f"guess-{i}", "v", "predict").observe(0.1)
    m.answered_rows.inc()
    page = samples(m.render())
    for name, n in dict(schema_violations_total=3000, requests_total=3000, request_duration_seconds_count=3000,
                        answered_rows_total=1).items():
        assert sum(v for (sample, _), v in page.items() if sample == f"mlops_nb_{name}") == n
    assert page["mlops_nb_schema_violations_total", (("column", "other"), ("endpoint", "other"))] > 1000
    assert {p.stat().st_size for p in m.folder.glob("*.db")} == {100_000, 200_000}
    assert len(m.schema_violations._children) < 1000
    again = Metrics(tmp_path, lease_id)  # the files are full, and opened anew
    again.schema_violations("churn", "yet another").inc()
    assert sum(samples(again.render(), "mlops_nb_schema_violations_total").values()) == 3001


def test_labels_are_one_whatever_their_type(tmp_path, lease_id):
    m = Metrics(tmp_path, lease_id)
    assert m.requests("e", "v", "r", 200) is m.requests("e", "v", "r", "200")
    with pytest.raises(TypeError, match="has the labels endpoint, variant, route, status"): m.requests("e")


def test_threads_count_together(tmp_path, lease_id):
    m = Metrics(tmp_path, lease_id)
    def work(k):
        for i in range(3000):
            m.answered_rows.inc()
            m.request_duration("e", "v", "r").observe(0.5)
            m.cache_requests(f"e{(i + k) % 50}", "hit").inc()
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    page = samples(m.render())
    assert page["mlops_nb_answered_rows_total", ()] == 12000
    assert page["mlops_nb_request_duration_seconds_sum", (("endpoint", "e"), ("route", "r"), ("variant", "v"))] == 6000
    assert sum(v for (name, _), v in page.items() if name == "mlops_nb_cache_requests_total") == 12000


def number(n): return n.to_bytes(4, "little", signed=True)


DAMAGES = [b"", b"\xff" * 64, number(4096) + bytes(4) + number(2**31 - 1),
           number(64) + bytes(4) + number(40) + b"not json at all" * 4]


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_are_damaged_or_just_being_made(tmp_path, lease_id, damage):
    m = Metrics(tmp_path, lease_id)
    m.answered_rows.inc(3)
    other = m.folder / "counter_3.db"
    other.write_bytes(damage)
    assert samples(m.render())["mlops_nb_answered_rows_total", ()] == 3
    if not damage: return
    size = module._FILE_BYTES["counter"]
    mine = m.folder / f"counter_{lease_id}.db"
    with mine.open("r+b") as f: f.write(damage)
    fresh = Metrics(tmp_path, lease_id)  # begins at zero where it cannot go on
    fresh.answered_rows.inc()
    assert mine.stat().st_size == size and "mlops_nb_answered_rows_total" in fresh.render().decode()


@pytest.mark.parametrize("how", ["a file", "the folder", "a file in its place"])
def test_files_that_are_removed_are_made_again_and_no_figure_is_lost(tmp_path, lease_id, caplog, how):
    "Their process counts on, and its page has its figures all the time; each change is said once."
    m = Metrics(tmp_path, lease_id)
    duration = m.request_duration(*"e" * len(m.request_duration._labels))

    def count(rows):
        m.answered_rows.inc(rows)
        duration.observe(rows)
        m.in_flight_requests.set(rows)

    def page_has(rows, last):
        page = samples(m.render())
        assert page["mlops_nb_answered_rows_total", ()] == rows
        assert sum(samples(m.render(), "mlops_nb_request_duration_seconds_sum").values()) == rows
        assert page.get(("mlops_nb_in_flight_requests", ()), last) == last # a live process's alone

    count(3)
    m.check_files()
    assert not caplog.records
    if how == "a file": m._files["counter"].path.unlink()
    else: shutil.rmtree(m.folder)
    if how == "a file in its place": m.folder.touch()
    for i in range(3):
        page_has(3 + i, 1 if i else 3)
        m.check_files()
        count(1)
    if how == "a file in its place":
        assert [r.getMessage().count("cannot be made again") for r in caplog.records] == [1]
        m.folder.unlink()
        m.check_files()
    page_has(6, 1)
    assert "made again with what this process has counted" in caplog.records[-1].getMessage()
    assert len(caplog.records) == 1 + (how == "a file in its place")
    page = m.render()
    assert Metrics(tmp_path, lease_id).render().count(b"answered_rows_total 6.0") == page.count(b"rows_total 6.0") == 1


DISK = "8m"


def test_counting_on_a_full_disk(small_disk):
    "A mapped file without blocks would end the process with SIGBUS."
    script = """
import sys
from mlops_nb.serve.metrics import Metrics
m = Metrics(sys.argv[1], 0)
try: open(sys.argv[1] + "/filler", "wb").write(bytes(1 << 24))
except OSError: pass
for i in range(3000):
    m.schema_violations("churn", f"column-{i}").inc()
    m.request_duration(f"e{i}", "v", "predict").observe(1)
try: Metrics(sys.argv[1], 1)
except OSError as e: print(e.filename)
"""
    done = subprocess.run([sys.executable, "-c", script, small_disk], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(small_disk / "metrics" / "counter_1.db")


def test_a_page_of_many_processes_describes_each_figure_once(tmp_path):
    leases = [acquire_lease(tmp_path, 8) for _ in range(8)]
    for s in leases:
        m = Metrics(tmp_path, s)
        for e in range(5):
            for r in range(3):
                m.request_duration(f"e{e}", "v", f"r{r}").observe(0.1)
                for status in (200, 400, 503): m.requests(f"e{e}", "a", f"r{r}", status).inc()
    page = m.render()
    assert page.count(b"# TYPE") == len({line.split()[2]
                                         for line in page.decode().splitlines() if line.startswith("# TYPE")})
    for s in leases: release_lease(tmp_path, s)


def test_promtool_has_nothing_to_say(tmp_path, lease_id):
    if not shutil.which("promtool"): pytest.skip("promtool is not installed (Debian: apt-get install prometheus)")
    m = Metrics(tmp_path, lease_id)
    m.requests("churn", "champion", "predict", 200).inc()
    m.request_duration("churn", "v", "predict").observe(0.1)
    m.bundle_processes("churn", "champion", "b", "live").set(1)
    done = subprocess.run(["promtool", "check", "metrics"], input=m.render(), capture_output=True, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
