"The log audit, and what it finds."
from contextlib import chdir

import polars as pl
import pytest
from support.prediction_logs import HOUR, NOON, answer, label, segments, sound
from typer.testing import CliRunner

from mlops_nb.cli import app
from mlops_nb.core.errors import UserError
from mlops_nb.prediction_log.audit import RowCounts, audit_log
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.writer import PredictionLogWriter


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
    cases = [(lines[:4] + lines[6:], "Missing of the lines 20 to 29: 2"),
             (lines[3:], "Missing of the lines 20 to 29: 3"),
             (lines + lines[-1:], "twice: 1"), (lines[:2] + ["{}\n"] + lines[3:], "damaged, and were left out: 1"),
             (["\xff\r\n"] + lines[1:9] + ["\xff\r\n"], "damaged, and were left out: 2")]
    for changed, said in cases:
        path.write_text("".join(changed), encoding="latin-1")
        problems = audit_log(finished).problems
        assert len(problems) == 1 and said in problems[0], problems
    compact_log(finished)
    assert audit_log(finished).problems == problems


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
    report = sound(finished, {0: RowCounts(answered=30)})
    assert (report.n_answered_rows, report.rows) == (30, 30)
    problem, = audit_log(finished, {0: RowCounts(answered=32)}).problems
    assert "counted 32 rows as answered, but 30 are on record" in problem
    report = sound(finished, {0: RowCounts(answered=32, unlogged=2)})  # they were let through, and counted
    assert report.n_lost_rows == 2 and "2 rows were answered without a record" in report.message
    problem, = audit_log(finished, {7: RowCounts(answered=1)}).problems  # a lease that never wrote
    assert "Lease 7 counted 1 rows as answered, but 0 are on record" in problem


def test_counts_that_cannot_be_read_are_a_problem_and_count_nothing(finished):
    report = audit_log(finished, {0: RowCounts(problem="counter_0.db is damaged.")})
    assert report.problems == ["counter_0.db is damaged."] and report.n_answered_rows is None and report.rows == 30


def test_the_command(tmp_path):
    def typed(*words):
        with chdir(tmp_path): result = CliRunner().invoke(app, words)
        return result.output if result.exception is None else result.exception
    assert "is no prediction log" in str(typed("log", "audit"))
    log = PredictionLogWriter(tmp_path / "predictions", 0)
    for i in range(3): log.append(answer(f"r{i}", NOON + i * HOUR))
    log.close()
    (tmp_path / "settings.ini").write_text("[log]\nretention_days = 36500\n")
    assert "3 rows are on record, no metrics are here" in typed("log", "audit")
    damaged = segments(tmp_path / "predictions")[1]
    damaged.write_bytes(b"nonsense\n" + damaged.read_bytes())
    said = typed("log", "compact")
    assert "3 segments with 3 records and labels are Parquet now, 0 were too old" in said
    assert "1 damaged lines were set aside in predictions/damaged" in said
    next((tmp_path / "predictions").rglob("*.parquet")).unlink()
    assert isinstance(e := typed("log", "audit"), UserError) and "Missing of the lines" in str(e)


def test_labels_that_join_nothing_and_ids_that_were_used_twice_are_listed_and_are_no_problem(tmp_path):
    logs = [PredictionLogWriter(tmp_path, lease_id) for lease_id in (0, 1)]
    for i in range(4): logs[0].append(answer(f"r{i}", NOON + i * HOUR, rows=2))
    logs[1].append(answer("r1", NOON + 9 * HOUR, rows=2))                                # a retry
    logs[1].append(answer("r2", NOON + 9 * HOUR, rows=2, columns=dict(plan=["a", "b"]))) # another request
    logs[1].append(answer("r3", NOON, rows=2, endpoint="fraud"))                         # another endpoint's
    logs[1].append(answer("r4", NOON, mode="shadow"))
    logs[1].append(answer("r5", rows=2, row_indices=[1, 3]))                             # two variants of one request
    logs[1].append(answer("r5", rows=2, row_indices=[0, 2], variant="challenger"))
    wanted = [label("r0", "yes", row=1), label("r5", "yes", row=3)]
    unmatched = [label("r0", "yes", row=2), label("r4", "yes", row=1), label("\x1b[2J\n", "yes"),
                 *(label(f"x{i}", "no", NOON + i) for i in range(11))]
    for x in (*wanted, *unmatched, label("taken back", None)): logs[1].append(x)
    for _ in range(2):
        report = sound(tmp_path)
        assert (report.n_unmatched_labels, report.n_repeated_ids, report.n_reused_ids) == (14, 1, 1)
        assert "14 labels name an id or a row that no answer on record has" in report.message
        assert "'r0' row 2 of churn" in report.message and r"'\x1b[2J\n' row 0 of churn" in report.message
        assert ", …. 1 ids" in report.message # the first ten of them
        assert "1 ids were answered more than once with the same inputs, as by a client's retry: 'r1' of churn." in \
            report.message
        assert "1 ids were given to requests with other inputs" in report.message and "'r2' of churn." in report.message
        for log in logs: log.close()
        compact_log(tmp_path)
