"Logs of a trace: what belongs together is found from any of its ids; what does not is left out."
import logging

import pytest

from mlops_nb.config.process_log import log_folder, start_process_log
from mlops_nb.core.structured_logs import JsonLogHandler, log_event
from mlops_nb.core.trace_context import new_trace, trace_environment, use_trace
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import end_run, queue_run, record_step
from mlops_nb.ledger.trace_log import TraceLine, find_traces, format_trace, trace_lines


@pytest.fixture
def project(tmp_path, uri, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", uri)
    start_process_log(tmp_path, "controller")
    yield tmp_path
    logger = logging.getLogger("mlops_nb")
    for h in [h for h in logger.handlers if isinstance(h, JsonLogHandler)]:
        logger.removeHandler(h)
        h.close()


def story(ledger):
    "A trigger, its run with a stage that fails, an alert, and another run."
    ledger.append("trigger.evaluated", "retrain", dict(outcome="fired", clause="age", run="r1f"), by="controller")
    queue_run(ledger, "r1f", dict(trigger="retrain", reason="age"), by="controller")
    with use_trace(ledger.resume_trace("r1f")):
        attempt = ledger.begin_attempt("r1f", "a")
        with pytest.raises(ValueError), record_step(ledger, "r1f", attempt, "train"):
            log_event("stage", "iteration 100", loss=0.4)
            raise ValueError("no\nrows")
        end_run(ledger, "r1f", attempt, "failed", "Step train failed.")
        ledger.append("alert.opened", "A1", dict(severity="page", rule="run_failed"), key="alert/A1")
    queue_run(ledger, "r2f", dict(trigger="retrain"))
    with use_trace(new_trace()): log_event("serve", "refused", id="order-7")
    log_event("serve", "nothing in particular")


def test_one_story_from_any_of_its_ids(project):
    ledger = open_ledger(project)
    story(ledger)
    [trace] = find_traces(ledger, "r1f")
    lines = trace_lines(ledger, log_folder(project), "r1f")
    for id in ("r1", "A1", trace): assert trace_lines(ledger, log_folder(project), id) == lines
    said = [line.message.partition(":")[0] for line in lines]
    assert said == ["trigger.evaluated retrain", "run.queued r1f", "run.attempt r1f", "step.started train",
                    "iteration 100", "step.ended train", "run.ended r1f", "alert.opened A1"]
    assert [line.level for line in lines].count("error") == 2
    text = format_trace(lines)
    assert len(text.splitlines()) == len(lines) and "ERROR step.ended train: status failed, message no rows" in text


def test_a_request_has_lines_and_no_entries(project):
    ledger = open_ledger(project)
    story(ledger)
    [line] = trace_lines(ledger, log_folder(project), "order-7")
    assert (line.message, line.fields["id"]) == ("refused", "order-7")
    for unknown in ("nobody", "", "%", "r", "f" * 32):
        found = trace_lines(ledger, log_folder(project), unknown)
        assert found == [] or unknown == "r"  # two runs begin so: of both


def test_without_a_ledger_or_logs(tmp_path):
    ledger = open_ledger(tmp_path)
    assert trace_lines(ledger, log_folder(tmp_path), "r1") == trace_lines(ledger, None, "r1") == []
    assert log_folder(tmp_path).parts[-2:] == (".mlops", "logs")
    (tmp_path / "settings.ini").write_text("[logging]\nfolder = none\n")
    assert log_folder(tmp_path) is None
    start_process_log(tmp_path, "stage")  # nothing to do
    assert format_trace([]) == "" and format_trace([TraceLine("no time", "x", "y")]).startswith("no time")


def test_a_process_in_a_trace_gives_it_on():
    assert trace_environment() == {}
    with use_trace(new_trace()) as trace: assert trace_environment() == {"TRACEPARENT": trace.traceparent}
