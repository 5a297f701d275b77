"gRPC and REST by Triton's and KServe's own clients; `make test-clients` runs it, in an environment with them."
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support import server as serving
from support.services import free_port

CLIENTS = Path(sys.prefix) / "clients"  # an environment of its own: both want an older protobuf
pytestmark = pytest.mark.skipif("TEST_CLIENTS" not in os.environ,
                                reason="`make test-clients` runs it, in an environment with the clients")
ROWS = [{**r, "x": .5 if r["x"] is None else r["x"], "place": r["place"] or "", "when": r["when"] or ""}
        for r in serving.instances(5)]
TRITON = """
import json, sys
import numpy as np
import tritonclient.grpc as client
url, tensors = sys.argv[1], json.loads(sys.argv[2])
dtypes = {"FP64": "f8", "INT64": "i8", "BOOL": "?", "BYTES": "O"}
with client.InferenceServerClient(url) as c:
    assert c.is_server_live() and c.is_server_ready() and c.is_model_ready("rows")
    about = c.get_model_metadata("rows", as_json=True)
    assert [t["name"] for t in about["outputs"]][:2] == ["score", "decision"]
    assert c.is_model_ready("rows", about["versions"][0])
    assert [m["name"] for m in c.get_model_repository_index(as_json=True)["models"]] == ["rows"]
    c.load_model("rows")
    statistics = c.get_inference_statistics("rows", as_json=True)["model_stats"]
    assert statistics[0]["name"] == "rows"
    inputs = []
    for t in tensors:
        given = client.InferInput(t["name"], t["shape"], t["datatype"])
        values = [v.encode() for v in t["data"]] if t["datatype"] == "BYTES" else t["data"]
        inputs.append(given.set_data_from_numpy(np.array(values, dtypes[t["datatype"]])))
    found = c.infer("rows", inputs, request_id="triton-1", client_timeout=60)
    try: c.infer("nothing", inputs)
    except client.InferenceServerException as e: refused = e.status()
    chosen = c.infer("rows", inputs, outputs=[client.InferRequestedOutput("decision")])
    assert chosen.as_numpy("score") is None
    print(json.dumps([found.as_numpy("score").tolist(), [v.decode() for v in found.as_numpy("decision")],
                      found.get_response().id, refused]))
"""
KSERVE = """
import asyncio, json, sys
import grpc
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages, grpc_predict_v2_pb2_grpc as stubs
url, tensors = sys.argv[1], json.loads(sys.argv[2])

async def main():
    client = InferenceGRPCClient(url)
    assert await client.is_server_live() and await client.is_server_ready() and await client.is_model_ready("rows")
    inputs = [InferInput(t["name"], t["shape"], t["datatype"], t["data"]) for t in tensors]
    found = await client.infer(InferRequest(model_name="rows", infer_inputs=inputs, request_id="kserve-1"))
    try: await client.infer(InferRequest(model_name="nothing", infer_inputs=inputs))
    except grpc.aio.AioRpcError as e: refused = f"StatusCode.{e.code().name}"
    outputs = {o.name: o.as_numpy().tolist() for o in found.outputs}
    decisions = [d.decode() if isinstance(d, bytes) else d for d in outputs["decision"]]
    async with grpc.aio.insecure_channel(url) as channel:
        loaded = await stubs.GRPCInferenceServiceStub(channel).RepositoryModelLoad(
            messages.RepositoryModelLoadRequest(model_name="rows"))
        assert loaded.isLoaded and loaded.model_name == "rows"
    print(json.dumps([outputs["score"], decisions, found.id, refused]))

asyncio.run(main())
"""
KSERVE_REST = """
import asyncio, json, sys
from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig
url, rows, tensors = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])

async def main():
    first, second = (InferenceRESTClient(RESTConfig(protocol=p)) for p in ("v1", "v2"))
    assert await first.is_model_ready(url, "rows") and await second.is_model_ready(url, "rows")
    assert await second.is_server_live(url) and await second.is_server_ready(url)
    assert not await second.is_model_ready(url, "nothing")
    found = await first.infer(url, {"instances": rows}, model_name="rows")
    inputs = [InferInput(t["name"], t["shape"], t["datatype"], t["data"]) for t in tensors]
    request = InferRequest(model_name="rows", infer_inputs=inputs, request_id="kserve 東京")
    answer = await second.infer(url, request, model_name="rows")
    scores = next(o for o in answer.outputs if o.name == "score").as_numpy().tolist()
    print(json.dumps([[p["score"] for p in found["predictions"]], scores, answer.id]))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    port = free_port()
    with serving.Server(serving.project(tmp_path_factory.mktemp("served")), MLOPS_NB_SERVE_GRPC_PORT=port) as s:
        s.grpc_port = port
        yield s


def test_the_example_of_the_page_works(server, tmp_path):
    page = (Path(__file__).parents[2] / "docs/howto/serve.md").read_text()
    [example] = [b for b in re.findall(r"```python\n(.*?)```", page, re.S) if "tritonclient" in b]
    (tmp_path / "request.json").write_text(json.dumps({"instances": ROWS[:1]}))
    example = example.replace("simulated_churn", "rows").replace("localhost:8081", f"127.0.0.1:{server.grpc_port}")
    done = subprocess.run([CLIENTS / "bin/python", "-c", example], cwd=tmp_path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == 0 and "call-2032" in serving.logged(server.root), done.stderr


def said_by(program, url, *given):
    "What a program prints that is run by the clients' Python."
    done = subprocess.run([CLIENTS / "bin/python", "-c", program, url, *map(json.dumps, given)], capture_output=True,
                          text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name, program", [("triton", TRITON), ("kserve", KSERVE)])
def test_a_client_of_another_server_gets_the_bits_of_http(server, name, program):
    http = server.post(serving.PREDICT, {"instances": ROWS})[2]["predictions"]
    scores, decisions, id, refused = said_by(program, f"127.0.0.1:{server.grpc_port}", serving.tensors(ROWS))
    assert scores == [p["score"] for p in http] and decisions == [p["decision"] for p in http]
    assert (id, refused) == (f"{name}-1", "StatusCode.NOT_FOUND")
    assert serving.logged(server.root).count(id) == 1


def test_kserve_gets_the_same_scores_over_rest_by_both_protocols(server):
    expected = [p["score"] for p in server.post(serving.PREDICT, {"instances": ROWS})[2]["predictions"]]
    said = said_by(KSERVE_REST, f"http://127.0.0.1:{server.port}", ROWS, serving.tensors(ROWS))
    assert said == [expected, expected, "kserve 東京"] and serving.logged(server.root).count("kserve 東京") == 1
