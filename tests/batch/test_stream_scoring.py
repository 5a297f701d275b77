"Rows from a stream: each is answered once, whoever is killed meanwhile."
import asyncio
import collections
import errno
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time

import msgspec
import pytest
from support import server as serving
from support.prediction_logs import answer
from support.services import free_port
from support.stream_group import once, run_until

from mlops_nb.batch import stream_scoring
from mlops_nb.batch.brokers import StreamMessage
from mlops_nb.batch.stream_scoring import StreamWorker, create_broker
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.settings import LogSettings, StreamSettings, read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log import writer
from mlops_nb.prediction_log.audit import audit_log
from mlops_nb.prediction_log.leases import lease_is_held
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.prediction_log.row_counts import read_row_counts
from mlops_nb.prediction_log.writer import LogWriteError
from mlops_nb.release.release_plan import plan_path, promote_bundle
from mlops_nb.serve.time_limit import ProcessingTimeout


def test_two_share_the_work_and_end_when_told_to(group):
    g = group()
    rows = [(f"r{i}", i) for i in range(1000)]
    a, b = g.begin(pause=.05), g.begin(pause=.05)  # so slow that the one is not done before the other is connected
    g.put(rows)
    g.wait(lambda: g.service.left(g.names) == 0)
    once(g, rows)
    shares = collections.Counter(r["by"] for r in g.results)
    assert len(shares) == 2 and min(shares.values()) > 100
    counts = 0
    for p in (a, b):
        p.send_signal(signal.SIGTERM)
        out, err = p.communicate(timeout=20)
        assert p.returncode == 0, err
        counts += int(out.split("answered=")[1].split(",")[0])
    assert counts == 1000


def test_killed_in_the_middle_of_batches(group):
    g = group(max_deliveries=10) # a row that was tried alone in each process that is killed here is not poison
    rows = [(f"Nr. {i} <ä>", i) for i in range(600)]
    g.put(rows[:300])
    for k in range(6):
        victim = g.begin(pause=.05)
        if k == 2: g.put(rows[300:])
        before = len(g.results)
        g.wait(lambda n=before: len(g.results) > n)
        time.sleep(random.random() * .1)
        victim.kill()
    g.begin(), g.begin()
    g.wait(lambda: g.service.left(g.names) == 0)
    once(g, rows)
    assert len({r["by"] for r in g.results}) >= 5 and not g.refused


def test_poison_ends_aside_with_its_reason_and_takes_nobody_with_it(group):
    g = group(max_deliveries=2)
    rows = [(f"r{i}", i) for i in range(100)]
    bad = [("killer", "kill"), ("failing", "fail"), ("wrong", "refuse")]
    g.put(rows[:30] + bad + rows[30:])
    g.begin()
    g.wait(lambda: g.service.left(g.names) == 0, meanwhile=g.keep_alive)
    once(g, rows)
    assert g.refused == {"killer": "The process ended each of the 2 times it was tried alone.",
                         "wrong": "row 1 breaks the contract",
                         "failing": "It failed 2 times alone; the last time with RuntimeError: no way"}
    g.put([("wrong", 7)])  # mended, under the same id
    g.wait(lambda: len(g.results) == 101)


def test_a_message_that_was_late_among_others_is_tried_again_and_not_dead_lettered():
    async def late(id, body): raise ProcessingTimeout("took longer")
    worker = StreamWorker(None, late, StreamSettings())
    asyncio.run(worker.handle_new([StreamMessage(str(i), b"{}", False) for i in range(3)]))
    assert worker.counts.dead_lettered == worker.counts.answered == 0


def test_the_same_id_twice_is_answered_once(group):
    g = group()
    g.put([("same", 1), ("other", 2)])
    g.begin()
    g.wait(lambda: len(g.results) == 2)
    time.sleep(.3)  # longer than the source itself would notice
    g.put([("same", 1), ("third", 3), ("third", 3)])
    g.wait(lambda: g.service.left(g.names) == 0)
    once(g, [("same", 1), ("other", 2), ("third", 3)])


def test_without_an_id_each_message_is_one(group):
    g = group()
    g.put([(None, 1)] * 3)
    g.begin()
    g.wait(lambda: g.service.left(g.names) == 0)
    assert [r["twice"] for r in g.results] == [2, 2, 2] and len({r["id"] for r in g.results}) == 3


def test_a_full_target_holds_the_source_back(group):
    g = group(max_backlog=50, batch_size=10)
    g.put([(f"r{i}", i) for i in range(200)])
    for p in (g.begin(), g.begin()): assert "the target holds 50 answers or more" in p.stderr.readline()
    assert 50 <= len(g.results) <= 60 + 10 and g.service.left(g.names) >= 130
    seen = set()
    while len(seen) < 200:
        g.wait(lambda: g.results)
        seen |= {json.loads(r)["id"] for r in g.service.take(g.names)}
    assert seen == {f"r{i}" for i in range(200)}


def test_the_broker_is_killed_and_comes_back(group):
    g = group()
    rows = [(f"r{i}", i) for i in range(300)]
    g.put(rows[:200])
    p = g.begin(pause=.1)
    g.wait(lambda: g.results)
    g.service.kill()
    assert "trying again in 0.1 s" in p.stderr.readline()
    g.service.start()
    g.put(rows[200:])
    g.wait(lambda: g.service.left(g.names) == 0)
    once(g, rows)
    p.send_signal(signal.SIGTERM)
    _, err = p.communicate(timeout=20)
    assert p.returncode == 0 and "going on" in err


def test_a_log_that_cannot_be_written_refuses_nobody(group, monkeypatch):
    monkeypatch.setattr(stream_scoring, "_MAX_RETRY_SECONDS", .1)
    g, rows, failures = group(max_deliveries=1, batch_size=5), [(f"r{i}", i) for i in range(12)], iter(range(5))
    async def answer(id, body):
        if id in ("r3", "r7") and next(failures, None) is not None: raise LogWriteError("The log cannot be written")
        return msgspec.json.encode(dict(id=id, twice=2 * int(body)))
    g.put(rows)
    assert run_until(g, answer, lambda: len(g.results) == 12).dead_lettered == 0
    once(g, rows)
    assert next(failures, None) is None and not g.refused


@pytest.mark.parametrize("kind", ["redis", "nats"])
def test_an_address_without_a_server_is_a_sentence_without_the_password(kind):
    url = f"{kind}://someone:secret@127.0.0.1:{free_port()}"
    settings = StreamSettings(url=url)
    async def start(): await StreamWorker(create_broker(settings), None, settings).run(asyncio.Event())
    with pytest.raises(UserError, match=r"cannot be used.*MLOPS_NB_STREAM_URL") as e: asyncio.run(start())
    assert "secret" not in str(e.value) and "\n" not in str(e.value)


# ---- the log of a stream

def test_the_size_of_segments_is_that_of_the_settings(tmp_path):
    with stream_scoring._open_log(tmp_path, LogSettings(segment_mib=3)) as (log, _):
        assert log._max_segment_bytes == 3 << 20 and lease_is_held(tmp_path, 500)
    assert not lease_is_held(tmp_path, 500)


def test_rows_answered_without_a_record_are_counted(tmp_path, monkeypatch):
    with stream_scoring._open_log(tmp_path, LogSettings(on_write_error="serve")) as (log, metrics):
        log.append(answer("r0"))
        monkeypatch.setattr(writer.os, "write", lambda fd, data: 0)
        log.append(answer("r1", rows=3))
        assert (metrics.unlogged_rows.get(), metrics.log_records.get()) == (3, 1)
    assert read_row_counts(tmp_path)[500].unlogged == 3


def test_a_log_that_is_removed_under_a_stream_is_made_again(tmp_path):
    class Worker:
        async def run(self, stop):
            (tmp_path / "log").rename(tmp_path / "gone")
            end = time.monotonic() + 60
            while not (list(tmp_path.glob("log/segments/*")) and list(tmp_path.glob("log/metrics/counter_*"))):
                assert time.monotonic() < end
                await asyncio.sleep(.01)
    with stream_scoring._open_log(tmp_path / "log", LogSettings()) as (log, metrics):
        log.append(answer("lost"))
        asyncio.run(stream_scoring._run_and_check_files(Worker(), log, metrics))
        log.append(answer("kept"))
    assert read_log(tmp_path / "log").collect()["id"].to_list() == ["kept"]


def test_only_held_leases_are_said_to_be_held(tmp_path, monkeypatch):
    monkeypatch.setattr(stream_scoring, "_STREAM_LEASES", range(500, 502))
    def begin(): return stream_scoring._open_log(tmp_path, LogSettings())
    with begin(), begin(), pytest.raises(UserError, match="all 2 leases are held"): begin().__enter__()
    def full(*_): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr("mlops_nb.serve.metrics.os.posix_fallocate", full)
    with pytest.raises(OSError, match="No space left"): begin().__enter__()


def test_a_file_in_the_place_of_the_log_is_said_as_such(tmp_path, group):
    (tmp_path / "predictions").write_text("a file")
    _, err = command(tmp_path, group()).communicate(timeout=20)
    assert "predictions" in err and "a part of the path is a file" in err and "processes" not in err


# ---- the command

@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    place = tmp_path_factory.mktemp("bundles")
    return serving.bundle(place / "a", n=300), serving.bundle(place / "b", n=400)


def command(root, g):
    environ = {f"MLOPS_NB_STREAM_{n.upper()}": str(v) for n, v in msgspec.to_builtins(g.settings).items() if v != ""}
    program = [sys.executable, "-c", "from mlops_nb.cli import main; main()", "stream"]
    return subprocess.Popen(program, cwd=root, text=True,
                            env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_command_answers_as_the_bundle_and_follows_the_release(group, bundles, tmp_path):
    root, g = serving.project(tmp_path, made=bundles[0]), group()
    old, new = map(Predictor.open, bundles)
    rows = serving.instances(60, seed=3)
    g.put([(f"r{i}", row) for i, row in enumerate(rows[:30])])
    g.put([("bad", rows[0] | {"count": 10**6}), ("two", {"instances": rows[:2]})])
    for k in range(2):
        run = command(root, g)
        g.running.append(run)
        if k == 0:
            g.wait(lambda: g.results)
            run.kill()
    g.wait(lambda: g.service.left(g.names) == 0)
    assert "count" in g.refused["bad"] and len(g.refused) == 1
    place = store_bundle(bundles[1], root / "bundles")
    promote_bundle(plan_path(root, read_settings(root, {})), serving.ENDPOINT, place.name)
    probes = itertools.count(30)
    def probe(): g.put([(f"r{(i := next(probes))}", rows[i % 60])])
    g.wait(lambda: any(r["bundle"] == new.id for r in g.results), meanwhile=probe)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 0 and "messages answered, " in out, err
    found = {r["id"]: r for r in g.results}
    assert len(found) == len(g.results) and found["two"]["predictions"][1]["score"] == old.predict_one(rows[1])
    for i in range(30): assert found[f"r{i}"]["predictions"][0]["score"] == old.predict_one(rows[i])
    for id, r in found.items():
        if r["bundle"] == new.id: assert r["predictions"][0]["score"] == new.predict_one(rows[int(id[1:]) % 60])
    log = read_log(root / "predictions").select("id", "row", "bundle").collect()
    assert set(found) == set(log["id"]) and audit_log(root / "predictions").problems == []


def test_nothing_is_deployed(tmp_path, group):
    run = command(tmp_path, group())
    _, err = run.communicate(timeout=20)
    assert run.returncode == 1 and "No model is released" in err and "Traceback" not in err
