"What a diagnosis holds: the right rows with both explanations, the evidence, what differs; whatever is missing."
import json
import os
import shutil
import time

import numpy as np
import polars as pl
import pytest

from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.params import Params, write_params
from mlops_nb.examples.subscribers import pack_subscriber_bundle, subscribers
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.segments import PredictionRecord
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.release.diagnosis import MAX_DIAGNOSED_ROWS, write_diagnosis
from mlops_nb.release.release_plan import promote_bundle
from mlops_nb.release.releases import roll_back_release, start_release

ROWS = subscribers(150, seed=9).to_dicts()


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    "A project in which a canary of a second bundle has just begun, before any traffic."
    root = tmp_path_factory.mktemp("diagnosis") / "p"
    root.mkdir()
    (root / "settings.ini").write_text("[release]\nendpoint = churn\n")
    write_params(Params(), root / "params.yaml")
    first, second = (store_bundle(pack_subscriber_bundle(root / "made", n), root / "bundles").name for n in (5, 25))
    promote_bundle(root / "releases/churn.json", "churn", first)
    with pytest.MonkeyPatch.context() as m:
        m.setattr("mlops_nb.release.releases.reconcile_registry", lambda root: "") # it has tests of its own
        release = start_release(root, second, "shadow, canary", by="ana", reason="less churn")
    return root, first, second, release


@pytest.fixture
def project(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("mlops_nb.release.releases.reconcile_registry", lambda root: "")
    return shutil.copytree(prepared[0], tmp_path / "p"), *prepared[1:]


def answers(root, release, lines):
    "Write lines of the log: what a record has, by name."
    log, now = PredictionLogWriter(root / "predictions", 0), time.time_ns() // 1000
    for i, line in enumerate(lines):
        given = dict(endpoint="churn", variant="champion", bundle=release.champion, revision=release.revision,
                     time=now + i, score=[.5])
        log.append(PredictionRecord(**given | line))
    log.close()


def sent(i, **other):
    row = ROWS[i]
    return dict(id=f"r{i}", columns={c: [row[c]] for c in ("plan", "tenure", "charge")}) | other


def table(folder): return pl.read_parquet(folder / "rows.parquet", glob=False)


def test_without_pairs_both_bundles_score_what_was_asked(project):
    root, first, second, release = project
    strangers = [sent(0, id="before", revision=release.revision - 1), sent(1, id="other", bundle="c" * 64)]
    answers(root, release, [*strangers, *(sent(i) for i in range(len(ROWS)))])
    ended = roll_back_release(root, release, "too many calls", by="ben")
    folder = write_diagnosis(root, ended)
    assert folder == root / "releases" / release.id / "diagnosis"
    found, frame = table(folder), pl.DataFrame(ROWS)
    old, new = (Predictor.open(root / "bundles" / b) for b in (first, second))
    difference = np.abs(new.predict(frame) - old.predict(frame))
    assert len(found) == MAX_DIAGNOSED_ROWS and not {"before", "other"} & {*found["id"]}
    assert {*found["id"]} == {f"r{i}" for i in np.argsort(-difference, kind="stable")[:MAX_DIAGNOSED_ROWS]}
    assert found["difference"].abs().is_sorted(descending=True)
    one = found.row(3, named=True)
    i = int(one["id"][1:])
    assert (one["champion_score"], one["challenger_score"]) == (old.predict(frame)[i], new.predict(frame)[i])
    assert (one["columns.tenure"], one["columns.plan"]) == (ROWS[i]["tenure"], ROWS[i]["plan"])
    told = pl.read_parquet(folder / "explanations.parquet", glob=False)
    parts = told.filter(id=one["id"], bundle="challenger").sort("feature")["contribution"].to_numpy()
    order = np.argsort(new.feature_names)
    assert parts.tolist() == new.contributions(frame[i])[0, :-1][order].tolist()
    strongest = max(zip(np.abs(new.contributions(frame[i])[0, :-1]), new.feature_names))[1]
    assert one["challenger_reasons"].startswith(strongest)


def test_pairs_of_a_shadow_are_taken_as_they_were(project):
    root, first, second, release = project
    pairs = [sent(i, score=[.5]) for i in range(20)]
    pairs += [sent(i, variant="challenger", bundle=second, mode="shadow", score=[.5 + i / 100]) for i in range(20)]
    pairs += [sent(30, variant="challenger", bundle=second, mode="shadow", score=[None], failed="challenger")]
    answers(root, release, [*pairs, sent(40)])
    folder = write_diagnosis(root, release) # also of one that is open
    found = table(folder)
    assert len(found) == 20 and found["id"][0] == "r19"
    assert found["difference"].to_list()[:2] == pytest.approx([.19, .18])
    text = (folder / "README.md").read_text()
    assert "the answers are those of the log" in text and "challenger failed on 1 rows" in text


def test_the_text_and_the_files_have_the_evidence_and_the_next_commands(project):
    root, first, second, release = project
    answers(root, release, [sent(i) for i in range(5)])
    metric = dict(name="failures", estimate=.02, low=.01, high=None, margin=.1, e_value=31., threshold=20., says="more")
    verdict = dict(step=0, action="roll_back", reason="it fails more often", metrics=[metric], units={})
    open_ledger(root).append("release.verdict", release.id, verdict)
    folder = write_diagnosis(root, roll_back_release(root, release, "it fails more often"))
    text = (folder / "README.md").read_text()
    for part in (f"# Release {release.id}: rolled back", "it fails more often",
                 "| failures | 0.02 | 0.01 to – | 0.1 | 31, 20", "less churn", "### Size",
                 "mlops-nb release lineage r", f"release start {second[:12]} --again"):
        assert part in text, part
    assert json.loads((folder / "verdict.json").read_text())["metrics"][0]["e_value"] == 31
    assert [e["kind"] for e in json.loads((folder / "ledger.json").read_text())][0] == "release.started"
    assert json.loads((folder / "bundle_diff.json").read_text())["new"] == second
    assert {oct(p.stat().st_mode)[-3:] for p in folder.iterdir()} == {"640"}
    assert oct(folder.stat().st_mode)[-3:] == "750"


def test_what_clients_sent_is_harmless_in_text_and_spreadsheet(project):
    root, _, _, release = project
    answers(root, release, [sent(0, id="=HYPERLINK(1)|<img src=x>`rm -rf`")])
    folder = write_diagnosis(root, release)
    csv, text = (folder / "rows.csv").read_text(), (folder / "README.md").read_text()
    assert "'=HYPERLINK" in csv and "<img" not in text and "lineage" not in text
    assert "=HYPERLINK(1)\\|&lt;img src=x>'rm -rf'" in text


@pytest.mark.parametrize("lost", ["challenger", "log", "inputs"])
def test_what_is_missing_is_said_and_the_rest_is_there(project, lost):
    root, first, second, release = project
    answers(root, release, [sent(0, **dict(columns=dict(plan=["basic"])) if lost == "inputs" else {})])
    if lost == "challenger": shutil.rmtree(root / "bundles" / second)
    if lost == "log": shutil.rmtree(root / "predictions")
    text = (write_diagnosis(root, release) / "README.md").read_text()
    words = dict(challenger="The bundles could not be compared", log="the log has no rows of this release",
                 inputs="The rows could not be compared")
    assert words[lost] in text, text
    assert "mlops-nb release show" in text and "less churn" in text


def test_the_servers_lines_of_that_time_are_copied(project, tmp_path):
    root, _, _, release = project
    answers(root, release, [sent(0)])
    log = tmp_path / "stderr"
    log.write_text(f'2000-01-01 00:00:00,000 INFO before\n{{"time": "{release.started_at}", "status": 503}}\n'
                   f"Traceback of it\n2100-01-01 00:00:00,000 INFO later\n")
    ended = roll_back_release(root, release, "x")
    folder = write_diagnosis(root, ended, log)
    assert (folder / "server.log").read_text().splitlines() == [f'{{"time": "{release.started_at}", "status": 503}}',
                                                                "Traceback of it"]
    assert "2 lines of that time" in (folder / "README.md").read_text()
    assert "could not be read" in (write_diagnosis(root, ended, tmp_path / "none") / "README.md").read_text()
    assert "standard error" in (write_diagnosis(root, ended) / "README.md").read_text()


def test_it_appears_whole_and_again_is_the_same(project, monkeypatch):
    root, _, _, release = project
    answers(root, release, [sent(i) for i in range(5)])
    folder = write_diagnosis(root, release)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert {p.name: p.read_bytes() for p in write_diagnosis(root, release).iterdir()} == before

    def killed(*_): raise KeyboardInterrupt
    monkeypatch.setattr("mlops_nb.release.diagnosis._protect", killed)
    with pytest.raises(KeyboardInterrupt): write_diagnosis(root, release)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before and os.listdir(folder.parent) == ["diagnosis"]


def test_several_classes_are_told_by_the_one_that_differs_most(tmp_path, monkeypatch):
    from support.trained_project import trained

    from mlops_nb.bundle.bundle import write_bundle
    from mlops_nb.data.prepare import read_split
    from mlops_nb.train.stage import open_trained_predictor
    monkeypatch.setattr("mlops_nb.release.releases.reconcile_registry", lambda root: "")
    root, ids = trained(tmp_path / "p", "multiclass", n=400), []
    (root / "settings.ini").write_text("[release]\nendpoint = churn\n")
    test, text = read_split(root, "test"), (root / "artifacts/models/gbdt/model.txt").read_bytes()
    for card in ("# One\n", "# Two\n"):
        made = write_bundle(root / "made", open_trained_predictor(root, "gbdt"), "model.txt", text, test, card,
                            dict(metrics={}, provenance={}, baseline={}))
        ids.append(store_bundle(made, root / "bundles").name)
    promote_bundle(root / "releases/churn.json", "churn", ids[0])
    release = start_release(root, ids[1], "shadow")
    inputs = test.select("x", "count", "place", "known", pl.col("when").cast(pl.String)).to_dicts()[:3]
    lines = [dict(id=f"r{i}", columns={k: [v] for k, v in row.items()}) for i, row in enumerate(inputs)]
    shadow = dict(variant="challenger", bundle=ids[1], mode="shadow", score=[[.2, .2, .6]])
    first = [line | dict(score=[[.2, .3, .5]]) for line in lines]
    answers(root, release, first + [line | shadow for line in lines[:2]])
    found = table(write_diagnosis(root, release))
    assert found["champion_score"].to_list() in ([.3, .3], [.5, .5]) and len(found) == 2
    assert found["difference"].abs().to_list() == pytest.approx([.1, .1])


def test_of_a_large_log_a_share_is_scored_from_all_over_it(project, monkeypatch):
    monkeypatch.setattr("mlops_nb.release.diagnosis._MAX_SCORED_ROWS", 30)
    root, _, _, release = project
    answers(root, release, [sent(i) for i in range(len(ROWS))])
    found = table(write_diagnosis(root, release))
    numbers = sorted(int(i[1:]) for i in found["id"])
    assert 10 <= len(found) <= 60 and numbers[0] < 30 and numbers[-1] > 120
