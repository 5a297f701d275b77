"The label queue: one row to one person, nothing of the model before the label, and weights that undo the choice."
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec
import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

from mlops_nb.bundle.store import store_bundle
from mlops_nb.cli import app
from mlops_nb.config.settings import LABEL_QUEUES, Settings, parse_queue_mix, write_settings
from mlops_nb.core.errors import UserError
from mlops_nb.examples.subscribers import pack_subscriber_bundle, subscribers
from mlops_nb.ledger.ledger import Ledger, open_ledger
from mlops_nb.model.policy import Policy
from mlops_nb.monitor.label_queue import QueuedRow, give_label, label_stats, label_weights, next_row
from mlops_nb.monitor.label_sampling import (
    draw_numbers,
    find_drifted_regions,
    inclusion_probabilities,
    queue_members,
)
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.prediction_log.segments import Feedback, PredictionRecord
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.stats.drift_test import ReferenceHistogram

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)
LATER = NOON + timedelta(hours=1)
SCORE = 0.123456  # of every row: found wherever it is shown


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    return folder / "store", store_bundle(pack_subscriber_bundle(folder / "made", 5), folder / "store").name


@pytest.fixture
def project(tmp_path, bundles):
    "A project of a hundred answered rows; of ten the decision was left to a person, twenty are near the threshold."
    settings = Settings()
    settings.release.store = str(bundles[0])
    write_settings(tmp_path, settings)
    log = PredictionLogWriter(tmp_path / "predictions", 0)
    rows = subscribers(100, seed=3).select("plan", "tenure", "charge")
    for i, row in enumerate(rows.iter_rows(named=True)):
        score = .31 if 10 <= i < 30 else SCORE
        log.append(PredictionRecord(
            id=f"r{i}", time=int(NOON.timestamp() * 1e6) + i, endpoint="model", bundle=bundles[1], variant="champion",
            columns={c: [v] for c, v in row.items()}, score=[score], decision=None if i < 10 else ["stays"]))
    log.close()
    return tmp_path


def number(row): return int(row.id[1:])


def test_nothing_of_the_model_is_known_before_the_label(project):
    row = next_row(project, "ana", now=LATER)
    assert not {*QueuedRow.__struct_fields__} & {"score", "decision", "queue", "contributions", "bundle", "variant"}
    for text in (str(row), row._repr_markdown_(), repr(row), msgspec.json.encode(row).decode()):
        assert "0.1234" not in text and "0.31" not in text and not any(q in text for q in LABEL_QUEUES)
    assert {*row.values} == {"plan", "tenure", "charge"} and row.classes == ["stays", "leaves"]
    told = give_label(project, row.id, "stays", person="ana", now=LATER)
    assert told.score in (SCORE, .31) and len(told.contributions) == 3 and f"{told.score:.3g}" in str(told)


def test_the_command_shows_the_score_after_the_answer(project, monkeypatch):
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLOPS_NB_LABEL_QUEUE_DAYS", "36500")  # the command looks at the clock
    run = CliRunner().invoke(app, ["label", "next", "--queue", "random"], input="perhaps\nstays\n")
    assert run.exit_code == 0, run.output
    before, after = run.output.split("Label (?", 1)
    assert "tenure" in before and "score" not in before and "0.1" not in before.replace(".0", "")
    assert "none of the classes" in after and after.index("none of the classes") < after.index("The model's score was")
    run = CliRunner().invoke(app, ["label", "next", "--no-ask"])
    assert "mlops-nb label give r" in run.output and "score" not in run.output
    run = CliRunner().invoke(app, ["label", "stats"])
    assert run.output.splitlines()[1].split()[:2] == ["random", "100"]


def test_people_who_ask_at_the_same_moment_get_different_rows(project):
    names = [f"p{i}" for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        rows = [*threads.map(lambda n: next_row(project, n, "random", now=LATER), names)]
    assert len({r.id for r in rows}) == 8
    assert [next_row(project, n, now=LATER).id for n in names] == [r.id for r in rows]  # each keeps theirs
    assert label_stats(project, now=LATER).filter(queue="random")["out"].item() == 8


def test_a_row_whose_lease_is_over_goes_to_somebody_else(project):
    first = next_row(project, "ana", "random", now=LATER)
    after = LATER + timedelta(minutes=31)
    assert next_row(project, "bo", "random", now=LATER + timedelta(minutes=29)).id != first.id
    again = next_row(project, "cai", "random", now=after)
    assert again.id == first.id
    with pytest.raises(UserError, match="cai has row 0"):
        give_label(project, first.id, "stays", person="ana", now=after)
    give_label(project, first.id, "stays", person="cai", now=after + timedelta(hours=2))  # late, and nobody else has it
    with pytest.raises(UserError, match="was labelled 'stays' by cai"):
        give_label(project, first.id, "leaves", person="cai", now=after)


def test_a_label_is_checked_and_lies_in_the_log_with_the_person(project):
    row = next_row(project, "ana", now=LATER)
    with pytest.raises(UserError, match="none of the classes"):
        give_label(project, row.id, "x", person="ana", now=LATER)
    with pytest.raises(UserError, match="was not given to bo"):
        give_label(project, "r99" if row.id != "r99" else "r98", "stays", person="bo", now=LATER)
    assert read_log(project / "predictions").collect()["label"].null_count() == 100
    give_label(project, row.id, " leaves ", person="ana", now=LATER)
    found = read_log(project / "predictions").filter(pl.col("label").is_not_null()).collect()
    assert found.select("id", "label", "label_time").rows() == [(row.id, "leaves", LATER)]
    lines = [line for p in (project / "predictions/segments").glob("94*.jsonl") for line in p.read_text().splitlines()]
    kept = msgspec.json.decode(lines[0], type=Feedback)
    assert (kept.source, kept.api_key_name) == ("person", "ana")
    [entry] = open_ledger(project).entries(kinds=("label.given",))
    assert (entry.by, entry.data["label"], entry.data["queue"] in LABEL_QUEUES) == ("ana", "leaves", True)


def test_killed_between_log_and_ledger(project, monkeypatch):
    row = next_row(project, "ana", "random", now=LATER)
    append = Ledger.append

    def killed(self, kind, *args, **how):
        if kind == "label.given": raise sqlite3.OperationalError
        return append(self, kind, *args, **how)

    monkeypatch.setattr(Ledger, "append", killed)
    with pytest.raises(sqlite3.OperationalError): give_label(project, row.id, "stays", person="ana", now=LATER)
    monkeypatch.undo()
    much_later = LATER + timedelta(hours=5)
    assert next_row(project, "bo", "random", now=much_later).id != row.id  # it has its label
    give_label(project, row.id, "stays", person="ana", now=much_later)
    found = read_log(project / "predictions").filter(pl.col("id") == row.id).collect()
    assert found.select("label", "n_corrections").rows() == [("stays", 0)]


def test_queues_are_asked_in_the_mix(project):
    for i in range(12): next_row(project, f"p{i}", now=LATER)
    asked = [e.data["queue"] for e in open_ledger(project).entries(kinds=("label.requested",))]
    share = {q: asked.count(q) / 12 for q in LABEL_QUEUES}
    assert share["drifted"] == 0  # nothing has drifted; the others have its share
    assert .5 <= share["random"] <= .65 and .2 <= share["uncertain"] <= .35 and .1 <= share["referred"] <= .25
    assert all(0 < e.data["probability"] <= 1 for e in open_ledger(project).entries(kinds=("label.requested",)))
    assert {number(next_row(project, f"q{i}", "referred", now=LATER)) for i in range(3)} <= set(range(10))
    assert {number(next_row(project, f"u{i}", "uncertain", now=LATER)) for i in range(3)} <= set(range(10, 30))
    with pytest.raises(UserError, match="no label queue 'hard'"): next_row(project, "ana", "hard")


def test_a_row_that_nobody_can_decide_leaves_the_queue_and_its_weight_goes_to_the_others(project):
    for i in range(6):
        row = next_row(project, "ana", "random", now=LATER)
        give_label(project, row.id, None if i % 2 else "stays", person="ana", now=LATER)
    weights = label_weights(project, NOON, LATER)
    assert weights.height == 3 and weights["probability"].n_unique() == 1
    assert weights["weight"].sum() == pytest.approx(6 / weights["probability"][0])
    assert label_stats(project, now=LATER).filter(queue="random").select("labelled", "undecided").row(0) == (3, 3)


def test_an_empty_queue_gives_no_row(project):
    assert all(next_row(project, f"p{i}", "referred", now=LATER) for i in range(10))
    assert next_row(project, "late", "referred", now=LATER) is None
    assert next_row(project, "late", "drifted", now=LATER) is None


def test_without_a_log_or_a_bundle(tmp_path):
    write_settings(tmp_path)
    assert next_row(tmp_path, "ana", now=LATER) is None and label_weights(tmp_path, NOON, LATER).height == 0
    log = PredictionLogWriter(tmp_path / "predictions", 0)
    log.append(PredictionRecord(id="r", time=int(NOON.timestamp() * 1e6), endpoint="model", bundle="f" * 64,
                                variant="champion", columns={"x": [1]}, score=[.5], decision=["a"]))
    log.close()
    row = next_row(tmp_path, "ana", now=LATER)
    assert (row.classes, row.values) == (None, {"x": 1})
    assert give_label(tmp_path, "r", "anything", person="ana", now=LATER).contributions == []


def test_weights_are_unbiased_for_any_mix_of_queues():
    "A population in three queues whose labels differ; forty labels in the mix; the mean over many draws is the truth."
    rng, mix, errors = np.random.default_rng(0), np.array([.4, .3, .2, .1]), []
    for _ in range(200):
        n, x = 500, rng.random((500, 4))
        members = np.c_[np.ones(n, bool), rng.random(n) < .2, rng.random(n) < .05, rng.random(n) < .1]
        y = 1.0 + 3 * members[:, 1] + 5 * members[:, 2] - 2 * members[:, 3] + rng.normal(0, .3, n)
        given_by, count = np.full(n, -1), np.zeros(4)
        for _ in range(40):
            k = int(np.argmax(mix * (count.sum() + 1) - count))
            free = np.where(members[:, k] & (given_by < 0), x[:, k], np.inf)
            if not np.isfinite(free.min()): continue
            given_by[free.argmin()], count[k] = k, count[k] + 1
        p = inclusion_probabilities(members, x, given_by)
        reached = (given_by >= 0) & (p > 0)
        errors.append([(y[reached] / p[reached]).sum() / n - y.mean(), y[given_by >= 0].mean() - y.mean()])
    weighted, plain = np.array(errors).T
    noise = weighted.std() / 200**.5
    assert abs(weighted.mean()) < 3.5 * noise and noise < .04 and plain.mean() > .5


def test_the_order_of_the_rows_never_changes():
    "It is part of what is on record: labels of last year keep their probabilities."
    assert draw_numbers("model", ["r1", "ü"], [0, 3]).round(6).tolist() == GOLDEN


GOLDEN = [[0.853515, 0.468246, 0.572757, 0.239496],
          [0.278734, 0.396234, 0.795589, 0.160126]]


def test_rows_of_drifted_regions(duckdb_store):
    start = datetime(2026, 11, 2)
    about = dict(endpoint="model", bundle="b1", segment_column="", segment_value="", kind="column", name="plan")
    with duckdb_store.transaction() as t:
        t.append("series", pl.DataFrame(dict(series_id=1, variant="champion", cells=4, **about)))
        t.append("counts", pl.DataFrame(dict(series_id=1, hour=start, cell=[1, 2], n=[10, 90])))
        t.append("drift", pl.DataFrame(dict(variant="champion", window_start=start, alarm=[True, False],
                                            window_end=start + timedelta(hours=6), **about)))
    plans = {"b1": {"plan": ReferenceHistogram([0, 50, 50, 0], categories=["basic", "plus"], groups=[])}}
    [region] = find_drifted_regions(duckdb_store, "model", NOON - timedelta(days=1), NOON, plans)
    assert region.cells.tolist() == [2]
    at = [start + timedelta(hours=h) for h in (1, 1, 7)]
    rows = pl.DataFrame({"time": pl.Series(at).dt.replace_time_zone("UTC"), "bundle": "b1", "score": .9,
                         "decision": "a", "columns.plan": ["plus", "basic", "plus"]})
    members = queue_members(rows, {"b1": Policy("binary", ["a", "b"], threshold=.5)}, [region])
    assert members[:, LABEL_QUEUES.index("drifted")].tolist() == [True, False, False]
    assert find_drifted_regions(duckdb_store, "model", NOON - timedelta(days=1), NOON, {}) == []


@pytest.mark.parametrize("text", ["random: 50", "hard: 100", "random 100", "random: 150, uncertain: -50", "random: x"])
def test_a_mix_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="percent|100"): parse_queue_mix(text)
