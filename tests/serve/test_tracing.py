"Traces and the access log, from outside: what goes in comes out, stands on record and at the collector, and no more."
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support import server as serving

from mlops_nb.prediction_log.reader import read_log

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PREDICT, INFER = "/v1/endpoints/rows:predict", "/v2/models/rows/infer"


class Collector(ThreadingHTTPServer):
    "An OTLP receiver on the loopback, which keeps the spans it is sent."
    def __init__(self):
        self.spans, self.raw = [], b""
        super().__init__(("127.0.0.1", 0), Receiver)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Receiver(BaseHTTPRequestHandler):
    def do_POST(self):
        trace_service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.raw += body
        for resource in trace_service.ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.spans += [s for scope in resource.scope_spans for s in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_): pass


def access_lines(server): return [json.loads(line) for line in server.lines if line.startswith('{"time"')]


def test_a_trace_goes_through_answer_record_collector_and_access_log(bundle, tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    root = serving.project(tmp_path, made=bundle)
    sampled, silent = (f"00-{TRACE}-{SPAN}-0{flag}" for flag in (1, 0))
    secret = {**serving.instances(1)[0], "place": "at home, of all places"}
    with Collector() as collector, serving.Server(root, MLOPS_NB_SERVE_TRACE_SAMPLE_RATE=0,
            MLOPS_NB_SERVE_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}") as s:
        def ask(path, body, **headers): return s.post(path, body, headers)
        out = ask(PREDICT, {"id": "a", "instances": serving.instances(1)}, traceparent=sampled)[1]["traceparent"]
        assert out.startswith(f"00-{TRACE}-") and out.endswith("-01") and SPAN not in out
        assert ask(INFER, {"id": "b", "inputs": serving.tensors(serving.instances(1))},
                   traceparent=silent)[1]["traceparent"].endswith("-00")
        for wrong in (sampled[:-1], sampled.replace(TRACE, "0" * 32), "nonsense"):
            status, headers, _ = ask(PREDICT, {"id": "c", "instances": serving.instances(1)}, traceparent=wrong)
            assert status == 200 and "traceparent" not in headers
        status, told, _ = ask(PREDICT, [secret | {"x": "no number"}], traceparent=sampled)
        assert status == 400
        assert s.get("/v2/models/nobody")[0] == 404
        assert s.stop() == 0 # it sends what is left
    spans = {x.span_id.hex(): x for x in collector.spans}
    [server, _] = [x for x in spans.values() if x.parent_span_id.hex() == SPAN]
    assert {x.trace_id.hex() for x in spans.values()} == {TRACE} and server.span_id.hex() == out.split("-")[2]
    steps = [x for x in spans.values() if x.parent_span_id == server.span_id]
    steps.sort(key=lambda x: x.end_time_unix_nano)
    assert [x.name for x in steps] == ["read", "decode", "predict", "record", "answer"]
    whole = server.end_time_unix_nano - server.start_time_unix_nano
    assert 0 < sum(x.end_time_unix_nano - x.start_time_unix_nano for x in steps) <= whole + 10 # rounding
    log = read_log(root / "predictions", "rows").collect()
    assert dict(log.select("id", "trace_id").rows()) == {"a": TRACE, "b": TRACE, "c": ""}
    line, unknown = access_lines(s)
    assert (line["status"], line["trace_id"], line["endpoint"]) == (400, TRACE, "rows")
    assert line["id"] == told["x-request-id"]
    assert unknown["status"] == 404 and not any(w in s.output for w in ("no number", "at home", "nobody"))
    assert b"no number" not in collector.raw and b"at home" not in collector.raw


def test_a_collector_that_is_gone_costs_no_answer(bundle, tmp_path):
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with serving.Server(serving.project(tmp_path, made=bundle), MLOPS_NB_SERVE_TRACE_SAMPLE_RATE=1,
                        MLOPS_NB_SERVE_OTLP_ENDPOINT=f"http://127.0.0.1:{serving.free_port()}",
                        MLOPS_NB_SERVE_ACCESS_LOG_PER_SECOND=1, MLOPS_NB_SERVE_SLOW_REQUEST_MS=600000) as s:
        answers = [s.post(PREDICT, serving.instances(1)) for _ in range(3)]
        assert {a[0] for a in answers} == {200} and len({a[1]["traceparent"][3:35] for a in answers}) == 3
        for _ in range(64): s.post(PREDICT, serving.instances(1))
        assert s.metric("mlops_nb_step_duration_seconds_count", endpoint="rows", variant="champion", step="decode") > 0
        s.until(lambda: s.metric("mlops_nb_loop_wait_seconds_count") > 0, "measured")
        connection = s.connect()
        for _ in range(40): s.post(PREDICT, [{}], connection=connection)
        connection.close()
        s.until(lambda: access_lines(s), "told")
        assert s.stop() == 0
    lines = access_lines(s)
    assert len(lines) + sum(x.get("skipped", 0) for x in lines) <= 40 and len(lines) < 40
