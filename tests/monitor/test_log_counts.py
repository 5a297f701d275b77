"From log to store: each line once, whatever is killed, late, repeated, compacted or counted by two at once."
import random
import shutil
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from support.counted_project import START, at_hour, project, requests
from support.imports import ROOT
from support.prediction_logs import Killed, segments, segments_of

from mlops_nb.config.settings import read_settings, write_settings
from mlops_nb.monitor import log_counts
from mlops_nb.monitor.bin_counts import cell_numbers
from mlops_nb.monitor.log_counts import count_log, tidy_counts
from mlops_nb.monitor.record_counts import open_bundle_cells
from mlops_nb.monitor.store import MonitorStore, Transaction
from mlops_nb.monitor.window_counts import earlier_weeks_counts, hourly_counts, list_segments, window_counts
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.segments import Feedback
from mlops_nb.prediction_log.writer import PredictionLogWriter

HOURS = 4
END = at_hour(HOURS)


def write(root, records, lease=0, size=60_000):
    log = PredictionLogWriter(root / "predictions", lease, segments_of(size))
    for r in records: log.append(r)
    log.close()


def answers(id): return [[*requests(40, id, hour, seed=hour, per_request=2)] for hour in range(HOURS)]


@pytest.fixture(scope="module")
def logged(tmp_path_factory, bundle):
    root = tmp_path_factory.mktemp("logged") / "project"
    id = project(root, bundle)
    for hour, records in enumerate(answers(id)):
        write(root, records, lease=hour % 2, size=20_000)
        if hour == 2: compact_log(root / "predictions")
    write(root, [Feedback(id=f"0-{i}", time=int(at_hour(1).timestamp() * 1e6), endpoint="churn", label="true")
                 for i in range(5)])
    return root, id


@pytest.fixture
def busy(tmp_path, logged):
    "A project whose two servers answered for some hours; a part of the log is Parquet. -> folder, bundle id"
    return shutil.copytree(logged[0], tmp_path / "project"), logged[1]


def window(store, id, kind="outcome", end=END, **other):
    return window_counts(store, "churn", id, "champion", kind, START, end, **other)


def check(store, root, id, n=40 * HOURS):
    "All that was logged is counted, each row once, in the cells that a loop finds."
    assert window(store, id)["outcome"].tolist() == [0, n, 0, 0, 0, 0, 0]
    rows = pl.concat([pl.DataFrame(r.columns) for records in answers(id) for r in records])
    for name, reference in open_bundle_cells(root / "bundles" / id).baseline.data.columns.items():
        if name not in rows.columns: continue
        by_hand = np.bincount(cell_numbers(reference, rows[name]), minlength=len(reference.counts))
        assert window(store, id, "column")[name].tolist() == by_hand.tolist(), name
        plus = cell_numbers(reference, rows.filter(plan="plus")[name])
        found = window(store, id, "column", segment=("plan", "plus"))[name]
        assert found.tolist() == np.bincount(plus, minlength=len(reference.counts)).tolist()
    assert window_counts(store, "churn", "", "", "label", START, END)["source"].sum() == 5
    by_hour = hourly_counts(store, "churn", id, "champion", "outcome", START, END).counts["outcome"].sum(1)
    assert by_hour.tolist() == [40] * HOURS
    assert window(store, id, "latency")["latency"].sum() == n / 2


def test_counts_of_a_busy_log(store, busy):
    root, id = busy
    found = count_log(root, store, END)
    assert (found.rows, found.labels, found.endpoints, found.messages) == (40 * HOURS, 5, ["churn"], [])
    check(store, root, id)
    again = count_log(root, store, END)
    assert (again.rows, again.labels) == (0, 0)
    compact_log(root / "predictions")
    assert count_log(root, store, END + timedelta(days=1)).rows == 0 # sums up the day
    check(store, root, id)
    assert ("plan", "plus") in list_segments(store, "churn", id, None)


def test_killed_anywhere(duckdb_store, busy, monkeypatch):
    "Killed at any statement, before or after it; the next run goes on, until one reaches the end."
    (root, id), rng, store = busy, random.Random(0), duckdb_store
    with store.transaction(): pass # makes the tables
    monkeypatch.setattr(log_counts, "PART_ROWS", 60)
    left, kills = [0], 0
    for name in ("execute", "append", "query", "set_state"):
        def method(self, *args, real=getattr(Transaction, name)):
            left[0] -= 1
            if left[0] == 0: raise Killed
            done = real(self, *args)
            if left[0] == -1: raise Killed
            return done
        monkeypatch.setattr(Transaction, name, method)
    while True:
        left[0] = rng.randint(1, 15) if kills < 12 else 10**9
        try: count_log(root, store, END)
        except Killed: kills += 1
        else: break
    assert kills == 12
    check(store, root, id)


CHILD = """
import os, random, signal, sys
from datetime import datetime
from pathlib import Path
from mlops_nb.monitor import log_counts
from mlops_nb.monitor.store import MonitorStore, Transaction
log_counts.PART_ROWS, left, real = 40, [int(sys.argv[3])], Transaction.execute
def execute(self, *args):
    left[0] -= 1
    done = real(self, *args) if left[0] % 2 else None
    if left[0] <= 0: os.kill(os.getpid(), signal.SIGKILL)
    return done if done is not None else real(self, *args)
Transaction.execute = execute
log_counts.count_log(Path(sys.argv[1]), MonitorStore(sys.argv[2]), datetime.fromisoformat(sys.argv[4]))
"""


def test_a_process_that_is_killed(postgresql_store, busy):
    (root, id), store = busy, postgresql_store
    with store.transaction(): pass # makes the tables, so that the child is killed later than that
    point = random.Random().randint(40, 70)
    command = [sys.executable, "-c", CHILD, root, store.uri, point, END.isoformat()]
    child = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert child.returncode == -signal.SIGKILL, child.stderr
    count_log(root, store, END)
    check(store, root, id)


def test_two_at_once(postgresql_store, busy, monkeypatch):
    (root, id), store = busy, postgresql_store
    monkeypatch.setattr(log_counts, "PART_ROWS", 60)
    found, start = [], threading.Barrier(2)
    def run():
        start.wait()
        found.append(count_log(root, MonitorStore(store.uri), END))
    threads = [threading.Thread(target=run) for _ in range(2)]
    for t in threads: t.start()
    for t in threads: t.join(120)
    assert sum(f.rows for f in found) == 40 * HOURS and sum(f.labels for f in found) == 5
    check(store, root, id)


def test_hours_that_come_late_a_torn_tail_and_a_clock_that_jumps(duckdb_store, busy):
    root, id = busy
    count_log(root, duckdb_store, END)
    write(root, requests(30, id, hour=2, seed=50), lease=1) # a server that was cut off sends the past
    last = segments(root / "predictions")[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-20])
    assert count_log(root, duckdb_store, END).rows == 29
    last.write_bytes(whole)
    assert count_log(root, duckdb_store, END).rows == 1
    by_hour = hourly_counts(duckdb_store, "churn", id, "champion", "outcome", START, END).counts["outcome"].sum(1)
    assert by_hour.tolist() == [40, 40, 70, 40]
    write(root, [*requests(4, id, hour=50_000, seed=51), *requests(3, id, hour=-400_000, seed=52)], lease=1)
    found = count_log(root, duckdb_store, END)
    assert found.rows == 7 and "4 lines of churn have a time after now" in found.messages[0]
    later = window_counts(duckdb_store, "churn", id, "champion", "outcome", END, END + timedelta(hours=1))
    assert later["outcome"].sum() == 4 # in the present hour
    assert window(duckdb_store, id)["outcome"].sum() == 40 * HOURS + 30


def test_a_bundle_that_is_gone_is_said_once(duckdb_store, tmp_path, bundle):
    root = tmp_path / "project"
    id = project(root, bundle)
    write(root, [*requests(10, id), *requests(20, "f" * 64, seed=2, variant="challenger")])
    found = count_log(root, duckdb_store, END)
    assert found.rows == 30 and len(found.messages) == 1 and "holds no bundle ffff" in found.messages[0]
    write(root, requests(5, "f" * 64, seed=3, variant="challenger"))
    assert count_log(root, duckdb_store, END).messages == []
    counts = window_counts(duckdb_store, "churn", None, "challenger", "outcome", START, END)
    assert counts["outcome"].sum() == 25
    assert window_counts(duckdb_store, "churn", "f" * 64, "challenger", "column", START, END) == {}


def test_a_bundle_that_nobody_trusted_signed_does_not_run(duckdb_store, busy):
    root, id = busy
    settings = read_settings(root, {})
    settings.release.trusted_keys = "A" * 43 + "="
    write_settings(root, settings)
    found = count_log(root, duckdb_store, END)
    assert found.rows == 40 * HOURS and "signature" in found.messages[0]
    assert window(duckdb_store, id, "column") == {} and window(duckdb_store, id)["outcome"].sum() == 40 * HOURS


def test_nothing_at_all(duckdb_store, tmp_path):
    project(tmp_path)
    found = count_log(tmp_path, duckdb_store, END)
    assert (found.rows, found.endpoints, found.messages) == (0, ["churn"], [])
    assert window(duckdb_store, None) == {}


def test_retention_and_days_summed_up(duckdb_store, busy, monkeypatch):
    (root, id), store = busy, duckdb_store
    monkeypatch.setattr(log_counts, "PART_ROWS", 60)
    count_log(root, store, END)
    rows = "SELECT count(*) AS n FROM counts"
    before, next_day = store.query(rows)["n"][0], START + timedelta(days=1, hours=2)
    tidy_counts(store, read_settings(root, {}), next_day)
    assert store.query(rows)["n"][0] < before
    check(store, root, id)
    whole = window(store, id, end=START + timedelta(days=1))["outcome"]
    assert whole.sum() == 40 * HOURS # from the table by day
    settings = read_settings(root, {})
    settings.monitor.retention_days = 30
    tidy_counts(store, settings, START + timedelta(days=31))
    assert store.query(rows)["n"][0] == 0 and window(store, id)["outcome"].sum() == 0


def test_the_same_hours_of_earlier_weeks(duckdb_store, tmp_path, bundle):
    root = tmp_path / "project"
    id = project(root, bundle)
    for week, n in enumerate((10, 20, 30)): write(root, requests(n, id, hour=week * 168 + 3, seed=week))
    write(root, requests(99, id, hour=5, seed=9)) # another hour
    count_log(root, duckdb_store, at_hour(2 * 168 + 4))
    now = at_hour(2 * 168 + 3)
    hour = now, now + timedelta(hours=1)
    found = earlier_weeks_counts(duckdb_store, "churn", id, "champion", "outcome", *hour, weeks=3)
    assert found["outcome"].sum(1).tolist() == [20, 10, 0]


def test_windows_of_any_hours_add_up(duckdb_store, tmp_path, bundle):
    "Days are read from the table by day, and the hours at both ends from that by hour."
    root, rng = tmp_path / "project", random.Random(0)
    id = project(root, bundle)
    write(root, (r for h in range(80) for r in requests(1 + h % 5, id, hour=h, seed=h)))
    count_log(root, duckdb_store, at_hour(100))
    for _ in range(8):
        a, b = sorted(rng.choices(range(81), k=2))
        start, end = at_hour(a), at_hour(b)
        found = window_counts(duckdb_store, "churn", id, "champion", "outcome", start, end)["outcome"].sum()
        assert found == sum(1 + h % 5 for h in range(a, b)), (a, b)
    with pytest.raises(ValueError, match="time zone"): window(duckdb_store, id, end=datetime(2026, 11, 3))
    with pytest.raises(ValueError, match="is the most"):
        hourly_counts(duckdb_store, "churn", id, "champion", "outcome", datetime(1970, 1, 1, tzinfo=UTC), END)
