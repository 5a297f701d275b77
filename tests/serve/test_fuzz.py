"""Requests that nobody should send: whatever comes, there is an answer without a traceback, a path or other rows,
and the next client is served as before. MLOPS_NB_FUZZ is the number of requests, 3,000 if it is not set; a tenth goes
through the description."""
import contextlib
import json
import os
import random
import re
import socket
import struct
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from support import server as serving
from support import trained_project as modelling

import mlops_nb
from mlops_nb.model.predictor import Predictor

REQUESTS = int(os.environ.get("MLOPS_NB_FUZZ", 3_000))
LIMITS = "[serve]\nmax_body_mib = 1\nmax_rows = 200\nread_timeout_seconds = 1\n"
SECRET = 0.123456789012345  # a value that only the rows of an honest client have
PATHS = (tempfile.gettempdir() + os.sep, sys.prefix, str(Path(mlops_nb.__file__).parent))
NEVER = re.compile("|".join((r"Traceback \(most", r"File \"", r"\w\.py\b", r", line \d", "0x[0-9a-f]{8}", str(SECRET),
    *map(re.escape, PATHS))).encode())
WORDS = [b"rows", b"churn", b"%00", b"..", b"%2e%2e", b"{model}", b"\xc3\xa9", b"a" * 3000, b"", b":", b"predict",
         b"first"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = serving.project(tmp_path_factory.mktemp("fuzzed"), settings=LIMITS)
    with serving.Server(root) as s:
        s.predictor = Predictor.open(next((root / "bundles").glob("[0-9a-f]*")))
        yield s


HONEST = [{**r, "x": SECRET} for r in serving.instances(3)]


@pytest.fixture
def honest(server):
    "Somebody who asks properly all the while; at the end the answers are what the predictor says, and no process died."
    columns = modelling.rows(3, seed=5).select("x", "count", "place", "known", "when").with_columns(x=SECRET)
    expected, workers, before = server.predictor.predict(columns).tolist(), server.workers, len(server.output)
    stop, wrong, answered = threading.Event(), [], [0]

    def ask(): # a busy machine may be too slow for the server's limits, and is told so
        while not stop.is_set():
            status, _, body = server.post("/v1/endpoints/rows:predict", {"instances": HONEST})
            answered[0] += status == 200
            if status not in (503, 408) and (status != 200 or [p["score"] for p in body["predictions"]] != expected):
                wrong.append((status, body))
            stop.wait(.02)
    thread = threading.Thread(target=ask)
    thread.start()
    yield
    stop.set()
    thread.join(30)
    assert not wrong and answered[0] > 0, wrong[:3]
    assert server.workers == workers and server.process.poll() is None, server.output
    assert "Traceback" not in server.output[before:], server.output[before:][:3000]


def judge(status, headers, body, sent=b""):
    "What holds for every answer."
    shown = (status, headers, body[:500], sent[:300])
    assert 100 < status < 500 or status in (503, 504), shown
    assert status != 503 or "retry-after" in headers, shown
    assert not [m for text in (body, repr(headers).encode()) for m in NEVER.findall(text) if m not in sent], shown
    if body and headers.get("content-type") == "application/json":
        assert status < 400 or isinstance(json.loads(body)["error"], str), shown


# By the description



def test_by_the_description(server, honest):
    "What Schemathesis makes of the document, good and bad, and whether the answers are of the kind that it promises."
    api = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    operations, seen = [result.ok() for result in api.get_all_operations()], {}
    load_all_checks()
    rules = {check.__name__: check for check in CHECKS.get_all()}
    del rules["not_a_server_error"]  # 503 and 504 are answers too: `judge` has a rule of its own
    examples = max(4, REQUESTS // 20 // len(operations))
    rule = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), database=None)

    def answered(case):
        reply = case.call(timeout=30)
        sent = f"{unquote(case.formatted_path)} {case.headers} {case.body}".encode("utf-8", "backslashreplace")
        judge(reply.status_code, {k.lower(): v[0] for k, v in reply.headers.items()}, reply.content, sent)
        # a tensor may fit the protocol and no column; 1.0 is no row's number; what is served is not unloaded
        own = case.operation.label.endswith(("infer", "feedback", "unload"))
        loose = {"positive_data_acceptance"} if own else set()
        if b'"rejected":' in reply.content: loose.add("negative_data_rejection") # of several labels, the bad ones alone
        try: case.validate_response(reply, checks=[c for name, c in rules.items() if name not in loose])
        except FailureGroup as e:  # a time may be written in more ways than `format` knows
            if not all("violates `format`" in str(f) for f in e.exceptions): raise
        key = (case.operation.label, reply.status_code)
        seen[key] = seen.get(key, 0) + 1
    for operation in operations:
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            with contextlib.suppress(Unsatisfiable):
                rule(given(operation.as_strategy(generation_mode=mode))(answered))()
    print(f"answers: {sum(seen.values())} of {len({o for o, _ in seen})} operations, by status "
          f"{[*sorted({s for _, s in seen})]}")
    assert {o for o, s in seen if s == 200} >= {o.label
        for o in operations if not re.search("version|infer|unload|{release}", o.label)} # there is no release here


# By hand

SNIPPETS = (b"NaN", b"null", b"1e999", b"-0", b"[[[[", b'"\\ud800"', b"{}", b",", b"9" * 400, b"\xff", b"\0", b"true")


def mutated(rng, body):
    "The bytes, somewhat changed."
    data = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(7):
            case 0 if at < len(data): data[at] = rng.randrange(256)
            case 1: data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 2: del data[at:at + rng.randrange(1, 20)]
            case 3: data[at:at] = rng.choice(SNIPPETS)
            case 4: data[at:at] = data[at - 30 if at > 30 else 0:at]
            case 5: data = data[:at]
            case _: data[at:at] = b"[" * rng.choice((10, 2000, 30_000))
    return bytes(data)


ODD = (None, "", "x", -1, 1e308, 10**30, True, [], {}, "2026-13-45", "Ö" * 5000, [[1]], " ")


def json_body(rng):
    row = {**rng.choice(serving.instances(9)), **({"more": 1} if rng.random() < .1 else {})}
    if rng.random() < .5: row[rng.choice([*row])] = rng.choice(ODD)
    rows = [row] * rng.choice((1, 2, 60, 300))
    return json.dumps(rng.choice(({"instances": rows}, rows, row, {"instances": row}, {"instances": []},
        {"instances": [row], "id": "a b"}))).encode()


TENSORS = {"x": ("FP64", .5), "count": ("INT64", 3), "place": ("BYTES", "Örebro"), "known": ("BOOL", True),
           "when": ("BYTES", "2026-01-01")}


def raw(kind, value):
    if kind == "BYTES": return struct.pack("<I", len(value.encode())) + value.encode()
    return np.array([value], {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}[kind]).tobytes()


def tensor_body(rng):
    "A body of the inference protocol, and the headers that go with it; most are wrong somewhere."
    inputs, tail = [], b""
    for name, (kind, value) in TENSORS.items():
        t = {"name": name, "datatype": kind, "shape": [1]}
        if rng.random() < .5: t["data"] = [value]
        else:
            tail += (data := raw(kind, value))
            t["parameters"] = {"binary_data_size": len(data)}
        if rng.random() < .15:
            t[rng.choice([*t])] = rng.choice((None, -1, [10**12], [2**64, 2**64], [], "FP8", [[[1]]], ["a"],
                                              {"binary_data_size": 2**63},
                                              {"binary_data_size": -8}))
        inputs.append(t)
    head = json.dumps({"id": f"f-{rng.randrange(99)}", "inputs": rng.sample(inputs, rng.choice((5, 5, 5, 4))),
                       **({"parameters": {"binary_data_output": True}} if rng.random() < .3 else {})}).encode()
    length = rng.choice((len(head),) * 6 + (0, len(head) - 1, len(head) + 1, 10**9, -1, "x", "", "9" * 999))
    return (head + tail if rng.random() < .9 else mutated(rng, head + tail)), [(b"Inference-Header-Content-Length",
                                                                                str(length).encode())]


def http(method, path, body=b"", headers=(), length=None):
    "The bytes of a request."
    lines = [b"%s %s HTTP/1.1" % (method, path), b"Host: localhost", *(b"%s: %s" % h for h in headers)]
    if body or length is not None:
        lines.append(b"Content-Length: %s" % (str(len(body)) if length is None else str(length)).encode())
    return b"\r\n".join([*lines, b"", body])


HEADERS = (b"x-request-id", b"x-deadline-ms", b"authorization", b"content-encoding", b"x-flags", b"content-type",
           b"expect", b"cookie")
VALUES = (b"", b"a", b"gzip", b"-1", b"0", b"9" * 50, b"Bearer \xff", b"100-continue", b"\xe9\xe9", b"x" * 4000)


def request(rng):
    "A request that HTTP can carry, with what is in it wrong most of the time."
    kind = rng.random()
    if kind < .5:
        body = json_body(rng) if kind < .35 else mutated(rng, json_body(rng))
        return http(b"POST", b"/v1/endpoints/rows:" + rng.choice((b"predict",) * 3 + (b"explain", b"feedback")), body)
    if kind < .8: return http(b"POST", b"/v2/models/rows/infer", *tensor_body(rng))
    if kind < .9:
        path = b"/".join([b"", rng.choice((b"v1/endpoints", b"v2/models", b"v2", b"metrics", b"docs"))]
                         + rng.choices(WORDS,
            k=rng.randrange(4)))
        return http(rng.choice((b"GET", b"GET", b"HEAD", b"PUT", b"DELETE", b"POST", b"OPTIONS", b"PATCH", b"QUERY")),
                    path)
    return http(b"POST", b"/v1/endpoints/rows:predict", json_body(rng), [(rng.choice(HEADERS), rng.choice(VALUES))])


class Line:
    "A connection that reads whole answers."
    def __init__(self, port, timeout=10):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.held = b""

    def answer(self, head=False):
        "(status, headers, body), or None where the server hung up."
        while b"\r\n\r\n" not in self.held:
            if not (more := self.socket.recv(65536)): return None
            self.held += more
        lines, _, rest = self.held.partition(b"\r\n\r\n")
        first, *lines = lines.split(b"\r\n")
        headers = {k.decode("latin-1").lower(): v.strip().decode("latin-1")
                   for k, _, v in (line.partition(b":") for line in lines)}
        status, size = int(first.split()[1]), int(headers.get("content-length", 0))
        if status == 100: self.held = rest; return self.answer(head)
        if head: size = 0
        while len(rest) < size:
            if not (more := self.socket.recv(65536)): return None
            rest += more
        self.held = rest[size:]
        return status, headers, rest[:size]


def batch(port, seed, n, seen):
    "Many requests, one after the other, on as few connections as the server allows."
    rng, line = random.Random(seed), None
    for _ in range(n):
        sent = request(rng)
        line = line or Line(port)
        try:
            line.socket.sendall(sent)
            got = line.answer(head=sent.startswith(b"HEAD"))
        except ConnectionError: got = None
        if got: judge(*got, sent)
        seen[got and got[0]] = seen.get(got and got[0], 0) + 1
        if got is None or got[1].get("connection") == "close" or got[0] in (400, 413,
                                                                            431) and "x-request-id" not in got[1]:
            line.socket.close()
            line = None
    if line: line.socket.close()


def in_threads(n, f, *args):
    "Run `f(seed, *args)` in `n` threads; what one raises is raised."
    wrong = []

    def run(seed):
        try: f(seed, *args)
        except BaseException as e: wrong.append(e)
    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for t in threads: t.start()
    for t in threads: t.join(1800)
    if wrong: raise wrong[0]


def test_requests_that_are_wrong_somewhere(server, honest):
    seen = {}
    in_threads(4, lambda seed: batch(server.port, seed, REQUESTS // 5, seen))
    print(f"answers by status: {seen}")
    assert {200, 400, 404, 405} <= seen.keys() and seen.get(None, 0) < sum(seen.values()) * .02


def broken(rng):
    "Bytes that are no HTTP, or not all of it."
    good = http(b"POST", b"/v1/endpoints/rows:predict", json_body(rng))
    match rng.randrange(9):
        case 0: return rng.randbytes(rng.randrange(1, 300))
        case 1: return good[:rng.randrange(len(good))]
        case 2: return http(b"POST", b"/v2/models/rows/infer", b"{}",
                            length=rng.choice((-1, 10**30, "x", "1, 2", "+2", 2**63, "")))
        case 3: return http(b"POST", b"/v2/models/rows/infer", b"{}", [(b"Content-Length", b"7")])
        case 4:
            chunks = rng.choice((b"zz\r\n", b"ffffffffffffffff\r\n", b"2\r\n{}\r\n0\r\n\r\n", b"5\r\n{}"))
            return http(b"POST", b"/v2/models/rows/infer", b"", [(b"Transfer-Encoding", b"chunked")]) + chunks
        case 5: return mutated(rng, good[:good.index(b"\r\n\r\n") + 4]) + b"{}"
        case 6: return b"GET / HTTP/" + rng.choice((b"0.9", b"2.0", b"9.9", b"1.1\n\n",
                                                    b"1.1\r\n" + b"a: b\r\n" * 2000 + b"\r\n"))
        case 7: return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + rng.randbytes(rng.randrange(200))
        case _: return good + rng.randbytes(rng.randrange(1, 60)) + good


def test_what_is_no_http(server, honest):
    "Sent, and then either half closed or cut off."
    def run(seed):
        rng = random.Random(1000 + seed)
        for _ in range(REQUESTS // 40):
            line, sent = Line(server.port), broken(rng)
            try:
                line.socket.sendall(sent)
                if rng.random() < .5: continue
                line.socket.shutdown(socket.SHUT_WR)
                while got := line.answer(): judge(*got, sent)
            except (OSError, ValueError, IndexError) as e: assert not isinstance(e,
            TimeoutError), sent  # hung up on, or an answer of HTTP/2
            finally: line.socket.close()
    in_threads(4, run)


def test_a_body_that_claims_to_be_huge_is_refused_before_it_comes(server, honest):
    for path in (b"/v1/endpoints/rows:predict", b"/v2/models/rows/infer", b"/v1/endpoints/rows:feedback"):
        line = Line(server.port)
        line.socket.sendall(http(b"POST", path, b"{", length=50 << 20))
        status, headers, body = line.answer()
        judge(status, headers, body)
        assert status == 413
        line.socket.close()


def test_a_body_without_a_length_is_cut_where_it_is_too_large(server, honest):
    line = Line(server.port)
    line.socket.sendall(http(b"POST", b"/v2/models/rows/infer", b"", [(b"Transfer-Encoding", b"chunked")]))
    with contextlib.suppress(ConnectionError):
        for _ in range(40): line.socket.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")
    with contextlib.suppress(ConnectionError):
        got = line.answer()
        assert got is None or got[0] == 413
    line.socket.close()


def test_more_rows_than_are_allowed(server):
    row = serving.instances(1)[0]
    for path, body in (("/v1/endpoints/rows:predict", {"instances": [row] * 201}),
                       ("/v2/models/rows/infer", {"inputs": [
            {"name": n, "datatype": k, "shape": [201], "data": [v] * 201} for n, (k, v) in TENSORS.items()]})):
        status, _, reply = server.post(path, body)
        assert status in (400, 413) and "200" in reply["error"], reply


def test_small_requests_that_could_cost_minutes_do_not(server, honest):
    "Each of them once did, or would have."
    row, long = serving.instances(1)[0], 2**62
    def tensor(**how): return {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "data": [1], **how}]}
    for path, body in (("/v2/models/rows/infer", tensor(shape=[long] * 40_000)),
        ("/v2/models/rows/infer", tensor(shape=[0, long], data=[])),
                       ("/v2/models/rows/infer", {**tensor(), "outputs": [{"name": "score"}] * 20_000}),
                       ("/v2/models/rows/infer", tensor(shape=[1] * 30_000, data=[[1]])),
                       ("/v1/endpoints/rows:predict", [{**row, **{f"coun{i}": 1 for i in range(50_000)}}]),
                       ("/v1/endpoints/rows:predict", [{**row, "count" * 100_000: 1}]),
                       ("/v1/endpoints/rows:predict", [{**row, "when": f"{i}-1-1T00:00"} for i in range(200)]),
                       ("/v1/endpoints/rows:predict", [{**row, "when": "0000-01-01T00:00:00Z"}] * 2)):
        line = Line(server.port, timeout=10)
        line.socket.sendall(http(b"POST", path.encode(), json.dumps(body).encode()))
        status, headers, reply = line.answer()
        judge(status, headers, reply)
        assert status == 400, (path, reply[:200])
        line.socket.close()


def test_who_sends_slowly_is_turned_away_and_keeps_nobody_waiting(server, honest):
    good = http(b"POST", b"/v1/endpoints/rows:predict", json.dumps({"instances": HONEST}).encode())
    lines = [Line(server.port) for _ in range(30)]
    for i, line in enumerate(lines): line.socket.sendall(good[:good.index(b"\r\n\r\n") + 4 + i % 7])
    began, left = time.monotonic(), len(good)
    statuses = []
    while time.monotonic() - began < 2.5 and left:
        for line in lines[:5]:
            with contextlib.suppress(OSError): line.socket.sendall(b" ")
        left -= 1
        time.sleep(.2)
    for line in lines:
        with contextlib.suppress(OSError): statuses.append((line.answer() or (None,))[0])
        line.socket.close()
    assert statuses and {*statuses} <= {408, 400, None}, statuses
