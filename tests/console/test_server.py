"The operations API over a real socket: who may do what, what is refused, and what stands in the ledger afterwards."
import http.client
import json
import socket

import jsonschema
import pytest
from console.conftest import NASTY, facts

from mlops_nb.config.api_keys import create_api_key, revoke_api_key
from mlops_nb.config.settings import ConsoleSettings
from mlops_nb.console.routes import API_ROUTES
from mlops_nb.console.server import CONSOLE_ROUTES, MAX_BODY_BYTES, start_console
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.runs import RUN_STATES, queue_run, run_status

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_each_route_needs_the_scope_it_should():
    "Nothing acts without `operate`, and only what holds no data is public."
    assert {(r.method, r.scope) for r in CONSOLE_ROUTES} == {("GET", "public"), ("GET", "read"), ("POST", "operate")}
    assert {r.path for r in CONSOLE_ROUTES if r.scope == "public"} == {"/", "/health"}


@pytest.mark.parametrize("route", [r for r in CONSOLE_ROUTES if r.method == "POST"], ids=lambda r: r.path)
def test_to_act_needs_an_operators_key_also_where_reading_is_open(console, route):
    path = route.path.format(run="r01running", trigger="retrain", schedule="daily", alert="A1",
                             release=console.release.id)
    assert console.ask("POST", path, {})[0] == 401
    assert console.ask("POST", path, {}, key="eve")[0] == 403
    assert console.ask("POST", path, {}, key="0123.none")[0] == 401


@pytest.mark.parametrize("path", [r.path for r in API_ROUTES if r.method == "GET" and "{" not in r.path
                                  and r.path not in ("/v1/ledger", "/v1/key")])
def test_what_may_be_read_is_read_and_is_what_the_document_says(console, path):
    status, found = console.ask("GET", path)
    assert status == 200, found
    document = console.ask("GET", "/openapi.json")[1]
    schema = document["paths"][path]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    jsonschema.validate(found, schema | {"components": document["components"]})


def test_the_document_is_openapi(console):
    import schemathesis
    document = console.ask("GET", "/openapi.json")[1]
    assert len(list(schemathesis.openapi.from_dict(document).get_all_operations())) == len(API_ROUTES)


def test_a_run_with_its_steps_and_its_graph(console):
    status, found = console.ask("GET", "/v1/runs/r01")
    assert status == 200 and found["run"]["id"] == "r01running"
    assert [(n["name"], n["status"], n["level"]) for n in found["graph"]] == [
        ("validate", "done", 0), ("train", "running", 1), ("gate", "waiting", 2)]
    assert console.ask("GET", "/v1/runs/r99")[0] == console.ask("GET", "/v1/runs/r0")[0] == 404 # none; several
    status, found = console.ask("GET", "/v1/runs/r00failed/compare/r01running")
    assert status == 200 and any(line.split()[0] == "status" for line in found["lines"])


def test_runs_come_in_pages_that_hold_each_once(console):
    for i in range(7): queue_run(console.ledger, f"rpage{i}", facts(trigger="paged"), by="ana")
    seen, before = [], ""
    while before is not None:
        status, page = console.ask("GET", f"/v1/runs?trigger=paged&limit=3{before and f'&before={before}'}")
        assert status == 200
        seen += [r["id"] for r in page["runs"]]
        if before == "": queue_run(console.ledger, "rpage-late", facts(trigger="paged")) # comes on top meanwhile
        before = page["next"]
    assert seen == [f"rpage{i}" for i in range(6, -1, -1)]
    assert {r["status"] for r in console.ask("GET", "/v1/runs?status=failed")[1]["runs"]} == {"failed"}


@pytest.mark.parametrize("query, says", [
    ("limit=0", "whole number"), ("limit=201", "whole number"), ("limit=x", "whole number"),
    ("before=-1", "whole number"), ("before=" + "9" * 40, "whole number"), ("status=lost", "no status"),
    ("stauts=failed", "no parameter"), ("limit=%FF", "whole number"), ("limit=", "whole number")])
def test_a_filter_that_is_misspelt_is_refused(console, query, says):
    status, found = console.ask("GET", f"/v1/runs?{query}")
    assert status == 400 and says in found["error"]


def test_to_ask_twice_for_a_run_is_to_ask_once(console):
    (console.root / "data.dvc").write_text("outs: [{path: data, md5: 1}]\n")
    status, first = console.ask("POST", "/v1/runs", {"reason": "new tariffs"}, key="ana")
    assert (status, first["new"], first["status"]) == (202, True, "queued")
    status, again = console.ask("POST", "/v1/runs", {"reason": "once more"}, key="bo")
    assert (status, again["new"], again["id"]) == (200, False, first["id"])
    assert console.by(first["id"], "run.queued") == ["ana"]


def test_a_run_is_ended_and_begun_again_by_people(console):
    queue_run(console.ledger, "rstop", facts(), by="ana")
    assert console.ask("POST", "/v1/runs/rstop/resume", {}, key="ana")[0] == 409 # it has not ended
    assert console.ask("POST", "/v1/runs/rstop/cancel", {"reason": "wrong data"}, key="bo")[0] == 200
    assert run_status(console.ledger, "rstop") == "cancelling" and console.by("rstop", "run.cancelling") == ["bo"]
    assert console.ask("POST", "/v1/runs/r00failed/cancel", {}, key="bo")[0] == 409 # it is over
    queue_run(console.ledger, "ragain", facts(), by="ana")
    console.ledger.append("run.ended", "ragain", dict(status="failed", message="no disk", attempt=1))
    assert console.ask("POST", "/v1/runs/ragain/resume", {"reason": "the disk has room"}, key="ana")[0] == 200
    assert console.by("ragain", "run.resumed") == ["ana"]


def test_a_trigger_is_explained_and_paused(console):
    assert console.ask("GET", "/v1/triggers/retrain")[0] == 200
    assert console.ask("GET", "/v1/triggers/none")[0] == 404
    for at in ("yesterday", "2026-12-24"): assert console.ask("GET", f"/v1/triggers/retrain?at={at}")[0] == 400
    body = dict(until="2036-12-24T18:00Z", reason="holidays")
    assert console.ask("POST", "/v1/triggers/none/pause", body, key="ana")[0] == 404
    assert console.ask("POST", "/v1/triggers/yearly/pause", body, key="ana")[0] == 200
    paused = {t["name"]: t for t in console.ask("GET", "/v1/triggers")[1]}["yearly"]
    assert (paused["paused_why"], console.by("yearly", "trigger.paused")) == ("holidays", ["ana"])
    console.ask("POST", "/v1/triggers/yearly/pause", body | dict(until="2026-01-01T00:00Z"), key="bo")
    assert {t["name"]: t["paused_until"] for t in console.ask("GET", "/v1/triggers")[1]}["yearly"] == ""


def test_a_schedule_is_paused_and_goes_on(console):
    def paused(): return console.ask("GET", "/v1/schedules")[1][0]["paused_why"]
    body, over = dict(until="2036-12-24T18:00Z", reason="holidays"), dict(until="1970-01-01T00:00Z", reason="")
    assert console.ask("POST", "/v1/schedules/dayly/pause", body, key="ana")[0] == 404
    assert console.ask("POST", "/v1/schedules/daily/pause", over, key="ana")[0] == 409 # it is not paused
    assert console.ask("POST", "/v1/schedules/daily/pause", body, key="ana")[0] == 200 and paused() == "holidays"
    assert console.ask("POST", "/v1/schedules/daily/pause", over, key="bo")[0] == 200 and paused() == ""
    assert (console.by("daily", "schedule.paused"), console.by("daily", "schedule.resumed")) == (["ana"], ["bo"])


def test_the_log_of_a_run_is_what_all_processes_wrote_for_it(console):
    queue_run(console.ledger, "rlog", facts(reason="for its log"), by="ana")
    trace = console.ask("GET", "/v1/runs/rlog")[1]["run"]["trace"]
    (console.root / ".mlops/logs").mkdir(exist_ok=True)
    said = dict(time="2099-01-01T00:00:00.000+00:00", process="stage", pid=7, message="trained", trace_id=trace)
    (console.root / ".mlops/logs/other-machine.jsonl").write_text(json.dumps(said) + "\n")
    status, found = console.ask("GET", "/v1/runs/rlog/log")
    assert (status, [line["source"] for line in found["lines"]], found["left_out"]) == (200, ["ledger", "stage 7"], 0)
    assert console.ask("GET", "/v1/runs/none/log")[0] == 404


@pytest.mark.parametrize("status", RUN_STATES)
def test_runs_are_found_by_each_state_there_is(console, status):
    assert console.ask("GET", f"/v1/runs?status={status}")[0] == 200


def test_a_notice_is_written_once(console):
    body = dict(source="warehouse", key="2026-11-30", facts=dict(rows=41_000))
    assert console.ask("POST", "/v1/notices", body)[0] == 401
    one, other = (console.ask("POST", "/v1/notices", body, key="ana") for _ in range(2))
    assert one[:2] == other[:2] and one[0] == 200 and console.by("warehouse", "notice.received") == ["ana"]
    for wrong in (dict(source="a/b"), dict(key="x"), body | dict(run="rm"), body | dict(facts=[1])):
        assert console.ask("POST", "/v1/notices", wrong, key="ana")[0] == 400
    assert console.ask("POST", "/v1/notices", body | dict(facts=dict(x="y" * 20_000), key="2"), key="ana")[0] == 400


def test_alerts_are_acknowledged_silenced_and_closed(console):
    assert console.ask("POST", "/v1/alerts/A99/acknowledge", {}, key="ana")[0] == 404
    assert console.ask("POST", "/v1/alerts/A1/acknowledge", {}, key="ana")[0] == 200
    for duration, reason in (("8 hours", "x"), ("31d", "x"), ("8h", "")):
        body = dict(duration=duration, reason=reason)
        assert console.ask("POST", "/v1/alerts/A1/silence", body, key="ana")[0] == 400
    assert console.ask("POST", "/v1/alerts/A1/silence", dict(duration="8h", reason="known"), key="bo")[0] == 200
    assert console.ask("POST", "/v1/alerts/A1/close", dict(cause="a new tariff"), key="bo")[0] == 200
    found = {a["id"]: a for a in console.ask("GET", "/v1/alerts")[1]}["A1"]
    assert (found["status"], found["acked_by"], found["silenced_why"]) == ("closed", "ana", "known")


def test_a_trace_goes_from_the_request_to_the_ledger(console):
    queue_run(console.ledger, "rtrace", facts(), by="ana")
    parent = f"00-{TRACE}-00f067aa0ba902b7-01"
    assert console.ask("POST", "/v1/runs/rtrace/cancel", {}, key="ana", traceparent=parent)[0] == 200
    status, page = console.ask("GET", f"/v1/ledger?trace={TRACE}")
    assert (status, [(e["kind"], e["subject"]) for e in page["entries"]]) == (200, [("run.cancelling", "rtrace")])
    assert console.ask("GET", "/v1/ledger")[0] == 400
    first = console.ask("GET", "/v1/ledger?kind=run.queued&limit=1")[1]
    second = console.ask("GET", f"/v1/ledger?kind=run.queued&limit=1&after={first['next']}")[1]
    assert first["entries"][0]["seq"] < second["entries"][0]["seq"]


def test_runbooks_and_keys(console):
    assert console.ask("GET", "/v1/runbooks/drift")[1]["title"] == f"Drift {NASTY}"
    for name in ("none", "..%2F..%2Fsettings", "index"): assert console.ask("GET", f"/v1/runbooks/{name}")[0] == 404
    assert console.ask("GET", "/v1/key", key="eve") == (200, dict(name="eve", scopes=["read"]))
    assert console.ask("GET", "/v1/key")[0] == 401
    assert console.ask("GET", "/v1/runs", key="0123.none")[0] == 401 # a wrong key is never as good as none


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"{", b"null", b'{"until": 3}', b'{"duration": "8h", "x": 1}',
                                  b"\xff", b"[" * 5000, b'{"reason": "' + b"x" * 501 + b'"}'])
@pytest.mark.parametrize("path", ["/v1/alerts/A2/silence", "/v1/triggers/retrain/pause"])
def test_a_body_that_is_none_is_refused(console, path, body):
    status, found = console.ask("POST", path, body, key="ana")
    assert status == 400 and found["error"].count("\n") == 0, found


def test_a_large_body_is_refused_before_it_is_read(console):
    with socket.create_connection(console.address.split(":"), timeout=60) as s:
        s.sendall(f"POST /v1/runs HTTP/1.1\r\nhost: {console.address}\r\ncontent-type: application/json\r\n"
                  f"authorization: Bearer {console.keys['ana']}\r\ncontent-length: {50 << 20}\r\n\r\n".encode())
        assert s.recv(100).startswith(b"HTTP/1.1 413") # not a byte of it was sent
    connection = http.client.HTTPConnection(console.address, timeout=60)
    pieces = (b"x" * 8192 for _ in range(MAX_BODY_BYTES // 8192 + 1))
    connection.request("POST", "/v1/runs", pieces, {"content-type": "application/json", "transfer-encoding": "chunked",
                                                    "authorization": f"Bearer {console.keys['ana']}"},
                       encode_chunked=True)
    assert connection.getresponse().status == 413


@pytest.mark.parametrize("headers, status", [
    (dict(content_type="text/plain"), 415), (dict(content_encoding="gzip"), 415),
    (dict(origin="http://evil.example"), 403), (dict(host="evil.example"), 421), (dict(x_request_id="a b"), 400)])
def test_pages_of_others_and_odd_requests_are_kept_out(console, headers, status):
    assert console.ask("POST", "/v1/runs", {}, key="ana", **headers)[0] == status


def test_other_methods_and_paths(console):
    status, headers, _ = console.send("DELETE", "/v1/runs")
    assert status == 405 and headers["allow"] == "GET, HEAD, POST"
    assert console.ask("GET", "/v2")[0] == 404
    assert console.send("HEAD", "/v1/runs")[0] == 200 and console.send("HEAD", "/v1/events")[0] == 200
    assert console.send("GET", "/health")[0] == 200


def test_the_page_may_load_and_run_nothing_else(console):
    status, headers, body = console.send("GET", "/", key="")
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert headers["cache-control"] == "no-store" and headers["x-content-type-options"] == "nosniff"
    assert b"tenure" not in body # no data


def test_answers_are_compressed_where_the_client_reads_that(console):
    import gzip
    _, headers, body = console.send("GET", "/v1/overview", accept_encoding="gzip")
    assert headers["content-encoding"] == "gzip" and json.loads(gzip.decompress(body))["project"] == "project"


def test_an_address_for_others_needs_keys_and_tls(tmp_path):
    def start(text):
        (tmp_path / "settings.ini").write_text(f"[console]\nhost = 0.0.0.0\n{text}")
        start_console(tmp_path)
    with pytest.raises(UserError, match=r"\[console\] says host = 0.0.0.0 and auth = none"): start("")
    with pytest.raises(UserError, match=r"\[console\] says host = 0.0.0.0 without TLS"): start("auth = api_key\n")
    with pytest.raises(ValueError, match="TLS needs both"): ConsoleSettings(tls_certificate_file="a.pem")


def test_a_port_that_is_taken_is_said(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        (tmp_path / "settings.ini").write_text(f"[console]\nport = {taken.getsockname()[1]}\n")
        with pytest.raises(UserError, match=r"cannot be listened on.*\[console\]"): start_console(tmp_path)


def test_without_a_key_nothing_is_read_where_keys_are_asked_for(tmp_path):
    (tmp_path / "settings.ini").write_text("[console]\nport = 0\nauth = api_key\n")
    url = start_console(tmp_path)
    def ask(path, key=""):
        headers = {"authorization": f"Bearer {key}"} if key else {}
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        connection.request("GET", path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.read()
    assert "mlops-nb key add" in json.loads(ask("/v1/runs")[1])["error"] # there is no key at all yet
    key = create_api_key(tmp_path / ".mlops/keys.json", "eve", ["read"])
    assert {ask(path)[0] for path in ("/v1/overview", "/v1/runs", "/v1/events", "/openapi.json")} == {401}
    assert ask("/")[0] == ask("/health")[0] == ask("/v1/runs", key)[0] == 200
    revoke_api_key(tmp_path / ".mlops/keys.json", "eve")
    assert ask("/v1/runs", key)[0] == 401 # with the next request
