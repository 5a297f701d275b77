"Logs as lines of JSON: any text is one line, files stay bounded, forks and full disks do no harm."
import json
import logging
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_nb.core import structured_logs
from mlops_nb.core.structured_logs import JsonFormatter, JsonLogHandler, log_event, log_task, read_logs, start_log
from mlops_nb.core.trace_context import new_trace, use_trace


@pytest.fixture
def folder(tmp_path): return tmp_path / "logs"


def record(message, **fields):
    found = logging.LogRecord("mlops_nb.x", logging.INFO, "", 0, "%s", (message,), None)
    if fields: found.fields = fields
    return found


@given(st.text(), st.dictionaries(st.text(), st.one_of(st.none(), st.integers(-2**60, 2**60), st.text(), st.floats(
    allow_nan=False), st.lists(st.integers(0, 9))), max_size=4))
def test_any_text_is_one_line(message, fields):
    message = message.encode("utf-8", "replace").decode()
    line = JsonFormatter("serve").format(record(message, **fields))
    said = json.loads(line)
    assert "\n" not in line and said.get("message", "") == (fields.get("message") or message)
    assert said["process"] == "serve" and said["pid"] == os.getpid()


def test_the_trace_is_that_of_the_thread_or_of_the_request(folder):
    start_log(folder, "serve", 1)
    with use_trace(new_trace()) as trace:
        log_event("serve", "one")
        log_event("serve", "two", trace_id="a" * 32, status=422)
    log_event("serve", "three")
    one, two, three = read_logs(folder, set())
    assert (one["trace_id"], two["trace_id"], two["status"]) == (trace.trace_id, "a" * 32, 422)
    assert "trace_id" not in three and read_logs(folder, {trace.trace_id}) == [one]


def test_nothing_is_written_where_no_log_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    log_event("stage", "nobody listens")
    assert [*tmp_path.iterdir()] == []


def test_the_folder_stays_within_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(structured_logs, "_FILE_BYTES", 2_000)
    handler = JsonLogHandler(tmp_path, "serve", 10_000)
    for n in range(200): handler.handle(record(f"{n} " + "x" * 200))
    sizes = [p.stat().st_size for p in tmp_path.glob("*.jsonl")]
    assert sum(sizes) <= 10_000 + 2 * 2_500 and len(sizes) > 1
    assert read_logs(tmp_path, set())[-1]["message"].startswith("199")
    handler.close()


def test_processes_share_a_file_and_no_line_is_cut(tmp_path):
    "Forks and processes of their own write at once, while files are renamed; every line is there, and whole."
    code = ("import os, sys; from mlops_nb.core import structured_logs as s\n"
            "s._FILE_BYTES = 20_000; s.start_log(sys.argv[1], 'stage', 64); s.log_event('x', 'first')\n"
            "pid = os.fork()\n"
            "for n in range(200): s.log_event('x', f'{os.getpid()} {n}', text='x' * 300)\n"
            "pid == 0 and os._exit(0); os.waitpid(pid, 0)")
    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [p.wait(120) for p in running] == [0] * 3
    found = [said["message"] for said in read_logs(tmp_path, set())]
    assert len(found) == 3 + 6 * 200 and len(set(found)) == 1 + 6 * 200
    assert len([*tmp_path.glob("*.jsonl")]) > 5


def test_a_process_that_goes_to_another_folder_writes_on_where_it_began(tmp_path, monkeypatch):
    for name in ("begun", "other"): (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "begun")
    start_log("logs", "serve", 1)
    monkeypatch.chdir(tmp_path / "other")
    log_event("serve", "one")
    assert [said["message"] for said in read_logs(tmp_path / "begun/logs", set())] == ["one"]
    assert [*(tmp_path / "other").iterdir()] == []


def test_a_file_that_was_deleted_begins_anew(tmp_path):
    handler = JsonLogHandler(tmp_path, "serve", 2**20)
    handler.handle(record("one"))
    for p in tmp_path.glob("*.jsonl"): p.unlink()
    handler.handle(record("two"))
    handler.close()
    assert [said["message"] for said in read_logs(tmp_path, set())] == ["two"]


def test_a_folder_that_cannot_be_written_loses_lines_and_says_so(tmp_path):
    place = tmp_path / "logs"
    place.write_text("a file stands in the way")
    handler = JsonLogHandler(place, "serve", 1000)
    for n in range(3): handler.handle(record(f"lost {n}"))
    place.unlink()
    handler.handle(record("written"))
    handler.close()
    assert {said["message"] for said in read_logs(place, set())} == {"3 lines were lost", "written"}


def test_a_task_says_how_it_ended(folder):
    start_log(folder, "stage", 1)
    with pytest.raises(ValueError), log_task("stage a"): raise ValueError("no rows")
    with pytest.raises(SystemExit), log_task("stage b"): sys.exit(3)
    with log_task("stage c"): pass
    found = [(s["message"], s["level"]) for s in read_logs(folder, set()) if not s["message"].endswith("begins")]
    assert found == [("stage a failed: no rows", "error"), ("stage b ended", "error"), ("stage c ended", "info")]


def test_an_exception_is_a_traceback(folder):
    start_log(folder, "stream", 1)
    try: [].pop()
    except IndexError: logging.getLogger("mlops_nb.stream").exception("message %s failed", 7)
    [said] = read_logs(folder, set())
    assert said["message"] == "message 7 failed" and "IndexError" in said["traceback"]


def test_people_still_see_warnings(tmp_path):
    "As Python shows them where no handler is; what is meant for the log alone is not shown."
    code = ("import sys, logging; from mlops_nb.core.structured_logs import start_log, log_event\n"
            "start_log(sys.argv[1], 'stream', 1); logging.getLogger('mlops_nb.stream').warning('going on')\n"
            "logging.getLogger('mlops_nb.stream').info('quiet'); log_event('task', 'failed', logging.ERROR)")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=120, capture_output=True,
                          text=True)
    assert (done.stdout, done.stderr) == ("", "going on\n") and len(read_logs(tmp_path, set())) == 3


def test_damaged_and_deleted_files_are_left_out(folder):
    start_log(folder, "serve", 1)
    log_event("x", "whole", run="r1")
    (folder / "z.jsonl").write_bytes(b'{"message": "cut\n[1]\n\xff\xfe\n"text"\n')
    (folder / "y.jsonl").mkdir()
    assert [s["message"] for s in read_logs(folder, set())] == ["whole"]
    assert [s["message"] for s in read_logs(folder, {"r1"})] == ["whole"] and read_logs(folder, {"r"}) == []
    assert read_logs(folder / "nowhere", set()) == []
