"The runbooks of docs/runbooks/ are executed, each against a real server that customers ask meanwhile."
import os
import shutil
import sys
from pathlib import Path

import pytest
from support import server as serving
from support.release_project import Customers, project
from support.shop_project import done

from mlops_nb.config.api_keys import create_api_key
from mlops_nb.config.settings import read_settings
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.release.releases import list_releases, start_release
from mlops_nb.release.rollback import model_in_use
from mlops_nb.release.sharing import share_releases
from mlops_nb.report.runbooks import RUNBOOK_FOLDER, find_runbooks, list_runbooks, run_runbook

ROOT = Path(__file__).parents[1]
RELEASE = dict(strategy="canary", steps=[20, 100], min_step_hours=0, min_units=20,
               margins=dict(failures=.5, latency=None, decisions=None, scores=None, loss=None, auc=None))
PEOPLE = "environment = production\n[people]\nowners = ana\n[production]\napprove = start: 1 of owners\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    "A project with the runbooks, its server under load, and the ids of the bundles."
    root = tmp_path_factory.mktemp("runbooks") / "p"
    ids = project(root, ("champion", "better", "crashing"), "[log]\nfsync = false\n", **RELEASE)
    shutil.copytree(ROOT / RUNBOOK_FOLDER, root / RUNBOOK_FOLDER)
    with serving.Server(root) as server, Customers(server.port) as load:
        server.until(lambda: load.ids, "answered", 30)
        yield root, ids, f"http://127.0.0.1:{server.port}"


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path_factory):
    "The commands of this environment, without MLflow: it takes seconds to load, and a release survives without it."
    folder = tmp_path_factory.mktemp("without")
    (folder / "mlflow.py").write_text("raise ModuleNotFoundError('No module named mlflow', name='mlflow')\n")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr("mlops_nb.release.releases.reconcile_registry", lambda root: "")


def test_deploy_a_model(place):
    root, ids, url = place
    run_runbook(root, "deploy", dict(bundle=ids["better"], url=url))
    assert model_in_use(root).bundle == ids["better"]


def test_a_deployment_that_fails(place):
    root, ids, _ = place
    before = model_in_use(root).bundle
    run_runbook(root, "deploy-that-fails", dict(bundle=ids["crashing"]))
    assert list_releases(root)[-1].status == "rolled_back" and model_in_use(root).bundle == before


def test_a_broken_log(place):
    root, _, url = place
    run_runbook(root, "broken-log", dict(url=url, game_day=True))


def test_roll_back(place):
    root, ids, url = place
    before = model_in_use(root).bundle
    if before == ids["champion"]: pytest.skip("the deployment before this failed")
    run_runbook(root, "roll-back", dict(url=url))
    assert model_in_use(root).bundle == ids["champion"]


def test_a_stuck_approval(tmp_path, monkeypatch):
    root = tmp_path / "p"
    ids = project(root, settings=PEOPLE, staging_runs=0, **RELEASE)
    shutil.copytree(ROOT / RUNBOOK_FOLDER, root / RUNBOOK_FOLDER)
    release = start_release(root, ids["better"], by="carl")
    assert release.step < 0
    key = create_api_key(root / read_settings(root).serve.api_keys_file, "ana", ["operate"])
    monkeypatch.setenv("MLOPS_NB_API_KEY", key)
    run_runbook(root, "stuck-approval", dict(step="start"))
    assert [e.by for e in open_ledger(root).entries(release.id, ("approval.given",))] == ["ana"]


def test_each_run_is_in_the_ledger(place):
    root, *_ = place
    known = {r.name: r for r in list_runbooks(root)}
    assert known.keys() == find_runbooks(ROOT).keys()
    assert {n for n, r in known.items() if r.passed} >= {"deploy", "deploy-that-fails", "broken-log", "roll-back"}


def test_restore_from_git_and_the_artifact_store(tmp_path_factory):
    "Nothing is left of a project but its repository and DVC's remote; the clone answers as it did."
    place = tmp_path_factory.mktemp("restore")
    author = place / "author"
    project(author, ["champion"])
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"],
                    ["dvc", "remote", "add", "-q", "--default", "storage", place / "storage"]):
        done(*command, cwd=author)
    assert share_releases(author) == ""
    kept = [".dvc", "settings.ini", "schema.yaml", "params.yaml", "releases/committed", "bundles/released"]
    for words in (["add", *kept], ["commit", "-qm", "first model"]): done("git", *words, cwd=author)
    done("dvc", "push", "-q", cwd=author)
    before = model_in_use(author).bundle
    done("git", "clone", "-q", "--bare", author, place / "repository.git", cwd=place)
    shutil.rmtree(author)
    here = place / "here"
    shutil.copytree(ROOT / RUNBOOK_FOLDER, here / RUNBOOK_FOLDER)
    run_runbook(here, "restore", dict(repository=str(place / "repository.git"), folder=str(place / "restored")))
    assert model_in_use(place / "restored").bundle == before
