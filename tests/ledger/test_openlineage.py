"OpenLineage: every event is one of the standard; the outbox loses nothing, sends in order, and holds nobody up."
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import get_args, get_origin, get_type_hints

import attr
import pytest
from openlineage.client import event_v2, facet_v2

from mlops_nb.core.errors import UserError
from mlops_nb.ledger import lineage_outbox
from mlops_nb.ledger.ledger import Ledger, open_ledger
from mlops_nb.ledger.lineage_outbox import _write_file, send_lineage, start_lineage
from mlops_nb.ledger.openlineage import LINEAGE_KINDS, LineageNames, lineage_events
from mlops_nb.ledger.runs import end_run, queue_run, record_step

NAMES = LineageNames("mlops-nb", "churn")
DATA = dict(path="data", bytes=100, counts=dict(rows=5, columns=dict(x=dict(rows=5, missing=1, min=0.5, max=9.0),
                                                                   city=dict(rows=5, missing=0))))
PREPARED = dict(path="artifacts/prepared", bytes=50, columns=[["x", "Float64"], ["ratio", "Float64"]],
                sources={"artifacts/accepted": {"x": ["x"], "ratio": ["x", "y"]}})


def run(ledger, id="r1", how="succeeded"):
    queue_run(ledger, id, dict(commit="c", data="d", params=id, trigger="retrain"))
    attempt = ledger.begin_attempt(id, "a")
    with record_step(ledger, id, attempt, "prepare") as facts:
        facts["datasets"] = dict(inputs=[DATA], outputs=[PREPARED])
    with pytest.raises(ValueError), record_step(ledger, id, attempt, "step train"): raise ValueError("no rows")
    end_run(ledger, id, attempt, how, "So.")


def all_events(ledger, id):
    entries = ledger.entries(id)
    return [event for e in entries if e.kind in LINEAGE_KINDS for event in lineage_events(NAMES, e, entries)]


FACETS = {"jobType": facet_v2.job_type_job.JobTypeJobFacet, "schema": facet_v2.schema_dataset.SchemaDatasetFacet,
          "columnLineage": facet_v2.column_lineage_dataset.ColumnLineageDatasetFacet,
          "dataQualityMetrics": facet_v2.data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet,
          "outputStatistics": facet_v2.output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet,
          "parent": facet_v2.parent_run.ParentRunFacet, "errorMessage": facet_v2.error_message_run.ErrorMessageRunFacet}


def as_class(kind, value):
    "Plain data as a class that the project OpenLineage generates from its JSON schemas; an unknown field is an error."
    if get_origin(kind) in (list, dict):
        inner = get_args(kind)[-1]
        return [as_class(inner, v) for v in value] if isinstance(value, list) else {
            k: as_class(FACETS.get(k, inner), v) for k, v in value.items()}
    options = [k for k in get_args(kind) if k is not type(None)]
    if options: return as_class(options[0], value)
    if not attr.has(kind): return value
    types = get_type_hints(kind)
    schema = value.get("_schemaURL") or value.get("schemaURL")
    made = kind(**{k.lstrip("_"): as_class(types[k], v) for k, v in value.items()
                   if k not in ("_schemaURL", "schemaURL")})
    if schema: assert schema == kind._get_schema()
    return made


def check(event):
    event = json.loads(json.dumps(event))
    event["run"]["facets"].pop("mlops_nb_entry", None)  # our own facet
    made = as_class(event_v2.RunEvent, event | dict(eventType=event_v2.RunState[event["eventType"]]))
    assert made.run.runId == event["run"]["runId"]


@pytest.mark.parametrize("how, last", [("succeeded", "COMPLETE"), ("rejected", "COMPLETE"), ("failed", "FAIL"),
                                       ("cancelled", "ABORT")])
def test_every_event_is_of_the_standard(in_sqlite, how, last):
    ledger = Ledger(in_sqlite)
    run(ledger, how=how)
    events = all_events(ledger, "r1")
    for event in events: check(event)
    assert [e["eventType"] for e in events] == ["START", "START", "COMPLETE", "START", "FAIL", last]
    assert events == all_events(ledger, "r1")  # the same, whenever they are made
    starts = {e["run"]["runId"] for e in events if e["eventType"] == "START"}
    assert len(starts) == 3 and all(e["run"]["runId"] in starts for e in events)
    prepared = events[2]
    assert prepared["inputs"][0]["inputFacets"]["dataQualityMetrics"]["columnMetrics"]["x"]["nullCount"] == 1
    sources = prepared["outputs"][0]["facets"]["columnLineage"]["fields"]["ratio"]["inputFields"]
    assert [f["field"] for f in sources] == ["x", "y"]
    assert prepared["run"]["facets"]["parent"]["run"]["runId"] == events[0]["run"]["runId"]


def test_what_a_killed_attempt_left_is_aborted(in_sqlite):
    ledger = Ledger(in_sqlite)
    queue_run(ledger, "r1", dict(commit="c", data="d", params="p", trigger="retrain"))
    first = ledger.begin_attempt("r1", "a")
    ledger.append("step.started", "r1", dict(step="step train", attempt=first))
    end_run(ledger, "r1", ledger.begin_attempt("r1", "b"), "succeeded", "Released.")
    ledger.append("run.resumed", "r1", dict(status="queued"))
    ledger.begin_attempt("r1", "c")  # after an end nothing is left to abort
    found = [(e["eventType"], e["job"]["name"]) for e in all_events(ledger, "r1")]
    assert found == [("START", "churn"), ("START", "churn.step.train"), ("ABORT", "churn.step.train"),
                     ("ABORT", "churn"), ("START", "churn"), ("COMPLETE", "churn"), ("START", "churn")]
    for event in all_events(ledger, "r1"): check(event)


@pytest.fixture
def project(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n[lineage]\nurl = file:lineage/events.jsonl\n")
    return tmp_path


def written(project):
    path = project / "lineage" / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_each_event_once_in_order(project, monkeypatch):
    monkeypatch.setattr(lineage_outbox, "_BATCH", 2)
    ledger = open_ledger(project)
    assert send_lineage(project) == 0
    for n in range(3): run(ledger, f"r{n}")
    with ThreadPoolExecutor(4) as pool: assert sum(pool.map(lambda _: send_lineage(project), range(4))) >= 6
    send_lineage(project)
    places = [tuple(e["run"]["facets"]["mlops_nb_entry"][k] for k in ("seq", "part")) for e in written(project)]
    assert places == sorted(set(places)) and len(places) == 18
    for event in written(project): check(event)


def test_a_crash_between_writing_and_remembering(project, monkeypatch):
    "Killed after the file was written, and in the midst of a line: each event is there once."
    ledger = open_ledger(project)
    send_lineage(project)
    run(ledger)

    def killed(*_): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(lineage_outbox, "_advance", killed)
        with pytest.raises(KeyboardInterrupt): send_lineage(project)
    path, whole = project / "lineage" / "events.jsonl", written(project)
    assert len(whole) == 6
    path.write_bytes(path.read_bytes()[:-40])  # as if the disk had been full
    assert send_lineage(project) == 0  # claimed, for some minutes, by the one that was killed
    with ledger._write() as connection: connection.exec_driver_sql("UPDATE cursors SET busy_until = 0")
    send_lineage(project)
    assert written(project) == whole


def test_half_an_entry_is_completed(tmp_path):
    def event(seq, part): return dict(run=dict(facets=dict(mlops_nb_entry=dict(seq=seq, part=part))))
    path = tmp_path / "x.jsonl"
    _write_file(path, [(1, [event(1, 0)])])
    _write_file(path, [(1, [event(1, 0), event(1, 1)]), (2, [event(2, 0)])])
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [event(1, 0), event(1, 1), event(2, 0)]


@pytest.fixture
def server():
    "A lineage server that answers with `status`, and keeps what it took."
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            http.asked.append((self.path, self.headers.get("authorization")))
            if http.status < 300: http.taken.append(json.loads(body))
            self.send_response(http.status)
            self.end_headers()
        def log_message(self, *_): pass
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.status, http.taken, http.asked = 201, [], []
    http.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield http
    http.shutdown()
    http.server_close()


def test_a_server_that_was_away_gets_everything(project, server, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LINEAGE_URL", server.url)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "sesame")
    ledger = open_ledger(project)
    send_lineage(project)
    run(ledger)
    for server.status in (503, 401, 429):
        with pytest.raises(UserError, match="127.0.0.1 takes no events"): send_lineage(project)
    server.status = 201
    assert send_lineage(project) == 6 and send_lineage(project) == 0
    assert [e["eventType"] for e in server.taken] == ["START", "START", "COMPLETE", "START", "FAIL", "COMPLETE"]
    assert set(server.asked) == {("/api/v1/lineage", "Bearer sesame")}


def test_an_event_that_is_refused_for_ever_does_not_hold_up_the_rest(project, server, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LINEAGE_URL", server.url + "/own/path")
    send_lineage(project)
    run(open_ledger(project))
    server.status = 422
    assert send_lineage(project) == 6 and server.taken == []
    assert {path for path, _ in server.asked} == {"/own/path"}


def test_a_sender_goes_on_after_whatever(project, server, monkeypatch):
    from mlops_nb.config.settings import read_settings
    monkeypatch.setenv("MLOPS_NB_LINEAGE_URL", server.url)
    send_lineage(project)
    run(open_ledger(project))
    server.status = 500
    sender = start_lineage(project, read_settings(project))
    sender.stopped.set()
    sender.join(60)
    sender.send()
    assert "takes no events" in sender.said
    server.status = 200
    sender.send()
    assert sender.said == "" and len(server.taken) == 6
    monkeypatch.setenv("MLOPS_NB_LINEAGE_URL", "")
    assert start_lineage(project, read_settings(project)) is None


def test_an_address_that_is_none_is_said(project, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LINEAGE_URL", "nonsense")
    send_lineage(project)
    run(open_ledger(project))
    with pytest.raises(UserError, match="takes no events"): send_lineage(project)


def test_switched_on_late_it_begins_with_the_open_runs(project):
    ledger = open_ledger(project)
    run(ledger, "old")
    queue_run(ledger, "open", dict(commit="c", data="d", params="o", trigger="retrain"))
    attempt = ledger.begin_attempt("open", "a")
    run(ledger, "later")
    send_lineage(project)
    end_run(ledger, "open", attempt, "succeeded", "Released.")
    send_lineage(project)
    ids = {e["run"]["runId"] for e in written(project) if e["job"]["name"] == "churn"}
    assert ids == {NAMES.run_id("open", 1), NAMES.run_id("later", 1)}
    assert written(project)[0]["eventType"] == "START"
