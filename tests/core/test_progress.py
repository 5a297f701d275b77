"Progress: what a terminal and a log get, and that nobody gets anything who did not ask."
import io
import threading

import pytest

from mlops_nb.core import progress
from mlops_nb.core.progress import ProgressDisplay, format_seconds, progress_reporter, show_progress


class Shown:
    "A display with a clock of its own."
    def __init__(self, is_terminal=False):
        self.now, self.stream = 0.0, io.StringIO()
        self.display = ProgressDisplay(self.stream, is_terminal, lambda: self.now)

    def lines(self): return self.stream.getvalue().splitlines()


def test_a_log_gets_a_line_every_ten_seconds_and_the_duration():
    shown = Shown()
    shown.display.begin("tune gbdt", 6, "trials", None)
    for shown.now in [x / 2 for x in range(61)]: shown.display.update(min(6, int(shown.now) // 5), "valid loss 0.4")
    shown.display.end()
    assert shown.lines() == ["tune gbdt: 1 of 6 trials, valid loss 0.4, 25 s left",
                             "tune gbdt: 3 of 6 trials, valid loss 0.4, 15 s left",
                             "tune gbdt: 5 of 6 trials, valid loss 0.4, 5.0 s left", "tune gbdt: 30 s"]


def test_a_terminal_gets_one_line_that_is_redrawn_and_never_wraps(monkeypatch):
    monkeypatch.setenv("COLUMNS", "30")
    shown = Shown(is_terminal=True)
    shown.display.begin("score a-file-with-a-long-name.parquet", 1000, "rows", None)
    for shown.now in (1, 2, 2.1, 2.3): shown.display.update(100, "")
    drawn = shown.stream.getvalue()
    assert drawn.count("\r\x1b[K") == 2 and "\n" not in drawn # not in the first two seconds, and not at once again
    assert all(len(part.strip("\r")) < 30 for part in drawn.split("\r\x1b[K"))
    shown.display.end()
    assert shown.stream.getvalue().endswith("\r\x1b[Kscore a-file-with-a-long-name.parquet: 2.3 s\n")


@pytest.mark.parametrize("is_terminal", [False, True])
def test_what_is_quick_leaves_nothing(is_terminal):
    shown = Shown(is_terminal)
    shown.display.begin("prepare", None, "", None)
    shown.now = 1.9
    shown.display.draw()
    shown.display.end()
    assert shown.stream.getvalue() == ""


def test_a_task_in_another_is_shown_behind_it_and_ends_without_a_line():
    shown = Shown()
    shown.display.begin("cross_validation gbdt", None, "", None) # the stage
    shown.display.begin("cross_validation gbdt", 4, "trainings", None)
    shown.now = 10
    shown.display.update(1, "")
    shown.display.begin("fold 2", 100, "trees", None)
    shown.now = 20
    shown.display.update(50, "")
    shown.display.end()
    shown.display.end()
    shown.display.end()
    assert shown.lines() == ["cross_validation gbdt: 1 of 4 trainings, 30 s left",
                             "cross_validation gbdt: 1 of 4 trainings, 1 min 0 s left | "
                             "fold 2: 50 of 100 trees, 10 s left",
                             "cross_validation gbdt: 20 s"]


def test_what_counts_nothing_goes_by_the_time_it_took_before():
    shown = Shown()
    shown.display.begin("explain", None, "", 30.0)
    for shown.now in (5, 20, 35): shown.display.draw()
    assert shown.lines() == ["explain: 25 s left", "explain: 10 s left", "explain: nearly done"]


def test_nothing_is_shown_unless_it_was_turned_on(capsys, monkeypatch):
    for name in ("_QUICK_SECONDS", "_LOG_INTERVAL"): monkeypatch.setattr(progress, name, 0.0)
    monkeypatch.setattr(progress, "_TERMINAL_INTERVAL", 3600.0) # the thread draws nothing
    with progress_reporter("train", 3, "trees") as step: step(1, 0.5)
    assert capsys.readouterr() == ("", "")
    stream = io.StringIO()
    with show_progress(stream), show_progress(), progress_reporter("train", 3, "trees") as step:
        step(1, 0.5)
        step(2, float("inf"))
    assert stream.getvalue().startswith("train: 1 of 3 trees, valid loss 0.5,")
    assert stream.getvalue().splitlines()[-1].startswith("train: 0.0 s")
    assert not [t for t in threading.enumerate() if t.name == "progress"]
    with progress_reporter("train", 3, "trees") as step: step(1, 0.5)
    assert capsys.readouterr() == ("", "")


def test_a_reader_that_is_gone_stops_no_work():
    stream = io.StringIO()
    with show_progress(stream):
        stream.close()
        with progress_reporter("train", 3, "trees") as step: step(1)


def test_a_failure_goes_through_and_ends_the_task():
    shown = io.StringIO()
    with show_progress(shown):
        with pytest.raises(KeyError), progress_reporter("train", 3, "trees"): raise KeyError
        assert not progress._display.tasks


@pytest.mark.parametrize("seconds, said", [(0, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min"),
                                           (90061, "25 h 1 min")])
def test_durations(seconds, said): assert format_seconds(seconds) == said
