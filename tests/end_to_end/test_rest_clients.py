"REST by KServe's own client, both of its protocols; `make test-grpc-clients` runs it, in an environment with it."
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support import server as serving

CLIENTS = Path(sys.prefix) / "grpc-clients"  # an environment of its own: it wants an older protobuf
pytestmark = pytest.mark.skipif("TEST_GRPC_CLIENTS" not in os.environ,
                                reason="`make test-grpc-clients` runs it, in an environment with the client")
ROWS = [{**r, "x": .5 if r["x"] is None else r["x"], "place": r["place"] or "", "when": r["when"] or ""}
        for r in serving.instances(5)]
PROGRAM = """
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


def test_kserve_gets_the_scores_of_rows_in_json(tmp_path):
    with serving.Server(serving.project(tmp_path)) as server:
        expected = [p["score"] for p in server.post(serving.PREDICT, {"instances": ROWS})[2]["predictions"]]
        done = subprocess.run([CLIENTS / "bin/python", "-c", PROGRAM, f"http://127.0.0.1:{server.port}",
                               json.dumps(ROWS), json.dumps(serving.tensors(ROWS))], capture_output=True, text=True,
                              timeout=300)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1]) == [expected, expected, "kserve 東京"]
        assert serving.logged(server.root).count("kserve 東京") == 1
