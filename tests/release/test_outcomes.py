"Labels, when they are final, and what they say of an answer."
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from support.prediction_logs import NOON, answer

from mlops_nb.prediction_log.segments import record_frame
from mlops_nb.release import outcomes
from mlops_nb.release.outcomes import LabelQueue

NOW, DAY = datetime.fromtimestamp(NOON / 1e6, UTC), timedelta(days=1)
LINES = record_frame(0, [answer(f"r{i}") for i in range(5)])


def find(ids): return LINES.filter(pl.col("id").is_in(ids))


def told(**labels):
    return pl.DataFrame(dict(id=[*labels], row=[0] * len(labels), label=[*labels.values()]), strict=False)


def take(queue, labels, days=0.):
    found = queue.take_final(told(**labels), find, DAY, NOW + days * DAY)
    return {} if found is None else dict(found.select("id", "label").iter_rows())


def test_a_label_is_final_a_delay_after_its_answer():
    queue = LabelQueue()
    assert take(queue, dict(r0="a", r1="b")) == {} and len(queue.waiting) == 2
    assert take(queue, dict(r2="c"), .99) == {}
    assert take(queue, dict(r3="d"), 1) == dict(r0="a", r1="b", r2="c", r3="d")
    assert take(queue, {}, 9) == {}


def test_a_label_that_is_taken_back_or_corrected_in_time_does_not_count():
    queue = LabelQueue()
    take(queue, dict(r0="a", r1="b"))
    take(queue, dict(r0=None, r1="c"), .5)
    assert take(queue, {}, 1) == dict(r1="c")


def test_labels_of_unknown_requests_are_numbered():
    queue = LabelQueue()
    assert take(queue, dict(nobody="a", r0="b"), 2) == dict(r0="b") and queue.n_unknown == 1


def test_only_so_many_wait(monkeypatch):
    monkeypatch.setattr(outcomes, "MAX_WAITING_LABELS", 2)
    queue = LabelQueue()
    take(queue, {f"r{i}": "a" for i in range(5)})
    assert len(queue.waiting) == 2 and queue.n_left_out == 3


@pytest.mark.parametrize("label,text", [(True, "true"), (1, "1"), (1.0, "1"), (.5, "0.5"), ("yes", "yes")])
def test_labels_of_any_type(label, text):
    assert take(LabelQueue(), dict(r0=label), 2) == dict(r0=text)
