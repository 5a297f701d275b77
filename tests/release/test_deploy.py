"The store, the plan, the record of runs, the registry, and deploying with all of them."
import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict
from types import SimpleNamespace

import mlflow.pyfunc
import polars as pl
import pytest
import sklearn.metrics
from support.tracking_store import ready_store
from support.trained_project import trained

import mlops_nb.release.deploy as deploy_module
import mlops_nb.release.sharing as sharing_module
from mlops_nb.bundle.bundle import open_bundle
from mlops_nb.bundle.signatures import SIGNING_KEY_VARIABLE, generate_signing_key
from mlops_nb.bundle.stage import run_bundle
from mlops_nb.bundle.store import find_bundle, store_bundle
from mlops_nb.config.params import read_params, write_params
from mlops_nb.config.settings import read_settings, resolve_local_uri
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import SIGNATURES_FILE, file_hashes
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data.prepare import read_dataset_info, read_split
from mlops_nb.evaluate.stage import run_evaluate
from mlops_nb.explain.stage import run_explain
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.deploy import Deployment, run_deploy, sign_stored_bundle
from mlops_nb.release.gate import GateReport, require_passed_gate, run_gate
from mlops_nb.release.judge import Verdict
from mlops_nb.release.mlflow_tracking import flatten_dict, log_reports, log_run, tracking_client
from mlops_nb.release.release_plan import (
    ReleasePlan,
    Variant,
    find_champion,
    plan_path,
    promote_bundle,
    read_plan,
    record_path,
    write_empty_record,
)
from mlops_nb.release.releases import advance_release, find_open_release, roll_back_release
from mlops_nb.release.sharing import share_releases
from mlops_nb.train.baselines import run_baselines
from mlops_nb.train.stage import run_train


def model(root):
    "The stages from evaluation to the gate."
    run_evaluate(root, find_champion(root))
    run_explain(root)
    run_bundle(root)
    run_gate(root)
    return open_bundle(root / "artifacts/bundle").id


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    root = trained(tmp_path_factory.mktemp("release") / "p")
    (root / "settings.ini").write_text("[tracking]\nexperiment = rows\n[release]\nendpoint = rows\n")
    write_empty_record(plan_path(root, read_settings(root)))
    run_baselines(root)
    model(root)
    write_json(root / "artifacts/validation.json", {"received": 900})
    return ready_store(root)


@pytest.fixture
def project(judged, tmp_path): return shutil.copytree(judged, tmp_path / "p")


def aliases(root):
    client, _ = tracking_client(root, read_settings(root))
    return {k: int(v) for k, v in client.get_registered_model("rows").aliases.items()}


def runs(root):
    client, experiment = tracking_client(root, read_settings(root))
    return client.search_runs([experiment])


def second_model(root):
    "Another bundle from the same rows."
    params = read_params(root / "params.yaml")
    params.train.gbdt.n_estimators = 25
    write_params(params, root / "params.yaml")
    run_train(root)
    return model(root)


# ---------------------------------------------------------------- the store


def test_putting_twice_is_putting_once(project):
    place = store_bundle(project / "artifacts/bundle", project / "bundles")
    stamps = {p.name: p.stat().st_mtime_ns for p in place.iterdir()}
    assert store_bundle(project / "artifacts/bundle", project / "bundles") == place
    assert {p.name: p.stat().st_mtime_ns for p in place.iterdir()} == stamps
    assert place.name == open_bundle(place).id


def test_a_damaged_bundle_never_enters(project):
    (project / "artifacts/bundle/card.md").write_text("changed")
    with pytest.raises(UserError, match="card.md"): store_bundle(project / "artifacts/bundle", project / "bundles")
    assert not (project / "bundles").exists() or not any((project / "bundles").iterdir())


def test_a_copy_that_was_damaged_in_the_store_is_refused(project):
    place = store_bundle(project / "artifacts/bundle", project / "bundles")
    (place / "card.md").write_text("changed")
    with pytest.raises(UserError, match="card.md"): store_bundle(project / "artifacts/bundle", project / "bundles")


def test_get_by_the_first_characters(tmp_path):
    for name in ("aab", "aac"): (tmp_path / name).mkdir()
    assert find_bundle("aab", tmp_path).name == "aab"
    with pytest.raises(UserError, match="2 bundles"): find_bundle("aa", tmp_path)
    (tmp_path / "elsewhere/aad").mkdir(parents=True)
    (tmp_path / "b0").symlink_to(tmp_path / "elsewhere/aad")
    for name in ("b", "", "elsewhere/aad", f"../{tmp_path.name}/aab", "a*b", "b0"):
        with pytest.raises(UserError, match="holds no bundle"): find_bundle(name, tmp_path)


# ---------------------------------------------------------------- the plan


def test_a_plan_is_replaced_whole_and_counts_its_changes(tmp_path):
    path = tmp_path / "releases" / "rows.json"
    assert read_plan(path) is None
    for bundle_id, revision in (("a", 1), ("a", 1), ("b", 2), ("a", 3)):
        plan = promote_bundle(path, "rows", bundle_id)
        assert plan == read_plan(path) and (plan.endpoint, plan.revision) == ("rows", revision)
        assert [v.bundle for v in plan.variants if v.weight] == [bundle_id]


ONE = '{"endpoint": "r", "revision": 1, "variants": [{"name": "a", "bundle": "b", %s}]}'


@pytest.mark.parametrize("text, word", [('{"endpoint": "rows", "rev', "cannot be read"), (ONE % '"weight": 0.5', "0.5"),
                                        ('{"endpoint": "rows", "revision": 1, "variants": []}', "add up"),
                                        (ONE % '"weihgt": 1', "weihgt")])
def test_a_plan_that_cannot_be_right_is_refused(tmp_path, text, word):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(UserError, match=word): read_plan(tmp_path / "p.json")


def test_the_champion_is_the_live_variant_with_most_weight(tmp_path):
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = rows\n")
    assert find_champion(tmp_path) is None
    variants = [Variant("a", "aaa", 0.2), Variant("s", "sss", 1.0, "shadow"), Variant("b", "bbb", 0.8)]
    write_json(tmp_path / "releases/rows.json", ReleasePlan("rows", 1, variants))
    with pytest.raises(UserError, match="holds no bundle bbb"): find_champion(tmp_path)
    (tmp_path / "bundles/bbb").mkdir(parents=True)
    assert find_champion(tmp_path) == tmp_path / "bundles/bbb"


# ---------------------------------------------------------------- the record


def test_flatten_and_local_uri(tmp_path):
    assert flatten_dict({"a": {"b": {"c": 1}}, "d": [1]}) == {"a.b.c": 1, "d": [1]}
    assert resolve_local_uri("mlartifacts", tmp_path) == str(tmp_path / "mlartifacts")
    assert resolve_local_uri("postgresql://u@h/d", tmp_path) == "postgresql://u@h/d"
    assert resolve_local_uri("sqlite:////srv/a.db", tmp_path) == "sqlite:////srv/a.db"


def test_one_run_of_the_pipeline_is_one_run_in_mlflow(project):
    figures = [{"iteration": i, "loss/valid": 1.0, "samples_per_second": 10.0 * i} for i in (1, 7)]
    write_json(project / ".mlops/stages/train.gbdt.json",
               {"stage": "train", "item": "gbdt", "seconds": 1.5, "peak_memory_mib": 100.0,
                                                           "metrics_history": figures})
    first = log_run(project)
    log_reports(project)
    assert log_run(project) == first
    log_reports(project)
    found = runs(project)
    assert len(found) == 1
    run = found[0]
    assert run.info.status == "FINISHED" and run.data.tags["mlops_nb.gate"] in ("passed", "failed")
    assert run.data.params["train.gbdt.n_estimators"] == "20"
    figures = read_json(project / "artifacts/metrics.json", dict)
    assert run.data.metrics["roc_auc"] == figures["test"]["roc_auc"]
    assert run.data.metrics["val_accuracy_score"] == figures["valid"]["accuracy"]
    assert run.data.metrics["stage.train.gbdt.seconds"] == 1.5
    assert [k for k in run.data.tags if k.startswith("data.")], "no hash of the data"
    client, _ = tracking_client(project, read_settings(project))
    def history(name): return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
    curve = read_json(project / "artifacts/models/gbdt/training.json", dict)["loss_curve"]
    for part in ("train", "valid"): assert history(f"loss.gbdt.{part}") == [(p["iteration"], p[part]) for p in curve]
    assert set(history("stage.train.gbdt.samples_per_second")) == {(1, 10.0), (7, 70.0)}
    assert {"metrics.json", "gate.json", "card.md"} <= {a.path for a in client.list_artifacts(run.info.run_id)}


def test_a_run_says_what_it_was_made_from(project, monkeypatch):
    with monkeypatch.context() as m: # half a run is never found
        m.setattr("mlflow.MlflowClient.log_inputs", lambda *_: (_ for _ in ()).throw(OSError("the server is gone")))
        with pytest.raises(UserError, match="MLflow's store .* cannot be used .the server is gone"): log_run(project)
    run_id = log_run(project)
    client, experiment = tracking_client(project, read_settings(project))
    run = client.get_run(run_id)
    dataset = read_dataset_info(project)
    known = {d.dataset.name: (d.dataset.digest, d.tags[0].value) for d in run.inputs.dataset_inputs}
    assert known == {f"rows_{s}": (dataset.parts[s].sha256[:12], context) for s, context in (
        ("train", "training"), ("valid", "validation"), ("test", "evaluation"))} # no manifest: no raw data
    predictions = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet").filter(split="test")
    y, p, decided = predictions["_target"], predictions["score"], predictions["decision"] == "yes"
    precision, recall, _ = sklearn.metrics.precision_recall_curve(y, p)
    wanted = dict(example_count=len(y), precision_recall_auc=sklearn.metrics.auc(recall, precision),
                  roc_auc=sklearn.metrics.roc_auc_score(y, p), log_loss=sklearn.metrics.log_loss(y, p))
    wanted |= {f"{m}_score": getattr(sklearn.metrics, f"{m}_score")(y, decided)
               for m in ("accuracy", "precision", "recall", "f1")}
    counts = sklearn.metrics.confusion_matrix(y, decided).ravel()
    wanted |= dict(zip(("true_negatives", "false_positives", "false_negatives", "true_positives"), counts))
    assert {m: run.data.metrics[m] for m in wanted} == pytest.approx(wanted)
    assert run.data.tags["mlflow.note.content"] == read_json(project / "artifacts/gate.json", dict)["message"]
    assert client.get_experiment(experiment).tags["mlflow.experimentKind"] == "custom_model_development"
    assert "tables/feature_importance.json" in {a.path for a in client.list_artifacts(run_id, "tables")}
    # the hash of the bundle is DVC's
    from dvc_data.hashfile.build import build
    from dvc_data.hashfile.db import HashFileDB
    from dvc_objects.fs import LocalFileSystem
    fs, path = LocalFileSystem(), str(project / "artifacts/bundle")
    _, _, tree = build(HashFileDB(fs, str(project / "cache")), path, fs, "md5", dry_run=True)
    assert run.data.tags["dvc.bundle"] == tree.hash_info.value


def test_without_mlflow_nothing_is_released_and_later_mlflow_opens_the_champion(project, monkeypatch):
    gate_passes(project)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLOPS_NB_TRACKING_URI", "http://ana:secret@127.0.0.1:9")
    with pytest.raises(UserError, match="MLflow's store http://127.0.0.1:9 cannot be used .*settings.ini") as e:
        run_deploy(project)
    assert "secret" not in str(e.value) and "\n" not in str(e.value)
    assert find_champion(project) is None and not (project / "artifacts/deployment.json").exists()
    monkeypatch.delenv("MLOPS_NB_TRACKING_URI")
    run_deploy(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    test = read_split(project, "test")
    answer = mlflow.pyfunc.load_model("models:/rows@champion").predict(test.to_pandas())
    wanted = Predictor.open(find_champion(project)).score_frame(test)
    assert answer["score"].to_list() == wanted["score"].to_list()
    assert answer["decision"].to_list() == wanted["decision"].to_list()
    run, = runs(project)
    client, _ = tracking_client(project, read_settings(project))
    logged = client.get_logged_model(run.outputs.model_outputs[0].model_id)
    assert {m.key: m.value for m in logged.metrics}["roc_auc"] == run.data.metrics["roc_auc"]


def test_a_copied_project_writes_nothing_into_its_old_place(project, monkeypatch):
    log_reports(project)
    # MLflow remembers places by run id for as long as a process lives, and the copy would be used in another one
    monkeypatch.setattr("mlflow.tracking._tracking_service.utils._artifact_repos_cache", OrderedDict())
    before, copy = file_hashes(project), shutil.copytree(project, project.parent / "elsewhere" / "p q")
    client, _ = tracking_client(copy, read_settings(copy))
    run = runs(copy)[0].info
    assert run.artifact_uri == f"{copy}/mlartifacts/{run.run_id}/artifacts"
    (copy / "artifacts/deployment.json").write_text("{}")
    log_reports(copy)
    assert file_hashes(project) == before
    assert "deployment.json" in {a.path for a in client.list_artifacts(run.run_id)}
    assert runs(project)[0].info.artifact_uri.startswith(f"{project}/")


# ---------------------------------------------------------------- deploy


def test_deploying_twice_changes_nothing(project):
    gate_passes(project)
    run_deploy(project)
    done = read_json(project / "artifacts/deployment.json", Deployment)
    assert done.deployed and done.model_version == "1" and aliases(project) == {"champion": 1}
    plan = plan_path(project, read_settings(project)).read_bytes()
    run_deploy(project)
    assert read_json(project / "artifacts/deployment.json", Deployment) == done
    assert plan_path(project, read_settings(project)).read_bytes() == plan and aliases(project) == {"champion": 1}
    assert find_champion(project).name == done.bundle
    registered, = open_ledger(project).entries(subject=done.bundle, kinds=("bundle.registered",))
    schema = read_dataset_info(project).lineage.schema
    assert (registered.data["gate"], registered.data["version"]) == ("All held.", "1")
    assert registered.data["schema_hash"] == schema and registered.data["partitions"] is None # it was never ingested
    client, _ = tracking_client(project, read_settings(project))
    version = client.get_model_version("rows", "1")
    assert (version.tags["gate"], version.tags["schema_hash"], version.description) == ("passed", schema, "All held.")
    assert version.tags["data_hash"] == read_dataset_info(project).parts["train"].sha256


def gate_passes(root, passed=True):
    "The verdict as a test needs it; the rules have tests of their own."
    verdict = read_json(root / "artifacts/gate.json", GateReport)
    verdict.passed, verdict.message = passed, "All held." if passed else "1 of 9 rules failed: auc is 0.4."
    write_json(root / "artifacts/gate.json", verdict)


def test_a_failed_gate_deploys_nothing_and_is_recorded(project):
    gate_passes(project, False)
    run_deploy(project)
    done = read_json(project / "artifacts/deployment.json", Deployment)
    assert not done.deployed and "auc is 0.4" in done.message
    assert find_champion(project) is None and not (project / "bundles").exists()
    assert [r.data.tags["mlops_nb.gate"] for r in runs(project)] == ["failed"]


def test_a_bundle_is_released_when_a_trusted_key_has_signed_it(project, tmp_path, monkeypatch):
    gate_passes(project)
    public = generate_signing_key(tmp_path / "team.pem", project)
    settings = (project / "settings.ini").read_text()
    (project / "settings.ini").write_text(f"{settings}trusted_keys = {public}\n")
    gate, bundle = read_json(project / "artifacts/gate.json", GateReport), project / "artifacts/bundle"
    store_bundle(bundle, project / "bundles")
    reason = deploy_module._why_not_released(project, read_settings(project), gate)
    assert reason.startswith("it is not signed, and trusted_keys") and str(project) not in reason
    write_json(project / "artifacts/deployment.json", Deployment(gate.bundle, False, f"not released: {reason}"))
    assert run_deploy(project) == {} # that is settled, until there is a key
    with pytest.raises(UserError, match="no key to sign with"): sign_stored_bundle(project, gate.bundle)
    monkeypatch.setenv(SIGNING_KEY_VARIABLE, (tmp_path / "team.pem").read_text())
    assert run_deploy(project) == {"deployed": True} and run_deploy(project) == {}
    place = find_champion(project) # it is trusted
    assert place.name == gate.bundle == open_bundle(place).id and aliases(project) == {"champion": 1}
    assert not (bundle / SIGNATURES_FILE).exists() # an output of the pipeline stays what it is

    shared = []
    monkeypatch.setattr(sharing_module, "_has_remote", lambda root: True)
    monkeypatch.setattr(sharing_module, "_dvc_add", lambda root, paths: shared.extend(paths) or "")
    share_releases(project)
    copy = project / "bundles/released" / place.name
    copy.with_name(f"{place.name}.dvc").touch()
    generate_signing_key(tmp_path / "new.pem", project)
    monkeypatch.setenv(SIGNING_KEY_VARIABLE, (tmp_path / "new.pem").read_text())
    sign_stored_bundle(project, place.name[:8]) # the copy that travels gets the signature too
    share_releases(project)
    assert shared == [copy, copy] and (copy / SIGNATURES_FILE).read_text().count("==") == 2
    place.rename(place.with_name("0" * 64))
    with pytest.raises(UserError, match="another than its name says"): sign_stored_bundle(project, "00000")


def deploy_two(root):
    "Deploy two models, one after the other; gives their ids."
    ids = []
    for make in (lambda root: None, second_model):
        make(root)
        gate_passes(root)
        run_deploy(root)
        ids.append(find_champion(root).name)
    return ids


def test_the_champion_before_becomes_previous(project):
    first, second = deploy_two(project)
    assert first != second == open_bundle(project / "artifacts/bundle").id
    assert aliases(project) == {"champion": 2, "previous": 1}
    assert {p.name for p in (project / "bundles").iterdir()} == {first, second}
    run_deploy(project)
    assert aliases(project) == {"champion": 2, "previous": 1}


def test_a_model_that_is_released_at_once_holds_out_the_customers_that_the_params_say(project):
    params = read_params(project / "params.yaml")
    params.release.explore = .03
    write_params(params, project / "params.yaml")
    gate_passes(project)
    run_deploy(project)
    assert read_plan(plan_path(project, read_settings(project))).explore == .03


PROMOTE = Verdict("promote", "all guards hold")


def deployed_as(root): return read_json(root / "artifacts/deployment.json", Deployment)


@pytest.fixture(scope="module")
def canary_next(judged, tmp_path_factory):
    "The first model answers, and the second one, which passed its gate, is to be released by a canary."
    root = shutil.copytree(judged, tmp_path_factory.mktemp("canary") / "p")
    params = read_params(root / "params.yaml")
    params.release.strategy, params.release.steps = "canary", [5, 100]
    write_params(params, root / "params.yaml")
    gate_passes(root)
    run_deploy(root)
    assert deployed_as(root).deployed and find_open_release(root) is None, "the first one is released at once"
    second_model(root)
    gate_passes(root)
    return root


def test_with_a_strategy_a_release_starts_and_the_stage_returns(canary_next, tmp_path):
    root = shutil.copytree(canary_next, tmp_path / "p")
    first = find_champion(root).name
    assert run_deploy(root) == {"deployed": False}
    release, done = find_open_release(root), deployed_as(root)
    assert (release.step, release.champion, release.bundle, release.reason) == (0, first, done.bundle, "All held.")
    assert not done.deployed and done.release == release.id and f"its release {release.id} has started" in done.message
    assert find_champion(root).name == first and aliases(root) == {"champion": 1, "challenger": 2}
    before = plan_path(root, read_settings(root)).read_bytes()
    assert run_deploy(root) == {} and plan_path(root, read_settings(root)).read_bytes() == before
    assert advance_release(root, release, PROMOTE).status == "promoted"
    assert run_deploy(root) == {"deployed": True} and run_deploy(root) == {}
    assert find_champion(root).name == done.bundle and aliases(root) == {"champion": 2, "previous": 1}


def test_a_release_that_was_rolled_back_is_not_started_again_by_the_stage(canary_next, tmp_path):
    "The history of the plan has never heard of a bundle that had 5 %."
    root = shutil.copytree(canary_next, tmp_path / "p")
    first = find_champion(root).name
    run_deploy(root)
    assert roll_back_release(root, find_open_release(root), "errors rose").status == "rolled_back"
    assert run_deploy(root) == {"deployed": False} and run_deploy(root) == {}
    assert "it was rolled back" in deployed_as(root).message and find_open_release(root) is None
    assert aliases(root)["champion"] == 1 and find_champion(root).name == first


def test_a_model_waits_while_the_release_of_another_is_open(canary_next, tmp_path, monkeypatch):
    root = shutil.copytree(canary_next, tmp_path / "p")
    other = SimpleNamespace(id="r1", bundle="another" * 8)
    monkeypatch.setattr(deploy_module, "find_open_release", lambda root: other)
    before = plan_path(root, read_settings(root)).read_bytes()
    assert run_deploy(root) == {"deployed": False} and run_deploy(root) == {}
    assert "the release r1 of anotheranoth is open" in deployed_as(root).message
    assert plan_path(root, read_settings(root)).read_bytes() == before


def test_a_model_is_released_only_against_the_one_that_answers(project):
    "Two experiments judged against the same champion: when one is kept, the verdict on the other counts no more."
    first, second = deploy_two(project)
    verdict = read_json(project / "artifacts/gate.json", GateReport)
    assert verdict.champion == first and "The gate passed" in require_passed_gate(project)
    promote_bundle(plan_path(project, read_settings(project)), "rows", "c" * 64)
    with pytest.raises(UserError, match=f"compared with {first[:12]}, and cccccccccccc answers"):
        require_passed_gate(project)
    run_deploy(project)
    done = read_json(project / "artifacts/deployment.json", Deployment)
    assert not done.deployed and "dvc repro -s -f evaluate" in done.message
    assert read_plan(plan_path(project, read_settings(project))).variants[0].bundle == "c" * 64


def test_without_a_release_record_nobody_passes_for_the_first(project):
    gate_passes(project)
    record_path(plan_path(project, read_settings(project))).unlink()
    with pytest.raises(UserError, match="no release record.*--first"): require_passed_gate(project)
    run_deploy(project)
    assert "no release record" in read_json(project / "artifacts/deployment.json", Deployment).message
    assert find_champion(project) is None and aliases(project) == {"challenger": 1}
    assert "The gate passed" in require_passed_gate(project, first=True)
    run_deploy(project)
    assert find_champion(project) is not None and aliases(project) == {"champion": 1}


@pytest.mark.slow
@pytest.mark.parametrize("step", ["store_bundle", "register_model_version", "promote_bundle", "reconcile_registry"])
def test_killed_between_any_two_steps_it_is_put_right_by_running_again(project, step):
    gate_passes(project)
    code = (f"import os, signal, sys\nfrom pathlib import Path\nimport mlops_nb.release.deploy as d\n"
            f"real = d.{step}\ndef killed(*a, **k):\n    real(*a, **k)\n    os.kill(os.getpid(), signal.SIGKILL)\n"
            f"d.{step} = killed\nd.run_deploy(Path(sys.argv[1]))")
    done = subprocess.run([sys.executable, "-c", code, str(project)], capture_output=True, text=True,
                          env={**os.environ})
    assert done.returncode == -9
    run_deploy(project)
    assert read_json(project / "artifacts/deployment.json", Deployment).model_version == "1"
    assert aliases(project) == {"champion": 1} and read_plan(plan_path(project, read_settings(project))).revision == 1
    assert len(list((project / "bundles").iterdir())) == 1 and len(runs(project)) == 1


def test_nothing_is_deployed_from_a_bundle_that_changed_after_its_gate(project):
    gate_passes(project)
    bundle_id = open_bundle(project / "artifacts/bundle").id
    verdict = json.loads((project / "artifacts/gate.json").read_text())
    write_json(project / "artifacts/gate.json", verdict | {"bundle": "0" * 64})
    with pytest.raises(UserError, match="another bundle"): run_deploy(project)
    assert not (project / "bundles" / bundle_id).exists()
