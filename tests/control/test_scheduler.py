"Schedules: ticks, and a process that is killed at random moments and loses no run and runs none twice."
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta

import msgspec
import nbformat
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.settings import ScheduleSettings
from mlops_nb.control.scheduler import ScheduledReport, catch_up_start, json_serializer, scheduler_lock, fire_time_id, fire_times
from mlops_nb.core.errors import UserError

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}


def schedule(cron, **more): return ScheduleSettings(notebook="a.ipynb", cron=cron, **more)


# ---------------------------------------------------------------- ticks


def test_a_tick_is_due_once_at_the_end_of_its_interval():
    noon = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    assert fire_times(schedule("0 12 * * *"), noon - timedelta(hours=1), noon) == [noon]
    assert fire_times(schedule("0 12 * * *"), noon, noon + timedelta(hours=1)) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 86_400 * 3), st.lists(st.integers(1, 20_000), min_size=1, max_size=8),
       st.sampled_from(["*/7 * * * *", "0 * * * *", "30 2 * * *", "15 6 * * 1"]),
       st.sampled_from(["UTC", "Europe/Vienna", "America/New_York"]))
def test_cutting_the_time_anywhere_gives_the_same_ticks(start, steps, cron, zone):
    "However often the process looks at the clock, each tick is seen exactly once."
    s = schedule(cron, timezone=zone)
    begin = datetime(2026, 3, 27, tzinfo=UTC) + timedelta(seconds=start)  # around the change to summer time
    cuts = [begin]
    for step in steps: cuts.append(cuts[-1] + timedelta(seconds=step))
    pieces = [t for a, b in zip(cuts, cuts[1:], strict=False) for t in fire_times(s, a, b)]
    assert [fire_time_id(t) for t in pieces] == [fire_time_id(t) for t in fire_times(s, begin, cuts[-1])]
    assert len({fire_time_id(t) for t in pieces}) == len(pieces)


def test_seven_in_vienna_is_another_moment_in_summer():
    winter = fire_times(schedule("0 7 * * *", timezone="Europe/Vienna"), datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC))
    summer = fire_times(schedule("0 7 * * *", timezone="Europe/Vienna"), datetime(2026, 7, 6, tzinfo=UTC), datetime(2026, 7, 7, tzinfo=UTC))
    assert [fire_time_id(t) for t in winter + summer] == ["20260105T060000Z", "20260706T050000Z"]


def test_a_wrong_expression_and_too_many_ticks_are_sentences():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(UserError, match="not a cron expression"): fire_times(schedule("61 * * * *"), now, now)
    with pytest.raises(UserError, match="more than 1000 times"): fire_times(schedule("* * * * *"), now, now + timedelta(days=2))


def known(since, fired, cron="0 6 * * *"):
    plain = msgspec.to_builtins(ScheduledReport("a", schedule(cron)))
    return {"context": plain | {"since": since}, "last_fired_at": fired}


def test_from_when_a_schedule_is_due():
    now, due = datetime(2026, 6, 1, tzinfo=UTC), msgspec.to_builtins(ScheduledReport("a", schedule("0 6 * * *")))
    assert catch_up_start(None, due, now) == now
    may, fired = "2026-05-01T00:00:00+00:00", "2026-05-20T06:00:00+00:00"
    assert catch_up_start(known(may, None), due, now) == datetime(2026, 5, 1, tzinfo=UTC)
    assert catch_up_start(known(may, fired), due, now) == datetime(2026, 5, 20, 5, 55, tzinfo=UTC)
    assert catch_up_start(known(may, None, "0 7 * * *"), due, now) == now, "another cron expression is another schedule"
    skip = msgspec.to_builtins(ScheduledReport("a", schedule("0 6 * * *", missed="skip")))
    assert catch_up_start(known(may, None), skip, now) == now


def test_the_records_hold_no_pickle():
    s = json_serializer()
    text = s.serialize({"args": (datetime(2026, 1, 1, tzinfo=UTC), {"a": 1}), "kwargs": {}})
    assert json.loads(text) == {"args": ["2026-01-01T00:00:00Z", {"a": 1}], "kwargs": {}}
    assert "no disk" in s.serialize(OSError("no disk"))


def test_only_one_process_for_a_project(tmp_path):
    with scheduler_lock(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()}"), scheduler_lock(tmp_path): pass
    with scheduler_lock(tmp_path): pass


# ---------------------------------------------------------------- the process


def notebook(path, code):
    cells = [nbformat.v4.new_code_cell("text = ''", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    nb = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(nb, path)


def project(root, code, cron="*/5 * * * * *", more=""):
    notebook(root / "page.ipynb", code)
    (root / "settings.ini").write_text(f"[schedule.often]\nnotebook = page.ipynb\ncron = {cron}\nparam.text = hello\n{more}\n")
    return root


def start(root):
    return subprocess.Popen([sys.executable, "-c", "from mlops_nb.cli import main; import sys; "
                             "sys.argv = ['mlops-nb', 'control']; main()"], cwd=root, env=ENV, stdout=open(root / "log.txt", "ab"),
                            stderr=subprocess.STDOUT)


def end(process, how=signal.SIGKILL):
    if process.poll() is None: process.send_signal(how)
    process.wait(30)


def until(condition, seconds=60):
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.2)


def statuses(root):
    "Workflow id -> status, as DBOS has them."
    with sqlite3.connect(root / ".mlops" / "control.db") as c:
        return dict(c.execute("select workflow_uuid, status from workflow_status where name = 'scheduled_report'"))


def tick_of(workflow_id): return datetime.fromisoformat(workflow_id.removeprefix("sched-often-"))


def finished(root): return sorted((root / "reports" / "scheduled" / "often").glob("*/run.json"))


def test_killed_at_random_it_loses_no_run_and_runs_none_twice(tmp_path):
    # Each run adds a line when it begins and one when it ends. A killed run begins again; it never ends twice.
    code = ("import time, pathlib\n"
            "pathlib.Path('begun').open('a').write('x\\n')\ntime.sleep(0.5)\n"
            "pathlib.Path('ended').open('a').write(text + '\\n')")
    root, rng = project(tmp_path, code), random.Random(7)
    first = datetime.now(UTC)
    for _ in range(4):
        process = start(root)
        time.sleep(rng.uniform(3, 9))
        end(process)
    process = start(root)
    until(lambda: len(finished(root)) >= 2, 90)
    last = datetime.now(UTC)
    until(lambda: all(s == "SUCCESS" for i, s in statuses(root).items() if tick_of(i) <= last), 150)
    end(process)
    done = {p.parent.name for p in finished(root)}
    began = min(done)
    due = {fire_time_id(t) for t in fire_times(schedule("*/5 * * * * *"), first, last) if fire_time_id(t) >= began}
    assert due <= done, "a tick was lost"
    pages = Counter(p.parent.name for p in (root / "reports" / "scheduled" / "often").glob("*/page.html"))
    assert set(pages) == done
    assert len((root / "ended").read_text().splitlines()) <= len(done) + 4, "more runs ended than there were ticks and kills"


def test_a_run_that_was_recorded_is_not_run_again(tmp_path):
    "The gap between finishing the work and noting it: the page is there, the workflow is still pending."
    from mlops_nb.control.scheduler import run_scheduled_report
    project(tmp_path, "open('ran', 'a').write('x')")
    due, tick = ScheduledReport("often", schedule("0 6 * * *")), datetime(2026, 6, 1, 6, tzinfo=UTC)
    due.settings.notebook = "page.ipynb"
    run_scheduled_report(tmp_path, due, tick)
    run_scheduled_report(tmp_path, due, tick)
    assert (tmp_path / "ran").read_text() == "x"
    later = datetime(2026, 6, 8, 6, tzinfo=UTC)
    run_scheduled_report(tmp_path, due, later)
    page = tmp_path / "reports/scheduled/often" / fire_time_id(later) / "page.html"
    assert f"../{fire_time_id(tick)}/page.html" in page.read_text(), "no link to the run before"


def test_a_failed_report_is_loud_tried_twice_and_never_shown_as_done(tmp_path):
    root = project(tmp_path, "open('tries', 'a').write('x')\nraise ValueError('no rows today')", cron="*/20 * * * * *")
    process = start(root)
    index = root / "reports" / "scheduled" / "index.html"
    try: until(lambda: index.exists() and "ERROR" in statuses(root).values(), 120)
    finally: end(process, signal.SIGTERM)
    assert (root / "tries").read_text().startswith("xx")
    run = json.loads(finished(root)[0].read_text())
    assert run["passed"] is False and "no rows today" in run["message"]
    assert not list((root / "reports").rglob("page.html"))
    assert "error: schedule often" in (root / "log.txt").read_text()
    assert "no rows today" in index.read_text()
    assert "SUCCESS" not in statuses(root).values()


def test_catch_up_and_skip(tmp_path):
    root = project(tmp_path, "text", cron="*/8 * * * * *")
    process = start(root)
    until(lambda: finished(root), 60)
    end(process)
    before = datetime.now(UTC)
    time.sleep(9)
    after = datetime.now(UTC)
    missed = {fire_time_id(t) for t in fire_times(schedule("*/8 * * * * *"), before, after)}
    assert missed
    process = start(root)
    try: until(lambda: missed <= {p.parent.name for p in finished(root)}, 120)
    finally: end(process, signal.SIGTERM)
    # With skip, what is missed from now on stays missed.
    (root / "settings.ini").write_text((root / "settings.ini").read_text() + "missed = skip\n")
    before = datetime.now(UTC)
    time.sleep(9)
    skipped = {fire_time_id(t) for t in fire_times(schedule("*/8 * * * * *"), before, datetime.now(UTC))} - set(map(str, statuses(root)))
    process = start(root)
    now = fire_time_id(datetime.now(UTC) + timedelta(seconds=8))
    try: until(lambda: any(p.parent.name > now for p in finished(root)), 120)
    finally: end(process, signal.SIGTERM)
    assert not skipped & {p.parent.name for p in finished(root)}


def test_stopping_leaves_no_process(tmp_path):
    root = project(tmp_path, "import time\ntime.sleep(60)")
    process = start(root)
    until(lambda: "starts" in (root / "log.txt").read_text(), 60)
    time.sleep(2)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    end(process, signal.SIGTERM)
    assert process.returncode == 0
    gone, alive = psutil.wait_procs(below, timeout=15)
    assert not alive
    assert "PENDING" in statuses(root).values(), "what ran is still to be done"


def test_no_schedule_is_a_sentence(tmp_path):
    (tmp_path / "settings.ini").write_text("[run]\nthreads = 1\n")
    done = subprocess.run(["mlops-nb", "control"], cwd=tmp_path, capture_output=True, text=True, env=ENV)
    assert done.returncode == 1 and "has no [schedule.NAME] section" in done.stderr and "Traceback" not in done.stderr
