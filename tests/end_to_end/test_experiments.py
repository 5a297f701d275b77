"From an experiment to a release and back, with real git, DVC and MLflow; whoever names the model in use agrees."
import shutil

import pytest
from support.shop_project import finished, nb, run, sentence

from mlops_nb.config.settings import read_settings
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.release.mlflow_tracking import tracking_client
from mlops_nb.release.release_plan import find_champion


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project whose first model is released and committed."
    root = shutil.copytree(finished(tmp_path_factory), tmp_path_factory.mktemp("experiments") / "corner", symlinks=True)
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first model")
    return root


def git(root, *words):
    done = run("git", *words, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout


def dvc(root, *words):
    done = run("dvc", *words, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def champion_in_registry(root):
    client, _ = tracking_client(root, read_settings(root))
    name = read_settings(root).release.endpoint
    return client.get_model_version_by_alias(name, "champion").tags["bundle"]


def everybody_says(root, bundle):
    "The plan, the registry, the command line and the list of runs name the same model."
    assert find_champion(root).name == bundle == champion_in_registry(root)
    status = nb("status", cwd=root)
    assert status.returncode == 0 and f"{bundle[:12]}," in status.stdout.splitlines()[0], status.stdout + status.stderr
    return status.stdout


@pytest.mark.slow
def test_experiments_release_nothing_until_one_is_kept_and_a_roll_back_undoes_it(project):
    first = find_champion(project).name
    everybody_says(project, first)
    plan = next((project / "releases").glob("*.json"))
    before = plan.read_bytes()

    # one in a temporary copy: its bundle and its version outlive the copy
    dvc(project, "exp", "run", "-q", "--temp", "-n", "copied", "-S", "explain.max_rows=140", "deploy")
    assert plan.read_bytes() == before and len(list((project / "bundles").glob("*"))) == 2
    everybody_says(project, first)
    assert not git(project, "status", "--short")

    # one in the workspace, thrown away
    dvc(project, "exp", "run", "-q", "-n", "kept", "-S", "explain.max_rows=150", "deploy")
    second = read_json(project / "artifacts/deployment.json", dict)
    assert not second["deployed"] and second["bundle"] != first and plan.read_bytes() == before
    assert f"waiting   {second['bundle'][:12]}" in everybody_says(project, first)
    git(project, "checkout", "-q", "--", ".")
    dvc(project, "checkout", "-q")
    assert "waiting   nothing" in everybody_says(project, first)

    # kept after all: applied, committed, and released by the pipeline
    dvc(project, "exp", "apply", "kept")
    git(project, "commit", "-q", "-a", "-m", "explain 150 rows")
    dvc(project, "repro", "-q")
    everybody_says(project, second["bundle"])
    assert second["bundle"][:12] in (project / "reports/index.html").read_text()

    # and rolled back: the pipeline, with nothing changed, does not release it again
    said = nb("rollback", "--reason", "too many calls", cwd=project)
    assert said.returncode == 0 and first[:12] in said.stdout, said.stderr
    everybody_says(project, first)
    assert f"{first[:12]}, put back by a roll-back" in (project / "reports/index.html").read_text()
    dvc(project, "repro", "-q")
    assert "was rolled back" in everybody_says(project, first)
    history = nb("release", "history", cwd=project).stdout.splitlines()
    assert [line.split()[2] for line in history] == ["rollback", "deploy", "deploy"]
    assert "too many calls" in history[0]
    assert "no model before" in sentence(nb("rollback", cwd=project))
