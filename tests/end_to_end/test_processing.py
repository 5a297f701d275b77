"Preprocess and postprocess from prepare to the server: the same bits everywhere, refusals, limits, no false drift."
import json
import shutil

import msgspec
import numpy as np
import polars as pl
import pytest
from support import server as serving
from support import trained_project as modelling

from mlops_nb.batch.batch_scoring import quarantine_path, score_files
from mlops_nb.bundle.bundle import check_golden_examples
from mlops_nb.bundle.onnx_export import export_onnx
from mlops_nb.config.project import Project
from mlops_nb.core.errors import UserError
from mlops_nb.data.prepare import read_split, run_prepare
from mlops_nb.explain.counterfactuals import nearest_counterfactuals, read_reference_rows, sparse_counterfactual
from mlops_nb.explain.local_surrogate import fit_local_surrogate
from mlops_nb.model.predictor import Predictor
from mlops_nb.model.processing import RowRefused
from mlops_nb.monitor.record_counts import count_records, open_bundle_cells
from mlops_nb.prediction_log.segments import PredictionRecord, record_frame
from mlops_nb.release.gate import check_single_row_parity
from mlops_nb.release.mlflow_model import PyfuncPredictor
from mlops_nb.train.dataset import read_training_parts
from mlops_nb.train.learners import resolve_init_model

PROCESSING = '''

@fx.preprocess(timeout_seconds=3)
def clean(rows):
    "Counts are hundreds; small places are one"
    if (rows["x"] > 9).any(): raise ValueError("x is above 9; send metres, not feet")
    if (rows["x"] == -8).any(): raise KeyError("a bug")
    while (rows["x"] == -9).any(): pass
    place = np.where(np.isin(rows["place"].astype(str), ["Örebro", "東京"]), "small", rows["place"])
    return rows | {"count": rows["count"] * 100 + 7, "place": place}


@fx.postprocess(timeout_seconds=3)
def floor(decisions):
    "No score below 30 %, and no yes below 45 %"
    score = np.maximum(decisions["score"], .3)
    return decisions | {"score": score, "decision": np.where(score < .45, "no", decisions["decision"])}
'''


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    "A project with a bundle, whose store and plan are those of a deployment."
    root = tmp_path_factory.mktemp("processed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modelling, "FEATURES", modelling.FEATURES + PROCESSING)
        return serving.project(root)


@pytest.fixture(scope="module")
def training(root): return root / "training"


@pytest.fixture(scope="module")
def predictor(training): return Predictor.open(training / "artifacts/bundle")


@pytest.fixture(scope="module")
def server(root):
    with serving.Server(root) as s: yield s


def as_rows(instances):
    return pl.DataFrame(instances, schema_overrides={"x": pl.Float64, "place": pl.String, "when": pl.String})


def answers(body): return [(p["score"], p["decision"]) for p in body["predictions"]]


def expected(predictor, instances): return predictor.score_frame(as_rows(instances)).select("score", "decision").rows()


def test_a_model_learns_from_clean_rows_and_files_hold_the_rows_that_came(training, predictor):
    train = read_split(training, "train")
    assert train["count"].max() <= 50 and "Örebro" in train["place"].to_list()
    assert train["ratio"].to_list() == (train["x"] / (train["count"] * 100 + 7)).to_list()
    assert {"small"} <= set(predictor.encoder.columns[2].codes) and "Örebro" not in predictor.encoder.columns[2].codes
    project = Project.open(training)
    part, _ = read_training_parts(project, resolve_init_model(project, "gbdt").encoder)
    np.testing.assert_array_equal(part.X, predictor.encode_frame(train))
    assert (part.X[:, 1] == train["count"].to_numpy() * 100 + 7).all()


def test_the_same_bits_alone_in_a_batch_and_in_columns(predictor):
    rows = as_rows(serving.instances(150, seed=3))
    scores = predictor.predict(rows)
    assert [predictor.predict_one(r) for r in rows.to_dicts()] == scores.tolist()
    typed = modelling.rows(150, seed=3).select(predictor.inputs).with_columns(pl.col("place").replace({"?": None}))
    X = predictor.encode_columns(typed.to_dict(as_series=False))
    np.testing.assert_array_equal(X, predictor.encode_frame(rows))
    found = predictor.score_frame(rows)
    assert found["score"].min() == .3 and found.filter(pl.col("score") < .45)["decision"].unique().to_list() == ["no"]
    for i, r in enumerate(typed.to_dicts()):
        alone = predictor.predict_and_decide({c: [v] for c, v in r.items()}, X[i:i + 1])
        assert (alone[0][0], alone[1][0]) == found.row(i)
    assert PyfuncPredictor(predictor).predict(rows.to_pandas())["score"].tolist() == found["score"].to_list()


def test_golden_examples_and_parity_go_through_both(training, predictor):
    golden = pl.read_parquet(training / "artifacts/bundle/golden.parquet")
    assert golden["_answer"].to_list() != golden["_score"].to_list() and golden["x"].max() <= 9 # 10 is refused
    assert check_golden_examples(training / "artifacts/bundle") is None
    assert check_single_row_parity(predictor, read_split(training, "test")).passed
    card = (training / "artifacts/bundle/card.md").read_text()
    assert "`clean` (Counts are hundreds; small places are one)" in card and "`floor` (No score" in card


def test_the_server_answers_as_the_bundle(server, predictor):
    rows = serving.instances(90, seed=8)
    for some in (rows[:1], rows[:5], rows): # inline, and in threads
        status, _, body = server.post(serving.PREDICT, {"instances": some})
        assert status == 200 and answers(body) == expected(predictor, some)
    status, _, body = server.post(serving.INFER, {"inputs": serving.tensors(rows[:3])})
    scores = next(o["data"] for o in body["outputs"] if o["name"] == "score")
    assert status == 200 and scores == [s for s, _ in expected(predictor, rows[:3])]
    status, _, body = server.post(serving.EXPLAIN, {"instances": rows[:2]})
    assert [p["score"] for p in body["explanations"]] == [s for s, _ in expected(predictor, rows[:2])]


def test_a_row_that_is_refused_is_the_clients_fault(server):
    rows = serving.instances(40, seed=9)
    rows[31] |= {"x": 9.5}
    before = server.metric("mlops_nb_processing_errors_total", kind="refused")
    status, _, body = server.post(serving.PREDICT, {"instances": rows})
    assert status == 400 and body["error"] == "row 31: x is above 9; send metres, not feet"
    assert body["violations"][0]["row"] == 31
    status, _, body = server.post(serving.INFER, {"inputs": serving.tensors(rows[31:32])})
    assert status == 400 and "send metres" in body["error"]
    assert server.metric("mlops_nb_processing_errors_total", kind="refused") == before + 2


def test_a_bug_is_the_servers_fault_and_is_not_told(server):
    [row] = serving.instances(1)
    before = server.metric("mlops_nb_processing_errors_total", kind="failed")
    status, _, body = server.post(serving.PREDICT, {"instances": [row | {"x": -8.0}]})
    assert status == 500 and "a bug" not in json.dumps(body)
    status, _, _ = server.post(serving.INFER, {"inputs": serving.tensors([row | {"x": -8.0}])})
    assert status == 500 and server.metric("mlops_nb_processing_errors_total", kind="failed") == before + 2
    server.until(lambda: "preprocess 'clean' failed with KeyError" in server.output, "logged")


def test_a_call_that_does_not_end_is_given_up(server, predictor):
    [row] = serving.instances(1)
    before = server.metric("mlops_nb_processing_errors_total", kind="timeout")
    status, _, body = server.post(serving.PREDICT, {"instances": [row | {"x": -9.0}]})
    assert status == 504 and "longer than 3 s" in body["error"]
    status, _, body = server.post(serving.PREDICT, {"instances": [row | {"x": -9.0}]}, {"x-deadline-ms": "100"})
    assert status == 504 and "deadline" in body["error"]
    status, _, body = server.post(serving.PREDICT, {"instances": [row]})
    assert status == 200 and answers(body) == expected(predictor, [row])
    assert server.metric("mlops_nb_processing_errors_total", kind="timeout") == before + 1


def test_batch_scoring_sets_refused_rows_aside(training, predictor, tmp_path):
    rows = as_rows(serving.instances(60, seed=4)).with_columns(x=pl.when(pl.int_range(60) % 20 == 7).then(9.5)
                                                               .otherwise("x"))
    rows.write_parquet(tmp_path / "rows.parquet")
    done = score_files(predictor, tmp_path / "rows.parquet", tmp_path / "scores.parquet")
    scores, aside = (pl.read_parquet(p) for p in (tmp_path / "scores.parquet",
                                                  quarantine_path(tmp_path / "scores.parquet")))
    assert (done.n_rows, done.n_quarantined) == (60, 3) and aside["_row"].to_list() == [7, 27, 47]
    assert aside["_reasons"].to_list() == [["x is above 9; send metres, not feet"]] * 3
    kept = rows.filter(pl.int_range(60) % 20 != 7)
    assert scores["score"].drop_nulls().to_list() == predictor.score_frame(kept)["score"].to_list()
    with pytest.raises(RowRefused, match="row 7: x is above 9"): predictor.predict(rows)
    assert [*predictor.find_refused_rows(rows)] == [7, 27, 47]


def test_explanations_leave_out_rows_that_are_refused(training, predictor):
    names, test = predictor.inputs, read_split(training, "test")
    row, near = test[:1].select(names), test.select(names).with_columns(x=pl.when(pl.int_range(pl.len()) < 9)
                                                                        .then(9.5).otherwise("x"))
    assert predictor.drop_refused_rows(near).equals(near[9:])
    line = fit_local_surrogate(predictor, row, near, [1.0] * len(names), n_samples=200)
    assert line.terms
    reference = read_reference_rows(training, predictor)
    there = nearest_counterfactuals(predictor, row, reference, 0.)
    assert sparse_counterfactual(predictor, row, reference, there, 0.).changes


def test_a_column_that_is_changed_a_lot_has_not_drifted(training, predictor):
    "The log and the baseline both hold counts as they came, and both the features of a hundredfold."
    rows, cells = modelling.rows(400, seed=21), open_bundle_cells(training / "artifacts/bundle")
    sent, scored = rows.select(predictor.inputs), predictor.score_frame(rows)
    record = PredictionRecord(id="d", time=1_770_000_000_000_000, endpoint="rows", variant="a", bundle="b",
                              columns=msgspec.to_builtins(sent.to_dict(as_series=False)),
                              score=scored["score"].to_list(), decision=scored["decision"].to_list())
    record.seq = 0
    found = count_records(record_frame(0, [record]), {"b": cells})
    assert not found.problems
    for name in ("x", "count", "ratio", "weekday"):
        counts = found.counts.filter(kind="column", name=name, segment_column="").group_by("cell").agg(pl.sum("n"))
        learned = np.array(cells.baseline.data.columns[name].counts)
        shares = np.zeros(len(learned))
        shares[counts["cell"].to_numpy()] = counts["n"] / 400
        assert np.abs(shares - learned / learned.sum()).sum() / 2 < .25, name # as many rows in the same cells


def test_onnx_says_what_it_does_not_hold(training, tmp_path):
    parity = export_onnx(training / "artifacts/bundle", tmp_path)
    assert parity.not_included == ["preprocess clean", "feature ratio", "feature weekday", "postprocess floor"]


@pytest.mark.parametrize("old, new, says", [
    ('if (rows["x"] > 9)', 'if (rows["x"] > 1)', r"preprocess refuses row \d+ of rows.csv \(x is above 9"),
    ('rows["count"] * 100 + 7', 'rows["count"] - rows["count"].mean()', "'count' after preprocess"),
    ('rows["count"] * 100 + 7', 'rows["count"] * np.nan', "a missing value in 'count', which schema.yaml"),
])
def test_prepare_finds_what_cannot_be_served(training, tmp_path, old, new, says):
    shutil.copytree(training, tmp_path / "p", ignore=shutil.ignore_patterns("bundle", "models", "prepared"))
    text = (tmp_path / "p/features.py").read_text()
    assert old in text
    (tmp_path / "p/features.py").write_text(text.replace(old, new))
    with pytest.raises(UserError, match=says): run_prepare(tmp_path / "p")
    assert not (tmp_path / "p/artifacts/prepared").exists()
