"Reading the log: each row once, with the label that holds, whatever happened before."
import json
import threading
from datetime import UTC, datetime, timedelta, timezone

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.prediction_logs import HOUR, NOON, answer, fill_up, ids, label, segments, segments_of, sound

from mlops_nb.core.errors import UserError
from mlops_nb.prediction_log import reader
from mlops_nb.prediction_log.compaction import CompactionReport, compact_log
from mlops_nb.prediction_log.log_cursor import read_since
from mlops_nb.prediction_log.reader import read_feedback, read_log, read_repeated_ids
from mlops_nb.prediction_log.writer import PredictionLogWriter

# ---- everything at once, against a model

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2**63, 2**63 - 1), FLOATS, st.text(max_size=5))
ENDPOINTS = st.sampled_from(["churn", "a/b c", "..", "ü*?[x]", "="])
TIMES = st.one_of(st.integers(0, 5), st.integers(-3, 30).map(lambda h: h * HOUR // 2))
STEP = st.one_of(
    st.tuples(st.just("answer"), st.integers(0, 1), TIMES, ENDPOINTS, st.lists(VALUES, min_size=1, max_size=3)),
    st.tuples(st.just("label"), st.integers(0, 1), TIMES, st.integers(0, 8),
              st.one_of(st.integers(0, 2), st.none(), st.just("yes"))),
    st.tuples(st.just("compact")), st.tuples(st.just("restart"), st.integers(0, 1)),
    st.tuples(st.just("tear"), st.integers(0, 1)))


@settings(max_examples=45, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, max_size=25))
def test_whatever_happens_each_row_is_there_once_with_its_label(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("log")
    logs = {s: PredictionLogWriter(folder, s, segments_of(700)) for s in (0, 1)}
    rows, arrived, asked, clock = {}, [], [], {0: 0, 1: 0}
    for step in steps:
        match step:
            case "answer", lease_id, at, endpoint, values:
                id = f"r{len(asked)}"
                asked.append((endpoint, id))
                score = [0.5] * len(values)
                logs[lease_id].append(answer(id, NOON + at, endpoint=endpoint, columns=dict(x=values), score=score))
                rows |= {(endpoint, id, i): v for i, v in enumerate(values)}
            case "label", lease_id, at, which, value:
                endpoint, id = asked[which] if which < len(asked) else ("churn", f"r{which}")  # also before its answer
                logs[lease_id].append(label(id, value, NOON + at, endpoint=endpoint))
                clock[lease_id] = max(clock[lease_id], NOON + at)
                arrived.append((clock[lease_id], lease_id, len(arrived), (endpoint, id), value))
            case ("compact",): compact_log(folder)
            case "restart", lease_id:
                logs[lease_id].close()
                logs[lease_id] = PredictionLogWriter(folder, lease_id, segments_of(700))
            case "tear", lease_id:
                logs[lease_id].close()
                mine = [p for p in segments(folder) if p.name.startswith(f"00{lease_id}")]
                if mine:
                    with mine[-1].open("ab") as f: f.write(b'{"kind":"record","id":"torn"')
                logs[lease_id] = PredictionLogWriter(folder, lease_id, segments_of(700))
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
        for endpoint in {e for e, _ in asked}:
            assert ids(folder, endpoint=endpoint) == sorted(i for e, i, _ in rows if e == endpoint)
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


# ---- ids that are used twice

CASES = { # what came under the same id, and which rows have their label then
    "retry": (dict(plan=["a", None]), ["yes", "yes", None, None]), # both of row 0, none of row 1
    "other inputs": (dict(plan=["b", None]), [None] * 4),
    "other in row 1": (dict(plan=["a", "c"]), ["yes", "yes", None, None]), # the label is for row 0, which is the same
    "other columns": (dict(tenure=[1, 2]), [None] * 4),
}


@pytest.mark.parametrize("case", CASES)
def test_a_label_is_joined_to_no_answer_to_another_request_of_the_same_id(tmp_path, case):
    "Wherever the other one lies, and though it is not among what is read."
    columns, wanted = CASES[case]
    log, other = PredictionLogWriter(tmp_path, 0), PredictionLogWriter(tmp_path, 1)
    log.append(answer("r", NOON, rows=2, columns=dict(plan=["a", None])))
    log.append(answer("alone", NOON, columns=dict(plan=["a"])))
    other.append(answer("r", NOON + 40 * HOUR, rows=2, columns=columns))
    other.append(answer("r", NOON, rows=2, endpoint="fraud", columns=dict(plan=["z", "z"])))
    other.append(answer("r", NOON, rows=2, mode="shadow", columns=dict(plan=["a", None]), variant="b"))
    for id in ("r", "alone"): other.append(label(id, "yes", NOON + 41 * HOUR))
    start = datetime(2026, 11, 3, 12, tzinfo=UTC)
    for _ in range(3): # all of it lines, some, and none
        got = read_log(tmp_path, "churn").filter(mode="live").sort("row", "time").collect()
        assert got.filter(id="r")["label"].to_list() == wanted and got.filter(id="alone")["label"].to_list() == ["yes"]
        for late in (False, True): # two days that are read for themselves
            span = dict(since=start + timedelta(hours=24)) if late else dict(until=start + timedelta(hours=24))
            got = read_log(tmp_path, **span).filter(id="r", mode="live", endpoint="churn").sort("row").collect()
            assert got["label"].to_list() == [wanted[late], None]
        found = read_repeated_ids(tmp_path)
        assert found.select("endpoint", "id", "n_answers", "same_inputs").rows() == [
            ("churn", "r", 2, case == "retry")]
        (log if log._fd is not None else other).close()
        compact_log(tmp_path)


def test_ids_are_counted_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "_PART_ROWS", 7)
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(40): log.append(answer(f"r{i % 30}", NOON + i, columns=dict(plan=[f"{i % 20}"])))
    log.close()
    found = read_repeated_ids(tmp_path)
    assert sorted(found["id"]) == sorted(f"r{i}" for i in range(10)) and not found["same_inputs"].any()


@pytest.mark.parametrize("compacted", [False, True])
def test_labels_with_actions_and_sources_beside_those_of_older_logs(tmp_path, compacted):
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(2): log.append(answer(f"r{i}"))
    for i in range(2): log.append(label(f"r{i}", "yes", NOON + 10))
    log.close()
    path = segments(tmp_path)[0] # as it was written before there were actions
    path.write_text(path.read_text().replace('"action":"","source":"outcome",', ""))
    assert "action" not in path.read_text()
    if compacted:
        PredictionLogWriter(tmp_path, 0, segments_of(1)).append(answer("r2"))
        compact_log(tmp_path)
        for parquet in tmp_path.glob("feedback/*/*/*.parquet"):
            pl.read_parquet(parquet, hive_partitioning=False).drop("action", "source").write_parquet(parquet)
    log = PredictionLogWriter(tmp_path, 1)
    for i, action in ((20, "called"), (30, "called"), (40, "")):
        log.append(label("r1", "yes", NOON + i, action=action, source="person"))
    found = read_log(tmp_path).filter(pl.col("id").is_in(["r0", "r1"])).sort("id").select(
        "label", "action", "label_source", "n_corrections").collect().rows()
    assert found == [("yes", "", "outcome", 0), ("yes", "", "person", 0)]
    assert read_feedback(tmp_path).filter(id="r1").collect()["action"].to_list() == ["", "called", ""]
    assert read_since(tmp_path, "churn", {})[1]["source"].null_count() == (2 if compacted else 0)


# ---- tables

def test_an_empty_log_is_an_empty_table(tmp_path):
    PredictionLogWriter(tmp_path, 0).close()
    assert read_log(tmp_path).collect().is_empty() and read_feedback(tmp_path).collect().is_empty()
    assert compact_log(tmp_path) == CompactionReport(0, 0, 0)
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


def test_a_log_that_never_stands_still_is_a_sentence(tmp_path, monkeypatch):
    PredictionLogWriter(tmp_path, 0).close()
    def gone(*_): raise FileNotFoundError("compacted meanwhile")
    monkeypatch.setattr(reader, "_scan_tables", gone)
    monkeypatch.setattr(reader, "_READ_PAUSE_SECONDS", 0)
    with pytest.raises(UserError, match="changes faster than it can be read"): read_log(tmp_path)
