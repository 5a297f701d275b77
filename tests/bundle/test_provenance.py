"With its provenance, a training can be repeated."
import subprocess

import pytest
from support import trained_project as modelling

from mlops_nb.bundle.provenance import git_state
from mlops_nb.bundle.stage import run_bundle
from mlops_nb.core.typed_yaml import read_json


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    root = modelling.judged(modelling.trained(tmp_path_factory.mktemp("project"), n=500))
    run_bundle(root)
    return root


def test_provenance_holds_what_is_needed_to_train_again(project):
    p = read_json(project / "artifacts/bundle/provenance.json", dict)
    assert {"schema", "features", "train.parquet", "valid.parquet", "test.parquet",
            "params.yaml"} <= p["input_hashes"].keys()
    assert all(len(v) == 64 for v in p["input_hashes"].values())
    assert p["params"]["train"]["gbdt"]["n_estimators"] == 20 and p["seeds"] == {"split": 0, "train": 0, "evaluate": 0}
    assert p["packages"]["lightgbm"] and p["training"]["best_iteration"] >= 1 and "curve" not in p["training"]


def test_git_state_of_a_repository_without_commits_and_with_changes(tmp_path):
    def git(*args):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *args], cwd=tmp_path, check=True,
                       capture_output=True)

    git("init")
    assert git_state(tmp_path) == (None, None)
    for name in ("params.yaml", "dvc.lock", "artifacts/metrics.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    git("add", "."), git("commit", "-m", "x")
    commit, dirty = git_state(tmp_path)
    assert len(commit) == 40 and dirty is False
    for name in ("dvc.lock", "artifacts/metrics.json", "untracked.txt"): (tmp_path / name).write_text("2")
    assert git_state(tmp_path) == (commit, False)
    (tmp_path / "params.yaml").write_text("2")
    assert git_state(tmp_path) == (commit, True)
