"From a request id to everything behind its answer, in a release and outside of one; repeated, unknown and deleted."
import shutil

import msgspec
import pytest

from mlops_nb.bundle.bundle import open_bundle
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.params import Params, write_params
from mlops_nb.config.settings import LogSettings, read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import write_manifest
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.examples.subscribers import NOON_US, pack_subscriber_bundle
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.segments import Feedback, PredictionRecord
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.release.lineage import RequestLineage, describe_lineage, trace_request
from mlops_nb.release.registry import record_registration
from mlops_nb.release.release_plan import plan_path, promote_bundle, read_plan
from mlops_nb.release.releases import roll_back_release, start_release

from .test_bundle_diff import PROVENANCE


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    "A project with two stored bundles that say what they were made from; the first answers."
    root = tmp_path_factory.mktemp("lineage") / "p"
    root.mkdir()
    (root / "settings.ini").write_text("[release]\nendpoint = churn\n")
    params = Params()
    params.release.steps = [5, 25, 100]
    write_params(params, root / "params.yaml")
    ids = []
    for n, commit in ((5, "a"), (8, "b")):
        made = pack_subscriber_bundle(root / "made", n)
        write_json(made / "provenance.json", PROVENANCE | dict(git_commit=commit * 40))
        write_manifest(made)
        ids.append(store_bundle(made, root / "bundles").name)
    promote_bundle(root / "releases/churn.json", "churn", ids[0], reason="All held.")
    return root, ids


class Traffic:
    "A log that a server would have written."
    def __init__(self, root): self.root, self.log, self.n = root, PredictionLogWriter(root / "predictions", 0), 0

    def answer(self, id, variant, bundle, rows=1, **other):
        self.n += 1
        given = dict(id=id, time=NOON_US + self.n, endpoint="churn", variant=variant, bundle=bundle, score=[.5] * rows,
                     columns=dict(plan=["basic"] * rows, tenure=[7] * rows), decision=["stays"] * rows,
                     revision=read_plan(plan_path(self.root, read_settings(self.root))).revision)
        self.log.append(PredictionRecord(**given | other))


@pytest.fixture
def project(prepared, tmp_path, monkeypatch):
    root = shutil.copytree(prepared[0], tmp_path / "p")
    monkeypatch.setattr("mlops_nb.release.releases.reconcile_registry", lambda root: "") # it has tests of its own
    traffic = Traffic(root)
    yield root, *prepared[1], traffic
    traffic.log.close()


def only(root, id):
    lineage = trace_request(root, id)
    assert len(lineage.answers) == 1, lineage
    return lineage.answers[0]


def test_an_answer_in_a_release_names_the_release_its_step_and_the_people(project):
    root, first, second, traffic = project
    traffic.answer("before", "champion", first)
    release = start_release(root, second, "canary", by="ana", reason="less churn")
    open_ledger(root).append("approval.given", release.id, dict(step="start"), by="ben")
    open_ledger(root).append("release.verdict", release.id, dict(step=0, action="go_on", reason="too few units"))
    traffic.answer("new", "challenger", second, share=.05)
    traffic.answer("old", "champion", first, share=.95)
    roll_back_release(root, release, "too many calls", by="ben")
    traffic.answer("after", "champion", first)
    new = only(root, "new")
    assert (new.answer.variant, new.answer.bundle, new.answer.share) == ("challenger", second, .05)
    assert (new.release.id, new.release.step, new.release.strategy) == (release.id, 0, "canary")
    assert (new.release.by, new.release.reason, new.release.share) == ("ana", "less churn", .05)
    assert new.release.outcome == "rolled_back: too many calls"
    assert "ben agreed to the step start" in new.release.approvals[0] and "go_on" in new.release.verdicts[0]
    assert (new.origin.git_commit, new.origin.stored, new.origin.params) == ("b" * 40, True, PROVENANCE["params"])
    assert new.origin.data == PROVENANCE["input_hashes"] and new.origin.training["rows"]["train"] == 1000
    old = only(root, "old")
    assert (old.release.id, old.release.step, old.origin.git_commit) == (release.id, 0, "a" * 40)
    for id in ("before", "after"):
        found = only(root, id)
        assert found.release.id == "" and found.release.action in ("deploy", "rollback"), id
        assert found.origin.bundle == first


def test_after_a_release_its_bundle_is_told_by_it(project):
    root, first, second, traffic = project
    release = start_release(root, second, "at_once", by="ana")
    traffic.answer("r", "champion", second)
    found = only(root, "r")
    assert (found.release.id, found.release.step, found.release.by) == (release.id, None, "ana")
    assert found.release.outcome.startswith("promoted")
    assert "after its end" in describe_lineage(trace_request(root, "r"))


def test_rows_of_two_variants_a_shadow_and_a_stand_in_are_all_there(project):
    root, first, second, traffic = project
    traffic.answer("r", "champion", first, 2, row_indices=[0, 2], share=.5)
    traffic.answer("r", "challenger", second, 1, row_indices=[1], share=.5)
    traffic.answer("r", "shadow", second, 3, mode="shadow")
    traffic.answer("s", "champion", first, failed="challenger", share=.05)
    lineage = trace_request(root, "r")
    assert [(a.answer.variant, a.answer.rows) for a in lineage.answers] == [
        ("champion", [0, 2]), ("challenger", [1]), ("shadow", [0, 1, 2])]
    assert not lineage.notes # it was one request
    text = describe_lineage(lineage)
    assert "asked as a shadow" in text and "probability 0.5" in text
    assert "to challenger with probability 0.05, which failed, so champion stood in" in describe_lineage(
        trace_request(root, "s"))


@pytest.mark.parametrize("columns, words", [({}, "the same inputs"), (dict(plan=["plus"], tenure=[9]), "other inputs")])
def test_a_repeated_id_gives_all_its_answers_and_a_sentence(project, columns, words):
    root, first, _, traffic = project
    traffic.answer("r", "champion", first)
    traffic.answer("r", "champion", first, **dict(columns=columns) if columns else {})
    lineage = trace_request(root, "r")
    assert len(lineage.answers) == 2 and words in lineage.notes[0] and "2 times" in lineage.notes[0]


def test_an_unknown_id_is_a_sentence(project):
    root, first, _, traffic = project
    with pytest.raises(UserError, match="has no answer to a request 'nobody' at churn"): trace_request(root, "nobody")
    traffic.answer("r", "champion", first)
    for id in ("nobody", "", "r*"):
        with pytest.raises(UserError, match="has no answer"): trace_request(root, id)


def test_the_names_of_a_proxy_and_of_the_trace_are_found_too(project):
    root, first, _, traffic = project
    traffic.answer("r", "champion", first, trace="proxy-7", trace_id="4bf92f3577b34da6a3ce929d0e0e4736")
    for id in ("r", "proxy-7", "4bf92f3577b34da6a3ce929d0e0e4736"): assert only(root, id).answer.bundle == first


def test_a_bundle_that_is_gone_is_told_by_the_ledger(project):
    root, first, _, traffic = project
    traffic.answer("r", "champion", first)
    record_registration(root, open_bundle(root / "bundles" / first), "1", "All held.")
    shutil.rmtree(root / "bundles" / first)
    lineage = trace_request(root, "r")
    origin = lineage.answers[0].origin
    assert (origin.stored, origin.git_commit, origin.gate) == (False, "a" * 40, "All held.")
    assert "not in the store any more" in lineage.notes[0] and "All held." in describe_lineage(lineage)


def test_it_is_the_same_after_the_log_was_compacted_and_survives_json(project):
    root, first, _, traffic = project
    traffic.answer("r", "champion", first, 2)
    traffic.log.append(Feedback(id="r", time=NOON_US + 9, endpoint="churn", label=True, row=1))
    before = trace_request(root, "r")
    assert before.answers[0].answer.labels == [None, True]
    traffic.log.close()
    traffic.log = PredictionLogWriter(root / "predictions", 1, LogSettings())
    compact_log(root / "predictions")
    assert list((root / "predictions/record").rglob("000-*.parquet")), "nothing was compacted"
    assert trace_request(root, "r") == before
    assert msgspec.json.decode(msgspec.json.encode(before), type=RequestLineage) == before


def test_a_line_of_an_earlier_version_says_what_it_lacks(project):
    root, first, _, traffic = project
    traffic.answer("r", "champion", first, revision=0)
    lineage = trace_request(root, "r")
    assert "earlier version" in lineage.notes[0] and lineage.answers[0].release.action == "deploy"
