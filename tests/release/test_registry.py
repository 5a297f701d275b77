"The registry follows the plan: aliases, tags, entries in the ledger, whatever is killed, away, lost or moved by hand."
import shutil
import sqlite3

import mlflow.pyfunc
import pytest

from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.params import Params, write_params
from mlops_nb.config.settings import read_settings
from mlops_nb.examples.subscribers import pack_subscriber_bundle, subscribers
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.judge import Verdict
from mlops_nb.release.mlflow_tracking import tracking_client
from mlops_nb.release.registry import (
    find_model_version,
    plan_aliases,
    reconcile_registry,
    registry_is_behind,
)
from mlops_nb.release.release_plan import (
    ReleasePlan,
    ReleaseStep,
    Variant,
    find_champion,
    plan_path,
    promote_bundle,
    read_plan,
    replace_plan,
)
from mlops_nb.release.releases import advance_release, roll_back_release, start_release


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A project with three stored bundles and its registry, which has versions of two; and their ids. The first bundle
    answers, the second was rolled back."""
    root = tmp_path_factory.mktemp("registry") / "p"
    root.mkdir()
    (root / "settings.ini").write_text("[release]\nendpoint = churn\n")
    ids = [store_bundle(pack_subscriber_bundle(root / "made", n), root / "bundles").name for n in (5, 10, 15)]
    for bundle, action in (ids[0], "deploy"), (ids[1], "deploy"), (ids[0], "rollback"):
        promote_bundle(root / "releases/churn.json", "churn", bundle, action, "All held.")
        assert reconcile_registry(root) == ""
    return root, ids


@pytest.fixture
def project(prepared, tmp_path):
    root, ids = prepared
    return shutil.copytree(root, tmp_path / "p"), *ids


def plan_of(root): return plan_path(root, read_settings(root))


def client_of(root): return tracking_client(root, read_settings(root))[0]


def aliases(root): return {k: str(v) for k, v in client_of(root).get_registered_model("churn").aliases.items()}


def named(root): # alias -> bundle
    client = client_of(root)
    return {k: client.get_model_version("churn", v).tags["bundle"] for k, v in aliases(root).items()}


def entries(root):
    found = open_ledger(root, read_settings(root)).entries(subject="churn", kinds=("registry.alias",))
    return [(e.data["alias"], e.data["bundle"]) for e in found]


def canary(root, champion, challenger, release="r1"):
    variants = [Variant("champion", champion, .95), Variant("challenger", challenger, .05)]
    return replace_plan(plan_of(root), ReleasePlan("churn", 0, variants, salt=release, release=ReleaseStep(release, 0)))


def test_the_aliases_follow_a_release_from_its_start_to_a_roll_back(project):
    root, first, second, _ = project
    assert named(root) == {"champion": first}
    before = len(entries(root))
    canary(root, first, second)
    assert reconcile_registry(root) == "" and named(root) == {"champion": first, "challenger": second}
    promote_bundle(plan_of(root), "churn", second, reason="promoted by the judge")
    assert reconcile_registry(root) == "" and named(root) == {"champion": second, "previous": first}
    promote_bundle(plan_of(root), "churn", first, action="rollback", reason="too many calls")
    assert reconcile_registry(root) == "" and named(root) == {"champion": first} # what was rolled back is no previous
    assert entries(root)[before:] == [("challenger", second), ("champion", second), ("challenger", ""),
                                      ("previous", first), ("champion", first), ("previous", "")]
    last = open_ledger(root, read_settings(root)).entries(subject="churn", kinds=("registry.alias",))[-2]
    assert last.by and last.at and last.data["reason"] == "rollback: too many calls"
    assert last.data["before"] == second and last.data["revision"] == read_plan(plan_of(root)).revision


def test_a_release_tells_the_registry_at_each_of_its_steps(project, capsys):
    root, first, _, third = project
    write_params(Params(), root / "params.yaml")
    release = start_release(root, third, "shadow, canary", by="ana")
    assert named(root) == {"champion": first, "challenger": third}
    release = advance_release(root, release, Verdict("promote", "all is well"))
    assert release.current_step.kind == "canary" and named(root) == {"champion": first, "challenger": third}
    roll_back_release(root, release, "too many calls")
    assert named(root) == {"champion": first} and "warning" not in capsys.readouterr().err
    reason = open_ledger(root).entries("churn", ("registry.alias",))[-2:][0].data["reason"]
    assert release.id in reason or "rollback" in reason, reason


def test_reconciling_again_changes_nothing(project):
    root, first, second, _ = project
    canary(root, first, second)
    reconcile_registry(root)
    before, versions = entries(root), client_of(root).search_model_versions("name = 'churn'")
    for _ in range(2): assert reconcile_registry(root) == ""
    assert entries(root) == before
    assert [v.version for v in client_of(root).search_model_versions("name = 'churn'")] == [v.version for v in versions]


class Killed(BaseException): "As if the process ended here."


@pytest.mark.parametrize("step", range(6))
def test_killed_after_any_effect_the_next_command_sets_it_right(project, monkeypatch, step):
    "The effects: an alias and its entry, for each of the three."
    import mlops_nb.release.registry as module
    root, first, second, _ = project
    canary(root, first, second)
    reconcile_registry(root)
    before = entries(root)
    promote_bundle(plan_of(root), "churn", second)
    done, move, ledger = [], module._move_alias, open_ledger(root, read_settings(root))

    def count(effect):
        def counted(*args):
            if len(done) == step: raise Killed
            result = effect(*args)
            if result is not False: done.append(effect)
            return result
        return counted
    monkeypatch.setattr(module, "_move_alias", count(move))
    monkeypatch.setattr(type(ledger), "append", count(type(ledger).append))
    with pytest.raises(Killed): reconcile_registry(root)
    monkeypatch.undo()
    assert registry_is_behind(root, read_settings(root))
    assert reconcile_registry(root) == "" and named(root) == {"champion": second, "previous": first}
    assert sorted(entries(root)[len(before):]) == sorted([("champion", second), ("challenger", ""),
                                                          ("previous", first)]), done
    assert not registry_is_behind(root, read_settings(root))


def test_a_version_says_where_it_comes_from(project):
    root, first, _, _ = project
    tags = client_of(root).get_model_version("churn", find_model_version(client_of(root), "churn", first)).tags
    assert {"gate", "git_commit", "data_hash", "schema_hash", "parent", "bundle"} <= tags.keys()
    assert tags["bundle"] == first


def test_by_its_alias_mlflow_opens_the_same_bits(project, monkeypatch):
    root, first, second, _ = project
    promote_bundle(plan_of(root), "churn", second)
    assert reconcile_registry(root) == ""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    rows = subscribers(200, seed=3)
    frame = rows.to_pandas()[["plan", "tenure", "charge"]]
    for alias, bundle in (("champion", second), ("previous", first)):
        answer = mlflow.pyfunc.load_model(f"models:/churn@{alias}").predict(frame)
        wanted = Predictor.open(root / "bundles" / bundle).score_frame(rows)
        assert answer["score"].to_list() == wanted["score"].to_list()
        assert answer["decision"].to_list() == wanted["decision"].to_list()
    assert find_champion(root).name == second


def test_an_alias_moved_by_hand_is_put_back_and_told(project):
    root, first, second, _ = project
    promote_bundle(plan_of(root), "churn", second)
    reconcile_registry(root)
    before = entries(root)
    client_of(root).set_registered_model_alias("churn", "champion", aliases(root)["previous"])
    assert reconcile_registry(root) == "" and named(root)["champion"] == second
    assert entries(root) == [*before, ("champion", second)]


def test_a_bundle_that_nobody_has_gets_no_alias(project):
    root, first, _, _ = project
    promote_bundle(plan_of(root), "churn", "c" * 64)
    said = reconcile_registry(root)
    assert "cccccccccccc" in said and "dvc pull" in said and named(root) == {"previous": first}
    assert reconcile_registry(root) == said


def test_without_a_plan_the_champion_stays(project):
    root, first, _, _ = project
    shutil.rmtree(root / "releases")
    assert reconcile_registry(root) == "" and named(root) == {"champion": first}


@pytest.mark.parametrize("fault", ["away", "locked", "not installed"])
def test_without_mlflow_there_is_a_sentence_and_later_it_is_told(project, monkeypatch, fault):
    import mlops_nb.release.registry as module
    root, first, second, _ = project
    promote_bundle(plan_of(root), "churn", second)
    with monkeypatch.context() as m:
        if fault == "away":
            m.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
            m.setenv("MLOPS_NB_TRACKING_URI", "http://ana:secret@127.0.0.1:9")
        if fault == "not installed":
            def gone(*_): raise ModuleNotFoundError("No module named 'mlflow'")
            m.setattr(module, "tracking_client", gone)
        lock = sqlite3.connect(root / "mlflow.db")
        if fault == "locked": lock.execute("BEGIN EXCLUSIVE")
        said = reconcile_registry(root)
        lock.close()
    assert said.startswith("MLflow's aliases could not be changed") and "secret" not in said and "\n" not in said
    assert registry_is_behind(root, read_settings(root))
    assert reconcile_registry(root) == "" and named(root) == {"champion": second, "previous": first}
    assert not registry_is_behind(root, read_settings(root))


def test_what_a_release_tried_is_no_challenger_by_itself(project):
    "After a canary that was rolled back, and after a bundle that was never offered."
    root, first, second, third = project
    canary(root, first, second)
    reconcile_registry(root)
    ledger, place = open_ledger(root, read_settings(root)), dict(endpoint="churn", environment="development")
    ledger.append("release.started", "r1", dict(bundle=second, **place))
    promote_bundle(plan_of(root), "churn", first, action="rollback")
    ledger.append("release.rolled_back", "r1", dict(reason="too many calls"))
    assert reconcile_registry(root) == "" and "challenger" not in named(root)
    canary(root, first, third, "r2")
    reconcile_registry(root)
    replace_plan(plan_of(root), ReleasePlan("churn", 0, [Variant("champion", first)]))
    assert reconcile_registry(root) == "" and named(root)["challenger"] == third


def test_the_bundle_of_a_release_that_waits_for_its_start_is_the_challenger(project):
    root, first, _, third = project
    ledger = open_ledger(root, read_settings(root))
    for name, place in ("r1", "development"), ("r2", "production"): # another environment has aliases of its own
        ledger.append("release.started", name, dict(bundle=third, endpoint="churn", environment=place))
    assert reconcile_registry(root) == "" and named(root) == {"champion": first, "challenger": third}
    ledger.append("release.withdrawn", "r1", dict(reason="not yet"))
    assert reconcile_registry(root) == "" and named(root) == {"champion": first}


def test_the_names_of_a_plan_made_by_hand_do_not_matter():
    variants = [Variant("champion", "aaa", .2), Variant("b", "bbb", .8), Variant("s", "ccc", 1.0, "shadow")]
    assert plan_aliases(ReleasePlan("churn", 1, variants), []) == {"champion": "bbb"}
    released = ReleasePlan("churn", 1, [Variant("champion", "aaa", 0), Variant("challenger", "bbb", 1)],
                           release=ReleaseStep("r", 4))
    assert plan_aliases(released, []) == {"champion": "aaa", "challenger": "bbb"}


def test_on_postgresql(project, postgres, monkeypatch):
    "The whole way on another database: both bundles registered anew from the store, opened by alias, rolled back."
    root, first, second, _ = project
    url = postgres.url.replace("postgresql://tester@", f"postgresql+psycopg://tester:{postgres.password}@")
    monkeypatch.setenv("MLOPS_NB_TRACKING_URI", url)
    promote_bundle(plan_of(root), "churn", second)
    assert reconcile_registry(root) == "" and named(root) == {"champion": second, "previous": first}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
    rows = subscribers(50, seed=3)
    answer = mlflow.pyfunc.load_model("models:/churn@champion").predict(rows.to_pandas()[["plan", "tenure", "charge"]])
    wanted = Predictor.open(root / "bundles" / second).score_frame(rows)
    assert answer["score"].to_list() == wanted["score"].to_list()
    promote_bundle(plan_of(root), "churn", first, action="rollback")
    assert reconcile_registry(root) == "" and named(root) == {"champion": first}
