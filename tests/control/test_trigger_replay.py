"A replayed policy: the one of then gives what happened, another one what it would have done."
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.control.trigger_replay import format_replay, replay_triggers
from mlops_nb.core.errors import UserError
from mlops_nb.ledger import ledger as ledger_module
from mlops_nb.ledger.ledger import open_ledger

FIRST = datetime(2026, 11, 2, tzinfo=UTC)  # a Monday
ONE = "retrain: {when: {any: [{new_data: {min_rows: 1000}}]}}"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "settings.ini").touch()
    return tmp_path


def append_at(root, time, kind, subject, data):
    "An entry of the past."
    class Clock(datetime):
        @classmethod
        def now(cls, tz=None): return time
    with pytest.MonkeyPatch.context() as m:
        m.setattr(ledger_module, "datetime", Clock)
        open_ledger(root).append(kind, subject, data, by="controller")


@pytest.fixture
def write(root):
    "Note entries; `replay` writes them in the order of their times."
    pending[root] = []
    return lambda days, kind, subject, **data: pending[root].append((days, kind, subject, data))


pending = {}


def came(write, days, **files): write(days, "trigger.files", "triggers", came=files, went=[])


def ran(write, days, id, files, trigger="retrain", hours=1.0):
    write(days, "run.queued", id, trigger=trigger, reason="new_data", commit="c", status="queued", data_files=files)
    write(days + hours / 24, "run.ended", id, status="succeeded")


def replay(root, text, days=30.0, since=0.0):
    (root / "other.yaml").write_text(text)
    for at, *entry in sorted(pending.pop(root, []), key=lambda e: e[0]):
        append_at(root, FIRST + timedelta(days=at), *entry)
    return replay_triggers(root, FIRST + timedelta(days=since), FIRST + timedelta(days=days), root / "other.yaml")


def fired(found): return [round((x.at - FIRST) / timedelta(days=1), 3) for x in found.fired]


@pytest.fixture
def month(write):
    "New rows each week, and a run for each."
    for week in range(4):
        came(write, 7 * week + 1, **{f"w{week}": 1000})
        ran(write, 7 * week + 1.01, f"r{week}", [f"w{w}" for w in range(week + 1)])


@pytest.mark.parametrize("text, days", [
    (ONE, [1, 8, 15, 22]), ("retrain: {when: {any: [{new_data: {min_rows: 1001}}]}}", [8, 22]),
    ("retrain: {when: {any: [{new_data: {min_rows: 5000}}]}}", []),
    (ONE[:-1] + ", cooldown: 10d}", [1, 11, 21, 31][:3]), (ONE[:-1] + ", budget: 1 per 20d}", [1, 21]),
    (ONE[:-1] + ", unless: {window: Tue 00:00-Wed 00:00}}", [2, 9, 16, 23]),
    ('retrain: {when: {any: [{schedule: {cron: "0 12 * * 3"}}]}}', [2.5, 9.5, 16.5, 23.5]),
    ("retrain: {when: {all: [{new_data: {min_rows: 1}}, {age: 10d}]}}", []),
    ("retrain: {when: {any: [{drift: found}]}}", [])])
def test_policies(root, month, text, days): assert fired(replay(root, text)) == days


def test_the_policy_of_then_is_what_happened(root, month):
    found = replay(root, ONE)
    assert len(found.fired) == len(found.happened) == 4 and not found.same
    assert all(abs(x.at - y.at) < timedelta(hours=1) for x, y in zip(found.fired, found.happened, strict=True))
    assert found.figures.seconds == 3600 and found.figures.known == 4


def test_a_part_of_the_past_begins_with_what_was_known_then(root, month):
    assert fired(replay(root, ONE, since=7)) == [8, 15, 22]
    assert fired(replay(root, ONE[:-1] + ", cooldown: 10d}", since=7)) == [11.01, 21.01]
    assert fired(replay(root, ONE, since=9, days=14)) == []


def test_what_comes_during_a_replayed_run_is_in_the_next_one(root, write):
    for n in range(6): came(write, 1 + n / 96, **{f"f{n}": 1000})  # four in an hour
    ran(write, 2, "r", ["f0"])
    found = replay(root, ONE)
    assert fired(found) == [1, 1.042, 1.083] and found.held["retrain", "running"] > timedelta(minutes=60)


def test_the_same_data_are_the_same_run(root, month):
    found = replay(root, 'a: {when: {any: [{schedule: {cron: "0 0 * * *"}}]}}')
    assert fired(found) == [1, 8, 15, 22] and len(found.same) == 26 and len(found.happened) == 4


def test_notices_alerts_and_pauses_count_as_they_were(root, write, month):
    write(3, "notice.received", "w", facts={})
    write(9, "trigger.paused", "retrain", until=(FIRST + timedelta(days=16)).isoformat(), why="x")
    write(21, "alert.opened", "A1", at=(FIRST + timedelta(days=21)).isoformat(), finding=dict(
        rule="volume", subject="orders", summary="Few.", started_at=FIRST.isoformat()))
    write(24, "alert.resolved", "A1", at=(FIRST + timedelta(days=24)).isoformat())
    found = replay(root, ONE[:-1] + ", unless: {data_quality: veto}}")
    assert fired(found) == [1, 8, 16, 24]
    assert found.held["retrain", "data_quality"] == timedelta(days=2)
    assert found.held["retrain", "paused"] == timedelta(days=1)
    other = replay(root, "retrain: {when: {any: [{notice: {source: w}}, {upstream: repaired}]}}")
    assert [(x.at - FIRST).days for x in (*other.fired, *other.same)] == [3, 24]


def test_runs_of_people_stay(root, write, month):
    came(write, 2, p=500)
    ran(write, 2.1, "by_hand", ["w0", "p"], trigger="on_demand")
    found = replay(root, "retrain: {when: {any: [{new_data: {min_rows: 500}}]}}")
    assert fired(found) == [1, 2, 8, 15, 22] and all(x.run != "by_hand" for x in found.happened)
    assert fired(replay(root, "retrain: {when: {any: [{new_data: {min_rows: 600}}]}}")) == [1, 8, 15, 22]


def test_two_triggers_see_each_other(root, month):
    found = replay(root, "\n".join((ONE.replace("retrain", "a"), ONE.replace("retrain", "b"))))
    assert [x.trigger for x in found.fired] == ["a"] * 4


def test_costs_and_a_budget_in_money(root, write, month):
    with open(root / "settings.ini", "a") as f: f.write("[prices]\ncpu_hour = 10\n")
    replay(root, ONE)  # writes the month
    for n in range(4):
        data = dict(step="step train", attempt=1, executor="x", span=f"s{n}")
        begun = open_ledger(root).append("step.started", f"r{n}", data)
        open_ledger(root).append("step.ended", f"r{n}", dict(seconds=3600, cpu_seconds=3600, status="done", message=""),
                                 key=f"step/{begun.seq}/ended")
    found = replay(root, ONE)
    assert found.figures.cost == 10 and "about 40.00 EUR (4 runs)" in format_replay(found)
    found = replay(root, ONE[:-1] + ", budget: {cost: 20 EUR per 30d}}")
    assert len(found.fired) == 2 and found.held["retrain", "budget"] > timedelta(days=10)


def test_what_people_read(root, write, month):
    text = format_replay(replay(root, ONE[:-1] + ", cooldown: 10d}\nother: {when: {any: [{code: changed}]}}"))
    assert "retrain: would have asked for 3 runs; 4 happened." in text and "held back by cooldown for" in text
    assert "2026-11-03 00:14  happened  r0, by new_data" in text and "2026-11-03 00:00  would     by new_data" in text
    assert "other: would have asked for 0 runs; 0 happened." in text and "code is not known for" in text
    assert "not known, since there are no prices" in text and "(the median of 4)" in text
    assert "no new data are seen then" in text, "the first look was a day later"
    text = format_replay(replay(root, ONE.replace("retrain", "b")))
    assert "Not in this policy, and asked for 4 runs: retrain" in text


def test_what_is_refused(root, month):
    with pytest.raises(UserError, match="ends before it begins"): replay(root, ONE, days=-1)
    with pytest.raises(UserError, match="There is no trigger to replay"):
        replay_triggers(root, FIRST, FIRST + timedelta(days=1))
    with pytest.raises(UserError, match="does not exist"):
        replay_triggers(root, FIRST, FIRST + timedelta(days=1), root / "gone.yaml")


def test_an_empty_ledger(root):
    found = replay(root, 'a: {when: {any: [{schedule: {cron: "0 0 * * *"}}]}}', days=3)
    assert fired(found) == [1] and len(found.same) == 2 and "There was none" not in format_replay(found)


def test_a_schedule_of_each_minute_takes_no_minutes(root):
    found = replay(root, 'a: {when: {any: [{schedule: {cron: "* * * * *"}}]}, cooldown: 1d}', days=4)
    assert len(found.fired) == 1 and len(found.same) <= 4 * 24 * 6


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 900)), min_size=1, max_size=8), st.integers(1, 2000),
       st.sampled_from(["", ", cooldown: 3d", ", budget: 2 per 9d"]))
def test_each_row_is_in_one_replayed_run_or_waits(tmp_path_factory, arrivals, least, more):
    "Rows that came are first seen by exactly one run, unless too few of them wait at the end."
    root = tmp_path_factory.mktemp("r")
    (root / "settings.ini").touch()
    for n, (day, rows) in enumerate(sorted(arrivals)):
        append_at(root, FIRST + timedelta(days=day, minutes=n), "trigger.files", "triggers",
                  dict(came={f"f{n}": rows}, went=[]))
    found = replay(root, f"a: {{when: {{any: [{{new_data: {{min_rows: {least}}}}}]}}{more}}}", days=60)
    total, seen = sum(rows for _, rows in arrivals), 0
    for x in found.fired:
        there = sum(rows for n, (day, rows) in enumerate(sorted(arrivals)) if FIRST + timedelta(
            days=day, minutes=n) <= x.at)
        assert there - seen >= least, "each run had enough that no run before it had"
        seen = there
    assert total - seen < least, "what waits at the end is too little"
    assert not found.same
