"The log writer: no answer is lost, whatever is killed, full, or wrong with the clock."
import asyncio
import contextlib
import errno
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from support.prediction_logs import HOUR, NOON, answer, ids, label, segments, segments_of, sound

from mlops_nb.config.settings import LogSettings
from mlops_nb.prediction_log import writer
from mlops_nb.prediction_log.audit import audit_log
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.leases import lease_is_held
from mlops_nb.prediction_log.row_counts import read_row_counts
from mlops_nb.prediction_log.writer import LogWriteError, PredictionLogWriter

# ---- torn ends

def test_a_torn_line_is_cut_and_the_rest_stays(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(3): log.append(answer(f"r{i}", columns=dict(plan=["a\nb ü "])))
    log.close()
    path, = segments(tmp_path)
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    letters = [i for i in range(start, len(whole)) if whole[i] > 127] # of two bytes
    for end in (*range(start, start + 3), *range(start + 3, len(whole), 25), *letters, len(whole) - 1):
        path.write_bytes(whole[:end])
        for p in segments(tmp_path)[1:]: p.unlink()
        assert audit_log(tmp_path).n_torn_segments == (end > start)
        assert ids(tmp_path) == ["r0", "r1"]
        log = PredictionLogWriter(tmp_path, 0)
        log.append(answer("after"))
        log.close()
        assert ids(tmp_path) == ["after", "r0", "r1"]
        assert sound(tmp_path).n_torn_segments == 0


def test_zeros_at_the_end_as_after_a_loss_of_power(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("r0"))
    log.close()
    with segments(tmp_path)[0].open("ab") as f: f.write(bytes(5000))
    compact_log(tmp_path)
    assert ids(tmp_path) == ["r0"]
    sound(tmp_path)


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
    monkeypatch.setattr(writer.time, "monotonic", lambda: now[0])
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


# ---- processes, threads and kills

def test_threads_and_leases_do_not_mix_lines(tmp_path):
    logs = [PredictionLogWriter(tmp_path, lease_id, segments_of(5000)) for lease_id in (0, 1)]
    def work(k):
        for i in range(200): logs[k % 2].append(answer(f"t{k}-{i}", NOON + i))
    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sound(tmp_path).records == 800 == len(set(ids(tmp_path)))
    for log in logs: log.close()


WRITER = """
import os, random, signal, sys, time
from mlops_nb.config.settings import LogSettings
from mlops_nb.serve.metrics import Metrics
from mlops_nb.prediction_log.leases import acquire_lease
from mlops_nb.prediction_log.segments import PredictionRecord
from mlops_nb.prediction_log.writer import PredictionLogWriter
folder, kills, NOON = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

def write(pipe, name):
    lease_id = acquire_lease(folder, 2)
    log, metrics, i = PredictionLogWriter(folder, lease_id, LogSettings(segment_mib=0.03)), Metrics(folder, lease_id), 0
    while True:
        id = f"{name}-{i}"
        log.append(PredictionRecord(id=id, time=NOON + i, endpoint="churn", variant="a", bundle="b",
                                    columns=dict(x=[i, i]), score=[0.5, 0.25]))
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
    command = [sys.executable, "-c", WRITER, tmp_path, "20", str(NOON)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = []
    reader = threading.Thread(target=lambda: said.extend(child.stdout.read().splitlines()))
    reader.start()
    try:
        until = time.monotonic() + 60
        while child.poll() is None and time.monotonic() < until:
            with contextlib.suppress(subprocess.TimeoutExpired): child.wait(0.05)
            if (tmp_path / "segments").is_dir(): compact_log(tmp_path)
        assert child.poll() == 0
    finally: child.kill(); child.wait(); reader.join(10)
    for _ in range(2):
        got = ids(tmp_path)
        assert len(got) == 2 * len(set(got))
        assert said and set(said) <= set(got)
        assert len(set(got)) - len(said) <= 40  # written, and killed before the reply
        found = sound(tmp_path, read_row_counts(tmp_path))
        assert found.n_answered_rows <= found.rows == len(got) and found.rows - found.n_answered_rows <= 160
        compact_log(tmp_path)


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
    log = PredictionLogWriter(small_disk / "log", 0, segments_of(100_000, fsync=sync))
    wrote = append_until_full(log, small_disk / "filler")
    for _ in range(3):
        with pytest.raises(LogWriteError, match="No space left"):
            log.append(answer("more", NOON, columns=dict(x=["x" * 9000])))
    assert segments(log.folder)[-1].read_bytes()[-1:] in (b"\n", b"")
    assert sound(log.folder).records == wrote
    log.check_writable()
    assert log.refuses
    (small_disk / "filler").unlink()
    log.check_writable()
    assert not log.refuses
    log.append(answer("again", NOON))
    log.close()
    assert ids(log.folder) == sorted([*(f"r{i}" for i in range(wrote)), "again"])
    assert sound(log.folder).n_torn_segments == 0


def test_a_full_disk_serves_and_counts(small_disk):
    (small_disk / "filler").write_bytes(bytes(300_000))
    counted, lines = [], []
    log = PredictionLogWriter(small_disk / "log", 0, LogSettings(on_write_error="serve"), on_rows_lost=counted.append,
                              on_line_written=lambda: lines.append(1))
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
    monkeypatch.setattr(writer.os, "write", write)
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
        m.setattr(writer.os, "write", lambda fd, data: real(fd, bytes(data)[:20]))
        m.setattr(writer.os, "ftruncate", lambda *a: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
        with pytest.raises(LogWriteError): log.append(answer("torn", NOON + 5))
    for i in range(2): log.append(answer(f"after{i}", NOON + 3))
    assert len(ids(tmp_path)) == before + 2
    compact_log(tmp_path)
    log.close()
    compact_log(tmp_path)
    assert sound(tmp_path).records == before + 2 and len(ids(tmp_path)) == before + 2


@pytest.mark.parametrize("removed", ["segment", "folder", "replaced", "empty segment"])
@pytest.mark.parametrize("sync", [False, True])
def test_a_log_that_is_removed_is_begun_anew_and_said_once(tmp_path, caplog, removed, sync):
    folder = tmp_path / "log"
    log = PredictionLogWriter(folder, 0, LogSettings(fsync=sync))
    if removed != "empty segment": log.append(answer("lost"))
    else: log._open_segment(NOON)
    log.check_writable()
    assert not caplog.records
    path, = segments(folder)
    if removed == "folder": shutil.rmtree(folder)
    else: path.unlink()
    if removed == "replaced": path.write_text("somebody's\n")
    for _ in range(3): log.check_writable()
    assert ["was removed while it was written" in r.getMessage() for r in caplog.records] == [True]
    log.append(answer("kept", NOON + 1))
    assert lease_is_held(folder, 0)
    asyncio.run(log.wait_durable())
    log.check_writable()
    log.close()
    assert ids(folder) == ["kept"] and len(caplog.records) == 1
    problems = audit_log(folder).problems # what is lost shows
    assert problems if removed != "empty segment" else not problems


def test_a_lease_whose_lock_is_removed_is_taken_again(tmp_path):
    log = PredictionLogWriter(tmp_path, 0) # nothing was answered yet
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        shutil.rmtree(tmp_path / "leases")
        assert not lease_is_held(tmp_path, 0)
        log.check_writable()
        assert lease_is_held(tmp_path, 0) and len(os.listdir("/proc/self/fd")) == before
    log.close()
    assert not lease_is_held(tmp_path, 0) and not segments(tmp_path)


def test_a_folder_that_cannot_be_made_again_refuses(tmp_path, caplog):
    folder = tmp_path / "here" / "log"
    log = PredictionLogWriter(folder, 0)
    log.append(answer("lost"))
    shutil.rmtree(tmp_path / "here")
    (tmp_path / "here").write_text("a file now")
    for _ in range(2): log.check_writable()
    assert log.refuses
    with pytest.raises(LogWriteError, match="Not a directory"): log.append(answer("refused", NOON + 1))
    assert len(caplog.records) == 2 # each said once
    (tmp_path / "here").unlink()
    log.check_writable()
    assert not log.refuses
    log.append(answer("kept", NOON + 1))
    log.close()
    assert ids(folder) == ["kept"]


def test_no_new_segment_can_be_begun(tmp_path, monkeypatch):
    log, real = PredictionLogWriter(tmp_path, 0), os.open
    log.append(answer("r0"))
    with monkeypatch.context() as m:
        def full(*_, **__): raise OSError(errno.ENOSPC, "No space left on device")
        m.setattr(writer.os, "open", full)
        for _ in range(2):
            with pytest.raises(LogWriteError): log.append(answer("r1", NOON + HOUR))
    assert writer.os.open is real
    log.append(answer("r2", NOON + HOUR))
    log.close()
    assert ids(tmp_path) == ["r0", "r2"] and sound(tmp_path).records == 2


# ---- the disk has it

def test_those_who_wait_together_share_a_sync(tmp_path, monkeypatch):
    log, syncs, at_once = PredictionLogWriter(tmp_path, 0, segments_of(2000, fsync=True)), [], []
    def slow(fd):
        at_once.append(1)
        assert len(at_once) == 1  # one at a time
        time.sleep(0.005)
        syncs.append(fd)
        at_once.pop()
    monkeypatch.setattr(writer.os, "fdatasync", slow)

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
    log, real, broken = PredictionLogWriter(tmp_path, 0, LogSettings(fsync=True)), os.fdatasync, [True]
    def sync(fd):
        if broken[0]: raise OSError(errno.EIO, "Input/output error")
        return real(fd)
    monkeypatch.setattr(writer.os, "fdatasync", sync)

    async def story():
        for i in range(3): log.append(answer(f"r{i}"))
        waiting = asyncio.gather(*(log.wait_durable() for _ in range(3)), return_exceptions=True)
        assert all(isinstance(e, LogWriteError) for e in await asyncio.wait_for(waiting, 10))
        broken[0] = False
        log.append(answer("after"))
        await asyncio.wait_for(log.wait_durable(), 10)
    asyncio.run(story())
    assert len(segments(tmp_path)) == 2  # what failed to reach the disk is left behind
    log.close()
    sound(tmp_path)


def test_without_sync_nobody_waits(tmp_path, monkeypatch):
    monkeypatch.setattr(writer.os, "fdatasync", lambda fd: 1 / 0)
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("r"))
    asyncio.run(log.wait_durable())
    log.close()
