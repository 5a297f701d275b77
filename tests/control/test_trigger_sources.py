"Sources that triggers watch: none holds up the others, what is new is ingested before the run, and nothing is lost."
import threading
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from support.controlled_project import git, until
from support.triggered_project import finish, outcome, project, runs

from mlops_nb.config.triggers import Trigger
from mlops_nb.control import trigger_sources
from mlops_nb.control.trigger_evaluation import evaluate_triggers, explain_trigger
from mlops_nb.control.trigger_sources import ingest_sources, look_at_all, look_at_sources
from mlops_nb.core.errors import UserError
from mlops_nb.data.incremental_ingest import ingest_new, new_objects, read_source_state
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor.alerts import read_alerts
from mlops_nb.monitor.trigger_checks import check_trigger_errors


def watching(root, more=""):
    text = f"retrain: {{when: {{any: [{{new_objects: {{url: {root}/exports}}}}]}}{more}}}"
    root = project(root, text)
    (root / "exports").mkdir()
    return root


def csv(root, name, *values): (root / "exports" / name).write_text("id\n" + "".join(f"{v}\n" for v in values))


@pytest.fixture
def in_process(monkeypatch):
    "The command runs in this process: starting one takes seconds. `test_the_command_itself` starts it."
    def run(root, source):
        if ingest_new(f"file://{source.url}", root):
            (root / "data.dvc").write_text((root / "data" / "manifest.json").read_text())
    monkeypatch.setattr(trigger_sources, "_ingest", run)


def test_what_does_not_answer_in_time_is_an_error_and_is_not_begun_twice():
    gate, begun = threading.Event(), []
    def slow():
        begun.append(1)
        gate.wait()
        return "late"
    def fails(): raise UserError("no such bucket.")
    for _ in range(2):
        found = look_at_all("/p", {"slow": slow, "fast": lambda: 1, "bad": fails}, timeout_seconds=.05)
        assert found["fast"] == 1 and str(found["bad"]) == "no such bucket."
        assert "slow has not answered since" in str(found["slow"])
    assert begun == [1]
    gate.set()
    until(lambda: look_at_all("/p", {"slow": slow})["slow"] == "late")


def test_a_source_that_is_away_holds_nobody_up_is_written_once_and_alerted_when_it_lasts(tmp_path):
    root = project(tmp_path / "p", "away: {when: {any: [{new_objects: {url: /gone/away}}]}}\n"
                                   "retrain: {when: {any: [{new_data: {}}]}}\n")
    now = datetime.now(UTC)
    for _ in range(3): found = evaluate_triggers(root, now)
    assert (found["away"].outcome, found["away"].clause) == ("error", "new_objects")
    assert found["retrain"].outcome == "not_due"
    ledger = open_ledger(root)
    assert len(ledger.entries("away", ("trigger.evaluated",))) == 1
    assert "/gone/away is no folder" in explain_trigger(root, "away")
    assert not read_alerts(ledger).held()
    evaluate_triggers(root, now + timedelta(minutes=11))
    alert, = read_alerts(ledger).held()
    assert alert.finding.rule == "trigger_error" and "/gone/away is no folder" in alert.finding.summary
    evaluate_triggers(root, now + timedelta(minutes=12))
    (root / "triggers.yaml").write_text("retrain: {when: {any: [{new_data: {}}]}}\n")
    evaluate_triggers(root, now + timedelta(minutes=13))
    assert not read_alerts(ledger).held() and len(ledger.entries(kinds=("alert.opened",))) == 1
    assert check_trigger_errors(root, None, now + timedelta(days=1)) == []


def test_new_objects_are_ingested_before_the_run(tmp_path, in_process):
    root = watching(tmp_path / "p")
    assert outcome(root) == ("not_due", "when")
    csv(root, "a.csv", 1, 2)
    assert outcome(root) == ("fired", "new_objects")
    run, = runs(root)
    entry = open_ledger(root).find(f"run/{run.id}/queued")
    assert len(entry.data["data_files"]) == 1, "the run has what was ingested"
    assert outcome(root) == ("not_due", "when") and not read_source_state(root, f"file://{root}/exports").waiting
    csv(root, "b.csv", 3)
    assert outcome(root) == ("suppressed", "running") and new_objects(root, f"{root}/exports") == ["b.csv"]
    finish(root)
    assert outcome(root) == ("fired", "new_objects") and len(runs(root)) == 2


def test_while_it_is_ingested_the_others_go_on(tmp_path, monkeypatch):
    root, gate = watching(tmp_path / "p"), threading.Event()
    monkeypatch.setattr(trigger_sources, "_ingest", lambda root, source: gate.wait())
    csv(root, "a.csv", 1)
    found = evaluate_triggers(root)["retrain"]
    assert (found.outcome, found.clause) == ("suppressed", "ingest") and "is being ingested since" in found.tree[-1]
    gate.set()
    until(lambda: outcome(root)[0] != "suppressed")


def test_a_batch_that_cannot_be_read_is_an_error_and_stays_new(tmp_path, in_process, monkeypatch):
    root = watching(tmp_path / "p")
    (root / "exports" / "a.parquet").write_bytes(b"no parquet")
    assert outcome(root) == ("error", "run") and runs(root) == []
    monkeypatch.setattr(trigger_sources, "_AGAIN_SECONDS", 0.0)
    (root / "exports" / "a.parquet").unlink()
    csv(root, "a.csv", 1)
    until(lambda: outcome(root)[0] == "fired")


def test_a_process_that_was_killed_after_the_ingestion_asks_for_the_run(tmp_path, in_process):
    root = watching(tmp_path / "p")
    outcome(root)
    csv(root, "a.csv", 1)
    trigger_sources._ingest(root, msgspec.convert({"url": f"{root}/exports"}, trigger_sources.NewObjects))
    assert new_objects(root, f"{root}/exports") == []
    assert outcome(root) == ("fired", "new_objects") and outcome(root) == ("not_due", "when")


def test_a_look_at_many_sources_is_as_long_as_the_slowest(monkeypatch):
    text = {"when": {"any": [{"new_objects": {"url": f"/x/{i}"}} for i in range(40)]}}
    monkeypatch.setattr(trigger_sources, "new_objects", lambda *args: time.sleep(.1) or [])
    begun = time.monotonic()
    found = look_at_sources("/q", [msgspec.convert(text, Trigger)], timeout_seconds=60)
    assert len(found) == 40 and not any(f.error for f in found.values()) and time.monotonic() - begun < 3


def test_the_command_itself(tmp_path):
    "`mlops-nb ingest` in a process of its own, for a folder and for a table that is not there."
    root = watching(tmp_path / "p")
    (root / "schema.yaml").write_text("dataset: x\ntask: regression\ntarget: id\ncolumns:\n  id: {type: number}\n")
    git(root, "add", "-A")
    csv(root, "a.csv", 1)
    where = f"{root}/exports"
    trigger = msgspec.convert({"when": {"any": [{"new_objects": {"url": "exports"}}]}}, Trigger)  # of the project
    until(lambda: ingest_sources(root, trigger, look_at_sources(root, [trigger])) == "")
    assert new_objects(root, where) == [] and read_source_state(root, where).waiting
    orders = dict(url="sqlite:///gone.db", table="t", column="c")
    gone = msgspec.convert({"when": {"any": [{"watermark": orders}]}}, Trigger)
    known = {"sqlite:///gone.db t": trigger_sources.SourceFacts(new=1)}
    def fails():
        try: return not ingest_sources(root, gone, known)
        except UserError as e: return str(e)
    assert "gone.db does not exist" in until(fails)
