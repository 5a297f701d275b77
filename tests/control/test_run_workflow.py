"A run as a workflow: what a fault of the ledger, a cancellation or another attempt does to it."
import pytest
from support.controlled_project import git, repository

from mlops_nb.control import run_workflow
from mlops_nb.control.controller import _exit_code, find_requests, has_controller
from mlops_nb.control.run_identity import commit_results, make_worktree, pin_run
from mlops_nb.control.run_workflow import execute_run, request_run, run_step
from mlops_nb.control.step_process import StepCancelled, StepFailed, last_lines
from mlops_nb.ledger.executors import list_executors, register_executor
from mlops_nb.ledger.ledger import Ledger, LedgerUnavailable, open_ledger
from mlops_nb.ledger.runs import cancel_run, end_run, read_run, requeue_run, run_status


@pytest.fixture
def root(tmp_path): return repository(tmp_path / "project")


@pytest.fixture
def run(root): return request_run(root)[0]


def test_a_run_that_was_cancelled_before_it_began_does_nothing(root, run, monkeypatch):
    monkeypatch.setattr(run_workflow, "run_process", lambda *_: pytest.fail("it began"))
    cancel_run(open_ledger(root), run, by="ana")
    execute_run(root, run, "host-a")
    assert read_run(open_ledger(root), run).status == "cancelled"


def away(times, then):
    "A function that fails so often since the ledger is away, and then does what it should."
    left = [LedgerUnavailable("The ledger is away.")] * times
    def do(*args, **kw):
        if left: raise left.pop()
        return then(*args, **kw)
    return do


@pytest.mark.parametrize("what", ["begin_attempt", "append"])
def test_a_ledger_that_is_away_for_a_while_ends_no_run(root, run, monkeypatch, what):
    monkeypatch.setattr(run_workflow, "_AGAIN_SECONDS", 0)
    def step(run, attempt, name): raise StepFailed("no rows")
    monkeypatch.setattr(Ledger, what, away(3, getattr(Ledger, what)))
    execute_run(root, run, "host-a", step)
    assert read_run(open_ledger(root), run).status == "failed"


def test_a_training_goes_on_while_nobody_can_be_asked_whether_it_is_cancelled(root, run, monkeypatch):
    asked = []
    def process(command, cwd, env, log, note, seconds, is_cancelled, max_memory_mib): asked.append(is_cancelled())
    monkeypatch.setattr(run_workflow, "run_process", process)
    monkeypatch.setattr(run_workflow, "is_cancelled", away(1, run_workflow.is_cancelled))
    make_worktree(root, pin_run(root))
    run_workflow._run_command(root, open_ledger(root), run, 1, "train")
    run_workflow._run_command(root, open_ledger(root), run, 1, "train")
    assert asked == [False, False]


@pytest.mark.parametrize("error, kind", [(StepFailed("no rows"), StepFailed), (StepCancelled("no rows"), StepCancelled),
                                         (KeyError("no rows"), StepFailed)])
def test_what_came_of_a_step_is_plain_data(root, run, monkeypatch, error, kind):
    "So that a process which takes over raises what the one before it raised."
    attempt = open_ledger(root).begin_attempt(run, "host-a")
    def fail(*_): raise error
    monkeypatch.setattr(run_workflow, "run_step", fail)
    came = run_workflow._step_outcome(root, run, attempt, "train", "host-a", pytest.fail)
    with pytest.raises(kind, match="no rows"): run_workflow._raise_outcome(*came)
    monkeypatch.setattr(run_workflow, "run_step", lambda *_: None)
    run_workflow._raise_outcome(*run_workflow._step_outcome(root, run, attempt, "train", "host-a", pytest.fail))


@pytest.mark.parametrize("inner", [None, StepFailed("a stage was refused")])
def test_a_process_whose_run_went_to_another_comes_to_no_end_of_its_step(root, run, monkeypatch, inner):
    "Whether it finds that out itself, or its stage was refused and failed."
    class Ended(BaseException): pass
    def end(): raise Ended
    ledger = open_ledger(root)
    first, _ = ledger.begin_attempt(run, "host-a"), ledger.begin_attempt(run, "host-b")
    if inner is not None:
        def fail(*_): raise inner
        monkeypatch.setattr(run_workflow, "run_step", fail)
    with pytest.raises(Ended): run_workflow._step_outcome(root, run, first, "train", "host-a", end)


def test_only_working_trees_of_runs_that_are_over_are_removed(root, run, monkeypatch):
    monkeypatch.setattr(run_workflow, "run_process", lambda *_: None)
    first = make_worktree(root, pin_run(root))
    (root / "data.dvc").write_text("version 2\n")
    other, _ = request_run(root)
    def checkout(): run_step(root, other, open_ledger(root).begin_attempt(other, "host-a"), "checkout")
    with monkeypatch.context() as m:
        m.setattr(Ledger, "query", away(9, Ledger.query))
        with pytest.raises(LedgerUnavailable): checkout()
    checkout()
    assert first.exists(), "it has not ended"
    end_run(open_ledger(root), run, open_ledger(root).begin_attempt(run, "host-a"), "failed", "no rows")
    checkout()
    assert not first.exists() and run not in git(root, "worktree", "list")


def test_settings_are_those_of_the_checkout_and_no_result(root):
    "Committed or not: stages write into the ledger that the controller reads."
    (root / ".dvc").mkdir()
    (root / ".dvc" / "config.local").write_text('[core]\n    note = 100%\n')
    for said in ("[release]\nendpoint = one\n", "[release]\nendpoint = two\n"):  # the second for one that is resumed
        (root / "settings.ini").write_text(said)
        folder = make_worktree(root, pin := pin_run(root))
        assert (folder / "settings.ini").read_text() == said
    commit_results(root, pin.id, "Results")
    assert git(root, "diff", "--stat", "HEAD", f"refs/mlops-nb/runs/{pin.id}", "--", "settings.ini") == ""


def test_the_last_lines_of_a_log(tmp_path):
    log = tmp_path / "log"
    assert last_lines(log) == ""
    log.write_text("x" * 30_000 + "\n10%\r20%\rdone\n\nValueError: no rows\n")
    assert last_lines(log, 2) == "done\nValueError: no rows"
    log.write_text("short")
    assert last_lines(log) == "short"


def test_what_has_not_ended_is_handed_over_when_a_controller_starts(root, run):
    "Also what is under way: the database of the workflows may be lost."
    ledger = open_ledger(root)
    assert find_requests(ledger)[0] == {run: run}
    attempt, (_, last) = ledger.begin_attempt(run, "host-a"), find_requests(ledger)
    assert find_requests(ledger)[0] == {run: run} and find_requests(ledger, last) == ({}, last)
    end_run(ledger, run, attempt, "failed", "no rows")
    assert find_requests(ledger)[0] == {}
    requeue_run(ledger, run)
    assert find_requests(ledger, last)[0] == {f"{run}-1": run}


def test_a_command_that_works_on_a_run_stays_for_what_others_asked_for(root, run):
    ledger = open_ledger(root)
    (root / "data.dvc").write_text("version 2\n")
    other, _ = request_run(root)
    assert _exit_code(ledger, run) is None
    end_run(ledger, run, ledger.begin_attempt(run, "host-a"), "failed", "no rows")
    assert run_status(ledger, run) == "failed" and _exit_code(ledger, run) is None
    end_run(ledger, other, ledger.begin_attempt(other, "host-a"), "rejected", "The gate.")
    assert (_exit_code(ledger, run), _exit_code(ledger, other)) == (1, 0)


def test_a_controller_whose_lease_is_over_does_nothing(root):
    register_executor(open_ledger(root), "mlops-nb-churn", "v1", lease_seconds=-1)
    assert len(list_executors(open_ledger(root), "mlops-nb-churn")) == 1 and not has_controller(root)
