"The index of requests: what any process has answered is found, wherever it lies by now."
import os
import random
import threading

import pytest
from support.prediction_logs import HOUR, NOON, answer, label, segments, segments_of

from mlops_nb.prediction_log import request_index
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.request_index import RequestIndex
from mlops_nb.prediction_log.writer import PredictionLogWriter


def indexed(folder): return sorted(p.stem for p in (folder / "index").glob("*.keys"))


def test_whatever_was_written_by_any_process_is_found_at_once(tmp_path, monkeypatch):
    "Two leases, many segments, compactions and restarts in between; two processes look, one now and then."
    monkeypatch.setattr(request_index, "_MAX_PARTS", 3)
    draw = random.Random(5)
    logs = [PredictionLogWriter(tmp_path, lease_id, segments_of(2000)) for lease_id in (0, 1)]
    always, seldom, rows = RequestIndex(tmp_path), RequestIndex(tmp_path), {}
    for i in range(60):
        lease_id, endpoint, n = draw.randrange(2), draw.choice(["churn", "a/b c"]), draw.randrange(1, 4)
        logs[lease_id].append(answer(f"r{i}", NOON + i * HOUR // 50, rows=n, endpoint=endpoint))
        logs[lease_id].append(answer(f"shadow{i}", NOON + i * HOUR // 50, mode="shadow"))
        logs[lease_id].append(label(f"label{i}", "yes", NOON + i * HOUR // 50))
        rows[endpoint, f"r{i}"] = n
        if i % 13 == 0: compact_log(tmp_path)
        if i % 19 == 0:
            logs[lease_id].close()
            logs[lease_id] = PredictionLogWriter(tmp_path, lease_id, segments_of(2000))
        known = [(id, n - 1) for (e, id), n in rows.items() if e == endpoint]
        wrong = [(id, n) for (e, id), n in rows.items() if e == endpoint]
        wrong += [(id, 0) for e, id in rows if e != endpoint] + [(f"shadow{i}", 0), (f"label{i}", 0), ("r1000", 0)]
        for index in (always, seldom) if i % 11 == 0 else (always,):
            assert index.unknown_rows(endpoint, known + wrong) == wrong
    assert RequestIndex(tmp_path).unknown_rows(endpoint, known + wrong) == wrong
    for log in logs: log.close()
    compact_log(tmp_path)
    assert len(indexed(tmp_path)) > 5 and {p.stat().st_mode & 0o777 for p in (tmp_path / "index").iterdir()} == {0o640}
    compact_log(tmp_path, retention_days=1, now_unix_seconds=NOON / 1e6 + 9 * 86400)
    assert indexed(tmp_path) == [] and always.unknown_rows(endpoint, known) == known


def test_a_request_of_several_variants_and_an_id_of_two_requests(tmp_path):
    log, index = PredictionLogWriter(tmp_path, 0), RequestIndex(tmp_path)
    log.append(answer("split", rows=2, row_indices=[3, 1]))
    log.append(answer("split", rows=2, row_indices=[0, 2]))
    for n in (4, 1): log.append(answer("twice", rows=n))
    log.append(answer("x" * 1000 + "ü", columns=dict(x=["y" * 3_000_000]))) # longer than a look at once
    asked = [(id, row) for id in ("split", "twice") for row in range(5)]
    for _ in range(2):
        assert index.unknown_rows("churn", [*asked, ("x" * 1000 + "ü", 0)]) == [("split", 4), ("twice", 4)]
        log.close()
        compact_log(tmp_path)


def test_lines_that_are_torn_or_damaged_and_what_is_written_on_after_them(tmp_path):
    log, index = PredictionLogWriter(tmp_path, 0), RequestIndex(tmp_path)
    log.append(answer("r0"))
    path, = segments(tmp_path)
    with path.open("ab") as f: f.write(b"nonsense\n\xff\n" + b'{"kind":"record","id":"r1","endp')
    assert index.unknown_rows("churn", [("r0", 0), ("r1", 0)]) == [("r1", 0)]
    with path.open("ab") as f: f.write(b'oint":"churn","score":[1]}\n')
    assert index.unknown_rows("churn", [("r0", 0), ("r1", 0)]) == []
    log.close()


def test_a_log_of_before_there_was_an_index_and_one_whose_index_cannot_be_written(tmp_path, monkeypatch):
    log = PredictionLogWriter(tmp_path, 0, segments_of(500))
    for i in range(20): log.append(answer(f"r{i}", NOON + i))
    log.append(answer("shadow", mode="shadow"))
    asked = [*((f"r{i}", 0) for i in range(20)), ("shadow", 0)]
    with monkeypatch.context() as m:
        def full(*_): raise OSError(28, os.strerror(28))
        m.setattr(request_index, "write_request_index", full)
        index = RequestIndex(tmp_path)
        for _ in range(2): assert index.unknown_rows("churn", asked) == [("shadow", 0)] and not indexed(tmp_path)
    assert index.unknown_rows("churn", asked) == [("shadow", 0)]
    assert len(indexed(tmp_path)) == len(segments(tmp_path)) - 1
    compact_log(tmp_path)
    for p in (tmp_path / "index").iterdir(): p.unlink()
    assert index.unknown_rows("churn", asked) != [("shadow", 0)]
    compact_log(tmp_path)
    assert index.unknown_rows("churn", asked) == [("shadow", 0)]
    log.close()


@pytest.mark.parametrize("what", ["compact", "expire"])
def test_looking_while_segments_become_parquet_or_are_removed(tmp_path, what):
    log = PredictionLogWriter(tmp_path, 0, segments_of(1000))
    for i in range(60): log.append(answer(f"r{i}", NOON + i * HOUR // 10))
    asked, found, done = [(f"r{i}", 0) for i in range(60)], [], threading.Event()

    def look():
        index = RequestIndex(tmp_path)
        while not done.is_set(): found.append(len(index.unknown_rows("churn", asked)))
    if what == "expire": compact_log(tmp_path)
    looker = threading.Thread(target=look)
    looker.start()
    try: compact_log(tmp_path, retention_days=what == "expire", now_unix_seconds=NOON / 1e6 + 9 * 86400)
    finally: done.set(); looker.join(60)
    assert not any(found) if what == "compact" else found == sorted(found)
    log.close()
