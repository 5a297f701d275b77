"The prediction log: nothing answered is missing, nothing is there twice, whatever is killed, full, or wrong with the clock."
import asyncio
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import chdir
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from mlops_nb.cli import app
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.prediction_log import records
from mlops_nb.prediction_log.records import Feedback, PredictionLogWriter, LogWriteError, PredictionRecord, audit_log, acquire_lease, compact_log, read_feedback, read_log

NOON = int(datetime(2026, 11, 3, 12, tzinfo=UTC).timestamp() * 1e6)
HOUR = 3_600_000_000


def answer(id, time=NOON, rows=1, **other):
    return PredictionRecord(**dict(id=id, time=time, endpoint="churn", variant="champion", bundle="b" * 64, columns=dict(plan=["a"] * rows),
                         score=[0.5] * rows) | other)


def label(id, value, time=NOON, **other): return Feedback(**dict(id=id, time=time, endpoint="churn", label=value) | other)


def ids(folder, **where): return sorted(read_log(folder, **where).select("id").collect()["id"])


def sound(folder):
    found = audit_log(folder)
    assert not found.problems, found.problems
    return found


def segments(folder): return sorted((folder / "segments").glob("*.jsonl"))


# ---- torn ends

def test_a_line_torn_at_any_byte_is_cut_and_the_rest_stays(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(3): log.append(answer(f"r{i}", columns=dict(plan=["a\nb ü "])))
    log.close()
    path, = segments(tmp_path)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for end in range(start, len(whole)):  # also with nothing of the last line
        path.write_bytes(whole[:end])
        for p in segments(tmp_path)[1:]: p.unlink()
        assert audit_log(tmp_path).n_torn_segments == (end > start)
        assert ids(tmp_path) == ["r0", "r1"]
        log = PredictionLogWriter(tmp_path, 0)
        log.append(answer("after"))
        log.close()
        assert ids(tmp_path) == ["after", "r0", "r1"]
        assert sound(tmp_path).n_torn_segments == 0


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=6),
       tail=st.binary(max_size=3000).map(lambda b: b.replace(b"\n", b"\0")))
def test_whole_lines_are_counted(tmp_path_factory, lines, tail):
    path = tmp_path_factory.mktemp("w") / "x"
    path.write_bytes(whole := b"".join(line + b"\n" for line in lines))
    with path.open("ab") as f: f.write(tail)
    assert records.complete_lines(path) == (len(lines), len(whole))


def test_zeros_at_the_end_as_after_a_loss_of_power(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("r0"))
    log.close()
    with segments(tmp_path)[0].open("ab") as f: f.write(bytes(5000))
    compact_log(tmp_path)
    assert ids(tmp_path) == ["r0"]
    sound(tmp_path)


# ---- everything at once, against a model

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2**63, 2**63 - 1), FLOATS, st.text(max_size=5))
ENDPOINTS = st.sampled_from(["churn", "a/b c", "..", "ü*?[x]", "="])
TIMES = st.one_of(st.integers(0, 5), st.integers(-3, 30).map(lambda h: h * HOUR // 2))
STEP = st.one_of(
    st.tuples(st.just("answer"), st.integers(0, 1), TIMES, ENDPOINTS, st.lists(VALUES, min_size=1, max_size=3)),
    st.tuples(st.just("label"), st.integers(0, 1), TIMES, st.integers(0, 8), st.one_of(st.integers(0, 2), st.none(), st.just("yes"))),
    st.tuples(st.just("compact")), st.tuples(st.just("restart"), st.integers(0, 1)), st.tuples(st.just("tear"), st.integers(0, 1)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, max_size=25))
def test_whatever_happens_each_row_is_there_once_with_its_label(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("log")
    logs, rows, arrived, clock = {s: PredictionLogWriter(folder, s, max_segment_bytes=700) for s in (0, 1)}, {}, [], {0: 0, 1: 0}
    asked = []
    for step in steps:
        match step:
            case "answer", slot, at, endpoint, values:
                id = f"r{len(asked)}"
                asked.append((endpoint, id))
                logs[slot].append(answer(id, NOON + at, endpoint=endpoint, columns=dict(x=values), score=[0.5] * len(values)))
                rows |= {(endpoint, id, i): v for i, v in enumerate(values)}
            case "label", slot, at, which, value:
                endpoint, id = asked[which] if which < len(asked) else ("churn", f"r{which}")  # also before its answer
                logs[slot].append(label(id, value, NOON + at, endpoint=endpoint))
                clock[slot] = max(clock[slot], NOON + at)
                arrived.append((clock[slot], slot, len(arrived), (endpoint, id), value))
            case ("compact",): compact_log(folder)
            case "restart", slot:
                logs[slot].close()
                logs[slot] = PredictionLogWriter(folder, slot, max_segment_bytes=700)
            case "tear", slot:
                logs[slot].close()
                mine = [p for p in segments(folder) if p.name.startswith(f"00{slot}")]
                if mine:
                    with mine[-1].open("ab") as f: f.write(b'{"kind":"record","id":"torn"')
                logs[slot] = PredictionLogWriter(folder, slot, max_segment_bytes=700)
    for _ in range(2):  # with live segments, and with all of them closed
        got = read_log(folder).collect()
        assert got.height == len(rows)
        assert set(got.select("endpoint", "id", "row").iter_rows()) == rows.keys()
        if got.height:
            last = {}
            for *_, what, value in sorted(arrived, key=lambda a: a[:3]): last[what] = value
            for endpoint, id, row, x, found in got.select("endpoint", "id", "row", "columns.x", "label").iter_rows():
                same(x, rows[endpoint, id, row])
                same(found, last.get((endpoint, id)) if row == 0 else None)
        for endpoint in {e for e, _ in asked}: assert ids(folder, endpoint=endpoint) == sorted(i for e, i, _ in rows if e == endpoint)
        sound(folder)
        for log in logs.values(): log.close()
        compact_log(folder)
    assert not any(p.stat().st_size for p in segments(folder))


def same(got, sent):
    "A value may have become another of its column's type, and keeps its meaning."
    if isinstance(got, str) and not isinstance(sent, str) and sent is not None: got = json.loads(got)
    if isinstance(got, float) and sent is not None: assert got == float(sent)
    else: assert got == sent


# ---- labels

@settings(max_examples=40, deadline=None)
@given(order=st.permutations(["answer", "yes", "yes", "no", "no", "compact", "other"]))
def test_labels_in_any_order(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("log")
    log, sent = PredictionLogWriter(folder, 0), []
    for i, what in enumerate(order):
        if what == "answer": log.append(answer("r", NOON + i, rows=2))
        elif what == "compact": compact_log(folder)
        elif what == "other": log.append(label("r", "maybe", NOON + i, endpoint="fraud"))
        else:
            log.append(label("r", what, NOON + i, row=1))
            sent.append(what)
    changes = [s for i, s in enumerate(sent) if not i or sent[i - 1] != s]
    assert read_feedback(folder, "churn").collect()["label"].to_list() == changes
    got = read_log(folder, "churn").sort("row").select("label", "n_corrections").collect().rows()
    assert got == [(None, None), (sent[-1], len(changes) - 1)]
    log.close()


def test_labels_and_scores_of_other_types_than_yesterday(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("a", score=[0.25]))
    log.append(label("a", 1))
    compact_log(tmp_path)
    log.close()
    compact_log(tmp_path)
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("b", NOON + 1, score=[[0.1, 0.9]], decision=["x"], entity=[17]))
    log.append(label("b", "gone"))
    log.close()
    got = read_log(tmp_path).sort("time").collect()
    assert got["score"].to_list() == [[0.25], [0.1, 0.9]]
    assert got["label"].to_list() == ["1", "gone"]
    assert got["decision"].to_list() == [None, "x"] and got["entity"].to_list() == [None, 17]


def test_integers_that_no_column_holds(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("a", columns=dict(x=[2**70]), entity=[1]))
    log.append(answer("b", NOON + 1, columns=dict(x=[7]), entity=["e"]))
    log.close()
    compact_log(tmp_path)
    got = read_log(tmp_path).sort("time").collect()
    assert got["columns.x"].to_list() == [float(2**70), 7.0] and got["entity"].to_list() == ["1", "e"]


def test_an_empty_log_is_an_empty_table(tmp_path):
    PredictionLogWriter(tmp_path, 0).close()
    assert read_log(tmp_path).collect().is_empty() and read_feedback(tmp_path).collect().is_empty()
    assert compact_log(tmp_path) == records.CompactionReport(0, 0, 0)
    assert sound(tmp_path).n_answered_rows is None


def test_a_part_of_the_time(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for hour in range(6): log.append(answer(f"r{hour}", NOON + hour * HOUR))
    compact_log(tmp_path)
    start = datetime(2026, 11, 3, 12, tzinfo=UTC)
    vienna = timezone(timedelta(hours=1))
    assert ids(tmp_path, since=start + timedelta(hours=1), until=start + timedelta(hours=4)) == ["r1", "r2", "r3"]
    assert ids(tmp_path, since=datetime(2026, 11, 3, 17, 30, tzinfo=vienna)) == ["r5"]
    assert ids(tmp_path, since=start + timedelta(days=9)) == []
    log.close()


# ---- the clock

def test_a_clock_that_steps_back_stays_in_its_segment(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for i, at in enumerate([0, HOUR, HOUR - 1, 0, HOUR + 1]): log.append(answer(f"r{i}", NOON + at))
    assert [p.read_text().count("\n") for p in segments(tmp_path)] == [1, 4]
    log.close()
    compact_log(tmp_path)
    assert ids(tmp_path) == [f"r{i}" for i in range(5)]
    assert ids(tmp_path, until=datetime.fromtimestamp(NOON / 1e6 + 3600, UTC)) == ["r0", "r2", "r3"]
    sound(tmp_path)


def test_a_clock_that_was_far_ahead_does_not_keep_a_segment_open(tmp_path, monkeypatch):
    log, now = PredictionLogWriter(tmp_path, 0), [0.0]
    monkeypatch.setattr(records.time, "monotonic", lambda: now[0])
    log.append(answer("ahead", NOON + 10**6 * HOUR))
    log.append(answer("back", NOON))
    now[0] = 3601
    log.append(answer("later", NOON + HOUR))
    assert len(segments(tmp_path)) == 2
    monkeypatch.undo()
    log.close()
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("last", NOON + 2 * HOUR))
    log.close()
    # and what lies before a segment is at least as old as it
    done = compact_log(tmp_path, retention_days=1, now_unix_seconds=NOON / 1e6 + 3 * 86400)
    assert done.removed_segments == 3 and sound(tmp_path).rows == 4


def test_a_closed_log_goes_on_though_the_clock_went_back(tmp_path):
    "The empty segment behind a dead process is from a later time than the next record."
    for i in range(3):
        log = PredictionLogWriter(tmp_path, 0)
        log.append(answer(f"r{i}", NOON - i * HOUR))
        live = [p for p in segments(tmp_path) if p.stat().st_size]
        assert live[-1] == segments(tmp_path)[-1]  # the one that is being written is the last
        compact_log(tmp_path)
        log.append(answer(f"s{i}", NOON - i * HOUR))
        log.close()
        compact_log(tmp_path)  # leaves an empty one of now
    assert len(ids(tmp_path)) == 6
    sound(tmp_path)


# ---- slots

def test_slots_are_freed_by_death(tmp_path):
    script = "import sys; from mlops_nb.prediction_log.records import acquire_lease; print(acquire_lease(sys.argv[1], 2), flush=True); sys.stdin.read()"
    held = acquire_lease(tmp_path, 2)
    child = subprocess.Popen([sys.executable, "-c", script, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert {held, int(child.stdout.readline())} == {0, 1}
        assert records.lease_is_held(tmp_path, 0) and records.lease_is_held(tmp_path, 1) and not records.lease_is_held(tmp_path, 2)
        with pytest.raises(UserError, match="all 2 leases are held"): acquire_lease(tmp_path, 2, timeout_seconds=0.05)
        with pytest.raises(UserError, match="lease 1 is held"): PredictionLogWriter(tmp_path, 1)
    finally: child.kill(); child.wait()
    assert acquire_lease(tmp_path, 2) == 1
    for slot in (0, 1): records.release_lease(tmp_path, slot)


def test_threads_and_slots_do_not_mix_lines(tmp_path):
    logs = [PredictionLogWriter(tmp_path, slot, max_segment_bytes=5000) for slot in (0, 1)]
    def work(k):
        for i in range(200): logs[k % 2].append(answer(f"t{k}-{i}", NOON + i))
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sound(tmp_path).records == 800 == len(set(ids(tmp_path)))
    for log in logs: log.close()


# ---- killed

WRITER = """
import os, random, signal, sys, time
from mlops_nb.serve.metrics import Metrics
from mlops_nb.prediction_log.records import PredictionLogWriter, PredictionRecord, acquire_lease
folder, kills, NOON = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def write(pipe, name):
    slot = acquire_lease(folder, 2)
    log, metrics, i = PredictionLogWriter(folder, slot, max_segment_bytes=30_000), Metrics(folder, slot), 0
    while True:
        id = f"{name}-{i}"
        log.append(PredictionRecord(id=id, time=NOON + i, endpoint="churn", variant="a", bundle="b", columns=dict(x=[i, i]), score=[0.5, 0.25]))
        os.write(pipe, f"{id}\\n".encode())
        metrics.answered_rows.inc(2)
        i += 1
        if i % 20 == 0: time.sleep(0.001)

for kill in range(kills):
    children = []
    for k in range(2):
        r, w = os.pipe()
        if (pid := os.fork()) == 0:
            try: write(w, f"{kill}-{k}")
            finally: os._exit(1)
        os.close(w)
        children.append((pid, r))
    for pid, r in children: first = os.read(r, 1 << 16); sys.stdout.write(first.decode())
    time.sleep(random.uniform(0, 0.02))
    for pid, r in children: os.kill(pid, signal.SIGKILL)
    for pid, r in children:
        os.waitpid(pid, 0)
        while more := os.read(r, 1 << 16): sys.stdout.write(more.decode())
        os.close(r)
    sys.stdout.flush()
"""


def test_a_kill_at_any_moment_loses_no_answer(tmp_path):
    "Twenty times two processes, killed while they write and while another compacts."
    child = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path, "20", str(NOON)], stdout=subprocess.PIPE, text=True)
    said = []
    reader = threading.Thread(target=lambda: said.extend(child.stdout.read().splitlines()))
    reader.start()
    try:
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            if (tmp_path / "segments").is_dir(): compact_log(tmp_path)
            time.sleep(0.05)
        assert child.poll() == 0
    finally: child.kill(); child.wait(); reader.join(10)
    for _ in range(2):
        got = ids(tmp_path)
        assert len(got) == 2 * len(set(got))
        assert said and set(said) <= set(got)
        assert len(set(got)) - len(said) <= 40  # written, and killed before the reply
        found = sound(tmp_path)
        assert found.n_answered_rows <= found.rows == len(got) and found.rows - found.n_answered_rows <= 160
        compact_log(tmp_path)


COMPACTOR = """
import sys
from mlops_nb.prediction_log.records import compact_log
print("ready", flush=True)
compact_log(sys.argv[1])
"""


def fill_up(folder, n=600):
    log = PredictionLogWriter(folder, 0, max_segment_bytes=20_000)
    for i in range(n):
        log.append(answer(f"r{i}", NOON + i * HOUR // 100, endpoint=f"e{i % 3}"))
        if i % 5 == 0: log.append(label(f"r{i}", i, NOON + i * HOUR // 100, endpoint=f"e{i % 3}"))
    log.close()
    return sorted(f"r{i}" for i in range(n))


def test_a_compaction_killed_at_any_moment(tmp_path):
    sent = fill_up(tmp_path)
    for _ in range(4):
        child = subprocess.Popen([sys.executable, "-c", COMPACTOR, tmp_path], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(random.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert ids(tmp_path) == sent
        sound(tmp_path)
    compact_log(tmp_path)
    assert ids(tmp_path) == sent and sound(tmp_path).labels == 120


class Killed(BaseException): "As if the process ended here."


def test_a_compaction_stopped_at_each_of_its_writes(tmp_path, monkeypatch):
    sent = fill_up(tmp_path / "log", 40)
    left = [0]

    def counted(real):
        def call(path, *args, **kwargs):
            if "leases" not in str(path): left[0] -= 1
            if left[0] == 0: raise Killed
            return real(path, *args, **kwargs)
        return call
    for stop in range(1, 100):
        folder, left[0] = shutil.copytree(tmp_path / "log", tmp_path / f"log{stop}"), stop
        with monkeypatch.context() as m:
            for target, name in ((os, "replace"), (Path, "unlink"), (Path, "touch")):
                m.setattr(target, name, counted(getattr(target, name)))
            try: compact_log(folder)
            except Killed: pass
            else: break
        assert ids(folder) == sent
        sound(folder)
        compact_log(folder)
        compact_log(folder)
        assert ids(folder) == sent and sound(folder).records == 40
        assert [p.stat().st_size for p in segments(folder)] == [0]
        shutil.rmtree(folder)
    assert 5 < stop < 99


def test_reading_while_segments_become_parquet(tmp_path):
    sent, wrong = fill_up(tmp_path), []
    def look():
        while not done.is_set():
            if ids(tmp_path) != sent: wrong.append(1)
    done, reader = threading.Event(), threading.Thread(target=look)
    reader.start()
    try: compact_log(tmp_path)
    finally: done.set(); reader.join()
    assert not wrong and ids(tmp_path) == sent


# ---- retention

def test_what_is_too_old_goes_and_is_no_gap(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for day in range(10):
        log.append(answer(f"r{day}", NOON + day * 24 * HOUR, rows=2))
        log.append(label(f"r{day}", "yes", NOON + day * 24 * HOUR))
    now = NOON / 1e6 + 9 * 86400
    done = compact_log(tmp_path, retention_days=3, now_unix_seconds=now)
    assert (done.segments, done.removed_segments) == (9, 6)
    assert ids(tmp_path) == sorted(["r6", "r7", "r8", "r9"] * 2)
    assert sound(tmp_path).rows == 20
    assert compact_log(tmp_path, retention_days=3, now_unix_seconds=now).removed_segments == 0
    assert compact_log(tmp_path, retention_days=0, now_unix_seconds=now + 1e8).removed_segments == 0
    log.append(answer("later", NOON + 9 * 24 * HOUR + 5))
    log.close()
    assert compact_log(tmp_path, retention_days=1, now_unix_seconds=now + 30 * 86400).removed_segments == 4
    assert sound(tmp_path).rows == 21 and ids(tmp_path) == []


def test_a_removal_that_is_interrupted_is_finished_later(tmp_path, monkeypatch):
    log = PredictionLogWriter(tmp_path, 0)
    for hour in range(4): log.append(answer(f"r{hour}", NOON + hour * HOUR))
    log.close()
    compact_log(tmp_path)
    real, n = Path.unlink, [0]
    def unlink(path, *args, **kwargs):
        n[0] += path.suffix == ".parquet"
        if n[0] == 2: raise Killed
        return real(path, *args, **kwargs)
    with monkeypatch.context() as m:
        m.setattr(Path, "unlink", unlink)
        with pytest.raises(Killed): compact_log(tmp_path, retention_days=1, now_unix_seconds=NOON / 1e6 + 30 * 86400)
    assert len(list(tmp_path.rglob("*.parquet"))) == 3
    assert sound(tmp_path).rows == 4
    compact_log(tmp_path)
    assert not list(tmp_path.rglob("*.parquet")) and sound(tmp_path).rows == 4
    assert read_json(tmp_path / "retention.json") == {"0": {"first_seq": 4, "rows_before": 4}}


# ---- a full disk

DISK = "1m"


def append_until_full(log, filler):
    for i in range(5000):
        try: log.append(answer(f"r{i}", NOON + i * HOUR // 1000, columns=dict(x=["x" * 1500])))
        except LogWriteError: return i
        if log.n_lost_rows: return i
    raise AssertionError("the disk never filled")


@pytest.mark.parametrize("sync", [False, True])
def test_a_full_disk_refuses(small_disk, sync):
    (small_disk / "filler").write_bytes(bytes(300_000))
    log = PredictionLogWriter(small_disk / "log", 0, fsync=sync, max_segment_bytes=100_000)
    wrote = append_until_full(log, small_disk / "filler")
    for _ in range(3):
        with pytest.raises(LogWriteError, match="No space left"): log.append(answer("more", NOON, columns=dict(x=["x" * 9000])))
    assert segments(log.folder)[-1].read_bytes()[-1:] in (b"\n", b"")
    assert sound(log.folder).records == wrote
    (small_disk / "filler").unlink()
    log.append(answer("again", NOON))
    log.close()
    assert ids(log.folder) == sorted([*(f"r{i}" for i in range(wrote)), "again"])
    assert sound(log.folder).n_torn_segments == 0


def test_a_full_disk_serves_and_counts(small_disk):
    (small_disk / "filler").write_bytes(bytes(300_000))
    counted, lines = [], []
    log = PredictionLogWriter(small_disk / "log", 0, on_write_error="serve", on_rows_lost=counted.append, on_line_written=lambda: lines.append(1))
    wrote = append_until_full(log, small_disk / "filler")
    log.append(answer("lost", rows=3, columns=dict(x=["x" * 9000] * 3)))
    assert log.n_lost_rows == 4 == sum(counted) and len(lines) == wrote
    for refused in (answer("shadow", mode="shadow", columns=dict(x=["x" * 9000])), label("r0", "x" * 9000)):
        with pytest.raises(LogWriteError): log.append(refused)
    (small_disk / "filler").unlink()
    log.append(answer("again"))
    log.close()
    assert len(ids(log.folder)) == wrote + 1 and sound(log.folder).records == wrote + 1


def test_a_partial_write_of_any_length_leaves_no_part(tmp_path, monkeypatch):
    log, real, take = PredictionLogWriter(tmp_path, 0), os.write, [None]
    def write(fd, data):
        if take[0] is None: return real(fd, data)
        if take[0] == 0: raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, bytes(data)[: take[0]])
    monkeypatch.setattr(records.os, "write", write)
    sent = []
    for length in range(0, 200, 7):
        take[0] = length
        with pytest.raises(LogWriteError): log.append(answer(f"no{length}"))
        take[0] = None
        log.append(answer(f"yes{length}"))
        sent.append(f"yes{length}")
    log.close()
    assert ids(tmp_path) == sorted(sent) and len(segments(tmp_path)) == 1
    sound(tmp_path)


@pytest.mark.parametrize("before", [0, 2])
def test_a_part_that_cannot_be_taken_back_is_left_alone(tmp_path, monkeypatch, before):
    log, real = PredictionLogWriter(tmp_path, 0), os.write
    for i in range(before): log.append(answer(f"r{i}"))
    with monkeypatch.context() as m:
        m.setattr(records.os, "write", lambda fd, data: real(fd, bytes(data)[:20]))
        m.setattr(records.os, "ftruncate", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(LogWriteError): log.append(answer("torn", NOON + 5))
    for i in range(2): log.append(answer(f"after{i}", NOON + 3))
    assert len(ids(tmp_path)) == before + 2
    compact_log(tmp_path)
    log.close()
    compact_log(tmp_path)
    assert sound(tmp_path).records == before + 2 and len(ids(tmp_path)) == before + 2


def test_no_new_segment_can_be_begun(tmp_path, monkeypatch):
    log, real = PredictionLogWriter(tmp_path, 0), os.open
    log.append(answer("r0"))
    with monkeypatch.context() as m:
        m.setattr(records.os, "open", lambda *a, **k: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
        for _ in range(2):
            with pytest.raises(LogWriteError): log.append(answer("r1", NOON + HOUR))
    assert records.os.open is real
    log.append(answer("r2", NOON + HOUR))
    log.close()
    assert ids(tmp_path) == ["r0", "r2"] and sound(tmp_path).records == 2


# ---- the disk has it

def test_those_who_wait_together_share_a_sync(tmp_path, monkeypatch):
    log, syncs, at_once = PredictionLogWriter(tmp_path, 0, fsync=True, max_segment_bytes=2000), [], []
    def slow(fd):
        at_once.append(1)
        assert len(at_once) == 1  # one at a time
        time.sleep(0.005)
        syncs.append(fd)
        at_once.pop()
    monkeypatch.setattr(records.os, "fdatasync", slow)

    async def one(i):
        await asyncio.sleep(random.uniform(0, 0.02))
        log.append(answer(f"r{i}"))
        mine = log._seq
        await log.wait_durable()
        assert log._durable_seq >= mine

    async def all_of_them():
        tasks = [asyncio.ensure_future(one(i)) for i in range(200)]
        await asyncio.sleep(0.01)
        for t in tasks[:20]: t.cancel()  # callers that hang up
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        assert all(d is None or isinstance(d, asyncio.CancelledError) for d in done)
        await log.wait_durable()  # nothing to wait for
    asyncio.run(all_of_them())
    commits = len(syncs) - len(segments(tmp_path))  # each segment is synced once more when it is left
    assert commits < 60
    log.close()
    assert not os.path.exists(f"/proc/self/fd/{log._fd}") if log._fd else True
    sound(tmp_path)


def test_a_disk_that_fails_to_sync_refuses_those_who_wait(tmp_path, monkeypatch):
    log, real, broken = PredictionLogWriter(tmp_path, 0, fsync=True), os.fdatasync, [True]
    def sync(fd):
        if broken[0]: raise OSError(errno.EIO, "Input/output error")
        return real(fd)
    monkeypatch.setattr(records.os, "fdatasync", sync)

    async def story():
        for i in range(3): log.append(answer(f"r{i}"))
        told = await asyncio.wait_for(asyncio.gather(*(log.wait_durable() for _ in range(3)), return_exceptions=True), 10)
        assert all(isinstance(e, LogWriteError) for e in told)
        broken[0] = False
        log.append(answer("after"))
        await asyncio.wait_for(log.wait_durable(), 10)
    asyncio.run(story())
    assert len(segments(tmp_path)) == 2  # what failed to reach the disk is left behind
    log.close()
    sound(tmp_path)


def test_without_sync_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(records.os, "fdatasync", lambda fd: 1 / 0)
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("r"))
    asyncio.run(log.wait_durable())
    log.close()


# ---- the check, and what it finds

@pytest.fixture
def finished(tmp_path):
    "A log of three segments of ten lines, of which two are Parquet."
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(30): log.append(answer(f"r{i}", NOON + i // 10 * HOUR + i))
    compact_log(tmp_path)
    log.close()
    assert len(segments(tmp_path)) == 1 and len(list(tmp_path.rglob("*.parquet"))) == 2
    sound(tmp_path)
    return tmp_path


def test_lines_that_are_gone_or_there_twice(finished):
    path, = segments(finished)
    lines = path.read_text().splitlines(keepends=True)
    cases = [(lines[:4] + lines[6:], "Missing of the lines 20 to 29: 2"), (lines[3:], "Missing of the lines 20 to 29: 3"),
             (lines + lines[-1:], "twice: 1"), (lines[:2] + ["{}\n"] + lines[3:], "line 3 is no record"),
             (lines[:2] + ["\xff\n"] + lines[3:], "line 3 is no record")]
    for changed, said in cases:
        path.write_text("".join(changed), encoding="latin-1")
        problems = audit_log(finished).problems
        assert len(problems) == 1 and said in problems[0], problems


def test_an_answer_written_twice(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for _ in range(2): log.append(answer("r0"))
    log.append(answer("r0", mode="shadow"))  # a shadow's answer to the same request is another
    log.append(answer("r0", NOON + 1))       # and so is that to a request of the same id, later
    log.close()
    assert audit_log(tmp_path).problems == [f"Answers that are there twice: 1 ({segments(tmp_path)[0].stem})."]


def test_files_that_are_gone_or_changed(finished):
    first, second = sorted(finished.rglob("*.parquet"))
    kept = first.read_bytes()
    first.unlink()
    assert "Missing of the lines 0 to 19: 10" in audit_log(finished).problems[0]
    first.write_bytes(kept)
    pl.read_parquet(second).slice(3).write_parquet(second)
    assert "Missing of the lines 10 to 19: 3" in audit_log(finished).problems[0]
    pl.concat([pl.read_parquet(second)] * 2).write_parquet(second)
    assert "twice: 7" in audit_log(finished).problems[0]


def test_answers_that_were_counted_and_are_not_there(finished):
    from mlops_nb.serve.metrics import Metrics
    slot = acquire_lease(finished, 1)
    metrics = Metrics(finished, slot)
    metrics.answered_rows.inc(30)
    found = sound(finished)
    assert (found.n_answered_rows, found.rows) == (30, 30)
    metrics.answered_rows.inc(2)
    assert "counted 32 rows as answered, but 30 are on record" in audit_log(finished).problems[0]
    metrics.unlogged_rows.inc(2)  # they were let through, and counted
    found = sound(finished)
    assert found.n_lost_rows == 2 and "2 rows were answered without a record" in found.message
    metrics.folder.joinpath("counter_3.db").write_bytes(b"\xff\0\0\0" * 9)
    assert "counter_3.db is damaged" in audit_log(finished).problems[0]
    records.release_lease(finished, slot)


def test_a_damaged_line_stops_its_own_segment_only(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(3): log.append(answer(f"r{i}", NOON + i * HOUR))
    log.close()
    path = segments(tmp_path)[1]
    whole = path.read_bytes()
    path.write_bytes(b"nonsense\n")
    with pytest.raises(UserError, match=f"{path.name}, line 1 is no record"): compact_log(tmp_path)
    assert path.read_bytes() == b"nonsense\n" and len(list(tmp_path.rglob("*.parquet"))) == 2
    path.write_bytes(whole)
    compact_log(tmp_path)
    assert ids(tmp_path) == ["r0", "r1", "r2"]
    sound(tmp_path)


def test_a_record_that_makes_no_sense_is_not_written(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    with pytest.raises(ValueError, match="without rows"): log.append(answer("r", rows=0))
    with pytest.raises(TypeError): log.append(answer("r", columns=dict(x=[object()])))
    log.append(answer("good"))
    log.append(answer("short", columns=dict(x=[1, 2])))
    log.close()
    with pytest.raises(UserError, match="has 1 scores and 2 values of x"): compact_log(tmp_path)


def test_the_command(tmp_path):
    def typed(*words):
        with chdir(tmp_path): result = CliRunner().invoke(app, words)
        return result.output if result.exception is None else result.exception
    assert "is no prediction log" in str(typed("log", "check"))
    log = PredictionLogWriter(tmp_path / "predictions", 0)
    for i in range(3): log.append(answer(f"r{i}", NOON + i * HOUR))
    log.close()
    (tmp_path / "settings.ini").write_text("[log]\nretention_days = 36500\n")
    assert "3 rows are on record, no metrics are here" in typed("log", "check")
    assert "3 segments with 3 records and labels are Parquet now, 0 were too old" in typed("log", "compact")
    next((tmp_path / "predictions").rglob("*.parquet")).unlink()
    assert isinstance(e := typed("log", "check"), UserError) and "Missing of the lines" in str(e)
