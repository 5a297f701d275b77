"What a run sets in its params: warm starts, cold ones in between, half the batch."
import json

import pytest
from support.controlled_project import git, repository

from mlops_nb.config.params import NetParams, Params, TrainParams, read_params, set_param, write_params
from mlops_nb.control import run_params, run_workflow
from mlops_nb.control.run_identity import make_worktree, pin_run, run_folder
from mlops_nb.control.run_params import choose_init_model
from mlops_nb.control.run_workflow import request_run, run_step
from mlops_nb.control.step_process import StepFailed
from mlops_nb.ledger.ledger import Superseded, open_ledger

OUT_OF_MEMORY = "`dvc repro gate` failed with exit code 255: mlops-nb stage train net, exited with -9"
OTHER_INPUTS = "the model in bundles/a1 (train.init_model) has other inputs than this project (age); set it to null."


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(run_params, "find_champion", lambda root: root / "bundles" / "a1")
    return repository(tmp_path / "project")


def working_tree(root, *done):
    "Of the commit that is asked for, in which some steps are done."
    folder = make_worktree(root, pin_run(root))
    (folder / ".mlops").mkdir(exist_ok=True)
    (folder / ".mlops" / "steps").write_text("".join(f"{step}\n" for step in done))
    return folder


def train(root, monkeypatch, fails, **params):
    "Train a run whose command fails so; gives the params of each try."
    write_params(Params(train=TrainParams(**params)), root / "params.yaml")
    git(root, "commit", "-qam", "params")
    run, _ = request_run(root)
    working_tree(root, "checkout", "validate")
    ledger, tries, fails = open_ledger(root), [], [*fails]
    def process(command, cwd, *_):
        tries.append(read_params(cwd / "params.yaml").train)
        if fails: raise StepFailed(fails.pop(0))
    monkeypatch.setattr(run_workflow, "run_process", process)
    monkeypatch.setattr("mlops_nb.control.step_process.time.sleep", lambda _: None)
    attempt = ledger.begin_attempt(run, "host-a")
    def again(): run_step(root, run, ledger.begin_attempt(run, "host-b"), "train")
    try: run_step(root, run, attempt, "train")
    except StepFailed as e: return tries, str(e), again
    return tries, "", again


def test_a_run_goes_on_from_the_champion_and_so_does_whoever_resumes_it(root, monkeypatch):
    tries, said, again = train(root, monkeypatch, [], warm_start=True)
    monkeypatch.setattr(run_params, "find_champion", lambda root: root / "bundles" / "b2")
    again()
    assert [t.init_model for t in tries] == ["bundles/a1", "bundles/a1"] and said == ""


@pytest.mark.parametrize("params", [dict(warm_start=False), dict(warm_start=True, cold_start_every=1)])
def test_a_cold_start(root, monkeypatch, params):
    assert [t.init_model for t in train(root, monkeypatch, [], **params)[0]] == [None]


def test_a_model_that_is_named_in_the_params_goes_first(root, monkeypatch):
    assert train(root, monkeypatch, [], warm_start=True, init_model="ours")[0][0].init_model == "ours"


def test_without_a_champion_there_is_nothing_to_go_on_from(root, monkeypatch):
    monkeypatch.setattr(run_params, "find_champion", lambda root: None)
    assert train(root, monkeypatch, [], warm_start=True)[0][0].init_model is None


def test_a_champion_that_cannot_be_gone_on_from_means_a_cold_start(root, monkeypatch):
    tries, said, again = train(root, monkeypatch, [OTHER_INPUTS], warm_start=True)
    again()
    assert [t.init_model for t in tries] == ["bundles/a1", None, None] and said == ""
    entries = open_ledger(root).entries(kinds=("training.init_model",))
    assert [bool(e.data["init_model"]) for e in entries] == [True, False] and "other inputs" in entries[1].data["why"]


def test_a_cold_start_that_fails_the_same_way_fails(root, monkeypatch):
    tries, said, _ = train(root, monkeypatch, [OTHER_INPUTS] * 9, warm_start=True)
    assert len(tries) == 2 and "other inputs" in said


def test_too_little_memory_is_tried_once_with_half_the_batch(root, monkeypatch):
    tries, said, again = train(root, monkeypatch, [OUT_OF_MEMORY], learners=["net"])
    again()
    assert [t.net.batch_size for t in tries] == [256, 128, 128] and said == ""


def test_half_the_batch_is_tried_only_once(root, monkeypatch):
    tries, said, _ = train(root, monkeypatch, [OUT_OF_MEMORY] * 9, learners=["net"])
    assert [t.net.batch_size for t in tries] == [256, 128] and "exited with -9" in said


@pytest.mark.parametrize("params", [dict(), dict(learners=["net"], net=NetParams(batch_size=1))])
def test_what_has_no_batch_to_halve(root, monkeypatch, params):
    "Trees, which are tried again as they are, since another process may have taken the memory."
    tries, said, _ = train(root, monkeypatch, [OUT_OF_MEMORY] * 9, **params)
    assert "exited with -9" in said and {t.net.batch_size for t in tries} == {params.get("net", NetParams()).batch_size}
    assert len(tries) == (1 if params else 3)


def test_a_later_attempt_decides(root):
    ledger, params = open_ledger(root), Params(train=TrainParams(warm_start=True))
    first, _ = ledger.begin_attempt("r1", "host-a"), ledger.begin_attempt("r1", "host-b")
    with pytest.raises(Superseded): choose_init_model(root, ledger, "r1", first, params)


def test_comments_and_order_of_the_params_stay(tmp_path):
    text = "# ours\nprepare:\n  split: {test: 0.3} # a third\ntrain:\n  seed: 7 # lucky\n"
    (tmp_path / "params.yaml").write_text(text)
    set_param(tmp_path / "params.yaml", "train.net.batch_size", 8)
    found = (tmp_path / "params.yaml").read_text()
    assert found.startswith(text.rstrip("\n")) and read_params(tmp_path / "params.yaml").train.net.batch_size == 8
    (tmp_path / "params.yaml").write_text("")
    set_param(tmp_path / "params.yaml", "train.seed", 3)
    assert read_params(tmp_path / "params.yaml").train.seed == 3


@pytest.mark.parametrize("files, seen, says", [
    (["billing-11.csv", "visits.csv"], [], "New in this run: billing-11.csv; tell Ana, who owns that source. New in "
     "this run: visits.csv; nobody is named for it"),
    (["billing-11.csv"], ["billing-11.csv"], "")])
def test_a_refused_delivery_names_the_owner_and_keeps_the_rows(root, monkeypatch, files, seen, says):
    (root / "settings.ini").write_text("[source.billing]\nfiles = billing-*.csv\nowner = Ana\n")
    run, _ = request_run(root)
    folder, ledger = working_tree(root, "checkout"), open_ledger(root)
    if seen:
        ledger.append("run.queued", "r0", dict(status="queued", data_files=["0" * 16]), key="run/r0/queued")
        ledger.append("run.ended", "r0", dict(status="succeeded", message="", attempt=1))
    (folder / "data").mkdir()
    (folder / "data" / "manifest.json").write_text(json.dumps(dict(files=[
        dict(name=f, sha256="0" * 64 if f in seen else "1" * 64) for f in files])))
    def refuse(command, cwd, *_):
        (cwd / "quarantine").mkdir()
        (cwd / "quarantine" / "part-00000.parquet").touch()
        raise StepFailed("40 of 90 rows violate the schema")
    monkeypatch.setattr(run_workflow, "run_process", refuse)
    with pytest.raises(StepFailed, match="40 of 90 rows violate the schema") as e:
        run_step(root, run, ledger.begin_attempt(run, "host-a"), "validate")
    assert says in str(e.value) and f"The refused rows are in .mlops/quarantine/{run}." in str(e.value)
    assert [p.name for p in (root / ".mlops" / "quarantine" / run).iterdir()] == ["part-00000.parquet"]
    assert run_folder(root, run) == folder


def test_a_lock_that_a_killed_command_left_holds_nobody_up(root, monkeypatch):
    run, _ = request_run(root)
    lock, seen = working_tree(root, "checkout") / ".dvc" / "tmp" / "rwlock", []
    lock.parent.mkdir(parents=True)
    lock.write_text('{"artifacts/prepared": {"write": {"pid": 1, "cmd": "dvc repro gate"}}}')
    monkeypatch.setattr(run_workflow, "run_process", lambda *_: seen.append(lock.exists()))
    run_step(root, run, open_ledger(root).begin_attempt(run, "host-a"), "validate")
    assert seen == [False]
