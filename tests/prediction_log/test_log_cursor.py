"Every line is read once, whatever happens to the log between two looks."
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prediction_logs import HOUR, NOON, answer, ids, label, segments, segments_of

from mlops_nb.core.errors import UserError
from mlops_nb.prediction_log import log_cursor
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.log_cursor import cursor_at, read_since
from mlops_nb.prediction_log.segments import recover_segment, segment_paths
from mlops_nb.prediction_log.writer import PredictionLogWriter


class Log:
    "A log of two processes, what was written to it, and what somebody who looks now and then has read."
    def __init__(self, folder):
        self.folder, self.cursor, self.n, self.written, self.read = folder, {}, 0, [], []
        self.writers = [self.open(lease_id) for lease_id in (0, 1)]

    def open(self, lease_id): return PredictionLogWriter(self.folder, lease_id, segments_of(1500))

    def append(self, lease_id, rows, minutes, ours):
        self.n += 1
        time = NOON + self.n * minutes * HOUR // 60
        endpoint = "churn" if ours else "fraud"
        if rows: self.writers[lease_id].append(answer(f"r{self.n}", time, rows, endpoint=endpoint))
        else: self.writers[lease_id].append(label(f"r{self.n}", 1, time, endpoint=endpoint))
        if ours: self.written.append((lease_id, f"r{self.n}", rows))

    def restart(self, lease_id, garbage):
        "The process ends, perhaps in the middle of a line or beside one that somebody spoilt, and another begins."
        self.writers[lease_id].close()
        if (paths := segment_paths(self.folder, lease_id)) and garbage:
            with paths[-1].open("ab") as f: f.write(garbage)
            self.look(3)
        self.writers[lease_id] = self.open(lease_id)

    def look(self, max_rows):
        records, feedback, after = read_since(self.folder, "churn", json.loads(json.dumps(self.cursor)), max_rows)
        assert records["time"].is_sorted() and feedback["time"].is_sorted()
        rows = records.group_by("lease_id", "id", "seq", maintain_order=True).len()
        self.read += [(lease_id, id, n) for lease_id, id, _, n in rows.iter_rows()]
        self.read += [(lease_id, id, 0) for lease_id, id in feedback.select("lease_id", "id").iter_rows()]
        moved, self.cursor = after != self.cursor, after
        return moved


steps = st.lists(min_size=15, max_size=40, elements=st.one_of(
    st.tuples(st.just("append"), st.integers(0, 1), st.integers(0, 3), st.integers(0, 40), st.booleans()),
    st.tuples(st.just("append"), st.integers(0, 1), st.integers(0, 3), st.integers(0, 40), st.just(True)),
    st.tuples(st.just("look"), st.integers(1, 9)), st.tuples(st.just("compact")),
    st.tuples(st.just("restart"), st.integers(0, 1), st.sampled_from([b"", b'{"kind":"rec', b"nonsense\n"]))))


@settings(max_examples=40, deadline=None)
@given(steps)
def test_what_was_read_is_what_was_written_each_line_once(tmp_path_factory, steps):
    log = Log(tmp_path_factory.mktemp("log"))
    for name, *args in steps:
        if name == "compact": compact_log(log.folder)
        else: getattr(log, name)(*args)
    while log.look(7): pass
    assert sorted(log.read) == sorted(log.written)
    for w in log.writers: w.close()


def written(folder, n=30, **other):
    log = PredictionLogWriter(folder, 0, segments_of(1500))
    for i in range(n): log.append(answer(f"r{i:02}", NOON + i * HOUR // 7, **other))
    log.close()
    return [f"r{i:02}" for i in range(n)]


def all_of(folder, cursor, max_rows=10**6):
    found = []
    while True:
        records, _, after = read_since(folder, "churn", cursor, max_rows)
        found += records["id"].to_list()
        if after == cursor: return found
        cursor = after


def test_nothing_is_there_yet(tmp_path):
    records, feedback, cursor = read_since(tmp_path, "churn", {})
    assert records.height == feedback.height == 0 and cursor == {}
    assert {"share", "revision", "failed", "own_us", "entity"} <= {*records.columns} and "label" in feedback.columns


@pytest.mark.parametrize("n_read", [0, 4, 29])
def test_segments_that_retention_removed_do_not_stop_it(tmp_path, n_read):
    names = written(tmp_path)
    cursor = {"0": n_read}
    compact_log(tmp_path)
    went = compact_log(tmp_path, retention_days=1, now_unix_seconds=NOON / 1e6 + 86_400 + 2 * 3600).removed_segments
    assert went
    left = ids(tmp_path)
    assert 0 < len(left) < 30 and all_of(tmp_path, cursor) == [x for x in names[n_read:] if x in left]


def test_a_segment_that_is_compacted_after_it_was_listed(tmp_path, monkeypatch):
    names, listed = written(tmp_path), log_cursor._list_segments
    def then_compacted(*args):
        found = listed(*args)
        compact_log(tmp_path)
        return found
    monkeypatch.setattr(log_cursor, "_list_segments", then_compacted)
    assert len(segments(tmp_path)) > 3 and read_since(tmp_path, "churn", {})[0]["id"].to_list() == names
    assert len(segments(tmp_path)) == 1


def test_a_compaction_that_was_killed_before_it_removed_the_lines(tmp_path):
    names = written(tmp_path)
    lines = {p: p.read_bytes() for p in segments(tmp_path)}
    compact_log(tmp_path)
    for path in [*lines][2:4]: path.write_bytes(lines[path])
    assert all_of(tmp_path, {}) == names


def test_a_log_that_never_holds_still(tmp_path, monkeypatch):
    written(tmp_path)
    def gone(*args): raise FileNotFoundError
    monkeypatch.setattr(log_cursor, "_list_segments", gone)
    monkeypatch.setattr(log_cursor, "_READ_PAUSE_SECONDS", 0)
    with pytest.raises(UserError, match="changes faster than it can be read"): read_since(tmp_path, "churn", {})


def test_lines_that_a_loss_of_power_took_do_not_hide_those_that_follow(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(5): log.append(answer(f"r{i}", NOON + i))
    cursor = read_since(tmp_path, "churn", {})[2]
    log.close()
    path, = segments(tmp_path)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    cursor = read_since(tmp_path, "churn", cursor)[2]
    assert recover_segment(tmp_path, 0)[1] == cursor["0"] == 2
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(2): log.append(answer(f"new{i}", NOON + 9 + i))
    log.close()
    assert all_of(tmp_path, cursor) == ["new0", "new1"]


@pytest.mark.parametrize("compact", [False, True])
def test_a_look_reads_about_as_many_rows_as_it_may_and_no_request_in_two_parts(tmp_path, compact):
    names = written(tmp_path, rows=3)
    if compact: compact_log(tmp_path)
    records, _, cursor = read_since(tmp_path, "churn", {}, max_rows=4)
    assert records["id"].to_list() == ["r00"] * 3 + ["r01"] * 3 and records["row"].to_list() == [0, 1, 2] * 2
    assert all_of(tmp_path, cursor, max_rows=1) == [x for x in names[2:] for _ in range(3)]


def test_only_the_segments_from_the_cursor_on_are_opened(tmp_path, monkeypatch):
    names, opened = written(tmp_path), []
    compact_log(tmp_path)
    def scan(path, **how):
        opened.append(path.stem)
        return log_cursor_scan(path, **how)
    log_cursor_scan = log_cursor.pl.scan_parquet
    monkeypatch.setattr(log_cursor.pl, "scan_parquet", scan)
    assert all_of(tmp_path, {"0": 28}) == names[28:] and len({*opened}) <= 1
    opened.clear()
    assert all_of(tmp_path, {"0": 0}) == names and len({*opened}) > 3


@pytest.mark.parametrize("compact", [False, True])
def test_a_cursor_for_a_point_in_time_leaves_out_what_is_older_and_nothing_that_is_newer(tmp_path, compact):
    names = written(tmp_path)
    if compact: compact_log(tmp_path)
    noon = datetime.fromtimestamp(NOON / 1e6, UTC)
    for hours in (-1, 0, 1.5, 3, 100):
        found = all_of(tmp_path, cursor_at(tmp_path, noon + timedelta(hours=hours)))
        newer = [x for i, x in enumerate(names) if i / 7 >= hours]
        assert found[len(found) - len(newer):] == newer and len(found) - len(newer) <= 8
