"The inference protocol over a real socket, by clients of other servers: Triton's, the specification's, and plain HTTP."
import json
import math
import struct
from base64 import b64encode

import httpx
import numpy as np
import polars as pl
import pytest
from support import server as serving
from support import trained_project as modelling

from mlops_nb.bundle.store import store_bundle
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.release_plan import ReleasePlan, Variant, write_plan
from mlops_nb.serve.inference_protocol import DATATYPES
from mlops_nb.serve.openapi import DOCS_CSP

PLACES = ["Amsterdam", "Örebro", "a | b", "東京"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    "Two variants of `rows`, the second only by version; `trips` has three classes and no features; the predictors."
    root = tmp_path_factory.mktemp("served")
    made = {"first": serving.bundle(root / "a"), "second": serving.bundle(root / "b", n=400)}
    closed = modelling.schema("multiclass")  # numbers can stand for places only where the places are known
    closed.columns["place"].domain = PLACES
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(modelling, "schema", lambda task: closed)
        made["trips"] = serving.bundle(root / "c", "multiclass", n=400, features=False)
    serving.project(root, made=made["first"])
    ids = {name: store_bundle(path, root / "bundles").name for name, path in made.items()}
    write_plan(root / "releases/rows.json", ReleasePlan("rows", 2,
        [Variant("first", ids["first"], 1.0), Variant("second", ids["second"], 0.0)]))
    write_plan(root / "releases/trips.json", ReleasePlan("trips", 1, [Variant("only", ids["trips"])]))
    with serving.Server(root) as server: yield server, {name: Predictor.open(path) for name, path in made.items()}


@pytest.fixture(scope="module")
def triton(served):
    client = pytest.importorskip("tritonclient.http").InferenceServerClient(f"127.0.0.1:{served[0].port}")
    yield client
    client.close()


KINDS = {"x": "FP64", "count": "INT64", "place": "BYTES", "known": "BOOL", "when": "BYTES"}
ROWS = [{**r, "x": .5 if r["x"] is None else r["x"], "place": r["place"] or "", "when": r["when"] or ""}
        for r in serving.instances(7)]
SENT = modelling.rows(7, seed=5).select(*KINDS).with_columns(pl.col("x").fill_null(.5))


def tensor_inputs(binary, shape=(7,)):
    "The columns of `ROWS` as the client makes tensors of them."
    import tritonclient.http as client
    found = []
    for name, kind in KINDS.items():
        values = np.array([r[name] for r in ROWS], object if kind == "BYTES" else DATATYPES[kind]).reshape(shape)
        found.append(client.InferInput(name, [*shape], kind).set_data_from_numpy(values, binary_data=binary))
    return found


def test_triton_asks_what_is_there(triton, served):
    assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready("rows")
    assert triton.get_server_metadata()["extensions"] == ["binary_tensor_data", "model_repository", "statistics"]
    about = triton.get_model_metadata("rows")
    assert {t["name"]: t["datatype"] for t in about["inputs"]} == KINDS and all(t["shape"] == [-1]
                                                                                for t in about["inputs"])
    assert [(t["name"], t["datatype"]) for t in about["outputs"]][:2] == [("score", "FP64"), ("decision", "BYTES")]
    assert [t["name"] for t in triton.get_model_metadata("trips")["outputs"]][:3] == [f"score_{c}"
        for c in modelling.CLASSES["multiclass"]]
    assert len(about["versions"]) == 2
    for version in about["versions"]:
        assert triton.is_model_ready("rows", version) and triton.get_model_metadata("rows",
            version)["inputs"] == about["inputs"]
    assert not triton.is_model_ready("nothing") and not triton.is_model_ready("rows", "0" * 12)


@pytest.mark.parametrize("asked_binary", [True, False])
@pytest.mark.parametrize("answered_binary", [True, False])
@pytest.mark.parametrize("shape", [(7,), (7, 1)])
def test_triton_gets_what_the_predictor_says(triton, served, asked_binary, answered_binary, shape):
    outputs = [wanted(o, binary_data=answered_binary) for o in ("decision", "score")]
    result = triton.infer("rows", tensor_inputs(asked_binary, shape), outputs=outputs, request_id="mine-7")
    expected = served[1]["first"].predict(SENT)
    assert result.as_numpy("score").tolist() == expected.tolist()
    assert [d.decode() if isinstance(d, bytes) else d
            for d in result.as_numpy("decision")] == served[1]["first"].decide(expected).tolist()
    told = result.get_response()
    assert told["id"] == "mine-7" and told["model_name"] == "rows" and [o["name"]
        for o in told["outputs"]] == ["decision", "score"]
    assert triton.get_model_metadata("rows", told["model_version"])["name"] == "rows"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_triton_compresses(triton, served, coding):
    rows = serving.instances(400, seed=8)
    import tritonclient.http as client
    sent = []
    for name, kind in KINDS.items():
        values = np.array([r[name] if r[name] is not None else "" for r in rows] if kind == "BYTES"
                          else [np.nan if r[name] is None else r[name] for r in rows],
                          object if kind == "BYTES" else DATATYPES[kind])
        sent.append(client.InferInput(name, [400], kind).set_data_from_numpy(values))
    found = [triton.infer("rows", sent, request_compression_algorithm=a, response_compression_algorithm=a)
             for a in (None, coding)]
    assert found[0].as_numpy("score").tolist() == found[1].as_numpy("score").tolist()
    assert found[0].as_numpy("decision").tolist() == found[1].as_numpy("decision").tolist()


def test_triton_asks_the_repository_and_the_statistics(triton, served):
    versions = triton.get_model_metadata("rows")["versions"]
    index = triton.get_model_repository_index()
    assert {(m["name"], m["version"], m["state"]) for m in index if m["name"] == "rows"} == {("rows", v, "READY")
                                                                                         for v in versions}
    triton.load_model("rows")
    def counted(): return {(s["name"], s["version"]): s for s in triton.get_inference_statistics()["model_stats"]}
    before = counted()
    triton.infer("rows", tensor_inputs(True), model_version=versions[1])
    after, key = counted(), ("rows", versions[1])
    assert after[key]["inference_count"] == before[key]["inference_count"] + 7
    assert after[key]["inference_stats"]["success"]["count"] == before[key]["inference_stats"]["success"]["count"] + 1
    [own] = triton.get_inference_statistics("rows", versions[1])["model_stats"]
    assert own == after[key] and {m["name"] for m in index} == {name for name, _ in after}


def test_texts_in_base64(served):
    "As MLServer's clients send them."
    def score(inputs): return posted(served, {"inputs": inputs})
    encoded = [c | {"data": [b64encode(v.encode()).decode() for v in c["data"]],
                    "parameters": {"content_type": "base64"}} if c["datatype"] == "BYTES" else c for c in columns()]
    assert score(encoded)[2]["outputs"] == score(columns())[2]["outputs"]
    wrong = [c | {"parameters": {"content_type": "base64"}} for c in columns()]
    status, _, reply = score(wrong)
    assert status == 400 and "base64" in reply["error"]


def test_triton_asks_a_version(triton, served):
    versions = triton.get_model_metadata("rows")["versions"]
    scores = {v: triton.infer("rows", tensor_inputs(True), model_version=v).as_numpy("score").tolist()
              for v in versions}
    expected = {name: served[1][name].predict(SENT).tolist() for name in ("first", "second")}
    assert [*scores.values()] == [*expected.values()] and expected["first"] != expected["second"]
    assert triton.infer("rows", tensor_inputs(True),
                        model_version="second").as_numpy("score").tolist() == expected["second"]


def test_triton_gets_every_class(triton, served):
    result, expected = triton.infer("trips", tensor_inputs(True)[:4]), served[1]["trips"].predict(SENT)
    assert [result.as_numpy(f"score_{c}").tolist() for c in modelling.CLASSES["multiclass"]] == expected.T.tolist()


def wanted(*args, **kw):
    import tritonclient.http as client
    return client.InferRequestedOutput(*args, **kw)


@pytest.mark.parametrize("how, says", [
    (lambda c, i: c.infer("nothing", i), "There is no endpoint 'nothing'"),
    (lambda c, i: c.infer("rows", i, model_version="9" * 12), "no version"),
    (lambda c, i: c.infer("rows", i[:-1] + i[:1]), "same name"), (lambda c, i: c.infer("rows", i[:1]), "count"),
    (lambda c, i: c.infer("rows", i, outputs=[wanted("scor")]), "no output 'scor'"),
    (lambda c, i: c.infer("rows", i, outputs=[wanted("score", class_count=2)]), "does not rank"),
    (lambda c, i: c.unload_model("rows"), "release plan"), (lambda c, i: c.load_model("nothing"), "no endpoint")])
def test_triton_is_told_why_not(triton, how, says):
    from tritonclient.utils import InferenceServerException
    with pytest.raises(InferenceServerException, match=says): how(triton, tensor_inputs(True))


def posted(served, body, path="/v2/models/rows/infer", **headers):
    "As the text of the specification has it, with a client that knows nothing of it."
    url = f"http://127.0.0.1:{served[0].port}{path}"
    reply = httpx.post(url, content=body if isinstance(body, bytes) else json.dumps(body), headers=headers)
    return (reply.status_code, reply.headers, reply.json() if reply.headers["content-type"] == "application/json"
            else reply.content)


def columns(n=7):
    return [{"name": c, "datatype": d, "shape": [n], "data": [r[c] for r in ROWS[:n]]} for c, d in KINDS.items()]


def test_a_request_by_the_specification(served):
    expected = served[1]["first"].predict(SENT)
    status, headers, reply = posted(served, {"id": "a", "parameters": {"note": 1}, "inputs": columns(),
                                             "outputs": [{"name": "score"}]})
    assert (status, headers["content-type"], reply["id"], reply["model_name"]) == (200, "application/json", "a", "rows")
    assert reply["outputs"] == [{"name": "score", "datatype": "FP64", "shape": [7], "data": expected.tolist()}]
    nested = [{**c, "shape": [7, 1], "data": [[v] for v in c["data"]]} for c in columns()]
    assert posted(served, {"inputs": nested})[2]["outputs"][0]["data"] == expected.tolist()
    status, headers, raw = posted(served, {"inputs": columns(), "parameters": {"binary_data_output": True}})
    head = json.loads(raw[:int(headers["inference-header-content-length"])])
    sizes = [o["parameters"]["binary_data_size"] for o in head["outputs"]]
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    assert len(raw) == int(headers["inference-header-content-length"]) + sum(sizes)
    assert np.frombuffer(raw[-sum(sizes):][:sizes[0]], "<f8").tolist() == expected.tolist()


def test_a_missing_value_has_three_spellings(served):
    "null in JSON, NaN in a binary tensor, and the column left out."
    frame = SENT.head(1).with_columns(x=pl.lit(None, pl.Float64))
    expected, one = served[1]["first"].predict(frame).tolist(), columns(1)
    def score(body, **headers): return posted(served, body, **headers)[2]["outputs"][0]["data"]
    assert score({"inputs": [{**one[0], "data": [None]}, *one[1:]]}) == expected == score({"inputs": one[1:]})
    head = json.dumps({"inputs": [{"name": "x", "datatype": "FP64", "shape": [1],
                                   "parameters": {"binary_data_size": 8}},
        *one[1:]]}).encode()
    assert score(head + struct.pack("<d", math.nan), **{"Inference-Header-Content-Length": str(len(head))}) == expected


def test_one_numeric_tensor_for_all_columns(triton, served):
    "In the order of the metadata: numbers for themselves, a category as its index in the domain, NaN for missing."
    import tritonclient.http as client
    matrix = np.array([[.5, 3, 2, 1], [-1, 40, np.nan, 0]])
    frame = pl.DataFrame({"x": [.5, -1], "count": [3, 40], "place": [PLACES[2], None], "known": [True, False]})
    expected = served[1]["trips"].predict(frame).T.tolist()
    nulls = [[None if v != v else v for v in row] for row in matrix.tolist()]
    for data in (nulls, sum(nulls, [])):
        status, _, reply = posted(served,
                                  {"inputs": [{"name": "m", "datatype": "FP64", "shape": [2, 4], "data": data}]},
        "/v2/models/trips/infer")
        assert status == 200 and [o["data"] for o in reply["outputs"][:3]] == expected
    sent = client.InferInput("any name", [2, 4], "FP64").set_data_from_numpy(matrix, binary_data=True)
    result = triton.infer("trips", [sent])
    assert [result.as_numpy(f"score_{c}").tolist() for c in modelling.CLASSES["multiclass"]] == expected
    status, _, reply = posted(served, {"inputs": [{"name": "m", "datatype": "FP64", "shape": [1, 5], "data": [0] * 5}]})
    assert status == 400 and "one tensor for each column" in reply["error"]


@pytest.mark.parametrize("body, says", [
    (b"{", "not JSON"), ({"inputs": []}, "no inputs"),
    ({"inputs": columns(3)[:4] + columns(2)[4:]}, "as many as the first"),
    ({"inputs": [{**columns(1)[0], "shape": [2]}]}, "shape"),
    ({"inputs": [{**columns(1)[0], "data": ["a"]}]}, "element"),
    ({"inputs": [*columns(1), {**columns(1)[0], "name": "more"}]}, "more"),
    ({"inputs": [{**c, "shape": [0], "data": []} for c in columns(1)]}, "row"),
    ({"inputs": [{"name": "m", "datatype": "FP64", "shape": [4], "data": [1, 2, 3, 4]}]}, "'m' is no column"),
    ({"inputs": columns(1), "id": "x" * 257}, "257 characters"),
    ({"inputs": [{**columns(1)[1], "data": [99]}, *columns(1)[2:], columns(1)[0]]},
    "count")])
def test_what_is_wrong_is_said(served, body, says):
    status, headers, reply = posted(served, body)
    assert status == 400 and headers["content-type"] == "application/json" and says in reply["error"], reply


def test_the_protocols_own_client(served):
    "The client that is generated from the specification's OpenAPI file."
    client = pytest.importorskip("open_inference.openapi.client",
                                 reason="the client open-inference-openapi is not installed")
    from open_inference.openapi.errors import BadRequestError, NotFoundError
    from open_inference.openapi.types import InferenceRequest, RequestInput
    asking = client.OpenInferenceClient(base_url=f"http://127.0.0.1:{served[0].port}")
    asking.check_server_liveness(), asking.check_server_readiness(), asking.check_model_readiness("rows")
    about = asking.read_model_metadata("rows")
    assert (asking.read_server_metadata().name == "mlops_nb" and len(about.versions) == 2
            and len(about.inputs) == len(KINDS))
    request = InferenceRequest(id="own", inputs=[RequestInput(**c) for c in columns()])
    def scores(reply): return next(o.data.dict()["__root__"] for o in reply.outputs if o.name == "score")
    assert [*scores(asking.model_infer("rows", request=request))] == served[1]["first"].predict(SENT).tolist()
    asking.check_model_version_readiness("rows", about.versions[1])
    answer = asking.model_version_infer("rows", about.versions[1], request=request)
    assert [*scores(answer)] == served[1]["second"].predict(SENT).tolist() and answer.id == "own"
    with pytest.raises(NotFoundError): asking.check_model_readiness("nothing")
    with pytest.raises(BadRequestError): asking.model_infer("rows",
        request=InferenceRequest(inputs=[RequestInput(**c) for c in columns()[:1]]))


def test_every_example_of_the_description_works(served):
    "What the page tells people to paste into a shell."
    server = served[0]
    _, _, document = server.get("/openapi.json")
    asked = {path: o["requestBody"]["content"]["application/json"]["example"] for path, m in document["paths"].items()
             for method, o in m.items() if method == "post"}
    of_release = [path for path in asked if "{release}" in path] # there is none here
    assert len(of_release) == 4 and len(asked) == 2 * 8 + 1 + len(of_release)
    for path, body in asked.items():
        if path in of_release: continue
        status, _, reply = server.post(path.replace("{version}", "first" if "rows" in path else "only"), body)
        assert status == (400 if path.endswith("/unload") else 200), (path, reply)
    for path in (p.replace("{version}", "only") for p, m in document["paths"].items() if "get" in m
                 and "rows" not in p and "{release}" not in p):
        assert server.get(path)[0] == 200, path
    status, headers, page = server.get("/docs")
    assert (status == 200 and headers["content-type"].startswith("text/html")
            and headers["content-security-policy"] == DOCS_CSP)
    assert b"<script" not in page and b"trips" in page
