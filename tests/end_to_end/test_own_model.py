"""A stranger's model, in production by three decorators: a pipeline of scikit-learn, a metric and a preprocess in the
notebook, beside a column of texts and one of vectors; then every way by which rows reach it."""
import asyncio
import json
import secrets

import msgspec
import numpy as np
import polars as pl
import pytest
from fastcore.nbio import mk_cell, read_nb, write_nb
from support import server as serving
from support.project_checks import new_project, run_stages
from support.services import free_port

from mlops_nb.batch.batch_scoring import quarantine_path, score_files
from mlops_nb.batch.stream_scoring import endpoint_handler
from mlops_nb.bundle.onnx_export import export_onnx
from mlops_nb.config.schema import read_schema, write_schema
from mlops_nb.config.settings import read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.evaluate.stage import read_evaluation
from mlops_nb.model.onnx_model import OnnxModel
from mlops_nb.model.predictor import Predictor
from mlops_nb.monitor.record_counts import count_records, open_bundle_cells
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.release.mlflow_model import PyfuncPredictor, model_signature
from mlops_nb.serve.hot_reload import ModelManager

pytestmark = pytest.mark.slow
N = 2000
FEATURES = '''
from mlops_nb.model.features import metric, preprocess


@preprocess
def clean(rows):
    "Prices above 200 are cents"
    if (rows["price"] < 0).any(): raise ValueError("price is below 0")
    return rows | {"price": np.where(rows["price"] > 200, rows["price"] / 100, rows["price"])}


@metric("profit", better="higher")
def profit(y, p, price):
    "Euros earned a row"
    return np.where(p > .5, .1 * price * y - 1, 0)
'''
LEARNERS = '''
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlops_nb.train.custom_learners import learner


@learner("theirs")
def theirs(X, y, params, seed):
    return make_pipeline(SimpleImputer(), StandardScaler(), MLPClassifier(
        (24,), max_iter=150, random_state=seed, **params)).fit(X, y)
'''


def orders(n=N, seed=0):
    "Whether an order is kept: by what the note says and an embedding, but the other way round for some prices."
    rng = np.random.default_rng(seed)
    mood, v, price = rng.random(n) < .5, rng.normal(size=(n, 3)), rng.gamma(4, 10, n).round(2)
    say = {True: ["great", "love", "perfect", "works"], False: ["broken", "refund", "poor", "angry"]}
    other = ["phone", "case", "arrived", "week", "it", "colour", "box", "screen"]
    note = [" ".join([*rng.choice(other, 3), *rng.choice(say[bool(m)], 2)]) for m in mood]
    kept = (2 * mood + v[:, 0] + .3 * rng.normal(size=n) > 1) ^ ((price > 40) & (v[:, 1] > 0))
    return pl.DataFrame({"note": [None if rng.random() < .03 else t for t in note], "embedding": v.tolist(),
                         "price": price, "plan": rng.choice(["basic", "plus"], n),
                         "kept": np.where(kept, "yes", "no")})


def add_cell(root, text, target=""):
    path = root / "nbs/00_features.ipynb"
    nb = read_nb(path)
    nb.cells.append(mk_cell(f"#| export{target and ' ' + target}\n{text.strip()}"))
    write_nb(nb, path)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("theirs")
    orders().write_parquet(tmp / "orders.parquet")
    root = new_project(tmp / "shop", tmp / "orders.parquet", "kept")
    add_cell(root, FEATURES)
    add_cell(root, LEARNERS, "learners")
    params = (root / "params.yaml").read_text()
    params = params.replace("  - gbdt\n", "  - theirs\n", 1).replace("\ntrain:\n", "\ntrain:\n  theirs: {}\n", 1)
    params = params.replace("  thresholds: {}", "  thresholds: {profit: 0.1}", 1)
    params = params.replace("n_components: 32", "n_components: 2", 1) # what this net can learn from so few rows
    (root / "params.yaml").write_text(params)
    schema = read_schema(root / "schema.yaml")
    schema.columns["embedding"].producer, schema.columns["embedding"].version = "minilm", "2"
    schema.columns["price"].range = (-1., 30_000.)
    write_schema(schema, root / "schema.yaml")
    run_stages(root, "deploy", learner="theirs")
    return root


@pytest.fixture(scope="module")
def predictor(root): return Predictor.open(root / "artifacts/bundle")


def asked(n=40, seed=9): return orders(n, seed).drop("kept").to_dicts()


def expected(predictor, rows): return predictor.score_frame(pl.DataFrame(rows))["score"].to_list()


def scores(body): return [p["score"] for p in body["predictions"]]


def test_it_is_gated_by_its_metric_and_deployed(root, predictor):
    gate = read_json(root / "artifacts/gate.json", dict)
    passed = {r["name"]: r["passed"] for r in gate["results"]}
    assert gate["passed"] and passed["threshold: profit"] and passed["parity: single row and batch"]
    e = read_evaluation(root)
    assert e.learner == "theirs" and e.metrics["test"]["profit"].low > 0 and e.metrics["test"]["roc_auc"].value > .85
    assert isinstance(predictor.model, OnnxModel) and "MLPClassifier" in predictor.model.spec.parity.made_from
    assert not [p for p in (root / "artifacts").rglob("*") if p.suffix in (".pkl", ".joblib", ".pickle")]


def test_it_is_explained_by_column(root, predictor):
    assert predictor.feature_names == ["note", "embedding", "price", "plan"]
    rows = pl.DataFrame(asked(6))
    shares = predictor.contributions(rows)
    assert shares.shape == (6, 5) and np.allclose(shares.sum(1), predictor.predict_raw(rows), atol=1e-6)
    strength = np.abs(shares[:, :4]).mean(0)
    assert strength[0] > strength[3] and strength[1] > strength[3] # plan says nothing
    assert list((root / "artifacts/explanation").glob("*"))


def test_a_file_is_scored_and_refused_rows_are_set_aside(predictor, tmp_path):
    rows = orders(50, 4).drop("kept").with_columns(price=pl.when(pl.int_range(50) == 7).then(-.5).otherwise("price"))
    rows.write_parquet(tmp_path / "in.parquet")
    done = score_files(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert (done.n_rows, done.n_quarantined) == (50, 1)
    aside = pl.read_parquet(quarantine_path(tmp_path / "out.parquet"))
    assert aside["_reasons"].to_list() == [["price is below 0"]]
    kept = pl.read_parquet(tmp_path / "out.parquet")["score"].drop_nulls().to_list()
    assert kept == expected(predictor, [r for i, r in enumerate(rows.to_dicts()) if i != 7])


def test_the_registry_s_form_says_what_a_vector_is(predictor):
    kinds = {c.name: str(c.type) for c in model_signature(predictor).inputs}
    assert "Array(double)" in kinds["embedding"] and "string" in kinds["note"]
    rows = pl.DataFrame(asked(8))
    assert PyfuncPredictor(predictor).predict(rows.to_pandas())["score"].tolist() == expected(predictor, rows)


def test_the_exported_graph_names_what_it_does_not_hold(root, tmp_path):
    parity = export_onnx(root / "artifacts/bundle", tmp_path)
    assert {"preprocess clean", "text encoding of note", "vector encoding of embedding"} == {*parity.not_included}


@pytest.fixture(scope="module")
def server(root):
    options = {"MLOPS_NB_SERVE_GRPC_PORT": free_port()}
    with serving.Server(root, **options) as s:
        s.grpc_port = options["MLOPS_NB_SERVE_GRPC_PORT"]
        yield s


def tensors(rows):
    return [dict(name="note", shape=[len(rows)], datatype="BYTES", data=[r["note"] for r in rows]),
            dict(name="embedding", shape=[len(rows), 3], datatype="FP64",
                 data=[x for r in rows for x in r["embedding"]], parameters=dict(producer="minilm", version="2")),
            dict(name="price", shape=[len(rows)], datatype="FP64", data=[r["price"] for r in rows]),
            dict(name="plan", shape=[len(rows)], datatype="BYTES", data=[r["plan"] for r in rows])]


def test_the_server_answers_in_both_protocols_and_explains(root, server, predictor):
    path = f"/v1/endpoints/{read_settings(root).release.endpoint}"
    infer = f"/v2/models/{read_settings(root).release.endpoint}/infer"
    rows = asked(90)
    for some in (rows[:1], rows[:7], rows):
        status, _, body = server.post(f"{path}:predict", {"instances": some})
        assert status == 200 and scores(body) == expected(predictor, some)
    named = rows[0] | {"embedding": dict(values=rows[0]["embedding"], producer="minilm", version="3")}
    status, _, body = server.post(f"{path}:predict", {"instances": [named]})
    assert status == 400 and "comes from the version '3'" in body["error"]
    status, _, body = server.post(infer, {"inputs": tensors(rows[:5])})
    assert status == 200 and next(o["data"] for o in body["outputs"] if o["name"] == "score") == expected(
        predictor, rows[:5])
    status, _, body = server.post(f"{path}:explain", {"instances": rows[:1]})
    assert status == 200 and {"note", "embedding", "price", "plan"} <= {*body["explanations"][0]["contributions"]}
    status, _, body = server.post(f"{path}:predict", {"instances": [rows[1] | {"price": -.5}]})
    assert status == 400 and "price is below 0" in body["error"]


def test_grpc_takes_texts_and_vectors(root, server, predictor):
    grpc = pytest.importorskip("grpc")
    from mlops_nb.serve.grpc_messages import GRPC_MESSAGES
    rows = [r for r in asked(12) if r["note"]][:5]
    kinds = dict(FP64="fp64_contents", BYTES="bytes_contents")
    def values(t): return [v.encode() if isinstance(v, str) else v for v in t["data"]]
    inputs = [dict(name=t["name"], datatype=t["datatype"], shape=t["shape"], contents={kinds[t["datatype"]]: values(t)})
              for t in tensors(rows)]
    body = GRPC_MESSAGES["ModelInferRequest"](model_name=read_settings(root).release.endpoint, inputs=inputs)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        send = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        found = GRPC_MESSAGES["ModelInferResponse"].FromString(send(body.SerializeToString(), timeout=60))
    [score] = [i for i, o in enumerate(found.outputs) if o.name == "score"]
    held = found.raw_output_contents[score] if found.raw_output_contents else None
    said = np.frombuffer(held, "<f8").tolist() if held else [*found.outputs[score].contents.fp64_contents]
    assert said == expected(predictor, rows)


def test_a_stream_goes_through_the_preprocess(root, predictor):
    settings = read_settings(root)
    manager = ModelManager(root, settings)
    manager.start()
    try:
        answer, rows = endpoint_handler(manager, settings.release.endpoint), asked(20)
        async def ask(rows): return msgspec.json.decode(await answer(secrets.token_hex(4), msgspec.json.encode(rows)))
        assert [scores(asyncio.run(ask(r)))[0] for r in rows] == expected(predictor, rows)
        assert scores(asyncio.run(ask({"instances": rows}))) == expected(predictor, rows)
        with pytest.raises(UserError, match="price is below 0"): asyncio.run(ask(rows[0] | {"price": -.5}))
    finally: manager.stop()


def test_what_was_logged_is_counted_and_has_not_drifted(root, server, predictor):
    cells = open_bundle_cells(root / "artifacts/bundle")
    path = f"/v1/endpoints/{read_settings(root).release.endpoint}:predict"
    rows = orders(400, 31).drop("kept").to_dicts()
    status, _, _ = server.post(path, {"instances": rows}, {"x-request-id": "counted"})
    assert status == 200
    log = read_log(root / read_settings(root).log.folder).filter(pl.col("id") == "counted").collect()
    assert len(log) == 400
    found = count_records(log, {predictor.id: cells})
    assert not found.problems
    for name in ("note.n_words", "note.unknown_share", "embedding.norm", "price"):
        counts = found.counts.filter(kind="column", name=name, segment_column="").group_by("cell").agg(pl.sum("n"))
        learned = np.array(cells.baseline.data.columns[name].counts)
        shares = np.zeros(len(learned))
        shares[counts["cell"].to_numpy()] = counts["n"] / 400
        assert np.abs(shares - learned / learned.sum()).sum() / 2 < .25, name
    assert json.dumps(predictor.encoder.matrix_names).count("score") == 1 # a score of the note is an input
