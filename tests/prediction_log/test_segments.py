"The format of the prediction log: lines, segments, and the tables they become."
import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.prediction_logs import NOON, answer, label, segments

from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.prediction_log.segments import complete_lines, segment_tables
from mlops_nb.prediction_log.writer import PredictionLogWriter


@settings(max_examples=60, deadline=None)
@given(lines=st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=6),
       tail=st.binary(max_size=3000).map(lambda b: b.replace(b"\n", b"\0")))
def test_whole_lines_are_counted(tmp_path_factory, lines, tail):
    path = tmp_path_factory.mktemp("w") / "x"
    path.write_bytes(whole := b"".join(line + b"\n" for line in lines))
    with path.open("ab") as f: f.write(tail)
    assert complete_lines(path) == (len(lines), len(whole))


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


def test_a_record_that_makes_no_sense_is_not_written(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    with pytest.raises(ValueError, match="without rows"): log.append(answer("r", rows=0))
    with pytest.raises(TypeError): log.append(answer("r", columns=dict(x=[object()])))
    log.append(answer("good"))
    log.append(answer("short", columns=dict(x=[1, 2])))
    log.close()
    path, = segments(tmp_path)
    tables, (short,) = segment_tables(path)
    assert tables["record"]["id"].to_list() == ["good"] and "has 1 scores and 2 values of x" in short.reason


def test_a_line_that_makes_no_table_is_found_among_many(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    for i in range(20): log.append(answer(f"r{i}", columns=dict(x=[10**400 if i in (0, 7, 19) else 1.5])))
    log.close()
    tables, damaged = segment_tables(segments(tmp_path)[0])
    assert tables["record"]["id"].to_list() == [f"r{i}" for i in range(20) if i not in (0, 7, 19)]
    assert [b'"id":"r%d"' % i in d.line for i, d in zip((0, 7, 19), damaged, strict=True)] == [True] * 3


NEW_FIELDS = ["revision", "share", "failed", "own_us"]


def test_a_record_says_by_which_plan_and_with_which_probability_its_rows_were_dealt(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("a", rows=2, revision=7, share=0.05, failed="challenger", own_us=120))
    log.append(answer("b", NOON + 1))
    log.close()
    for compact in (False, True):
        if compact: compact_log(tmp_path)
        got = read_log(tmp_path).sort("time", "row").select(NEW_FIELDS).collect()
        assert got.rows() == [(7, 0.05, "challenger", 120)] * 2 + [(0, 1.0, "", 0)]


def test_lines_and_files_of_an_older_version_read_as_before(tmp_path):
    log = PredictionLogWriter(tmp_path, 0)
    log.append(answer("line"))
    log.close()
    path, = segments(tmp_path)
    old = {k: v for k, v in json.loads(path.read_bytes()).items() if k not in NEW_FIELDS}
    path.write_text(json.dumps(old) + "\n")
    assert read_log(tmp_path).select("id", *NEW_FIELDS).collect().rows() == [("line", 0, 1.0, "", 0)]
    compact_log(tmp_path)
    parquet, = tmp_path.glob("record/*/*/*.parquet")
    pl.read_parquet(parquet).drop(NEW_FIELDS).write_parquet(parquet)
    assert read_log(tmp_path).select("id", *NEW_FIELDS).collect().rows() == [("line", None, None, None, None)]
