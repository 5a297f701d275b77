"Schedules: ticks, and a process that is killed at random moments and loses no run and runs none twice."
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
import zoneinfo
from collections import Counter
from datetime import UTC, datetime, timedelta

import nbformat
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.controlled_project import ENV, end, lines, until

from mlops_nb.config.settings import ScheduleSettings, Settings
from mlops_nb.control import scheduler
from mlops_nb.control.fire_times import fire_time_id, fire_times
from mlops_nb.control.scheduler import (
    ScheduledAction,
    Schedules,
    ScheduleState,
    catch_up_start,
    check_schedule,
    enqueue_due_runs,
    is_paused,
    json_serializer,
    pause_schedule,
    read_pauses,
    resume_schedule,
    run_scheduled_action,
)
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger


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
    seven = schedule("0 7 * * *", timezone="Europe/Vienna")
    winter = fire_times(seven, datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 6, tzinfo=UTC))
    summer = fire_times(seven, datetime(2026, 7, 6, tzinfo=UTC), datetime(2026, 7, 7, tzinfo=UTC))
    assert [fire_time_id(t) for t in winter + summer] == ["20260105T060000Z", "20260706T050000Z"]


def test_a_wrong_expression_and_too_many_ticks_are_sentences():
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(UserError, match="not a cron expression"): fire_times(schedule("61 * * * *"), now, now)
    with pytest.raises(UserError, match="more than 1000 times"):
        fire_times(schedule("* * * * *"), now, now + timedelta(days=2))


@pytest.mark.parametrize("cron", ["0 0 31 2 *", "0 0 30 2 *", "0 0 31 4,6 *"])
def test_a_day_that_no_year_has_is_a_sentence(cron):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises(UserError, match="is never due, since no year has such a day"):
        fire_times(schedule(cron), now, now)
    leap = fire_times(schedule("0 0 29 2 *"), now, datetime(2029, 1, 1, tzinfo=UTC))
    assert [t.date().isoformat() for t in leap] == ["2028-02-29"]


@pytest.mark.parametrize("cron", ["R R * * *", "H H * * *", "H(0-5) 1 * * *", "@reboot"])
def test_times_that_each_process_would_draw_anew_are_refused(cron):
    now = datetime(2026, 1, 1, tzinfo=UTC)
    with pytest.raises((UserError, ValueError), match="cron"): fire_times(schedule(cron), now, now)


@pytest.mark.parametrize("name, cron", [("@hourly", "0 * * * *"), ("@daily", "0 0 * * *"), ("@Weekly", "0 0 * * 0"),
                                        ("@monthly", "0 0 1 * *"), ("@yearly", "0 0 1 1 *")])
def test_names_of_schedules(name, cron):
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 20, tzinfo=UTC)
    assert fire_times(schedule(name), start, end) == fire_times(schedule(cron), start, end)


# ---------------------------------------------------------------- the changes of the clocks, 2020 to 2029


def clock_changes(zone):
    "All changes of a zone's clocks in this decade: the moment, and the offsets before and after it."
    def offset(t): return t.astimezone(zone).utcoffset()
    found, start, end = [], datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)
    while start < end:
        high = start + timedelta(days=5)  # the shortest time between two changes is that of Ramadan, a month
        if offset(start) != offset(high):
            low = start
            while high - low > timedelta(seconds=1):
                middle = low + (high - low) / 2
                if offset(middle) == offset(start): low = middle
                else: high = middle
            change = high.replace(microsecond=0)
            found.append((change, offset(start), offset(change)))
        start += timedelta(days=5)
    return found


def changes_by_kind():
    "One zone and change for each kind: the local time of the change, the offsets, and the weekday."
    kinds = {}
    for name in sorted(zoneinfo.available_timezones()):
        zone = zoneinfo.ZoneInfo(name)
        for change, before, after in clock_changes(zone):
            local = (change + before).replace(tzinfo=None)
            kinds.setdefault((local.time(), local.weekday(), before, after), (name, change))
    return kinds


def test_a_daily_schedule_fires_once_each_day_at_every_change_of_the_clocks():
    kinds = changes_by_kind()
    forward = [after - before for *_, before, after in kinds if after > before]
    assert len(kinds) > 60 and any(step != timedelta(hours=1) for step in forward)
    for (_, _, before, after), (name, change) in kinds.items():
        wall = (change + min(before, after)).replace(tzinfo=None)  # where the skipped or repeated time begins
        half = abs(after - before) / 2
        for at in {wall, wall + half, wall + 2 * half, wall - half, datetime(2020, 1, 1), datetime(2020, 1, 1, 23, 59)}:
            daily = schedule(f"{at.minute} {at.hour} * * *", timezone=name)
            days = [change.astimezone(zoneinfo.ZoneInfo(name)).date() + timedelta(days=d) for d in range(-3, 4)]
            found = fire_times(daily, change - timedelta(days=5), change + timedelta(days=5))
            count = Counter(t.date() for t in found)
            assert [count[d] for d in days] == [1] * 7, f"{name}, {daily.cron}, {change}: {found}"
            far = [t for t in found if abs(t - change) > timedelta(days=1)]
            assert {(t.hour, t.minute) for t in far} == {(at.hour, at.minute)}
            assert [fire_time_id(t) for t in found] == sorted({fire_time_id(t) for t in found})


@pytest.mark.parametrize("zone, night", [("Europe/Vienna", (2026, 3, 28)), ("Europe/Vienna", (2026, 10, 24)),
    ("Australia/Lord_Howe", (2026, 4, 4)), ("Australia/Lord_Howe", (2026, 10, 3)), ("America/Nuuk", (2026, 3, 28))])
def test_a_schedule_for_every_hour_follows_the_time_that_passes(zone, night):
    start = datetime(*night, 6, tzinfo=UTC)
    quarters = fire_times(schedule("*/15 * * * *", timezone=zone), start, start + timedelta(days=2))
    passed = [start + timedelta(minutes=15 * i) for i in range(1, 193)]
    assert [fire_time_id(t) for t in quarters] == [fire_time_id(t) for t in passed]


@pytest.mark.parametrize("zone, cron, day, due", [
    ("Europe/Vienna", "30 2 * * *", (2026, 10, 25), ["2026-10-25T02:30:00+02:00"]),
    ("Europe/Vienna", "30 2 * * *", (2026, 3, 29), ["2026-03-29T03:30:00+02:00"]),
    ("Europe/Vienna", "0,30 2,3 * * 0", (2026, 3, 29), ["2026-03-29T03:00:00+02:00", "2026-03-29T03:30:00+02:00"]),
    ("America/Havana", "@daily", (2026, 3, 8), ["2026-03-08T01:00:00-04:00"]),
    ("America/Nuuk", "30 23 * * 6", (2026, 3, 28), ["2026-03-28T22:59:00-02:00"]),
    ("Antarctica/Troll", "0 1 * * *", (2026, 3, 29), ["2026-03-29T03:00:00+02:00"])])
def test_times_that_the_clocks_repeat_or_skip(zone, cron, day, due):
    noon = datetime(*day, 12, tzinfo=zoneinfo.ZoneInfo(zone)).astimezone(UTC)
    found = fire_times(schedule(cron, timezone=zone), noon - timedelta(hours=20), noon + timedelta(hours=20))
    assert [t.isoformat() for t in found if t.date().isoformat() == noon.date().isoformat()] == due


def test_from_when_a_schedule_is_due():
    now, daily = datetime(2026, 6, 1, tzinfo=UTC), schedule("0 6 * * *")
    may, fired = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 20, 6, tzinfo=UTC)
    assert catch_up_start(daily, None, now) == now
    assert catch_up_start(daily, ScheduleState("a", daily, may), now) == may
    assert catch_up_start(daily, ScheduleState("a", daily, may, fired), now) == datetime(2026, 5, 20, 5, 55, tzinfo=UTC)
    other = ScheduleState("a", schedule("0 7 * * *"), may)
    assert catch_up_start(daily, other, now) == now, "another cron expression is another schedule"
    other = ScheduleState("a", schedule("0 6 * * *", timezone="Europe/Vienna"), may)
    assert catch_up_start(daily, other, now) == now, "and so is another time zone"
    assert catch_up_start(schedule("0 6 * * *", missed="skip"), ScheduleState("a", daily, may), now) == now


# ---------------------------------------------------------------- pauses, and what is wrong at the start


SETTINGS = "[schedule.often]\nnotebook = page.ipynb\ncron = * * * * * *\n"


def test_what_would_have_been_due_in_a_pause_is_not_made_up_for(tmp_path):
    (tmp_path / "settings.ini").write_text(SETTINGS)
    ledger, now = open_ledger(tmp_path), datetime.now(UTC)
    pause_schedule(tmp_path, "often", now + timedelta(days=3), "holidays", by="ana")
    pause, = read_pauses(ledger)["often"]
    assert (pause.by, pause.why) == ("ana", "holidays") and is_paused([pause], now + timedelta(days=2))
    pause_schedule(tmp_path, "often", now + timedelta(days=1), by="bo")  # the later word counts
    assert not is_paused(read_pauses(ledger)["often"], now + timedelta(days=2))
    resume_schedule(tmp_path, "often")
    assert not is_paused(read_pauses(ledger)["often"], now + timedelta(hours=1))
    with pytest.raises(UserError, match="is not paused"): resume_schedule(tmp_path, "often")
    with pytest.raises(UserError, match="is over"): pause_schedule(tmp_path, "often", now - timedelta(days=1))
    with pytest.raises(UserError, match="There is no schedule 'oftn' in settings.ini; did you mean"):
        pause_schedule(tmp_path, "oftn", now + timedelta(days=1))


@pytest.mark.parametrize("more, why", [
    ("param.txt = x", "page.ipynb has no parameter 'txt'"), ("notebook = gone.ipynb", "There is no notebook"),
    ("cron = 0 0 31 2 *", "is never due"), ("param.password = x", "looks like a secret")])
def test_what_cannot_work_is_refused_at_the_start(tmp_path, more, why):
    notebook(tmp_path / "page.ipynb", "text")
    key, _, value = more.partition(" = ")
    given = dict(notebook="page.ipynb", cron="@daily")
    given |= dict(params={key.removeprefix("param."): value}) if key.startswith("param.") else {key: value}
    with pytest.raises(UserError, match=f"section 'schedule.weekly'.*{why}" if "never" not in why else why):
        check_schedule(tmp_path, "weekly", ScheduleSettings(**given))


def test_an_unknown_runbook_is_refused_at_the_start(tmp_path):
    drills = ScheduleSettings(cron="@monthly", action="game-day", runbooks="broken-log")
    with pytest.raises(UserError, match="There is no runbook 'broken-log'"): check_schedule(tmp_path, "drills", drills)


def test_the_records_hold_no_pickle():
    s = json_serializer()
    text = s.serialize({"args": (datetime(2026, 1, 1, tzinfo=UTC), {"a": 1}), "kwargs": {}})
    assert json.loads(text) == {"args": ["2026-01-01T00:00:00Z", {"a": 1}], "kwargs": {}}
    assert "no disk" in s.serialize(OSError("no disk"))


# ---------------------------------------------------------------- the process


def notebook(path, code):
    cells = [nbformat.v4.new_code_cell("text = ''", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(code)]
    nb = nbformat.v4.new_notebook(cells=cells)
    nbformat.write(nb, path)


CRON = "* * * * * *"  # each second


def project(root, code, cron=CRON, more=""):
    notebook(root / "page.ipynb", code)
    section = f"[schedule.often]\nnotebook = page.ipynb\ncron = {cron}\nparam.text = hello\n{more}\n"
    (root / "settings.ini").write_text(section)
    return root


# Where a test is about the scheduler and not about notebooks, the process has this in the place of `run_notebook`: it
# notes when a run begins and ends. Retries and polling are quick, so that a test waits for events and not for time.
STAND_IN = """
import time
from pathlib import Path
from mlops_nb.control import scheduler

def run_notebook(notebook, output_path, parameters, **kwargs):
    with open('begun', 'a') as f: f.write(Path(output_path).parent.name + chr(10))
    time.sleep(0.3)
    with open('ended', 'a') as f: f.write(Path(output_path).parent.name + chr(10))
    Path(output_path).parent.mkdir(parents=True, exist_ok=True)
    Path(output_path).write_text('page')

scheduler.run_notebook = run_notebook
scheduler._log_page = lambda *args: None
"""
RUN = """
from mlops_nb.control import controller, scheduler
scheduler._RETRY_SECONDS = 0.1
controller.run_controller('.', poll_interval_seconds=0.2)
"""


def start(root, before=""):
    with open(root / "log.txt", "ab") as log:
        return subprocess.Popen([sys.executable, "-c", before + RUN], cwd=root, env=ENV, stdout=log,
                                stderr=subprocess.STDOUT)


def statuses(root):
    "Workflow id -> status, as DBOS has them."
    with sqlite3.connect(root / ".mlops" / "control.db") as c:
        return dict(c.execute("select workflow_uuid, status from workflow_status where name = 'scheduled_action'"))


def tick_of(workflow_id): return datetime.strptime(workflow_id.rpartition("/")[2].partition("@")[0], "%Y%m%dT%H%M%S%z")


def finished(root): return sorted((root / "reports" / "scheduled" / "often").glob("*/run.json"))


def test_killed_at_random_it_loses_no_run_and_runs_none_twice(tmp_path):
    # Each run adds a line when it begins and one when it ends. A killed run begins again; it never ends twice.
    root, rng = project(tmp_path, "text"), random.Random(7)
    first = datetime.now(UTC)
    for _ in range(4):
        begun = lines(root / "begun")
        process = start(root, STAND_IN)
        until(lambda begun=begun: lines(root / "begun") > begun)
        time.sleep(rng.uniform(0, 0.6))  # within the run, or between two
        end(process)
    process = start(root, STAND_IN)
    last = datetime.now(UTC)
    until(lambda: any(tick_of(i) > last and s == "SUCCESS" for i, s in statuses(root).items()))
    until(lambda: all(s == "SUCCESS" for i, s in statuses(root).items() if tick_of(i) <= last))
    end(process)
    done = {p.parent.name for p in finished(root)}
    due = {fire_time_id(t) for t in fire_times(schedule(CRON), first, last) if fire_time_id(t) >= min(done)}
    assert len(due) > 4 and due <= done, "a run was lost"
    assert done <= {p.parent.name for p in (root / "reports" / "scheduled" / "often").glob("*/page.html")}
    assert len(lines(root / "begun")) > len(done), "no kill was in the middle of a run"
    twice = [t for t, n in Counter(lines(root / "ended")).items() if n > 1]
    assert len(twice) <= 4, "only a kill between the end of a run and its record lets it end twice"


def test_a_run_that_was_recorded_is_not_run_again(tmp_path):
    "The gap between finishing the work and noting it: the page is there, the workflow is still pending."
    project(tmp_path, "open('ran', 'a').write('x')")
    due, tick = ScheduledAction("often", schedule("0 6 * * *")), datetime(2026, 6, 1, 6, tzinfo=UTC)
    due.settings.notebook = "page.ipynb"
    run_scheduled_action(tmp_path, due, tick)
    run_scheduled_action(tmp_path, due, tick)
    assert (tmp_path / "ran").read_text() == "x"
    later = datetime(2026, 6, 8, 6, tzinfo=UTC)
    run_scheduled_action(tmp_path, due, later)
    page = tmp_path / "reports/scheduled/often" / fire_time_id(later) / "page.html"
    assert f"../{fire_time_id(tick)}/page.html" in page.read_text(), "no link to the run before"


def test_a_failed_report_is_loud_tried_twice_and_never_shown_as_done(tmp_path):
    # Fires once: with one each second, hundreds would wait, and the assertions would look at whichever came first.
    at = datetime.now(UTC) + timedelta(seconds=15)
    root = project(tmp_path, "open('tries', 'a').write('x')\nraise ValueError('no rows today')",
                   f"{at.second} {at.minute} {at.hour} {at.day} {at.month} *")
    process = start(root)
    index = root / "reports" / "scheduled" / "index.html"
    try: until(lambda: index.exists() and "ERROR" in statuses(root).values(), 400)
    finally: end(process, signal.SIGTERM)
    assert (root / "tries").read_text().startswith("xx")
    run = json.loads(finished(root)[0].read_text())
    assert run["passed"] is False and "no rows today" in run["message"]
    assert not list((root / "reports").rglob("page.html"))
    assert "error: schedule often" in (root / "log.txt").read_text()
    assert "no rows today" in index.read_text()
    assert "SUCCESS" not in statuses(root).values()


def wait_for_a_fire_time():
    "Let a fire time pass while nothing runs; the ids of those that passed."
    before = datetime.now(UTC)
    return {fire_time_id(t) for t in until(lambda: fire_times(schedule(CRON), before, datetime.now(UTC)))}


def test_catch_up_and_skip(tmp_path):
    root = project(tmp_path, "text")
    def done(): return {p.parent.name for p in finished(root)}
    process = start(root, STAND_IN)
    until(done)
    end(process)
    missed = wait_for_a_fire_time()
    process = start(root, STAND_IN)
    try: until(lambda: missed <= done())
    finally: end(process, signal.SIGTERM)
    # With skip, what is missed from now on stays missed.
    (root / "settings.ini").write_text((root / "settings.ini").read_text() + "missed = skip\n")
    skipped = wait_for_a_fire_time()
    process = start(root, STAND_IN)
    try: until(lambda: max(done()) > max(skipped))
    finally: end(process, signal.SIGTERM)
    assert not skipped & done()


def test_a_paused_schedule_does_nothing_and_catches_nothing_up(tmp_path):
    root = project(tmp_path, "text")
    def done(): return {p.parent.name for p in finished(root)}
    process = start(root, STAND_IN)
    until(done)
    pause_schedule(root, "often", datetime.now(UTC) + timedelta(days=1), by="ana")
    first = datetime.now(UTC)
    wait_for_a_fire_time()
    resume_schedule(root, "often", by="ana")
    last = datetime.now(UTC)
    try: until(lambda: max(done()) > fire_time_id(last))
    finally: end(process, signal.SIGTERM)
    paused = {fire_time_id(t) for t in fire_times(schedule(CRON), first, last)}
    assert paused and not paused & done()
    resumed = {e.kind for e in open_ledger(root).entries("often")}
    assert {"schedule.paused", "schedule.resumed", "schedule.ended"} <= resumed


def test_ids_and_names_of_schedules_are_those_of_a_project(tmp_path):
    one, two = (Schedules(tmp_path, f"mlops-nb-{name}", None) for name in ("one", "two"))
    assert one.key("often") == "mlops-nb-one/often" != two.key("often")
    assert not two.key("often").startswith(one.key(""))


def test_stopping_leaves_no_process(tmp_path):
    root = project(tmp_path, "import time\nopen('running', 'w').close()\ntime.sleep(60)")
    process = start(root)
    until((root / "running").exists)
    below = psutil.Process(process.pid).children(recursive=True)
    assert below
    end(process, signal.SIGTERM)
    assert process.returncode == 0
    gone, alive = psutil.wait_procs(below, timeout=15)
    assert not alive
    assert "PENDING" in statuses(root).values(), "what ran is still to be done"
    with sqlite3.connect(root / ".mlops" / "control.db") as c:
        kept = c.execute("select schedule_name, status from workflow_schedules").fetchall()
    kept = [(name.rpartition("/")[2], status) for name, status in kept]
    assert kept == [("often", "PAUSED")], "DBOS's own clock fires twice where clocks are put back"


def test_a_schedule_that_missed_too_much_holds_no_other_up(tmp_path, monkeypatch, capsys):
    root, now = project(tmp_path, "text"), datetime.now(UTC).replace(microsecond=0)
    enqueued, noted = [], []
    monkeypatch.setattr(scheduler, "_enqueue", lambda _, due, time: enqueued.append(due.schedule))
    monkeypatch.setattr(scheduler, "_note_fire_time", lambda _, name, time: noted.append(name) or time)
    kinds = dict(often=schedule(CRON), hourly=schedule("0 * * * *"))
    due_since = dict.fromkeys(kinds, now - timedelta(hours=3))
    enqueue_due_runs(Settings(schedule=kinds), due_since, Schedules(root, "mlops-nb-one", None))
    assert enqueued == ["hourly"] * 3 and noted == ["often", "hourly"] and due_since["often"] >= now
    said, = open_ledger(root).entries("often", ("schedule.ended",))
    assert said.data["status"] == "failed" and "nothing of it is made up for" in said.data["message"]
    assert "more than 1000 times" in capsys.readouterr().err
