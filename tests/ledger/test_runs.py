"Runs in the ledger: queued once, attempts that fence, effects once, views that are right, on both databases."
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import RUN_VARIABLE, Ledger, Superseded
from mlops_nb.ledger.runs import (
    ATTEMPT_VARIABLE,
    RUN_ENDS,
    cancel_run,
    compare_runs,
    end_run,
    format_run,
    format_run_list,
    is_cancelled,
    list_runs,
    once,
    queue_run,
    read_run,
    record_stage,
    record_step,
    requeue_run,
)

FACTS = dict(commit="c0ffee", data="d1", params="p1", trigger="on_demand", reason="new tariffs")


@pytest.fixture
def ledger(uri): return Ledger(uri)


def test_nothing_written_is_no_run(ledger):
    assert list_runs(ledger) == [] and "mlops-nb run now" in format_run_list([])
    for id in ("r", ""):
        with pytest.raises(UserError, match="There is no run"): read_run(ledger, id)


def test_who_asks_at_once_gets_one_run(uri):
    def ask(name): return queue_run(Ledger(uri), "r1", FACTS, by=name)
    with ThreadPoolExecutor(4) as pool: said = [*pool.map(ask, "abcd")]
    assert [new for _, new in said].count(True) == 1 and len({e.seq for e, _ in said}) == 1
    assert [(r.id, r.status, r.attempts) for r in list_runs(Ledger(uri))] == [("r1", "queued", 0)]


def test_a_superseded_attempt_writes_nothing(ledger):
    queue_run(ledger, "r1", FACTS)
    first = ledger.begin_attempt("r1", "a")
    with record_step(ledger, "r1", first, "train"): second = ledger.begin_attempt("r1", "b")
    before = ledger.entries()
    for write in (lambda: ledger.append("step.started", "r1", attempt=first),
                  lambda: once(ledger, "r1", first, "x", dict),
                  lambda: end_run(ledger, "r1", first, "succeeded", "late")):
        with pytest.raises(Superseded, match="attempt 2 goes on"): write()
    assert ledger.entries() == before and (first, second) == (1, 2)
    ledger.append("note", "r2", attempt=0)  # what belongs to no run is not held up
    end_run(ledger, "r1", second, "succeeded", "Done.")
    assert read_run(ledger, "r1").status == "succeeded"


def test_attempts_at_once_have_different_numbers(uri):
    with ThreadPoolExecutor(4) as pool:
        numbers = [*pool.map(lambda name: Ledger(uri).begin_attempt("r1", name), "abcdefgh")]
    assert sorted(numbers) == list(range(1, 9))


def test_an_effect_is_done_once_and_again_if_it_was_killed(ledger):
    done, attempt = [], ledger.begin_attempt("r1", "a")
    def deed(): done.append(1); return dict(bundle="a1")
    def killed(): done.append(2); raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): once(ledger, "r1", attempt, "deploy", killed)
    for _ in range(3): assert once(ledger, "r1", attempt, "deploy", deed) == dict(bundle="a1")
    assert once(ledger, "r1", ledger.begin_attempt("r1", "b"), "deploy", deed) == dict(bundle="a1")
    assert done == [2, 1]


def test_an_effect_whose_attempt_was_superseded_meanwhile_is_not_written_down(ledger):
    attempt = ledger.begin_attempt("r1", "a")
    def taken_over(): ledger.begin_attempt("r1", "b")
    with pytest.raises(Superseded): once(ledger, "r1", attempt, "deploy", taken_over)
    assert ledger.find("run/r1/deploy") is None


def test_steps_have_times_and_failures(ledger):
    queue_run(ledger, "r1", FACTS)
    attempt = ledger.begin_attempt("r1", "a")
    with record_step(ledger, "r1", attempt, "validate", "host-1") as facts: facts["peak_memory_mib"] = 77.5
    with pytest.raises(ValueError), record_step(ledger, "r1", attempt, "train"): raise ValueError("no\nrows")
    ledger.append("step.started", "r1", dict(step="gate", attempt=attempt, executor="x"))  # killed in its midst
    first, second, third = read_run(ledger, "r").steps
    assert (first.name, first.status, first.executor, first.peak_memory_mib) == ("validate", "done", "host-1", 77.5)
    assert (second.status, second.message, third.status, third.seconds) == ("failed", "no\nrows", "begun", None)
    assert first.seconds >= 0 and first.ended_at >= first.started_at and second.attempt == 1
    assert "no\n" in format_run(read_run(ledger, "r1"))


def test_a_step_does_not_get_the_memory_of_what_ran_before_it(in_sqlite, monkeypatch):
    "A process has one peak for all its life; a controller runs many steps."
    ledger, peaks, used = Ledger(in_sqlite), iter([100.0, 700.0, 700.0, 700.0]), iter([0, 3, 3, 4])
    monkeypatch.setattr("mlops_nb.ledger.runs.peak_memory_mib", lambda: next(peaks))
    monkeypatch.setattr("mlops_nb.ledger.runs.processor_seconds", lambda: next(used))
    queue_run(ledger, "r1", FACTS)
    attempt = ledger.begin_attempt("r1", "a")
    for name in ("large", "small"):
        with record_step(ledger, "r1", attempt, name): pass
    steps = read_run(ledger, "r1").steps
    assert [(s.cpu_seconds, s.peak_memory_mib) for s in steps] == [(3, 700), (1, None)]


def test_a_stage_finds_its_run_in_the_environment(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    with record_stage(tmp_path, "train gbdt") as facts: facts["rows"] = 900
    with pytest.raises(UserError), record_stage(tmp_path, "gate"): raise UserError("There is no bundle.")
    one, other = Ledger(uri).entries()
    assert (one.kind, one.subject, one.data["rows"]) == ("stage.ended", "train gbdt", 900)
    assert one.data["seconds"] >= 0 and one.data["status"] == "done"
    assert (other.data["status"], other.data["message"]) == ("failed", "There is no bundle.")
    attempt = Ledger(uri).begin_attempt("r1", "a")
    monkeypatch.setenv(RUN_VARIABLE, "r1")
    monkeypatch.setenv(ATTEMPT_VARIABLE, str(attempt))
    with record_stage(tmp_path, "train gbdt"): pass
    assert [s["name"] for s in Ledger(uri).query("SELECT name FROM steps")] == ["train gbdt"]
    Ledger(uri).begin_attempt("r1", "b")
    with pytest.raises(Superseded), record_stage(tmp_path, "gate"): raise AssertionError("it must not begin")


def test_a_stage_by_hand_goes_on_without_a_ledger(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", f"sqlite:///{tmp_path}/file/ledger.db")
    with record_stage(tmp_path, "train gbdt"): pass
    assert capsys.readouterr().err.startswith("warning: ")


def test_cancel_and_resume(ledger):
    queue_run(ledger, "r1", FACTS)
    with pytest.raises(UserError, match="has not ended"): requeue_run(ledger, "r1")
    cancel_run(ledger, "r1", by="ana", reason="wrong data")
    assert is_cancelled(ledger, "r1")
    end_run(ledger, "r1", ledger.begin_attempt("r1", "a"), "cancelled", "Cancelled by ana.")
    assert not is_cancelled(ledger, "r1")
    with pytest.raises(UserError, match="is over"): cancel_run(ledger, "r1")
    assert [requeue_run(ledger, "r1"), read_run(ledger, "r1").status] == [1, "queued"]
    end_run(ledger, "r1", ledger.begin_attempt("r1", "a"), "succeeded", "Done.")
    with pytest.raises(UserError, match="has succeeded"): requeue_run(ledger, "r1")
    run = read_run(ledger, "r1")
    assert (run.status, run.message, run.attempts) == ("succeeded", "Done.", 2)
    with pytest.raises(UserError, match="None"): requeue_run(ledger, "r9")


def test_a_cancelled_run_stays_so_when_it_is_taken_over(ledger):
    "Also one that nobody had begun: whoever takes it does so to write its end."
    for id in ("r1", "r2"): queue_run(ledger, id, FACTS)
    ledger.begin_attempt("r2", "a")
    for id in ("r1", "r2"):
        cancel_run(ledger, id)
        ledger.begin_attempt(id, "b")
        assert is_cancelled(ledger, id) and read_run(ledger, id).status == "cancelling"
    end_run(ledger, "r1", 1, "cancelled", "Cancelled.")
    requeue_run(ledger, "r1")
    ledger.begin_attempt("r1", "c")
    assert read_run(ledger, "r1").status == "running"


def test_a_run_that_ends_while_it_is_cancelled_has_ended(uri):
    "Whichever of both is first: a run is never left as one that somebody must still end."
    queue_run(Ledger(uri), "r1", FACTS)
    attempt = Ledger(uri).begin_attempt("r1", "a")
    def end(): end_run(Ledger(uri), "r1", attempt, "succeeded", "Done.")
    def cancel():
        with suppress(UserError): cancel_run(Ledger(uri), "r1")
    with ThreadPoolExecutor(2) as pool: [f.result() for f in [pool.submit(cancel), pool.submit(end)]]
    assert read_run(Ledger(uri), "r1").status == "succeeded"


def test_what_is_resumed_has_not_failed_yet(ledger):
    queue_run(ledger, "r1", FACTS)
    end_run(ledger, "r1", ledger.begin_attempt("r1", "a"), "failed", "Step train failed:\nno rows")
    assert format_run_list(list_runs(ledger)).count("\n") == 0, "a line each"
    requeue_run(ledger, "r1")
    run = read_run(ledger, "r1")
    assert (run.status, run.message, run.ended_at, run.facts) == ("queued", "", None, {})


def test_lists_are_the_newest_first_and_short_ids_must_be_plain(ledger):
    for i in range(5): queue_run(ledger, f"r{i}", FACTS | dict(data=f"d{i}"), by="ana")
    assert [r.id for r in list_runs(ledger, 3)] == ["r4", "r3", "r2"]
    assert format_run_list(list_runs(ledger)).count("\n") == 4
    with pytest.raises(UserError, match="Several"): read_run(ledger, "r")
    for pattern in ("%1", "_1", "%"):
        with pytest.raises(UserError, match="There is no run"): read_run(ledger, pattern)


def test_a_comparison_shows_what_differs_only(ledger):
    for id, auc in (("a", .81), ("b", .83)):
        queue_run(ledger, id, FACTS | dict(data=id))
        attempt = ledger.begin_attempt(id, "x")
        end_run(ledger, id, attempt, "succeeded", "Done.", metrics=dict(roc_auc=auc), bundle=id * 64)
    said = compare_runs(read_run(ledger, "a"), read_run(ledger, "b"))
    assert [line.split()[0] for line in said.splitlines()[1:]] == ["data", "bundle", "roc_auc"]
    assert "0.81" in said and "0.83" in said


def test_every_end_is_a_state_of_its_own(ledger):
    for status in RUN_ENDS:
        queue_run(ledger, status, FACTS)
        end_run(ledger, status, ledger.begin_attempt(status, "x"), status, "So.")
    assert {r.status for r in list_runs(ledger)} == {*RUN_ENDS}


def test_a_list_of_many_runs_looks_at_the_newest_only(in_sqlite):
    "Not measured in seconds: the plan of the query must not walk through all entries."
    ledger = Ledger(in_sqlite)
    queue_run(ledger, "r1", FACTS)
    plan = ledger.query("EXPLAIN QUERY PLAN SELECT r.*, e.data FROM runs r LEFT JOIN ledger e ON e.seq = r.ended_seq "
                        "ORDER BY r.seq DESC LIMIT 20")
    scans = [p["detail"] for p in plan if p["detail"].startswith(("SCAN", "USE TEMP"))]
    assert scans == ["SCAN s USING INDEX run_states_seq"], scans  # from its newest end, until there are enough


def test_an_older_ledger_gets_the_views(uri, monkeypatch):
    from mlops_nb.ledger import ledger as module
    with monkeypatch.context() as m:
        m.setattr(module, "_MIGRATIONS", module._MIGRATIONS[:1])
        Ledger(uri).append("run.queued", "r1", FACTS | dict(status="queued"))
    assert [r.id for r in list_runs(Ledger(uri))] == ["r1"]


def test_readers_see_a_run_while_it_is_written(uri):
    stop, seen = threading.Event(), []
    def look():
        while not stop.is_set():
            seen.append([s.status for r in list_runs(Ledger(uri)) for s in read_run(Ledger(uri), r.id).steps])
    reader = threading.Thread(target=look)
    reader.start()
    try:
        queue_run(Ledger(uri), "r1", FACTS)
        attempt = Ledger(uri).begin_attempt("r1", "a")
        for i in range(5):
            with record_step(Ledger(uri), "r1", attempt, f"s{i}"): pass
    finally:
        stop.set()
        reader.join(60)
    assert all(s in ("begun", "done") for row in seen for s in row)
