"""The story over real sockets: under light load a better challenger goes from shadow over canary to 100 % by
itself; a worse, a slow and a crashing one are each rolled back by themselves; and lineage explains what is logged."""
import re
import time
from datetime import datetime, timedelta

import polars as pl
import pytest
from support import server as serving
from support.release_project import Customers, project

from mlops_nb.config.settings import read_settings
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.release.lineage import trace_request
from mlops_nb.release.release_plan import plan_path, read_history, read_plan
from mlops_nb.release.releases import release_folder, start_release, watch_release

LIMIT = 120  # seconds that a release may take
RELEASE = dict(strategy="shadow, canary", steps=[10, 50, 100], min_step_hours=0, min_units=40,
               margins=dict(failures=.5, latency=1.0, decisions=1.0, scores=.5, loss=.1, auc=.2))
SETTINGS = "[log]\nfsync = false\n"


def weights(root): return {v.name: v.weight for v in read_plan(plan_path(root, read_settings(root, {}))).variants}


def to_the_end(root, bundle, strategy=""):
    "Start a release, let it be driven, and give how it ended."
    release, limit = start_release(root, bundle, strategy, by="ana"), time.monotonic() + LIMIT

    def too_late(r):
        assert time.monotonic() < limit, f"{r.id} is {r.status} in step {r.step} after {LIMIT} seconds"
    return watch_release(root, release.id, every_seconds=.2, until=too_late)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    "The story: the project, the ids of the bundles, the ended releases, and the load."
    root = tmp_path_factory.mktemp("delivery") / "p"
    ids, ended = project(root, ("champion", "better", "worse", "slow", "crashing"), SETTINGS, **RELEASE), {}
    with pytest.MonkeyPatch.context() as patch: # MLflow's first start takes longer than all of this; it has its tests
        patch.setattr("mlops_nb.release.releases.reconcile_registry", lambda root: "")
        with serving.Server(root) as server, Customers(server.port) as load:
            ended["better"] = to_the_end(root, ids["better"])
            for kind in ("worse", "slow", "crashing"): ended[kind] = to_the_end(root, ids[kind], "canary")
            answered = len(load.ids)
            server.until(lambda: len(load.ids) > answered + 20, "answered afterwards", 30)
    return root, ids, ended, load


def test_the_better_one_is_promoted_step_by_step(told):
    root, ids, ended, _ = told
    assert (ended["better"].status, ended["better"].champion) == ("promoted", ids["champion"]), ended["better"].outcome
    steps = [e.data["step"] for e in open_ledger(root).entries(ended["better"].id, ("release.step",))]
    assert steps == [0, 1, 2] and [s.kind for s in ended["better"].steps] == ["shadow", *["canary"] * 3]
    history = read_history(plan_path(root, read_settings(root, {})))
    assert [e.bundle for e in history] == [ids["champion"], ids["better"]]


@pytest.mark.parametrize("kind, says", [
    ("worse", "mean score|decides|loss|AUC"), ("slow", "slower than the champion"), ("crashing", "fails in")])
def test_each_bad_one_is_rolled_back_with_the_reason_and_a_diagnosis(told, kind, says):
    root, ids, ended, _ = told
    release = ended[kind]
    assert release.status == "rolled_back" and re.search(says, release.outcome), release.outcome
    assert release.champion == ids["better"] and release.step < len(release.steps) - 1
    assert [*(release_folder(root, release) / "diagnosis").iterdir()]


def test_afterwards_the_better_one_answers_everybody(told):
    root, ids, *_ = told
    assert weights(root) == {"champion": 1.0, "previous": 0.0}
    last = read_log(root / "predictions", "churn").sort("time").tail(10).collect()
    assert set(last["bundle"]) == {ids["better"]}


def test_no_customer_was_refused_and_a_bad_bundle_ends_with_its_release(told):
    root, ids, ended, load = told
    assert not load.refused and len(load.ids) > 500
    log = read_log(root / "predictions", "churn").filter(pl.col("mode") == "live").collect()
    for kind in ("worse", "slow", "crashing"):
        last = log.filter(pl.col("bundle") == ids[kind])["time"].max()
        assert last < datetime.fromisoformat(ended[kind].ended_at) + timedelta(seconds=10)


def test_lineage_explains_every_kind_of_reply_in_the_log(told):
    root, ids, ended, _ = told
    log = read_log(root / "predictions", "churn").collect()
    kinds = log.unique(["bundle", "variant", "mode", "revision", "failed"], keep="last")
    assert {*kinds["bundle"]} == {*ids.values()} and {*kinds["mode"]} == {"live", "shadow"}
    for row in kinds.iter_rows(named=True):
        found = trace_request(root, row["id"])
        mine = next(a for a in found.answers if (a.answer.bundle, a.answer.mode) == (row["bundle"], row["mode"]))
        assert (mine.answer.revision, mine.answer.share) == (row["revision"], row["share"])
        assert mine.origin.bundle == row["bundle"] and mine.origin.stored
        if row["variant"] == "challenger": assert mine.release.id in {r.id for r in ended.values()}
