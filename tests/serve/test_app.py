"The HTTP application over a real socket: who may ask, and every way to be rejected."
import asyncio
import contextlib
import gzip
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
import weakref
import zlib
from datetime import UTC, datetime
from types import SimpleNamespace
from urllib.parse import unquote

import polars as pl
import pytest
from msgspec import structs
from support import server as serving
from support.served_endpoint import until
from support.server import EXPLAIN, FEEDBACK, INFER, PREDICT, tensors

from mlops_nb.config.api_keys import create_api_key, read_api_keys
from mlops_nb.config.settings import read_settings
from mlops_nb.prediction_log.compaction import compact_log
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.serve.app import MAX_UNPACKED_BODIES, ROUTES, App, PathMatcher
from mlops_nb.serve.auth import Authenticator, read_key_use
from mlops_nb.serve.hot_reload import ModelManager
from mlops_nb.serve.http_messages import HTTPException, Request, Response, body_too_large, zstd
from mlops_nb.serve.metrics import Metrics


def expected(predictor, rows): return predictor.predict(pl.DataFrame(rows, infer_schema_length=None)).tolist()


def test_a_refused_request_lets_go_of_its_body_though_a_future_keeps_the_error():
    class Body: pass
    held = []
    def read():
        body = Body()
        held.append(weakref.ref(body))
        raise body_too_large(1)
    request = Request({})
    request.id = "one"
    try: read()
    except HTTPException as e: kept, response = e, App.refuse(None, request, e)
    assert response.status_code == kept.status_code == 413 and held[0]() is None


class Wire:
    "A request without a socket."
    method, path, authority, http_version = "POST", PREDICT, "localhost", "1.1"
    def __init__(self, body):
        self.body, self.headers = body, {"content-encoding": "gzip", "content-length": str(len(body))}
    async def __call__(self): return self.body
    def response_bytes(self, status, headers, body): self.status = status


def test_unpacked_bodies_have_a_limit_together(bundle, tmp_path):
    settings = read_settings(tmp_path, {"MLOPS_NB_SERVE_MAX_BODY_MIB": "1", "MLOPS_NB_RELEASE_ENDPOINT": "rows"})
    manager = ModelManager(bundle, settings, Metrics(tmp_path / "log", 0), PredictionLogWriter(tmp_path / "log", 0))
    manager.start()
    app, largest, row = App(manager, Authenticator(None)), gzip.compress(b" " * (1 << 20)), serving.instances(1)

    async def main():
        app.__rsgi_init__(asyncio.get_running_loop())
        waiting, go_on = [], asyncio.Event()
        async def slow(app, request):
            waiting.append(request)
            await go_on.wait()
            return Response(b"{}")
        found = app._paths[PREDICT]
        app._paths[PREDICT] = {"POST": structs.replace(found[0]["POST"], handler=slow)}, found[1]
        wires = [Wire(largest) for _ in range(MAX_UNPACKED_BODIES + 2)]
        calls = [asyncio.ensure_future(app.__rsgi__(w, w)) for w in wires]
        while sum(map(asyncio.Future.done, calls)) < 2: await asyncio.sleep(0.001)
        assert [w.status for w in wires if hasattr(w, "status")] == [503, 503] and len(waiting) == MAX_UNPACKED_BODIES
        go_on.set()
        await asyncio.gather(*calls)
        assert sorted(w.status for w in wires) == [200] * MAX_UNPACKED_BODIES + [503, 503]
        app._paths[PREDICT], last = found, Wire(gzip.compress(json.dumps(row).encode()))
        await app.__rsgi__(last, last)
        assert last.status == 200 and app._unpacked_bytes == 0

    asyncio.run(main())
    app.__rsgi_del__(None)


def test_the_ids_of_requests(limited_server):
    "The id is what the body says, else what the header says, else a new one; the header comes back as it was given."
    row = serving.instances(1)
    def ask(body, header=None):
        _, headers, found = limited_server.post(PREDICT, body, {"x-request-id": header} if header else None)
        return found["id"], headers["x-request-id"]
    assert ask(row, "mine-1") == ("mine-1", "mine-1")
    assert ask({"instances": row, "id": "in-the-body"}) == ("in-the-body", "in-the-body")
    assert ask({"instances": row, "id": "both-1"}, "of-a-proxy") == ("both-1", "of-a-proxy")
    tensor = {"inputs": tensors(row), "id": "both-2"}
    _, headers, found = limited_server.post(INFER, tensor, {"x-request-id": "another"})
    assert (found["id"], headers["x-request-id"]) == ("both-2", "another")
    log = read_log(limited_server.root / "predictions").select("id", "trace").collect().rows()
    assert {("mine-1", ""), ("in-the-body", ""), ("both-1", "of-a-proxy"), ("both-2", "another")} <= {*log}
    assert len({ask(row)[0] for _ in range(20)}) == 20
    assert limited_server.get("/nowhere", {"x-request-id": "mine-3"})[1]["x-request-id"] == "mine-3"
    for bad in ("", "a b", "x" * 129): assert limited_server.post(PREDICT, row, {"x-request-id": bad})[0] == 400


@pytest.mark.parametrize("id", ['order "7" of 東京', "a\n\t\\\u0000é", "x" * 256])
def test_any_text_is_an_id(limited_server, id):
    row = serving.instances(1)
    for path, body in ((PREDICT, {"instances": row}), (INFER, {"inputs": tensors(row)})):
        status, headers, found = limited_server.post(path, body | {"id": id})
        assert (status, found["id"], unquote(headers["x-request-id"])) == (200, id, id)
    assert limited_server.post(FEEDBACK, {"labels": [{"id": id, "label": "yes"}]})[0] == 200
    assert read_log(limited_server.root / "predictions").collect()["id"].to_list().count(id) == 2


def test_ids_that_are_none(limited_server):
    row = serving.instances(1)
    for id in ("x" * 257, "x" * 1_000_000, 7, [], {}):
        for path, body in ((PREDICT, {"instances": row}), (INFER, {"inputs": tensors(row)}), (EXPLAIN, row[0])):
            status, _, found = limited_server.post(path, {"instances": row, **body, "id": id})
            assert status == 400 and "id" in found["error"], (path, found)
    assert limited_server.post(PREDICT, {"instances": row, "id": ""})[2]["id"] != ""


@pytest.mark.parametrize("value", [7, 1.5, True, [], {}, ["a"], "", "x" * 9999])
def test_parameters_of_any_type_are_answered(limited_server, value):
    "Never by 500."
    row = serving.instances(1)
    tensor = tensors(row)[0]
    parameters = {k: value for k in ("version", "binary_data_output", "content_type", "anything")}
    named = {"parameters": {"binary_data_size": value, "content_type": value, "shared_memory_region": value}}
    cases = [(path, {**body, "parameters": p}) for p in (parameters, value)
             for path, body in ((EXPLAIN, {"instances": row}), (PREDICT, {"instances": row}),
                                (INFER, {"inputs": tensors(row)}))]
    cases = [*cases, (INFER, {"inputs": [tensor | named]}),
             (INFER, {"inputs": [{k: v for k, v in (tensor | named).items() if k != "data"}]}),
             (INFER, {"inputs": tensors(row), "outputs": [{"name": "score", "parameters": {
                 "binary_data": value, "classification": value}}]})]
    for path, body in cases:
        status, _, found = limited_server.post(path, body)
        assert status in (200, 400, 404) and (status == 200 or found["error"]), (path, body, found)
    assert limited_server.post(EXPLAIN, cases[0][1])[0] == (404 if isinstance(value, str) else 400)


def test_every_route_is_described(limited_server):
    paths = {(m.upper(), p) for p, methods in limited_server.get("/openapi.json")[2]["paths"].items() for m in methods}
    assert paths == {(r.method, r.path.replace("{model}", "rows")) for r in ROUTES}


PACK = {"gzip": gzip.compress, "deflate": zlib.compress, "zstd": zstd.compress}
UNPACK = {"gzip": gzip.decompress, "deflate": zlib.decompress, "zstd": zstd.decompress}


@pytest.mark.parametrize("coding", PACK)
def test_compressed_requests_and_answers(limited_server, coding):
    rows, headers = serving.instances(100), {"content-encoding": coding, "accept-encoding": f"{coding};q=0.5, br"}
    plain = limited_server.post(PREDICT, rows)
    connection = limited_server.connect()
    def ask(body, **more):
        connection.request("POST", PREDICT, body, headers | more)
        reply = connection.getresponse()
        return reply.status, {k.lower(): v for k, v in reply.getheaders()}, reply.read()
    status, found, body = ask(PACK[coding](json.dumps(rows).encode()))
    assert (status, found["content-encoding"], found["vary"]) == (200, coding, "accept-encoding")
    assert json.loads(UNPACK[coding](body))["predictions"] == plain[2]["predictions"] and len(body) < 4000
    small = ask(PACK[coding](json.dumps(rows[:1]).encode()))
    assert small[0] == 200 and "content-encoding" not in small[1] and json.loads(small[2])["predictions"]
    assert "content-encoding" not in plain[1] and plain[1]["vary"] == "accept-encoding"
    bomb = PACK[coding](bytes(1 << 26))
    assert ask(bomb)[0] == ask(PACK[coding](bytes((1 << 20) + 1)))[0] == 413
    assert ask(PACK[coding](b"[]")[:-1])[0] == ask(b"[]")[0] == 400
    status, found, _ = ask(b"[]", **{"content-encoding": "br"})
    assert (status, found["accept-encoding"]) == (415, "zstd, gzip, deflate")
    chunked = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (bomb[:9], bomb[9:]))
    asked = head(PREDICT, "transfer-encoding: chunked", f"content-encoding: {coding}")
    assert raw(limited_server, asked, [chunked, b"0\r\n\r\n"]) == 413
    connection.close()


def test_head_is_get_without_the_body(limited_server):
    connection = limited_server.connect()
    for path in ("/health", "/v2/health/live", "/v2/health/ready", "/v2/models/rows/ready", "/metrics"):
        connection.request("HEAD", path)
        reply = connection.getresponse()
        assert (reply.status, reply.read()) == (200, b""), path
    connection.request("GET", "/health")  # nothing of the bodies is left on the connection
    assert json.loads(connection.getresponse().read()) == {"live": True}
    connection.request("HEAD", PREDICT)
    reply = connection.getresponse()
    assert (reply.status, reply.getheader("allow"), reply.read()) == (405, "POST", b"")
    connection.close()


def test_the_first_protocol_of_kserve(limited_server):
    rows = serving.instances(3)
    status, _, found = limited_server.post("/v1/models/rows:predict", {"instances": rows})
    assert status == 200 and found["predictions"] == limited_server.post(PREDICT, rows)[2]["predictions"]
    assert limited_server.get("/v1/models")[2] == {"models": ["rows"]}
    assert limited_server.get("/v1/models/rows")[::2] == (200, {"name": "rows", "ready": True})
    assert limited_server.get("/v1/models/rowz")[0] == 404
    status, _, found = limited_server.post("/v1/models/rows:predict", {"instances": [[1, 2, 3]]})
    assert status == 400 and "objects" in found["error"]


# ---- who may ask


SCOPES = {
    "GET /health": "public", "GET /v2/health/live": "public", "GET /v2/health/ready": "public",
    "GET /metrics": "read", "GET /openapi.json": "read", "GET /docs": "read", "GET /v2": "read",
    "GET /v2/models/{model}": "read",
    "GET /v2/models/{model}/ready": "read", "GET /v2/models/{model}/versions/{version}": "read",
    "GET /v2/models/{model}/versions/{version}/ready": "read",
    "POST /v2/models/{model}/infer": "predict", "POST /v2/models/{model}/versions/{version}/infer": "predict",
    "GET /v2/models/stats": "read", "GET /v2/models/{model}/stats": "read",
    "GET /v2/models/{model}/versions/{version}/stats": "read",
    "POST /v2/repository/index": "read", "POST /v2/repository/models/{model}/load": "admin",
    "POST /v2/repository/models/{model}/unload": "admin",
    "GET /v1/models": "read", "GET /v1/models/{model}": "read", "POST /v1/models/{model}:predict": "predict",
    "POST /v1/endpoints/{model}:predict": "predict", "POST /v1/endpoints/{model}:explain": "explain",
    "POST /v1/endpoints/{model}:feedback": "feedback",
    "GET /v1/releases": "read", "GET /v1/releases/{release}": "read",
    **{f"POST /v1/releases/{{release}}/{verb}": "operate" for verb in ("approve", "withdraw", "promote", "rollback")}}


def test_every_route_and_the_scope_it_needs():
    "Whoever adds a route writes down here who may call it."
    assert {f"{r.method} {r.path}": r.scope for r in ROUTES} == SCOPES


def a_body(route):
    "Something that a route takes."
    if route.method == "GET" or "repository" in route.path: return None
    if "{release}" in route.path: return {"step": "25"} if route.path.endswith(("/approve", "/withdraw")) else {}
    if route.handler.__name__ == "infer": return {"inputs": tensors(serving.instances(1))}
    return {"labels": [{"id": "a",
        "label": "yes"}]} if route.handler.__name__ == "feedback" else {"instances": serving.instances(1)}


def test_no_route_is_open_by_accident(bundle, tmp_path):
    root = serving.project(tmp_path, made=bundle, settings="[serve]\nauth = api_key\n")
    keys = {scope: create_api_key(root / ".mlops/keys.json", scope, [scope])
            for scope in ("predict", "explain", "feedback", "read", "operate", "admin")}
    one, other, over, unused = (create_api_key(root / ".mlops/keys.json", name, [*keys], **how) for name, how in [
        ("one", dict(endpoints=["rows"])), ("other", dict(endpoints=["row", "rowss"])),
        ("over", dict(expires_at=datetime(2026, 1, 1, tzinfo=UTC))), ("unused", {})])
    with serving.Server(root, first="import os; os.umask(0)") as s:
        def status_of(r, path, body, key): return s.request(r.method, path, body, {"authorization": f"Bearer {key}"})[0]
        for r in ROUTES:
            path, body = r.path.replace("{model}", "rows").replace("{version}", "champion"), a_body(r)
            path = path.replace("{release}", "none")
            asked = {scope: status_of(r, path, body, key) for scope, key in keys.items()}
            status, headers, found = s.request(r.method, path, body)
            if r.scope == "public": assert {status, *asked.values()} == {200}
            else:
                served = 400 if path.endswith("/unload") else 200  # it is served, and stays
                done = 404 if "{release}" in r.path else served
                assert asked == dict.fromkeys(keys, 403) | {r.scope: done}, path
                assert (status, headers["www-authenticate"]) == (401, "Bearer") and "key" in found["error"]
                limited = [status_of(r, path, body, key) for key in (one, other, over)]
                assert limited == [done if "{model}" in r.path else 403, 403, 401], path
        new = create_api_key(root / ".mlops/keys.json", "new", ["predict"], requests_per_second=2)
        ask = lambda: s.post(PREDICT, serving.instances(1), {"authorization": f"Bearer {new}"})  # noqa: E731
        s.until(lambda: ask()[0] == 200, "a new key noticed", 5)
        assert 429 in {ask()[0] for _ in range(5)}
        limited = ask()
        assert limited[0] == 429 and int(limited[1]["retry-after"]) >= 1
        (root / ".mlops/keys.json").rename(root / "away")
        s.until(lambda: ask()[0] == 401, "shut after the file has gone", 5)
        assert s.get("/health")[0] == 200
        (root / "away").rename(root / ".mlops/keys.json")
        s.until(lambda: ask()[0] != 401, "open again", 5)
    used = read_key_use(root / "predictions")
    assert [k.name for k in read_api_keys(root / ".mlops/keys.json") if k.id not in used] == ["over", "unused"]
    _check_rights(root)


def _check_rights(root):
    "Under a umask that takes nothing away, what a server and compaction write is for owner and group."
    before = os.umask(0)
    try: compact_log(root / "predictions")
    finally: os.umask(before)
    rights = {p.relative_to(root).as_posix(): p.stat().st_mode & 0o777 for p in (root / "predictions").rglob("*")
              if p.is_file()}
    assert {p.split("/")[1] for p in rights} >= {"segments", "record", "feedback", "metrics", "key_use"}
    assert {p: oct(mode) for p, mode in rights.items() if mode != 0o640} == {}
    assert (root / ".mlops/keys.json").stat().st_mode & 0o777 == 0o600


# ---- what is refused


NOT_THERE = """GET /|404 PUT /v1/endpoints/rows:predict|405 DELETE /health|405 GET /v1/endpoints/rows:predict|405
    POST /metrics|405 POST /v1/endpoints/rowz:predict|404
    POST /v1/endpoints/rows:predic|404 GET /v2/models/rowz|404 GET /v2/models/rows/versions/9|404
    GET /health/|404 GET //health|404 POST /v2/models/rows/versions/zzzzzzzz/infer|404
    GET /%2e%2e/settings.ini|404 GET /health%00|404
    POST /v1/endpoints/..%2Frows:predict|404 GET /docs/../../settings.ini|404"""


def test_what_is_not_there(limited_server):
    cases = re.findall(r"(\w+) (\S+)\|(\d+)", NOT_THERE) + [("GET", "/" + "a" * 5000, "404")]
    for method, path, status in cases:
        found = limited_server.request(method, path, b"{}" if method == "POST" else None)
        assert found[0] == int(status) and "error" in found[2], (path, found)
        if found[0] == 405: assert found[1]["allow"]
    assert "did you mean 'rows'" in limited_server.post("/v1/endpoints/rowz:predict", {})[2]["error"]


BAD = [b"", b"{", b"\xff\xfe", b"null", b"1", b'"text"', b"[]", b"{}", b"[1]", b"[[]]", b'{"instances": []}',
       b'{"instances": 1}',
       b'{"instances": [1]}', b"[" * 100_000, b'{"instances": [{"x": NaN}]}', b'{"instances": [{"x": 1e999}]}']


@pytest.mark.parametrize("body", BAD, ids=lambda b: repr(b[:24]))
def test_bodies_that_say_nothing(limited_server, body):
    for path in (PREDICT, EXPLAIN, INFER, FEEDBACK):
        status, _, found = limited_server.post(path, body)
        assert status == 400 and isinstance(found["error"], str) and found["error"], path


ROW = dict(x=.5, count=3, place="Amsterdam", known=True, when="2026-01-05T10:00:00")


@pytest.mark.parametrize("change, column", [
    (dict(x="a"), "x"), (dict(x=11), "x"), (dict(x=[1]), "x"), (dict(x={}), "x"), (dict(count=3.5), "count"),
    (dict(count=-1), "count"),
    (dict(count=None), "count"), (dict(count=True), "count"), (dict(known="yes"), "known"), (dict(known=None), "known"),
    (dict(when="yesterday"), "when"), (dict(place=[7]), "place"), (dict(colour="red"), "colour")])
def test_rows_that_break_the_contract_are_named(limited_server, change, column):
    status, _, found = limited_server.post(PREDICT, {"instances": [ROW, ROW | change]})
    assert status == 400 and any(v["row"] == 1 and v["column"] == column for v in found["violations"]), found
    assert column in found["error"]
    assert limited_server.post(PREDICT, {"instances": [ROW, ROW]})[0] == 200


def test_a_missing_column_and_too_many_rows(limited_server):
    status, _, found = limited_server.post(PREDICT, {"instances": [{k: v for k, v in ROW.items() if k != "count"}]})
    assert status == 400 and "count" in found["error"]
    status, _, found = limited_server.post(PREDICT, {"instances": [ROW] * 201})
    assert status == 400 and "200" in found["error"]


def raw(server, data, more=(), pause=0.0, wait=10):
    "Send bytes as they are; the status that came back, or None for a connection that was closed."
    with socket.create_connection(("127.0.0.1", server.port), timeout=wait) as s:
        with contextlib.suppress(OSError):
            for part in (data, *more):
                s.sendall(part)
                if pause: time.sleep(pause)
        with contextlib.suppress(OSError):
            found = s.recv(65536)
            return int(found.split()[1]) if found else None


def head(path, *lines): return "\r\n".join([f"POST {path} HTTP/1.1", "host: localhost", *lines, "", ""]).encode()


def test_bodies_that_are_too_large(limited_server):
    mib = 1 << 20
    # said so, and is refused before it comes
    assert raw(limited_server, head(PREDICT, f"content-length: {mib + 1}")) == 413
    before = limited_server.metric("mlops_nb_requests_total", status="413")
    # it is closed while the client sends, who may not read why
    raw(limited_server, head(PREDICT, f"content-length: {8 * mib}"), [b" " * mib] * 8)
    assert limited_server.metric("mlops_nb_requests_total", status="413") == before + 1
    chunk = b"%x\r\n" % 65536 + b" " * 65536 + b"\r\n"
    # says nothing, and is refused while it comes
    assert raw(limited_server, head(PREDICT, "transfer-encoding: chunked"), [chunk] * 17) == 413
    whole = json.dumps([ROW]).encode()
    assert raw(limited_server, head(PREDICT, "transfer-encoding: chunked"),
               [b"%x\r\n%b\r\n0\r\n\r\n" % (len(whole), whole)]) == 200
    assert limited_server.post(PREDICT, b" " * (mib - 400) + json.dumps([ROW]).encode())[0] == 200


def test_slow_bodies_end_and_hold_nobody_up(limited_server):
    started = time.monotonic()
    assert raw(limited_server, head(PREDICT, "content-length: 10"), [b"{"]) == 408
    assert .9 < time.monotonic() - started < 8
    assert raw(limited_server, head(PREDICT, "transfer-encoding: chunked"), [b"1\r\n{\r\n"] * 4, pause=.5) == 408
    assert limited_server.post(PREDICT, [ROW])[0] == 200


def test_what_is_no_http_is_closed_or_refused(limited_server):
    for data in (b"\x00" * 100, b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
                 b"GET /\xff HTTP/1.1\r\nhost: localhost\r\n\r\n",
                 head(PREDICT, "content-length: -1"), head(PREDICT, "content-length: 1", "content-length: 2"),
                 head(PREDICT, "content-length: " + "9" * 40), head(PREDICT, "x-big: " + "y" * 500_000)):
        assert raw(limited_server, data, wait=3) in (None, 400, 404, 405, 413, 414, 431, 505)
    assert limited_server.post(PREDICT, [ROW])[0] == 200


def test_clients_that_hang_up(limited_server):
    whole = json.dumps([ROW]).encode()
    for i in range(30):
        with socket.create_connection(("127.0.0.1", limited_server.port)) as s:
            s.sendall(head(PREDICT, f"content-length: {len(whole)}") + whole[:len(whole) * (i % 4) // 3])
    limited_server.until(lambda: limited_server.post(PREDICT, [ROW])[0] == 200, "free again", 5)
    assert "Traceback" not in limited_server.output


def test_a_deadline(limited_server):
    assert limited_server.post(PREDICT, [ROW], {"x-deadline-ms": "5000"})[0] == 200
    status, _, found = limited_server.post(PREDICT, [ROW], {"x-deadline-ms": "0"})
    assert status == 504 and "deadline" in found["error"]
    for bad in ("", "-1", "1.5", "soon", "\u0661"):
        with contextlib.suppress(UnicodeEncodeError):
            assert limited_server.post(PREDICT, [ROW], {"x-deadline-ms": bad})[0] == 400
    body = json.dumps([ROW]).encode()
    assert raw(limited_server, head(PREDICT, f"content-length: {len(body)}", "x-deadline-ms: 200"),
               [body[:5], body[5:]], pause=.4) == 504


def test_a_full_queue_says_when_to_come_back(limited_server):
    body = json.dumps([ROW]).encode()
    held = [socket.create_connection(("127.0.0.1", limited_server.port)) for _ in range(8)]
    try:
        for s in held: s.sendall(head(PREDICT, f"content-length: {len(body)}") + body[:5])
        until(lambda: limited_server.metric("mlops_nb_in_flight_requests") == 8, "held")
        status, headers, found = limited_server.post(PREDICT, [ROW])
        assert (status, headers["retry-after"]) == (503, "1") and "try again" in found["error"]
        assert {limited_server.get(path)[0] for path in ("/health", "/v2/health/ready", "/metrics")} == {200}
        for s in held: s.sendall(body[5:])
        for s in held: assert s.recv(100).startswith(b"HTTP/1.1 200")
    finally:
        for s in held: s.close()
    assert limited_server.post(PREDICT, [ROW])[0] == 200
    assert limited_server.metric("mlops_nb_rejected_requests_total", reason="max_in_flight") >= 1


def test_bodies_of_errors_tell_no_secrets(limited_server):
    for path in (PREDICT, INFER, EXPLAIN, FEEDBACK):
        for body in BAD:
            text = json.dumps(limited_server.post(path, body)[2])
            assert "Traceback" not in text and str(limited_server.root) not in text and ".py" not in text


def test_paths_that_are_kept_are_bounded():
    paths = PathMatcher(ROUTES)
    assert paths["/v2/models/" + "m" * 300] and not paths
    for i in range(3000): assert paths[f"/v2/models/m{i}"] and paths[f"/none/{i}"] is None
    assert len(paths) <= 1024


def test_pages_of_other_sites_get_nothing(limited_server):
    "What a browser would send for them: another origin, a name that leads here, a body that needs no leave."
    def ask(**headers): return limited_server.post(PREDICT, [ROW], headers)
    host = f"localhost:{limited_server.port}"
    assert ask(host=host)[0] == ask(host=host, origin=f"http://{host}")[0] == ask(host="[::1]:80")[0] == 200
    for origin in ("http://evil.example", "null", f"http://{host}.evil.example", "", f"http://{host}@evil.example"):
        assert ask(host=host, origin=origin)[0] == 403, origin
    for name in ("evil.example", "localhost.evil.example", "127.evil.example", "0.0.0.0", "[::2]", "[", "a:b:c", ""):
        status, _, found = ask(host=name)
        assert status == 421 and "loopback" in found["error"], name
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", ";"):
        status, _, found = ask(**{"content-type": kind})
        assert status == 415 and "application/json" in found["error"], kind
    for kind in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.api+json"):
        assert ask(**{"content-type": kind})[0] == 200, kind


def test_the_clock_of_a_server_survives_what_it_finds():
    "A key file that raises what nobody thought of; the timer comes again all the same."
    class Loop:
        calls = []
        def call_later(self, seconds, f): self.calls.append(f)
    def fail(): raise RuntimeError("nobody thought of this")
    app = App.__new__(App)
    app._loop, app._bodies, app._in_flight, app._tick_error = Loop(), {}, 0, ""
    app.settings = SimpleNamespace(read_timeout_seconds=1)
    app.metrics = SimpleNamespace(in_flight_requests=SimpleNamespace(set=lambda n: None))
    app.authenticator = SimpleNamespace(reload_if_changed=fail)
    app._tick()
    assert Loop.calls == [app._tick]


def test_many_clients_at_once_each_get_their_own_answer(limited_server, predictor):
    rows = serving.instances(64, seed=11)
    wanted, wrong = expected(predictor, rows), []

    def ask(i):
        c = limited_server.connect()
        for k in range(i, 64, 4):
            status, _, found = limited_server.post(PREDICT, [rows[k]], {"x-request-id": f"c{i}-{k}"}, c)
            if status != 200 or (found["id"], found["predictions"][0]["score"]) != (f"c{i}-{k}", wanted[k]):
                wrong.append((k, found))
        c.close()
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(4)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    assert not wrong


def test_http2(limited_server):
    if not shutil.which("curl") or "HTTP2" not in subprocess.run(["curl", "-V"], capture_output=True, text=True,
                                                                 timeout=10).stdout:
        pytest.skip("there is no curl that speaks HTTP/2")
    done = subprocess.run(["curl", "-s", "--http2-prior-knowledge", "-H", "content-type: application/json",
                           "-d", json.dumps([ROW]), "-w",
                           " %{http_version} %{http_code}",
                           f"http://127.0.0.1:{limited_server.port}{PREDICT}"], capture_output=True, text=True,
                           timeout=20)
    assert done.stdout.endswith("} 2 200")


def test_a_connection_stays(limited_server):
    c = http.client.HTTPConnection("127.0.0.1", limited_server.port, timeout=10)
    for _ in range(3): assert limited_server.request("GET", "/health", connection=c)[0] == 200
    c.close()
