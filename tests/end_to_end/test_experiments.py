"From an experiment to a release and back, with real git, DVC and MLflow; whoever names the model in use agrees."
import html
import re
import shutil

import pytest
from support.project_checks import stub_pages
from support.server import Server
from support.shop_project import done, edit, finished, nb_inside, sentence

from mlops_nb.config.settings import read_settings
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.release.gate import GateReport
from mlops_nb.release.mlflow_tracking import tracking_client
from mlops_nb.release.release_plan import find_champion, plan_path, record_path
from mlops_nb.release.sharing import share_releases
from mlops_nb.serve.hot_reload import ModelManager

ROW = {"day": "2024-12-05", "city": "Rome", "age": 50, "spent": 12.5, "visits": 3, "member": "yes"}


def git(root, *words): return done("git", *words, cwd=root)
def dvc(root, *words): return done("dvc", *words, cwd=root)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A project made by `init` whose first model is released, committed, and pushed to a git server and a DVC remote."
    home = tmp_path_factory.mktemp("experiments")
    root = shutil.copytree(finished(tmp_path_factory), home / "corner", symlinks=True)
    assert git(root, "log", "--format=%s").splitlines() == ["Project made by mlops-nb init"]
    git(home, "init", "-q", "--bare", "-b", "main", "hub.git")
    git(root, "remote", "add", "origin", "../hub.git")
    dvc(root, "remote", "add", "-q", "-d", "store", "../store")
    assert share_releases(root) == ""
    stub_pages(root, "data", "explanation")
    push(root, "first model")
    return root


def push(root, message):
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", message)
    git(root, "push", "-q", "origin", "HEAD")
    dvc(root, "push", "-q")


def everybody_says(root, bundle, server):
    "Plan, record, registry, command line, list of runs and server name the same model; gives what `status` prints."
    settings = read_settings(root)
    client, _ = tracking_client(root, settings)
    registered = client.get_model_version_by_alias(settings.release.endpoint, "champion").tags["bundle"]
    recorded = read_json(record_path(plan_path(root, settings)), list)[-1]["bundle"]
    assert find_champion(root).name == recorded == registered == bundle
    status = nb_inside("status", cwd=root)
    said = status.stdout.splitlines()[0].removeprefix("model").strip()
    assert status.returncode == 0 and f"{bundle[:12]}," in said, status.stderr
    page = html.unescape(re.sub("<[^>]*>", "", (root / "reports/index.html").read_text(encoding="utf-8")))
    assert said in " ".join(page.split())
    server.until(lambda: answered_by(server) == bundle, f"answered by {bundle}")
    return status.stdout


def answered_by(server):
    status, _, reply = server.post("/v1/endpoints/corner:predict", {"instances": [ROW]})
    assert status == 200, reply
    return reply["bundle"]


def verdict(root): return read_json(root / "artifacts/gate.json", GateReport)


def against_champion(root):
    "What the gate found against the champion."
    return next(r for r in verdict(root).results if r.name == "champion")


@pytest.mark.slow
def test_from_an_experiment_to_a_release_and_back(project):
    with Server(project) as server: saga(project, server, find_champion(project).name)


def saga(project, server, first):
    plan = plan_path(project, read_settings(project))
    before = plan.read_bytes()
    assert "waiting   nothing" in everybody_says(project, first, server)

    # one waits in the queue; another is too weak, and thrown away
    dvc(project, "exp", "run", "-q", "--queue", "-n", "kept", "-S", "train.gbdt.n_estimators=60", "deploy")
    dvc(project, "exp", "run", "-q", "-n", "weak", "-S", "train.gbdt.n_estimators=2", "gate")
    weak = against_champion(project)
    assert not weak.passed and verdict(project).champion == first
    discard(project)
    assert "waiting   nothing" in everybody_says(project, first, server)

    # the queue runs in a copy: its bundle and its version outlive the copy, and release nothing
    dvc(project, "exp", "run", "-q", "--run-all")
    second = registered_as(project, "challenger")
    assert second != first and (project / "bundles" / second).is_dir()
    assert plan.read_bytes() == before and not git(project, "status", "--short")
    everybody_says(project, first, server)

    # it is kept
    git(project, "checkout", "-q", "-b", "more-trees")
    dvc(project, "exp", "apply", "-q", "kept")
    assert verdict(project).passed and f"waiting   {second[:12]}" in everybody_says(project, first, server)
    push(project, "60 trees")

    # the change request, in CI
    clone = project.parent / "clone"
    git(project.parent, "clone", "-q", "-b", "more-trees", "hub.git", "clone")
    assert "dvc pull" in sentence(nb_inside("what-if", cwd=clone))
    dvc(clone, "pull", "-q")
    dvc(clone, "repro", "-q", "gate")
    checked = nb_inside("gate", "check", cwd=clone)
    assert checked.returncode == 0 and not git(clone, "status", "--short"), checked.stderr
    assert "roc_auc" in dvc(clone, "metrics", "diff", "origin/main")
    a_clone_answers(clone, first)
    edit(clone / "params.yaml", "n_estimators: 60", "n_estimators: 2")
    for stage in (["train", "gbdt"], ["evaluate"], ["gate"]):
        assert nb_inside("stage", *stage, cwd=clone).returncode == 0
    assert against_champion(clone) == weak
    assert weak.message in sentence(nb_inside("gate", "check", cwd=clone))
    discard(clone)

    # merged: the pipeline releases it, and the clone follows
    git(project, "checkout", "-q", "main")
    git(project, "merge", "-q", "more-trees")
    dvc(project, "repro", "-q")
    assert "git add releases bundles" in everybody_says(project, second, server)
    push(project, "60 trees released")
    assert "waiting   nothing" in everybody_says(project, second, server)
    git(clone, "pull", "-q", "origin", "main")
    dvc(clone, "pull", "-q")
    assert find_champion(clone).name == second

    # rolled back: the pipeline, with nothing changed, does not release it again
    said = nb_inside("rollback", "--reason", "too many calls", cwd=project)
    assert said.returncode == 0 and first[:12] in said.stdout, said.stderr
    everybody_says(project, first, server)
    discard(project) # what was not committed goes; the roll-back stays
    dvc(project, "repro", "-q", "deploy")
    assert "was rolled back" in everybody_says(project, first, server)
    history = nb_inside("release", "history", cwd=project).stdout.splitlines()
    assert [line.split()[2] for line in history] == ["rollback", "deploy", "deploy"] and "too many calls" in history[0]
    assert "no model before" in sentence(nb_inside("rollback", cwd=project))


def discard(root):
    "What a person does to get rid of an experiment."
    git(root, "checkout", "-q", "--", ".")
    dvc(root, "checkout", "-q", "--force")


def registered_as(root, alias):
    client, _ = tracking_client(root, read_settings(root))
    return client.get_model_version_by_alias("corner", alias).tags["bundle"]


def a_clone_answers(clone, bundle):
    "After `git clone` and `dvc pull` every command that needs a model has it."
    assert find_champion(clone).name == bundle and bundle[:12] in nb_inside("status", cwd=clone).stdout
    test = clone / "artifacts/prepared/test.parquet"
    for command in (["score", test, clone.parent / "scores.parquet"], ["what-if"],
                    ["model-card", "--output", clone.parent / "card.html"]):
        done = nb_inside(*command, cwd=clone)
        assert done.returncode == 0, done.stderr
    manager = ModelManager(clone) # what `mlops-nb serve` opens
    manager.start()
    try: assert manager.endpoints["corner"].active_plan.primary.bundle == bundle
    finally: manager.stop()
