"gRPC over a real socket, beside HTTP: the same answers, the same log, refusals, limits, keys, TLS, and the end."
import asyncio
import collections
import json
import re
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support import server as serving
from support.services import free_port

from mlops_nb.config.api_keys import create_api_key
from mlops_nb.config.settings import read_settings
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.serve.app import App
from mlops_nb.serve.auth import Authenticator
from mlops_nb.serve.grpc_messages import GRPC_MESSAGES
from mlops_nb.serve.hot_reload import ModelManager
from mlops_nb.serve.inference_protocol import encode_binary
from mlops_nb.serve.metrics import Metrics

grpc = pytest.importorskip("grpc")
GRPCService = pytest.importorskip("mlops_nb.serve.grpc_server").GRPCService
REQUEST, RESPONSE = GRPC_MESSAGES["ModelInferRequest"], GRPC_MESSAGES["ModelInferResponse"]
ROWS = [{**r, "x": .5 if r["x"] is None else r["x"], "place": r["place"] or "", "when": r["when"] or ""}
        for r in serving.instances(7)]
CONTENTS = {"FP64": "fp64_contents", "INT64": "int64_contents", "BOOL": "bool_contents", "BYTES": "bytes_contents"}


class Client:
    "A channel, and the methods of the service on it."
    def __init__(self, port, credentials=None, key=None):
        self.metadata = [("authorization", f"Bearer {key}")] if key else []
        own = [("grpc.use_local_subchannel_pool", 1)]  # else channels of one process share a connection
        self.channel = (grpc.secure_channel(f"localhost:{port}", credentials, own) if credentials
                        else grpc.insecure_channel(f"127.0.0.1:{port}", own))

    def __enter__(self): return self

    def __exit__(self, *_): self.channel.close()

    def raw(self, method, body, metadata=(), timeout=60):
        "Send bytes; gives bytes and the call."
        send = self.channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        return send.with_call(body, metadata=[*self.metadata, *metadata], timeout=timeout)

    def ask(self, method, timeout=60, **values):
        body = GRPC_MESSAGES[f"{method}Request"](**values).SerializeToString()
        return GRPC_MESSAGES[f"{method}Response"].FromString(self.raw(method, body, timeout=timeout)[0])

    def refused(self, method, body, **how):
        "The name of the status and the detail of a refusal."
        if not isinstance(body, bytes): body = body.SerializeToString()
        with pytest.raises(grpc.RpcError) as e: self.raw(method, body, **how)
        return e.value.code().name, e.value.details()

    def hang(self):
        "A call whose message never comes; ends with its status."
        send = self.channel.stream_unary("/inference.GRPCInferenceService/ModelInfer")
        never = threading.Event()
        call = send.future(iter(lambda: never.wait() or b"", None), metadata=self.metadata)
        call.add_done_callback(lambda _: never.set())
        return call


def message(rows=ROWS, raw=False, **how):
    "Rows as a request with one tensor for each column."
    m = REQUEST(**{"model_name": "rows", **how})
    for t in serving.tensors(rows):
        tensor = m.inputs.add(name=t["name"], datatype=t["datatype"], shape=t["shape"])
        if raw: m.raw_input_contents.append(encode_binary(t["datatype"], t["data"])); continue
        values = [v.encode() for v in t["data"]] if t["datatype"] == "BYTES" else t["data"]
        getattr(tensor.contents, CONTENTS[t["datatype"]]).extend(values)
    return m


@pytest.fixture(scope="module")
def server(bundle, tmp_path_factory):
    "A server with small limits, without keys."
    limits = dict(MLOPS_NB_SERVE_MAX_BODY_MIB=1, MLOPS_NB_SERVE_MAX_ROWS=200, MLOPS_NB_SERVE_READ_TIMEOUT_SECONDS=2,
                  MLOPS_NB_SERVE_MAX_IN_FLIGHT=4, MLOPS_NB_SERVE_GRPC_PORT=(port := free_port()))
    with serving.Server(serving.project(tmp_path_factory.mktemp("served"), made=bundle), **limits) as s:
        s.grpc_port = port
        yield s


@pytest.fixture(scope="module")
def client(server):
    with Client(server.grpc_port) as c: yield c


def test_probes_and_metadata_are_those_of_http(server, client):
    assert f"gRPC at 127.0.0.1:{server.grpc_port}" in server.output
    assert client.ask("ServerLive").live and client.ask("ServerReady").ready
    about, http = client.ask("ModelMetadata", name="rows"), server.get("/v2/models/rows")[2]
    assert [(t.name, t.datatype, [*t.shape]) for t in (*about.inputs, *about.outputs)] == \
        [(t["name"], t["datatype"], t["shape"]) for t in (*http["inputs"], *http["outputs"])]
    assert [*about.versions] == http["versions"] and about.platform == http["platform"]
    assert client.ask("ModelReady", name="rows", version=about.versions[0]).ready
    assert client.ask("ServerMetadata").name == server.get("/v2")[2]["name"]
    for unknown in (dict(name="nothing"), dict(name="rows", version="0" * 12)):
        code, said = client.refused("ModelReady", GRPC_MESSAGES["ModelReadyRequest"](**unknown))
        assert code == "NOT_FOUND" and "There is no endpoint" in said or "has no version" in said


@pytest.mark.parametrize("raw", [False, True])
def test_rows_get_the_bits_of_http_and_a_record(server, client, raw):
    http = server.post(serving.PREDICT, {"instances": ROWS, "id": f"http-{raw}"})[2]["predictions"]
    body, call = client.raw("ModelInfer", message(raw=raw, id=f"g-{raw}").SerializeToString(),
                            [("x-request-id", "trace-1"), ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")])
    answer = RESPONSE.FromString(body)
    assert (answer.id, answer.model_name) == (f"g-{raw}", "rows")
    sent_back = dict(call.trailing_metadata())
    assert sent_back["x-request-id"] == "trace-1" and sent_back["traceparent"].split("-")[1] == "a" * 32
    score, decision = answer.outputs[:2]
    if raw: found = np.frombuffer(answer.raw_output_contents[0]).tolist(), answer.raw_output_contents[1]
    else: found = [*score.contents.fp64_contents], [*decision.contents.bytes_contents]
    assert found[0] == [p["score"] for p in http]
    words = [p["decision"] for p in http]
    assert found[1] == (encode_binary("BYTES", words) if raw else [w.encode() for w in words])
    records = [json.loads(line) for p in sorted((server.root / "predictions/segments").glob("*.jsonl"))
               for line in p.read_text().splitlines()]
    mine, other = ([r for r in records if r.get("id") == i] for i in (f"g-{raw}", f"http-{raw}"))
    assert len(mine) == len(other) == 1 and mine[0]["trace"] == "trace-1" and mine[0]["trace_id"] == "a" * 32
    assert {k: mine[0][k] for k in ("columns", "score", "decision", "bundle", "variant")} == \
        {k: other[0][k] for k in ("columns", "score", "decision", "bundle", "variant")}


def test_a_client_chooses_outputs_and_version(client):
    about = client.ask("ModelMetadata", name="rows")
    m = message(ROWS[:1], model_version=about.versions[0])
    m.outputs.add(name="decision")
    assert [o.name for o in client.ask("ModelInfer", **{f.name: v for f, v in m.ListFields()}).outputs] == ["decision"]


def test_the_repository_is_a_view_of_the_plans(client):
    [about] = client.ask("RepositoryIndex").models
    assert (about.name, about.state) == ("rows", "READY") and client.ask("RepositoryIndex", ready=True).models
    for names in (dict(model_name="rows"), dict(repository_name="rows")):  # Triton's and KServe's first field
        loaded = client.ask("RepositoryModelLoad", **names)
        assert loaded.isLoaded and loaded.model_name == "rows"
    unload = GRPC_MESSAGES["RepositoryModelUnloadRequest"](model_name="rows")
    assert client.refused("RepositoryModelUnload", unload)[0] == "INVALID_ARGUMENT"
    load = GRPC_MESSAGES["RepositoryModelLoadRequest"](model_name="rows", parameters={"config": {"string_param": "{}"}})
    assert "parameters" in client.refused("RepositoryModelLoad", load)[1]
    [one] = client.ask("ModelStatistics", name="rows").model_stats
    assert one.version == about.version and one.inference_stats.success.count >= 1
    assert len(client.ask("ModelStatistics").model_stats) == 1


def test_refusals_have_the_codes_of_the_field(server, client):
    wrong = message([{**r, "count": -5} for r in ROWS])
    cases = [(message(model_name="nothing"), "NOT_FOUND", "no endpoint 'nothing'"),
             (message(model_version="elsewhere"), "NOT_FOUND", "no version 'elsewhere'"),
             (wrong, "INVALID_ARGUMENT", "row 6: count"),
             (b"{}", "INVALID_ARGUMENT", "no ModelInferRequest"),
             (message(ROWS * 50), "INVALID_ARGUMENT", "at most 200"),
             (message(id="x" * 300), "INVALID_ARGUMENT", "300 characters"),
             (b"\x2a\x00" * 400_000, "INVALID_ARGUMENT", "more than"),
             (bytes(2 << 20), "RESOURCE_EXHAUSTED", "larger than max")]
    for body, code, said in cases:
        found = client.refused("ModelInfer", body)
        assert found[0] == code and said in found[1], (found, said)
    compressed = client.channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
    with pytest.raises(grpc.RpcError) as e: compressed(bytes(64 << 20), compression=grpc.Compression.Gzip, timeout=60)
    assert e.value.code().name == "RESOURCE_EXHAUSTED"
    assert client.refused("ModelStreamInfer", b"")[0] == "UNIMPLEMENTED"
    assert server.metric("mlops_nb_requests_total", route="infer", status="404") >= 2
    assert server.metric("mlops_nb_schema_violations_total", endpoint="rows", column="count") >= 7
    assert client.ask("ServerLive").live


class Context:
    "A call without a socket, of a client whose deadline has passed."
    def __init__(self, body): self.body, self.status = body, None
    def invocation_metadata(self): return (("x-request-id", "late"), ("trace-bin", b"\xff"))
    def time_remaining(self): return 0.
    async def read(self): return self.body
    async def abort(self, code, details, metadata): self.status = code.name, dict(metadata)["x-request-id"]


@pytest.mark.parametrize("hang", [False, True])
def test_what_is_late_is_not_scored_and_counted(bundle, tmp_path, hang):
    settings = read_settings(tmp_path, {"MLOPS_NB_SERVE_MAX_IN_FLIGHT": "1", "MLOPS_NB_RELEASE_ENDPOINT": "rows"})
    manager = ModelManager(bundle, settings, Metrics(tmp_path / "log", 0), PredictionLogWriter(tmp_path / "log", 0))
    manager.start()
    app = App(manager, Authenticator(None))
    service, context, halted = GRPCService(app), Context(message().SerializeToString()), asyncio.Event()

    async def main():
        app._loop = asyncio.get_running_loop()
        if hang: context.read = halted.wait
        call = asyncio.ensure_future(service.call("infer", service._infer, context))
        if hang:  # gRPC cancels the call when its deadline passes
            await asyncio.sleep(0)
            call.cancel()
        await asyncio.wait([call])
        assert call.cancelled() == hang

    asyncio.run(main())
    assert context.status == (None if hang else ("DEADLINE_EXCEEDED", "late"))
    assert app.metrics.rejected_requests("deadline").get() == 1 and app.metrics.answered_rows.get() == 0
    with app.in_flight(): pass
    app.__rsgi_del__(None)


class Sampled(Context):
    "A call that belongs to a trace which is recorded."
    def invocation_metadata(self): return (("traceparent", f"00-{'a' * 32}-{'b' * 16}-01"),)
    def time_remaining(self): return None
    def set_trailing_metadata(self, metadata): self.trailing = dict(metadata)


@pytest.mark.parametrize("model, steps, status", [
    ("rows", ["read", "decode", "predict", "record", "answer"], 200), ("nobody", ["read", "answer"], 404)])
def test_a_call_has_the_steps_and_the_trace_of_a_request(bundle, tmp_path, model, steps, status):
    settings = read_settings(tmp_path, {"MLOPS_NB_RELEASE_ENDPOINT": "rows"})
    manager = ModelManager(bundle, settings, Metrics(tmp_path / "log", 0), PredictionLogWriter(tmp_path / "log", 0))
    manager.start()
    app, exported = App(manager, Authenticator(None)), []
    app.spans = SimpleNamespace(begin=None, export=lambda *span: exported.append(span), close=lambda: None)
    service, context = GRPCService(app), Sampled(message(model_name=model).SerializeToString())

    async def main():
        app._loop = asyncio.get_running_loop()
        await service.call("infer", service._infer, context)

    asyncio.run(main())
    [(request, answered, seconds)] = exported
    assert ([name for name, _ in request.steps], answered, request.route) == (steps, status, "infer")
    assert sorted(at for _, at in request.steps) == [at for _, at in request.steps] and seconds > 0
    assert request.trace_context.trace_id == "a" * 32 and request.trace_context.parent_id == "b" * 16
    if status == 200: assert context.trailing["traceparent"] == request.trace_context.traceparent
    counted = [x for x in app.metrics.samples() if x.name == "mlops_nb_step_duration_seconds_count"]
    assert {x.labels["step"]: x.value for x in counted} == dict.fromkeys(steps, 1)
    app.__rsgi_del__(None)


def test_places_in_flight_are_shared_and_given_back(server, client):
    end = time.monotonic() + 60
    while True:  # the calls that hang end after two seconds, and a busy machine may need longer to make them
        with Client(server.grpc_port) as other:
            hanging = [other.hang() for _ in range(4)]
            try: client.ask("ModelInfer", model_name="rows")
            except grpc.RpcError as e: code, when = e.code().name, dict(e.trailing_metadata() or ()).get("retry-after")
            if code == "UNAVAILABLE":
                assert when == "1" and client.ask("ServerLive").live
                assert {h.exception(60).code().name for h in hanging} <= {"DEADLINE_EXCEEDED", "UNAVAILABLE"}
                break
        assert time.monotonic() < end
    assert client.ask("ModelInfer", **{f.name: v for f, v in message().ListFields()}).outputs
    assert server.metric("mlops_nb_requests_total", route="infer", status="408") >= 1
    assert server.metric("mlops_nb_rejected_requests_total", reason="max_in_flight") >= 1


@pytest.fixture(scope="module")
def guarded(bundle, tmp_path_factory):
    "Two workers with keys and TLS; the keys by name, and what trusts the certificate."
    root = serving.project(tmp_path_factory.mktemp("guarded"), made=bundle)
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key.pem", "-out",
                    "cert.pem", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"],
                   cwd=root, check=True, capture_output=True)
    keys = {name: create_api_key(root / ".mlops/keys.json", name, scopes) for name, scopes in
            (("all", ["predict", "read"]), ("reader", ["read"]))}
    keys["elsewhere"] = create_api_key(root / ".mlops/keys.json", "elsewhere", ["predict"], endpoints=["trips"])
    with serving.Server(root, MLOPS_NB_SERVE_AUTH="api_key", MLOPS_NB_SERVE_TLS_CERTIFICATE_FILE="cert.pem",
                        MLOPS_NB_SERVE_TLS_PRIVATE_KEY_FILE="key.pem", MLOPS_NB_SERVE_WORKERS=2,
                        MLOPS_NB_SERVE_DRAIN_SECONDS=120, MLOPS_NB_SERVE_GRPC_PORT=(port := free_port())) as s:
        s.grpc_port = port
        yield s, keys, grpc.ssl_channel_credentials(Path(root / "cert.pem").read_bytes())


def test_keys_are_checked_before_the_message(guarded):
    server, keys, credentials = guarded
    given = None, keys["reader"], keys["elsewhere"]
    nobody, reader, elsewhere = (Client(server.grpc_port, credentials, key) for key in given)
    with nobody, reader, elsewhere:
        assert nobody.ask("ServerReady").ready and reader.ask("ModelReady", name="rows").ready
        assert nobody.hang().exception(60).code().name == "UNAUTHENTICATED", "it did not wait for a message"
        assert nobody.refused("ModelMetadata", b"")[0] == "UNAUTHENTICATED"
        for who, what in ((reader, "scope 'predict'"), (elsewhere, "endpoint 'rows'")):
            code, said = who.refused("ModelInfer", message())
            assert code == "PERMISSION_DENIED" and what in said


def test_what_was_answered_is_on_record_once_when_the_server_stops(guarded):
    "Last in this file: it stops the server of `guarded` under load."
    server, keys, credentials = guarded
    answered, others, started = [], [], threading.Semaphore(0)

    def load(k):
        with Client(server.grpc_port, credentials, keys["all"]) as c:
            for i in range(100_000):
                try: answered.append(RESPONSE.FromString(c.raw("ModelInfer", message(ROWS[:2], id=f"{k}-{i}")
                                                               .SerializeToString())[0]))
                except grpc.RpcError as e: others.append((e.code().name, e.details())); return
                started.release()

    threads = [threading.Thread(target=load, args=(k,), daemon=True) for k in range(4)]
    for t in threads: t.start()
    for _ in range(40): assert started.acquire(timeout=60)
    with Client(server.grpc_port, credentials, keys["all"]) as c:
        server.process.send_signal(signal.SIGTERM)
        server.until(lambda: not c.ask("ServerReady").ready, "draining", wait=60)
        assert not c.ask("ModelReady", name="rows").ready and c.raw("ModelInfer", message().SerializeToString())
    assert server.stop(signal.SIGTERM, wait=60) == 0  # the second ends the wait
    for t in threads: t.join(60)
    assert not any(t.is_alive() for t in threads)
    assert {code for code, _ in others} <= {"UNAVAILABLE", "CANCELLED"}, others
    recorded = collections.Counter(serving.logged(server.root))
    assert {recorded[a.id] for a in answered} == {1}
    assert not re.search("Traceback|Error", server.output), server.output


def test_a_port_that_is_taken_is_said(bundle, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with serving.Server(serving.project(tmp_path, made=bundle), ready=False, MLOPS_NB_SERVE_GRPC_PORT=port) as s:
            assert s.process.wait(60) == 1
    assert f"127.0.0.1:{port} cannot be listened on" in s.output
