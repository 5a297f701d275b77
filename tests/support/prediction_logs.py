"Prediction logs as the tests write and read them."
from datetime import UTC, datetime

from mlops_nb.config.settings import LogSettings
from mlops_nb.prediction_log.audit import audit_log
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.prediction_log.segments import Feedback, PredictionRecord
from mlops_nb.prediction_log.writer import PredictionLogWriter

NOON = int(datetime(2026, 11, 3, 12, tzinfo=UTC).timestamp() * 1e6)
HOUR = 3_600_000_000


class Killed(BaseException): "As if the process ended here."


def segments_of(n_bytes, **settings):
    "Settings of a log whose segments are smaller than `settings.ini` allows, so that a test sees many of them."
    return LogSettings(segment_mib=n_bytes / 2**20, **settings)


def answer(id, time=NOON, rows=1, **other):
    return PredictionRecord(**dict(id=id, time=time, endpoint="churn", variant="champion", bundle="b" * 64,
                                   columns=dict(plan=["a"] * rows), score=[0.5] * rows) | other)


def label(id, value, time=NOON, **other):
    return Feedback(**dict(id=id, time=time, endpoint="churn", label=value) | other)


def ids(folder, **where): return sorted(read_log(folder, **where).select("id").collect()["id"])


def sound(folder, row_counts=None):
    report = audit_log(folder, row_counts)
    assert not report.problems, report.problems
    return report


def segments(folder): return sorted((folder / "segments").glob("*.jsonl"))


def fill_up(folder, n=600):
    log = PredictionLogWriter(folder, 0, segments_of(20_000))
    for i in range(n):
        log.append(answer(f"r{i}", NOON + i * HOUR // 100, endpoint=f"e{i % 3}"))
        if i % 5 == 0: log.append(label(f"r{i}", i, NOON + i * HOUR // 100, endpoint=f"e{i % 3}"))
    log.close()
    return sorted(f"r{i}" for i in range(n))
