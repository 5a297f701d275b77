"The table of run states: whatever is appended, by whomever, it says what the entries say; older ledgers get it."
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from mlops_nb.core.trace_context import new_trace, use_trace
from mlops_nb.ledger import ledger as module
from mlops_nb.ledger.ledger import Ledger
from mlops_nb.ledger.runs import RUN_ENDS, end_run, list_runs, open_runs, queue_run, read_run, record_step

ENTRIES = st.lists(st.tuples(st.sampled_from(["r1", "r2", "x"]), st.sampled_from(
    ["run.queued", "run.attempt", "run.ended", "run.cancelling", "run.resumed", "run.artifact", "step.started"]),
    st.sampled_from(["queued", "running", "succeeded", "failed", None])), max_size=12)
COLUMNS = "id, seq, queued_at, trigger_name, status, attempts, ended_seq"


def rebuilt(ledger):
    "What the migration would make of the entries."
    with ledger._write() as connection:
        kept = [tuple(r) for r in connection.execute(text(f"SELECT {COLUMNS} FROM run_states ORDER BY id"))]
        connection.exec_driver_sql("DELETE FROM run_states")
        connection.exec_driver_sql(module._for_dialect(connection.dialect.name, module._FILL_RUN_STATES))
        made = [tuple(r) for r in connection.execute(text(f"SELECT {COLUMNS} FROM run_states ORDER BY id"))]
    return kept, made


def _append(ledger, entries):
    for subject, kind, status in entries:
        data = dict(trigger="retrain") | ({} if status is None else dict(status=status))
        key = f"run/{subject}/queued" if kind == "run.queued" else ""
        ledger.append(kind, subject, data, key=key)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(ENTRIES)
def test_it_says_what_the_entries_say(tmp_path_factory, entries):
    "An entry without a status keeps the one before."
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('l')}/ledger.db")
    _append(ledger, entries)
    kept, made = rebuilt(ledger)
    assert kept == made


def test_on_both_databases(uri):
    ledger = Ledger(uri)
    _append(ledger, [("r1", "run.queued", "queued"), ("r1", "run.attempt", "running"), ("r1", "run.artifact", None),
                     ("r2", "run.attempt", "running"), ("r2", "run.queued", "queued"), ("r1", "run.ended", "failed")])
    assert open_runs(ledger) == ["r2"] and [r.id for r in list_runs(ledger)] == ["r2", "r1"]
    assert read_run(ledger, "r1").attempts == 1


def test_a_client_of_the_database_keeps_it_too(uri):
    ledger = Ledger(uri)
    queue_run(ledger, "r1", dict(trigger="retrain"))
    with ledger._write() as connection:
        connection.execute(text("INSERT INTO ledger (at, \"by\", kind, subject, data) VALUES ('2026-01-01', 'x', "
                                "'run.ended', 'r1', :data)"), dict(data=json.dumps(dict(status="failed", message=""))))
    assert read_run(ledger, "r1").status == "failed" and open_runs(ledger) == []


def test_pages_and_filters(uri):
    ledger = Ledger(uri)
    for n in range(10):
        queue_run(ledger, f"r{n}", dict(trigger="retrain" if n % 2 else "nightly", commit="c", data="d", params="p"))
        if n < 8: end_run(ledger, f"r{n}", ledger.begin_attempt(f"r{n}", "a"), RUN_ENDS[n % 4], "So.")
    first = list_runs(ledger, 3)
    second = list_runs(ledger, 3, before=first[-1].seq)
    assert [r.id for r in [*first, *second]] == ["r9", "r8", "r7", "r6", "r5", "r4"]
    assert [r.id for r in list_runs(ledger, status="failed")] == ["r6", "r2"]
    assert [r.id for r in list_runs(ledger, trigger="nightly", status="queued")] == ["r8"]
    assert list_runs(ledger, status="nonsense") == [] and open_runs(ledger) == ["r8", "r9"]


def test_each_list_goes_through_an_index(in_sqlite):
    ledger = Ledger(in_sqlite)
    queue_run(ledger, "r1", dict(trigger="retrain"))
    for sql in ("SELECT * FROM runs WHERE status = 'failed' ORDER BY seq DESC LIMIT 20",
                "SELECT * FROM runs WHERE trigger_name = 'x' ORDER BY seq DESC LIMIT 20",
                "SELECT * FROM runs WHERE id = 'r1'", "SELECT * FROM steps WHERE run = 'r1' ORDER BY seq",
                "SELECT * FROM steps WHERE run IN (SELECT id FROM run_states WHERE queued_at >= '2026')"):
        plan = [p["detail"] for p in ledger.query(f"EXPLAIN QUERY PLAN {sql}")]
        assert not [p for p in plan if p.startswith("SCAN") and "USING" not in p], (sql, plan)
    steps = [p["detail"] for p in ledger.query("EXPLAIN QUERY PLAN SELECT * FROM steps WHERE run = 'r1' ORDER BY seq")]
    assert "ledger_subject_kind (subject=? AND kind=?)" in steps[0]


def test_an_older_ledger_gets_it(uri, monkeypatch):
    "Runs of before are listed as after; later entries carry their trace."
    with monkeypatch.context() as m:
        m.setattr(module, "_MIGRATIONS", module._MIGRATIONS[:2])
        old = Ledger(uri)
        for id, how in (("r1", "failed"), ("r2", "")):
            queue_run(old, id, dict(trigger="retrain", commit="c", data="d", params="p"))
            if how: end_run(old, id, old.begin_attempt(id, "a"), how, "So.")
    ledger = Ledger(uri)
    assert [(r.id, r.status, r.attempts) for r in list_runs(ledger)] == [("r2", "queued", 0), ("r1", "failed", 1)]
    with use_trace(new_trace()) as trace: entry = ledger.append("note", "r2")
    assert entry.trace == trace.trace_id and open_runs(ledger) == ["r2"]


def test_a_run_stays_in_the_trace_of_who_asked(uri):
    ledger = Ledger(uri)
    with use_trace(new_trace()) as asked: queue_run(ledger, "r1", dict(trigger="retrain"))
    attempt = ledger.begin_attempt("r1", "a")
    with record_step(ledger, "r1", attempt, "train"): ledger.append("release.started", "rel-1", dict(bundle="b"))
    step, release = (ledger.query("SELECT trace, data FROM ledger WHERE kind = :kind", kind=kind)[0]
                     for kind in ("step.started", "release.started"))
    assert step["trace"] == release["trace"] == asked.trace_id == read_run(ledger, "r1").trace
    assert len(json.loads(step["data"])["span"]) == 16
    assert ledger.resume_trace("rel-1").trace_id == asked.trace_id != ledger.resume_trace("nothing").trace_id
