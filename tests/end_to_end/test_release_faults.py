"What goes wrong around a release: one sentence, an exit code that is not 0, and nothing lost."
import os
import shutil
import subprocess
import time

import pytest
from support.shop_project import BIN, ENV, finished, nb_inside, run, sentence, shop

from mlops_nb.config.settings import read_settings
from mlops_nb.core.manifest import file_hashes
from mlops_nb.release.mlflow_tracking import tracking_client
from mlops_nb.release.release_plan import find_champion, promote_bundle, read_plan, record_path
from mlops_nb.release.sharing import share_releases

NOBODY_HAS = "f" * 64


@pytest.fixture
def bare(tmp_path):
    "The folder of a project, as far as a release plan goes."
    (tmp_path / "p").mkdir()
    (tmp_path / "p/settings.ini").write_text("[release]\nendpoint = corner\n[tracking]\nexperiment = corner\n")
    return tmp_path / "p"


def releases(root): return root / "releases/corner.json"


def test_a_clone_whose_champion_nobody_pushed(bare):
    "Git brought the release record; there is no remote from which the bundle could come."
    other = bare.parent / "author"
    promote_bundle(releases(other), "corner", NOBODY_HAS)
    shutil.copytree(record_path(releases(other)).parent, record_path(releases(bare)).parent)
    before = file_hashes(bare)
    for command in (["what-if"], ["score", "in.parquet", "out.parquet"], ["model-card"], ["stage", "evaluate"]):
        said = sentence(nb_inside(*command, cwd=bare))
        assert said.startswith(f"bundles holds no bundle {NOBODY_HAS}; `dvc pull` brings it"), said
    assert NOBODY_HAS[:12] in nb_inside("status", cwd=bare).stdout
    known = ".mlops/stages/failures/evaluate.json", ".mlops/ledger.db"  # that the stage failed is on record
    assert {name: h for name, h in file_hashes(bare).items() if name not in known} == before


def test_a_plan_that_names_a_bundle_nobody_has(bare):
    promote_bundle(releases(bare), "corner", NOBODY_HAS)
    said = run("mlops-nb", "serve", "--port", "0", cwd=bare)
    assert said.returncode == 1 and f"bundles holds no bundle {NOBODY_HAS}" in said.stderr.splitlines()[-1]
    assert "no model before" in sentence(nb_inside("rollback", cwd=bare))
    assert "holds no bundle abc" in sentence(nb_inside("rollback", "--to", "abc", cwd=bare))
    assert read_plan(releases(bare)).variants[0].bundle == NOBODY_HAS


def test_the_registry_of_another_project_restores_nothing(bare):
    client, _ = tracking_client(bare, read_settings(bare))
    client.create_registered_model("corner")
    version = client.create_model_version("corner", "file:///elsewhere", tags={"bundle": NOBODY_HAS}).version
    client.set_registered_model_alias("corner", "champion", version)
    said = sentence(nb_inside("release", "restore", cwd=bare))
    assert f"holds no bundle {NOBODY_HAS}" in said and not releases(bare).exists()
    assert not record_path(releases(bare)).exists()


def test_without_git_init_says_so_and_writes_nothing(tmp_path, monkeypatch):
    (tmp_path / "in.csv").write_text(shop(60), encoding="utf-8")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mlops-nb").symlink_to(BIN / "mlops-nb")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    said = sentence(nb_inside("init", "new", "--data", "in.csv", "--target", "bought", cwd=tmp_path))
    assert "git is not installed" in said and not (tmp_path / "new").exists()


def test_a_first_commit_that_was_killed_is_made_by_hand(tmp_path):
    (tmp_path / "in.csv").write_text(shop(60), encoding="utf-8")
    git(tmp_path, "init", "-q", "here")
    hook, lock = tmp_path / "here/.git/hooks/pre-commit", tmp_path / "here/.git/index.lock"
    hook.write_text("#!/bin/sh\nkill -9 $PPID\n")
    hook.chmod(0o755)
    done = nb_inside("init", "here", "--data", "in.csv", "--target", "bought", cwd=tmp_path)
    said, = done.stderr.strip().splitlines()
    assert said.startswith("warning: Nothing was committed (git was stopped); `dvc exp run` needs a commit")
    assert lock.exists() and (tmp_path / "here/schema.yaml").exists()
    for path in (hook, lock): path.unlink()
    git(tmp_path / "here", *said.split("then `")[1].split("`")[0].split()[1:])
    git(tmp_path / "here", "commit", "-q", "-m", "project")
    assert not git(tmp_path / "here", "status", "--short")


def test_what_dvc_refuses_at_init_is_said_and_nothing_is_left(tmp_path):
    "Another git command was killed before, and left its lock."
    (tmp_path / "in.csv").write_text(shop(60), encoding="utf-8")
    git(tmp_path, "init", "-q", "here")
    (tmp_path / "here/.git/index.lock").touch()
    said = sentence(nb_inside("init", "here", "--data", "in.csv", "--target", "bought", cwd=tmp_path))
    assert said.startswith("setting up DVC failed in here: ") and "lock" in said, said
    assert os.listdir(tmp_path / "here") == [".git"]


def git(root, *words):
    done = run("git", *words, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return shutil.copytree(finished(tmp_path_factory), tmp_path_factory.mktemp("faults") / "corner", symlinks=True)


def test_where_git_ignores_the_released_models_the_release_stands_and_the_reason_is_said(project):
    run("dvc", "remote", "add", "-q", "-d", "store", "../store", cwd=project)
    ignore = project / ".gitignore"
    before = ignore.read_text()
    ignore.write_text(f"{before}/bundles/\n") # as an outer repository may do with all of the project
    said, champion = share_releases(project), find_champion(project)
    assert "does not travel with a clone" in said and "ignored" in said and champion.is_dir()
    ignore.write_text(before)
    assert share_releases(project) == "" and (project / f"bundles/released/{champion.name}.dvc").exists()


@pytest.mark.slow
def test_of_two_pipeline_runs_at_once_the_second_is_refused_and_the_first_goes_on(project):
    slow = project.parent / "slow"
    slow.mkdir()
    (slow / "mlops-nb").write_text(f'#!/bin/sh\ntouch {slow}/begun\nuntil test -e {slow}/go; do sleep .05; done\n'
                                   f'exec {BIN}/mlops-nb "$@"\n')
    (slow / "mlops-nb").chmod(0o755)
    env = ENV | {"PATH": f"{slow}{os.pathsep}{ENV['PATH']}"}
    first = subprocess.Popen(["dvc", "repro", "-s", "-f", "deploy"], cwd=project, env=env, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + 120
        while not (slow / "begun").exists():
            assert first.poll() is None and time.monotonic() < end
            time.sleep(.05)
        second = run("dvc", "repro", "-s", "-f", "deploy", cwd=project)
        assert second.returncode != 0 and "busy" in second.stderr, second.stderr
    finally:
        (slow / "go").touch()
        said = first.communicate(timeout=120)[0]
    assert first.returncode == 0, said
    assert find_champion(project).is_dir() and run("dvc", "repro", "-s", "deploy", cwd=project).returncode == 0
