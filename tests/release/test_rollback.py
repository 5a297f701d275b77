"What answers, roll-back, restoring a plan, and experiments that release nothing."
import json
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from support import stub_releases as stub

import mlops_nb.release.rollback as rollback_module
from mlops_nb.bundle.store import find_bundle
from mlops_nb.config.settings import read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.release.deploy import Deployment, run_deploy
from mlops_nb.release.release_plan import (
    ReleaseEvent,
    find_champion,
    history_path,
    plan_path,
    promote_bundle,
    read_history,
    read_plan,
    record_path,
    release_stack,
    replace_plan,
    restore_plan,
    update_record,
)
from mlops_nb.release.releases import look_at_release, read_release, start_release
from mlops_nb.release.rollback import describe_model_in_use, model_in_use, restore_release, roll_back
from mlops_nb.report.status import project_status

from .test_deploy import aliases, deploy_two, gate_passes, judged, project  # noqa: F401


def plan_of(root): return plan_path(root, read_settings(root))


def deployment(root): return read_json(root / "artifacts/deployment.json", Deployment)


@pytest.fixture
def two(project):  # noqa: F811
    "A project with two deployed models, and their ids."
    return project, *deploy_two(project)


def test_an_experiment_releases_nothing(two, monkeypatch):
    root, _, second = two
    before = plan_of(root).read_bytes(), (root / "releases/history/rows.json").read_bytes()
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "1a2b3c")
    third = second_model_with(root, 30)
    gate_passes(root)
    run_deploy(root)
    done = deployment(root)
    assert third not in (second, None) and done.bundle == third and not done.deployed
    assert "experiments release nothing" in done.message
    assert (plan_of(root).read_bytes(), (root / "releases/history/rows.json").read_bytes()) == before
    assert aliases(root) == {"champion": 2, "previous": 1, "challenger": 3} and find_bundle(third, root / "bundles")
    assert third[:12] in project_status(root).waiting[0]
    monkeypatch.delenv("DVC_EXP_BASELINE_REV") # the experiment is kept: the same stage, outside of it
    run_deploy(root)
    assert model_in_use(root).bundle == third and not project_status(root).waiting
    assert aliases(root) == {"champion": 3, "previous": 2}


def second_model_with(root, trees):
    from mlops_nb.config.params import read_params, write_params
    from mlops_nb.train.stage import run_train

    from .test_deploy import model
    params = read_params(root / "params.yaml")
    params.train.gbdt.n_estimators = trees
    write_params(params, root / "params.yaml")
    run_train(root)
    return model(root)


def test_a_temporary_copy_registers_in_the_checkout_it_came_from(two, monkeypatch):
    root, _, second = two
    copy = root / ".dvc/tmp/exps/standalone/tmp1"
    copy.mkdir(parents=True)
    for name in ("artifacts", "settings.ini", "schema.yaml", "params.yaml", "features.py"):
        where = shutil.copytree if (root / name).is_dir() else shutil.copy
        where(root / name, copy / name)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "1a2b3c")
    monkeypatch.setenv("DVC_ROOT", str(root))
    assert find_champion(copy).name == second # the gate holds an experiment against the same champion
    run_deploy(copy)
    assert not (copy / "bundles").exists() and not (copy / "mlflow.db").exists() and not (copy / "releases").exists()
    assert aliases(root)["champion"] == 2


def test_a_roll_back_puts_the_model_before_back_everywhere(two):
    root, first, second = two
    assert model_in_use(root).bundle == second and model_in_use(root).reason == "All held."
    (root / "reports/pipeline").mkdir(parents=True)
    now = roll_back(root, reason="too many calls")
    assert (now.bundle, now.action, now.reason) == (first, "rollback", "too many calls")
    assert find_champion(root).name == first and aliases(root)["champion"] == 1
    assert first[:12] in describe_model_in_use(root) and first[:12] in project_status(root).model
    assert [e.action for e in read_history(plan_of(root))] == ["deploy", "deploy", "rollback"]
    with pytest.raises(UserError, match="no model before"): roll_back(root)


def test_what_was_rolled_back_is_not_released_again_by_itself(two):
    root, first, second = two
    roll_back(root)
    run_deploy(root)
    assert find_champion(root).name == first and "was rolled back" in deployment(root).message
    said = deployment(root).message
    to = said.split("--to ")[1].split("`")[0]
    assert roll_back(root, to=to).bundle == second # the advice of the sentence


def test_without_mlflow_a_roll_back_happens_all_the_same(two, monkeypatch, capsys):
    import mlops_nb.release.registry as module
    root, first, _ = two

    def gone(*_): raise ModuleNotFoundError("No module named 'mlflow'")
    monkeypatch.setattr(module, "tracking_client", gone)
    assert roll_back(root).bundle == first
    assert "aliases could not be changed" in capsys.readouterr().err
    monkeypatch.undo()
    assert aliases(root)["champion"] == 2
    run_deploy(root) # what was rolled back is not released again, and the registry is told
    assert aliases(root) == {"champion": 1}


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_model_that_is_gone_or_damaged_is_not_gone_back_to(two, damage):
    root, first, second = two
    if damage == "gone": shutil.rmtree(root / "bundles" / first)
    else: (root / "bundles" / first / "card.md").write_text("changed")
    with pytest.raises(UserError, match=first[:12] if damage == "gone" else "card.md"): roll_back(root)
    assert model_in_use(root).bundle == second


def test_nothing_to_roll_back(tmp_path):
    with pytest.raises(UserError, match="nothing to roll back"): roll_back(tmp_path)
    assert describe_model_in_use(tmp_path).startswith("No model is in use")


def test_a_torn_plan_comes_back_from_the_history(two):
    root, _, second = two
    plan_of(root).write_text('{"endpoint": "rows", "revi')
    with pytest.raises(UserError, match="mlops-nb release restore"): model_in_use(root)
    assert "cannot be told" in describe_model_in_use(root)
    assert restore_release(root).bundle == second == find_champion(root).name
    assert read_plan(plan_of(root)).revision == 3 and read_history(plan_of(root))[-1].action == "restore"


@pytest.mark.parametrize("without", [["releases"], ["releases", "bundles", "mlflow.db"]], ids=["registry", "clone"])
def test_without_a_history_the_registry_or_the_last_run_says_what_answered(two, without):
    root, _, second = two
    clone = shutil.copytree(root, root.parent / "clone", ignore=shutil.ignore_patterns(*without))
    assert find_champion(clone) is None
    assert restore_release(clone).bundle == second == find_champion(clone).name


def test_a_plan_that_nobody_remembers_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="Nothing says which model answered"): restore_release(tmp_path)


def test_a_release_whose_plan_was_never_written_is_not_restored(tmp_path, monkeypatch):
    "Killed before the plan was replaced, and the plan is lost later: what answered comes back."
    import mlops_nb.release.release_plan as module
    path = tmp_path / "rows.json"
    promote_bundle(path, "rows", "aaa")

    def killed(*_): raise KeyboardInterrupt
    monkeypatch.setattr(module, "_write_plan", killed)
    with pytest.raises(KeyboardInterrupt): promote_bundle(path, "rows", "bbb")
    monkeypatch.undo()
    assert [e.bundle for e in read_history(path)] == ["aaa"] and read_plan(path).variants[0].bundle == "aaa"
    path.write_text("{")
    assert restore_plan(path, "rows").variants[0].bundle == "aaa"


def test_a_release_whose_plan_was_written_is_remembered(tmp_path):
    "Killed after the plan was replaced and before the history was."
    path = tmp_path / "rows.json"
    promote_bundle(path, "rows", "aaa")
    before = history_path(path).read_bytes()
    promote_bundle(path, "rows", "bbb", action="rollback")
    history_path(path).rename(history_path(path).with_suffix(".pending"))
    history_path(path).write_bytes(before)
    record_path(path).write_bytes(before)
    assert [(e.bundle, e.action) for e in read_history(path)] == [("aaa", "deploy"), ("bbb", "rollback")]
    promote_bundle(path, "rows", "ccc")
    assert [e.bundle for e in read_history(path)] == ["aaa", "bbb", "ccc"]


def test_git_brings_releases_and_takes_none_back(tmp_path):
    ours, theirs = tmp_path / "ours/rows.json", tmp_path / "theirs/rows.json"
    for bundle in ("aaa", "bbb"): promote_bundle(theirs, "rows", bundle)
    record_path(ours).parent.mkdir(parents=True)
    shutil.copy(record_path(theirs), record_path(ours)) # git clone
    assert read_plan(ours) == read_plan(theirs) and not ours.exists()
    old = record_path(ours).read_bytes()
    promote_bundle(ours, "rows", "aaa", action="rollback")
    assert [e.action for e in read_history(ours)] == ["deploy", "deploy", "rollback"]
    record_path(ours).write_bytes(old) # git checkout -- .
    assert read_plan(ours).variants[0].bundle == "aaa" and len(read_history(ours)) == 3
    update_record(ours)
    shutil.copy(record_path(ours), record_path(theirs)) # git pull
    assert read_plan(theirs).variants[0].bundle == "aaa" and read_history(theirs)[-1].action == "rollback"


def test_both_sides_of_a_merge_are_a_sentence_and_what_answers_stays(tmp_path):
    path = tmp_path / "rows.json"
    promote_bundle(path, "rows", "aaa")
    record_path(path).write_text("[\n<" + "<<<<<< HEAD\n")
    assert read_plan(path).variants[0].bundle == "aaa"
    with pytest.raises(UserError, match="both sides of a merge.*--theirs"): promote_bundle(path, "rows", "bbb")
    path.unlink()
    with pytest.raises(UserError, match="both sides of a merge"): read_plan(path)


def test_a_plan_of_before_the_history_can_be_gone_back_to(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"endpoint": "rows", "revision": 7, "variants": [{"name": "champion", "bundle": "aaa"}]}')
    promote_bundle(path, "rows", "bbb")
    assert [(e.revision, e.bundle) for e in read_history(path)] == [(7, "aaa"), (8, "bbb")]


def test_an_event_without_its_plan_is_replaced(tmp_path):
    "Killed after the history was written and before the plan was."
    path = tmp_path / "rows.json"
    promote_bundle(path, "rows", "aaa")
    history = tmp_path / "history/rows.json"
    events = json.loads(history.read_text())
    history.write_text(json.dumps([*events, events[0] | {"revision": 2, "bundle": "lost"}]))
    promote_bundle(path, "rows", "bbb")
    assert [(e.revision, e.bundle) for e in read_history(path)] == [(1, "aaa"), (2, "bbb")]
    assert read_plan(path).revision == 2


@given(st.lists(st.sampled_from("abcd"), max_size=8))
def test_two_roll_backs_go_back_two_models(bundles):
    events = [ReleaseEvent(i, b, "deploy", "", "") for i, b in enumerate(bundles, 1)]
    stack = release_stack(events)
    assert stack == [b for i, b in enumerate(bundles) if i == 0 or bundles[i - 1] != b]
    if len(stack) > 2 and len(set(stack)) == len(stack):
        back = ReleaseEvent(9, stack[-2], "rollback", "", "")
        assert release_stack([*events, back]) == stack[:-1]
        assert release_stack([*events, back, ReleaseEvent(10, stack[-3], "rollback", "", "")]) == stack[:-2]


# ---------------------------------------------------------------- an open release


@pytest.fixture
def in_release(tmp_path, monkeypatch):
    "A project whose second bundle has 5 % of the requests, and the release."
    stub.use_stubs(monkeypatch.setattr)
    root = stub.make_project(tmp_path / "p")
    monkeypatch.setattr(rollback_module, "find_bundle", stub._find_bundle)
    monkeypatch.setattr(rollback_module, "require_trusted", lambda *_: None)
    monkeypatch.setattr(rollback_module, "open_bundle", lambda folder: SimpleNamespace(id=folder.name))
    monkeypatch.setattr(rollback_module, "reconcile_registry", lambda root: "")
    return root, start_release(root, stub.B)


def test_a_roll_back_ends_the_release_that_is_open(in_release):
    root, release = in_release
    assert roll_back(root, reason="errors rose").bundle == stub.A
    ended = read_release(root, release.id)
    assert (ended.status, ended.outcome, read_plan(plan_of(root)).release) == ("rolled_back", "errors rose", None)
    with pytest.raises(UserError, match="There is no model before"): roll_back(root)


@pytest.mark.parametrize("to, status", [(stub.A, "rolled_back"), (stub.B, "promoted"), (stub.C, "withdrawn")])
def test_a_roll_back_to_a_bundle_by_name_ends_it_too(in_release, to, status):
    root, release = in_release
    assert roll_back(root, to=to[:8]).bundle == to and read_release(root, release.id).status == status


@pytest.mark.parametrize("step", [0, 1])
def test_a_roll_back_needs_no_ledger(in_release, step, monkeypatch, capsys):
    "At 95 % for the challenger, the champion is not the one that answers most."
    root, release = in_release
    if step:
        path = plan_of(root)
        plan = read_plan(path)
        most = [replace(v, weight=1 - v.weight) if v.name in ("champion", "challenger") else v for v in plan.variants]
        replace_plan(path, replace(plan, variants=most))
    ledger = (root / ".mlops/ledger.db").read_bytes()
    for left in (root / ".mlops").glob("ledger.db-*"): left.unlink()
    (root / ".mlops/ledger.db").write_text("no database" * 100)
    assert roll_back(root).bundle == stub.A and capsys.readouterr().err.count("cannot be used") == 2
    (root / ".mlops/ledger.db").write_bytes(ledger)
    assert read_release(root, release.id).status == "open"
    assert look_at_release(root, release).status == "rolled_back"
