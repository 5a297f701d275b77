"Compaction and retention: stopped at any moment, each row is there once, and what is too old is no gap."
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.prediction_logs import HOUR, NOON, Killed, answer, fill_up, ids, label, segments, sound

from mlops_nb.core.typed_yaml import read_json
from mlops_nb.prediction_log.audit import audit_log
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.reader import read_feedback
from mlops_nb.prediction_log.writer import PredictionLogWriter

COMPACTOR = """
import sys
from mlops_nb.prediction_log.compaction import compact_log
print("ready", flush=True)
compact_log(sys.argv[1])
"""


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


def test_a_damaged_line_is_set_aside_and_stops_nothing(tmp_path):
    "Also a segment that holds nothing else; retention removes what was set aside with the rest."
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(4): log.append(answer(f"r{i}", NOON + i // 2 * HOUR))
    log.append(label("r0", 1, NOON + 2 * HOUR, row=2**70)) # as an older server took it
    log.append(answer("r4", NOON + 2 * HOUR))
    log.close()
    first, second, _ = segments(tmp_path)
    lines = first.read_bytes().splitlines(keepends=True)
    first.write_bytes(lines[0] + b"nonsense\n")
    second.write_bytes(b"\xff\n\xff\n")
    assert ids(tmp_path) == ["r0", "r4"]
    done = compact_log(tmp_path)
    assert (done.segments, done.rows, done.damaged_lines) == (3, 2, 4)
    assert ids(tmp_path) == ["r0", "r4"] and read_feedback(tmp_path).collect().is_empty()
    assert (tmp_path / "damaged" / f"{first.stem}.jsonl").read_bytes() == b"nonsense\n"
    problems = audit_log(tmp_path).problems
    assert len(problems) == 3 and all("damaged, and were left out" in p for p in problems)
    now = NOON / 1e6 + 30 * 86400
    assert compact_log(tmp_path, retention_days=1, now_unix_seconds=now).removed_segments == 3
    assert audit_log(tmp_path).problems == [] and not list(tmp_path.glob("damaged/*"))


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
