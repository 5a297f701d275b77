"Commits and data that a clone lacks."
import shutil
import subprocess

import pytest
from support.controlled_project import git, repository

from mlops_nb.control import run_identity
from mlops_nb.control.run_identity import commit_results, fetch_commit, make_worktree, pin_run, remove_worktree
from mlops_nb.control.run_workflow import execute_run, request_run, run_step
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import read_run


@pytest.fixture
def origin(tmp_path): return repository(tmp_path / "origin")


@pytest.fixture
def clone(tmp_path, origin):
    git(tmp_path, "clone", "-q", str(origin), "clone")
    return tmp_path / "clone"


def new_commit(root, text="newer"):
    (root / "features.py").write_text(text)
    git(root, "commit", "-qam", text)
    return git(root, "rev-parse", "HEAD").strip()


def test_a_commit_of_another_clone_is_fetched(origin, clone):
    new_commit(origin)
    pin = pin_run(origin)
    folder = make_worktree(clone, pin)
    assert (folder / "features.py").read_text() == "newer"
    assert (clone / "features.py").read_text() != "newer", "the branch of the clone stays where it is"


def test_a_commit_that_no_branch_has_any_more_is_fetched_by_its_name(origin, clone):
    first = git(origin, "rev-parse", "HEAD").strip()
    lost = new_commit(origin)
    git(origin, "reset", "-q", "--hard", first)
    new_commit(origin, "forced")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    fetch_commit(clone, lost)
    assert git(clone, "cat-file", "-t", lost).strip() == "commit"


@pytest.mark.parametrize("remote, says", [
    (None, "nor in any remote, since it has none"), ("/nowhere", "nor in its remotes \\(origin\\) \\(.*nowhere")])
def test_a_commit_that_is_nowhere_is_a_sentence(clone, remote, says):
    git(clone, *(["remote", "set-url", "origin", remote] if remote else ["remote", "remove", "origin"]))
    with pytest.raises(UserError, match=f"{says}.*; `git push` it"): fetch_commit(clone, "b" * 40)


def test_a_remote_that_does_not_answer_is_given_up(clone, monkeypatch):
    monkeypatch.setattr(run_identity, "_FETCH_SECONDS", .2)
    git(clone, "remote", "set-url", "origin", "ext::sleep 60")
    git(clone, "config", "protocol.ext.allow", "always")
    with pytest.raises(UserError, match="no answer in 0.2 seconds"): fetch_commit(clone, "b" * 40)


def test_git_does_not_forget_the_commit_of_a_run(origin):
    "A branch that is force-pushed, or a commit that is amended, and git's collection of what nothing names."
    commit = new_commit(origin)
    run, _ = request_run(origin)
    git(origin, "reset", "-q", "--hard", "HEAD~1")
    git(origin, "reflog", "expire", "--expire=now", "--all")
    git(origin, "gc", "-q", "--prune=now")
    assert git(origin, "cat-file", "-t", commit).strip() == "commit"
    pin = pin_run(origin)
    make_worktree(origin, pin_run(origin).__class__(run, commit, pin.code, pin.data, pin.params, pin.data_dvc))
    commit_results(origin, run, "Results")
    assert f"refs/mlops-nb/pinned/{run}" not in git(origin, "for-each-ref"), "its results keep it from now on"
    remove_worktree(origin, run)


@pytest.fixture
def shared_data(tmp_path):
    "A project with data under DVC, and a clone of it whose cache is empty."
    root = tmp_path / "origin"
    repository(root)
    (root / "data.dvc").unlink()
    (root / "data").mkdir()
    (root / "data" / "rows.csv").write_text("a,b\n1,2\n")
    (root / "dvc.yaml").write_text("stages: {}\n")
    for args in (["init", "-q"], ["config", "core.analytics", "false"],
                 ["remote", "add", "-q", "-d", "store", str(tmp_path / "store")], ["add", "-q", "data"]):
        subprocess.run(["dvc", *args], cwd=root, check=True, capture_output=True)
    git(root, "add", "-A")
    git(root, "commit", "-qm", "data")
    git(tmp_path, "clone", "-q", str(root), "clone")
    for name in ("clone/.mlops",): (tmp_path / name).mkdir()
    return root, tmp_path / "clone"


def test_data_come_from_the_remote_or_it_is_said_where_they_lack(shared_data):
    root, clone = shared_data
    run, _ = request_run(clone)
    ledger = open_ledger(clone)
    execute_run(clone, run, "host-a")
    found = read_run(ledger, run)
    assert found.status == "failed" and found.facts["step"] == "checkout"
    assert "neither in the cache of this clone nor in a remote: `dvc push` them" in found.message
    subprocess.run(["dvc", "push", "-q"], cwd=root, check=True)
    ledger.append("run.resumed", run, dict(status="queued"))
    run_step(clone, run, ledger.begin_attempt(run, "host-a"), "checkout")
    assert (run_identity.run_folder(clone, run) / "data" / "rows.csv").read_text() == "a,b\n1,2\n"
    shutil.rmtree(root / ".dvc" / "cache")
