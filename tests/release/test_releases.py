"Releases: what is refused, what each step leaves, and that a process killed anywhere goes on to the same end."
import os
import shutil
import signal
import subprocess
import sys
import threading
import uuid

import pytest
from msgspec.structs import replace
from support import stub_releases as stub
from support.imports import ROOT
from support.stub_releases import A, B, C, Verdict

from mlops_nb.config.params import ReleaseParams
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.ledger.ledger import Ledger, open_ledger
from mlops_nb.release import releases
from mlops_nb.release.release_plan import (
    history_path,
    keep_last_good,
    promote_bundle,
    read_history,
    read_plan,
    replace_plan,
)
from mlops_nb.release.releases import (
    advance_release,
    find_open_release,
    freeze_reason,
    list_releases,
    look_at_release,
    read_release,
    release_folder,
    roll_back_release,
    settle_release,
    start_release,
    was_rolled_back,
    watch_release,
    what_holds_back,
)


@pytest.fixture
def project(tmp_path, monkeypatch):
    stub.use_stubs(monkeypatch.setattr)
    return stub.make_project(tmp_path / "p")


def plan(root): return read_plan(stub.plan_of(root))


def weights(root): return {v.name: (v.bundle[0], v.weight) for v in plan(root).variants}


def kinds(root, subject=None): return [e.kind.removeprefix("release.") for e in open_ledger(root).entries(subject)]


PROMOTE = Verdict("promote")


def test_a_canary_goes_up_and_ends_as_champion(project):
    first = start_release(project, B[:9], by="ana", reason="better on paper")
    assert (first.step, first.status, first.started_by, first.sticky_key) == (0, "open", "ana", "customer")
    assert weights(project) == {"champion": ("a", .95), "challenger": ("b", .05), "mine": ("a", 0)}
    half = advance_release(project, first, PROMOTE)
    assert half.step == 1 and weights(project)["challenger"] == ("b", .5) and half.revision == plan(project).revision
    assert advance_release(project, half, Verdict("go_on")) == half
    done = advance_release(project, half, PROMOTE)
    assert (done.status, done.step) == ("promoted", 2) and done == read_release(project, done.id)
    assert weights(project) == {"champion": ("b", 1), "previous": ("a", 0), "mine": ("a", 0)}
    assert (plan(project).release, plan(project).salt, plan(project).sticky_key) == (None, "", None)
    assert kinds(project) == ["started", "step", "verdict", "step", "verdict", "verdict", "promoted"]
    assert [(e.bundle[0], e.action) for e in read_history(stub.plan_of(project))] == [("a", "deploy"), ("b", "deploy")]
    assert advance_release(project, done, PROMOTE) == done and roll_back_release(project, done) == done
    assert find_open_release(project) is None


@pytest.mark.parametrize("step", [0, 1])
@pytest.mark.parametrize("verdict, status", [(Verdict("roll_back", "errors rose"), "rolled_back"),
                                             (Verdict("promote", "shares are off", void=True), "void")])
def test_a_bad_verdict_puts_everything_back(project, step, verdict, status):
    before = plan(project)
    release = start_release(project, B)
    for _ in range(step): release = advance_release(project, release, PROMOTE)
    ended = advance_release(project, release, verdict)
    assert (ended.status, ended.outcome) == (status, verdict.reason)
    assert replace(plan(project), revision=before.revision) == before
    assert kinds(project)[-2:] == ["verdict", status]


def test_the_first_release_is_at_once_and_a_strategy_of_the_command_goes_first(tmp_path, monkeypatch):
    stub.use_stubs(monkeypatch.setattr)
    root = stub.make_project(tmp_path / "p")
    shutil.rmtree(root / "releases")
    done = start_release(root, A, "canary")
    assert (done.status, done.champion, [s.kind for s in done.steps]) == ("promoted", "", ["at_once"])
    assert weights(root) == {"champion": ("a", 1)}
    shadow = start_release(root, B, "shadow")
    assert [s.kind for s in shadow.steps] == ["shadow"] * 2 and weights(root)["challenger"] == ("b", 0)
    assert plan(root).variants[1].mode == "shadow"


def test_blue_green_switches_as_soon_as_both_are_in_memory(tmp_path, monkeypatch):
    judge = releases._judge
    stub.use_stubs(monkeypatch.setattr)
    monkeypatch.setattr(releases, "_judge", judge)
    root = stub.make_project(tmp_path / "p")
    release = start_release(root, B, "blue-green")
    assert weights(root)["challenger"] == ("b", 0) and release.step == 0
    assert look_at_release(root, release).status == "promoted"


@pytest.mark.parametrize("bundle, says", [
    (A, "answers at rows already"), (C, "predicts another target than aaaaaaaaaaaa"), ("d" * 9, "There is no bundle")])
def test_what_cannot_be_released_is_refused_before_anything_is_written(project, bundle, says):
    before = stub.plan_of(project).read_bytes()
    with pytest.raises(UserError, match=says) as error: start_release(project, bundle)
    assert "\n" not in str(error.value) and stub.plan_of(project).read_bytes() == before and kinds(project) == []


def test_customers_are_held_out_of_binary_decisions_only(tmp_path, monkeypatch):
    stub.use_stubs(monkeypatch.setattr)
    root = stub.make_project(tmp_path / "p", explore=.05)
    start_release(root, B)
    assert plan(root).explore == .05
    monkeypatch.setitem(stub.CONTRACTS, A, stub.CONTRACTS[C])
    root = stub.make_project(tmp_path / "q", explore=.05)
    with pytest.raises(UserError, match="explore of params.yaml is 0.05, and the task is multiclass"):
        start_release(root, C)
    assert plan(root).explore == 0 and kinds(root) == []


def test_a_second_release_beside_an_open_one_is_refused(project):
    first = start_release(project, B, by="ana")
    for bundle in (B, C):
        with pytest.raises(UserError, match=f"open release, {first.id} of bbbbbbbbbbbb, started by ana"):
            start_release(project, bundle, by="bo")
    assert kinds(project) == ["started", "step"]


def test_what_was_rolled_back_is_not_released_again_by_itself(project):
    roll_back_release(project, start_release(project, B))
    with pytest.raises(UserError, match="was rolled back at rows; to release it all the same, start it with --again"):
        start_release(project, B)
    again = start_release(project, B, again=True)
    assert again.step == 0 and [r.status for r in list_releases(project)] == ["rolled_back", "open"]
    assert again.id != list_releases(project)[0].id


def test_a_bundle_that_answered_once_and_failed_later_counts_as_rolled_back_until_somebody_puts_it_there(project):
    path = stub.plan_of(project)
    promote_bundle(path, "rows", B)
    promote_bundle(path, "rows", A)
    assert not was_rolled_back(project, B) and not was_rolled_back(project, A)
    later = start_release(project, B)
    roll_back_release(project, replace(later, status="open"))
    assert was_rolled_back(project, B)
    event = read_history(path)[-1]
    put_there = [*read_history(path), replace(event, revision=99, bundle=B, at="2999-01-01T00:00:00+00:00")]
    write_json(history_path(path), put_there)
    assert not was_rolled_back(project, B)


def test_a_roll_back_stands_without_its_diagnosis_and_the_next_look_writes_it(tmp_path, monkeypatch, capsys):
    diagnose, written = releases._diagnose, []
    stub.use_stubs(monkeypatch.setattr)
    monkeypatch.setattr(releases, "_diagnose", diagnose)
    root = stub.make_project(tmp_path / "p")

    def write_diagnosis(root, release):
        if not written.append(release.status) and len(written) == 1: raise ZeroDivisionError("no rows")
        (release_folder(root, release) / "diagnosis").mkdir(parents=True)
    monkeypatch.setattr("mlops_nb.release.diagnosis.write_diagnosis", write_diagnosis)
    release = start_release(root, B)
    assert roll_back_release(root, release, status="void").status == "void"
    first, then = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{release.id} is void: {A[:12]} answers.")
    assert f"The diagnosis of {release.id} could not be written: no rows" in then
    for _ in range(2): settle_release(root, release)
    assert written == ["void", "void"]


def test_of_two_that_share_only_the_ledger_one_is_refused(project, monkeypatch):
    "The second one starts between the first one's look at the ledger and its entry."
    real, late = releases._new_release, []

    def new_release(*args):
        made = real(*args)
        if not late:
            late.append(made)
            ledger = open_ledger(project)
            releases._record_start(ledger, replace(made, id="other", started_by="bo"), 0)
        return made
    monkeypatch.setattr(releases, "_new_release", new_release)
    before = stub.plan_of(project).read_bytes()
    with pytest.raises(UserError, match="bo has just started another release at rows, other"):
        start_release(project, B, by="ana")
    assert [r.id for r in list_releases(project)] == ["other"] and stub.plan_of(project).read_bytes() == before


def run(*args, **how):
    return subprocess.Popen([sys.executable, "-m", "support.stub_releases", *map(str, args)], cwd=ROOT / "tests",
                            stderr=subprocess.PIPE, text=True, **how)


def test_of_two_processes_that_start_at_once_one_is_refused(project):
    both = [run(project, "start", B) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], said
    assert "has an open release" in "".join(said) and kinds(project) == ["started", "step"]


# --- killed anywhere ---

class Crash(BaseException): "A process that is gone: nothing may catch it."


def crash_before(monkeypatch, n):
    "Crash before the n-th effect; gives how many there were."
    seen = []

    def hook():
        seen.append(1)
        if len(seen) > n: raise Crash
    stub.before_each_effect(monkeypatch.setattr, hook)
    return seen


def without_crash(root, ending):
    with pytest.MonkeyPatch.context() as m:
        stub.use_stubs(m.setattr, ending)
        seen = crash_before(m, 10**6)
        stub.drive(root)
    return stub.outcome(root), len(seen)


@pytest.mark.parametrize("ending, first", [("promoted", 0), ("void", 8)]) # before, both go the same way
def test_a_release_killed_before_any_effect_goes_on_to_the_same_end(tmp_path, ending, first):
    "Each kill point once, on a project of its own; the same commands again, and nothing is there twice."
    wanted, effects = without_crash(stub.make_project(tmp_path / "whole"), ending)
    template = stub.make_project(tmp_path / "template")
    assert effects > 10
    for n in range(first, effects):
        root = shutil.copytree(template, tmp_path / f"{n}")
        with pytest.MonkeyPatch.context() as m:
            stub.use_stubs(m.setattr, ending)
            crash_before(m, n)
            with pytest.raises(Crash): stub.drive(root)
        assert plan(root) is not None, "a plan that is torn cannot be read"
        with pytest.MonkeyPatch.context() as m:
            stub.use_stubs(m.setattr, ending)
            stub.drive(root)
            assert stub.outcome(root) == wanted, f"killed before effect {n}"
        if n: shutil.rmtree(root)


@pytest.mark.parametrize("ending, n", [("promoted", 9), ("rolled_back", 8)])
def test_a_killed_process_goes_on_to_the_same_end(tmp_path, ending, n):
    wanted, effects = without_crash(stub.make_project(tmp_path / "whole"), ending)
    assert n < effects
    root = stub.make_project(tmp_path / "p")
    process = run(root, ending, B, n)
    assert process.communicate(timeout=120)[1] == "" and process.returncode == -signal.SIGKILL
    with pytest.MonkeyPatch.context() as m:
        stub.use_stubs(m.setattr, ending)
        stub.drive(root)
    assert stub.outcome(root) == wanted


# --- people and faults in between ---

def test_a_plan_that_a_person_changed_is_not_overwritten(project):
    release = start_release(project, B)
    by_hand = replace_plan(stub.plan_of(project), replace(plan(project), flags={"new": True}))
    with pytest.raises(UserError, match=f"was changed while {release.id} ran: revision {by_hand.revision} is in force"):
        advance_release(project, release, PROMOTE)
    assert plan(project) == by_hand
    replace_plan(stub.plan_of(project), replace(by_hand, flags={})) # taken back
    same_revision = plan(project)
    write_json(stub.plan_of(project), replace(same_revision, flags={"new": True})) # in an editor, which counts nothing
    with pytest.raises(UserError, match="was changed while"): advance_release(project, release, PROMOTE)
    write_json(stub.plan_of(project), same_revision)
    assert advance_release(project, release, PROMOTE).step == 1


def test_a_roll_back_works_on_a_plan_that_a_person_changed_and_keeps_the_change(project):
    before, release = plan(project), start_release(project, B)
    replace_plan(stub.plan_of(project), replace(plan(project), flags={"new": True}))
    assert roll_back_release(project, release, "errors").status == "rolled_back"
    assert replace(plan(project), revision=before.revision) == replace(before, flags={"new": True})


@pytest.mark.parametrize("served", [True, False])
def test_a_roll_back_works_on_a_plan_that_is_torn(project, served):
    before, release = plan(project), start_release(project, B)
    if served: keep_last_good(stub.plan_of(project), plan(project))
    stub.plan_of(project).write_text('{"endpoint": "ro')
    assert roll_back_release(project, release, "errors").status == "rolled_back"
    assert weights(project)["champion"] == ("a", 1) and plan(project).release is None
    if served: assert replace(plan(project), revision=before.revision) == before


@pytest.mark.parametrize("bundle, status", [(C, "withdrawn"), (A, "rolled_back"), (B, "promoted")])
def test_a_model_that_was_put_in_force_by_other_means_ends_the_release(project, bundle, status):
    release = start_release(project, B)
    there = promote_bundle(stub.plan_of(project), "rows", bundle)
    assert look_at_release(project, release).status == status and plan(project) == there


def test_a_plan_changed_before_the_first_step_withdraws_the_release(project, monkeypatch):
    monkeypatch.setattr(releases, "missing_approvals", lambda *_: ["ana must agree"])
    waiting = start_release(project, B)
    assert waiting.step == -1 and what_holds_back(project, waiting) == ["ana must agree"]
    assert start_release(project, B) == waiting == look_at_release(project, waiting) and kinds(project) == ["started"]
    by_hand = replace_plan(stub.plan_of(project), replace(plan(project), flags={"new": True}))
    ended = look_at_release(project, waiting)
    assert ended.status == "withdrawn" and plan(project) == by_hand


def test_an_approval_that_is_missing_or_a_freeze_holds_a_promotion_back_but_no_roll_back(project, monkeypatch):
    release = start_release(project, B)
    asked = []

    def missing(root, release, step):
        asked.append(step)
        return ["ana must agree"]
    monkeypatch.setattr(releases, "missing_approvals", missing)
    assert advance_release(project, release, PROMOTE) == release and asked == [1]
    monkeypatch.setattr(releases, "missing_approvals", lambda *_: [])
    (project / ".mlops/freeze-promotion").write_text("error budget is used up\n")
    assert freeze_reason(project) == "error budget is used up"
    assert advance_release(project, release, PROMOTE) == release
    assert "frozen (error budget is used up)" in what_holds_back(project, release)[0]
    (project / ".mlops/freeze-promotion").unlink()
    release = advance_release(project, release, PROMOTE)
    (project / ".mlops/freeze-promotion").touch()
    assert release.step == 1 and advance_release(project, release, Verdict("roll_back")).status == "rolled_back"


def test_a_roll_back_happens_with_ledger_and_registry_down_and_is_written_down_later(project, monkeypatch, capsys):
    before, release = plan(project), start_release(project, B)

    def down(*_, **__): raise UserError("The ledger is down.")
    with monkeypatch.context() as m:
        m.setattr(Ledger, "append", down)
        m.setattr(releases, "reconcile_registry", lambda root: "MLflow is down.")
        assert roll_back_release(project, release, "errors").status == "rolled_back"
    said = capsys.readouterr().err
    assert "not written down yet: The ledger is down." in said and "MLflow is down." in said
    assert replace(plan(project), revision=before.revision) == before
    assert read_release(project, release.id).status == "open"
    assert settle_release(project, release).status == "rolled_back"
    assert kinds(project) == ["started", "step", "rolled_back"]


def test_a_promotion_is_not_undone_by_a_roll_back_that_comes_too_late(project):
    stale = start_release(project, B)
    done = advance_release(project, advance_release(project, stale, PROMOTE), PROMOTE)
    assert done.status == "promoted"
    assert roll_back_release(project, stale, "late").status == "promoted" and weights(project)["champion"] == ("b", 1)
    assert kinds(project)[-1] == "promoted"


def test_a_roll_back_in_the_middle_of_an_advance_wins(project, monkeypatch):
    "The driver has read the release, and a person rolls it back before the driver writes its plan."
    release, real = start_release(project, B), releases.replace_plan

    def late(path, wanted, *args, **kwargs):
        monkeypatch.setattr(releases, "replace_plan", real)
        roll_back_release(project, release, "a person was faster", by="bo")
        return real(path, wanted, *args, **kwargs)
    monkeypatch.setattr(releases, "replace_plan", late)
    with pytest.raises(UserError, match="was changed meanwhile"): advance_release(project, release, PROMOTE)
    assert weights(project)["champion"] == ("a", 1)
    assert settle_release(project, release).outcome == "a person was faster"


def test_a_verdict_is_written_down_when_it_changes(project):
    release = start_release(project, B)
    for reason in ("7 of 500", "9 of 500"): release = advance_release(project, release, Verdict("go_on", reason))
    release = advance_release(project, release, PROMOTE)
    advance_release(project, release, Verdict("go_on"))
    said = [(e.data["step"], e.data["action"]) for e in open_ledger(project).entries(kinds=("release.verdict",))]
    assert said == [(0, "go_on"), (0, "promote"), (1, "go_on")]


# --- watching ---

def test_one_process_watches(project):
    release = start_release(project, B)
    lock = stub.plan_of(project).parent / "history/rows.watch.lock"
    with releases.file_lock(lock), pytest.raises(UserError, match="Another process watches the releases of rows"):
        watch_release(project, release.id)


def test_sigterm_ends_a_watch_and_another_goes_on(tmp_path, monkeypatch):
    stub.use_stubs(monkeypatch.setattr)
    root = stub.make_project(tmp_path / "p")
    (root / ".mlops").mkdir(exist_ok=True)
    (root / ".mlops/freeze-promotion").write_text("wait")
    release = start_release(root, B)
    process, written = run(root, "promoted", "-"), threading.Event()
    for _ in range(1200): # the verdict says that it looks; the freeze keeps it from acting
        if "verdict" in kinds(root) or process.poll() is not None: break
        written.wait(.05)
    os.kill(process.pid, signal.SIGTERM)
    assert (process.communicate(timeout=60)[1], process.returncode) == ("", 0)
    assert read_release(root).step == 0 and kinds(root) == ["started", "step", "verdict"]
    (root / ".mlops/freeze-promotion").unlink()
    assert watch_release(root, release.id, every_seconds=0).status == "promoted"


def test_a_watch_goes_on_over_what_cannot_be_read_and_says_so_once(project, monkeypatch, capsys):
    start_release(project, B)
    left = iter([UserError("The log is damaged."), UserError("The log is damaged."), OSError("The log is damaged.")])

    def judge(root, release):
        if error := next(left, None): raise error
        return Verdict("roll_back")
    monkeypatch.setattr(releases, "_judge", judge)
    assert watch_release(project, every_seconds=0).status == "rolled_back"
    assert capsys.readouterr().err.count("The log is damaged.") == 1


def test_a_judge_that_cannot_look_is_go_on_until_the_deadline_and_then_roll_back(tmp_path, monkeypatch):
    judge = releases._judge
    stub.use_stubs(monkeypatch.setattr)
    def broken(root, release): raise {A: UserError, B: ZeroDivisionError}[release.bundle]("The log is damaged.")
    monkeypatch.setattr("mlops_nb.release.judge.judge_release", broken)
    root = stub.make_project(tmp_path / "p")
    release = start_release(root, B)
    def said(since): return judge(root, replace(release, step_since=since))
    assert judge(root, release).action == "go_on"
    assert said("2999-01-01T00:00:00+00:00").action == "go_on", "a clock that was set back"
    late = said("2020-01-01T00:00:00+00:00")
    assert late.action == "roll_back" and "After 336 hours the judge still cannot look: Zero" in late.reason
    assert judge(root, replace(release, bundle=A)).reason == "The judge cannot look: The log is damaged."


def test_a_release_is_found_by_the_beginning_of_its_id(project):
    with pytest.raises(UserError, match="No release is open here"): read_release(project)
    release = start_release(project, B)
    assert read_release(project) == read_release(project, release.id[:4]) == release
    assert release_folder(project, release) == project / "releases" / release.id
    with pytest.raises(UserError, match="There is no release 'x'"): read_release(project, "x")
    releases._record_start(open_ledger(project), replace(release, id=release.id + "-2"), 7)
    with pytest.raises(UserError, match="2 releases begin with"): read_release(project, release.id[:4])
    assert read_release(project, release.id).id == release.id


def test_a_release_keeps_the_params_it_began_with(project):
    release = start_release(project, B)
    stub.write_release_params(project, steps=[50, 100], alpha=.5)
    assert read_release(project).params.alpha == .05 and len(read_release(project).steps) == 3 == len(release.steps)


def test_a_release_of_an_older_version_of_the_package_is_still_read(project):
    ledger, release = open_ledger(project), start_release(project, B)
    data = stub.releases.msgspec.to_builtins(replace(release, id="old"))
    data["params"] = {"alpha": .01, "patience": 7, "margins": {"happiness": 3}, "steps": [5, 100]}
    ledger.append("release.started", "old", data)
    old = read_release(project, "old")
    assert (old.params.alpha, old.params.steps, old.params.margins) == (.01, [5, 100], ReleaseParams().margins)


def test_a_release_goes_its_way_in_a_ledger_of_postgresql(project, postgres, monkeypatch):
    "Its address is in the environment, its password too; a second machine sees the release and is refused."
    import psycopg
    monkeypatch.setenv("PGPASSWORD", postgres.password)
    name = f"releases_{uuid.uuid4().hex[:8]}"
    with psycopg.connect(postgres.url, autocommit=True) as db: db.execute(f"CREATE DATABASE {name}")
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", f"{postgres.url.rpartition('/')[0]}/{name}")
    release = start_release(project, B)
    elsewhere = stub.make_project(project.parent / "elsewhere")
    with pytest.raises(UserError, match=f"rows has an open release, {release.id}"): start_release(elsewhere, B)
    assert watch_release(project, every_seconds=0).status == "promoted"
    assert kinds(elsewhere) == ["started", "step", "verdict", "step", "verdict", "promoted"]
    assert not (project / ".mlops/ledger.db").exists()
