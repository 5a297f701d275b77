"oncall.yaml: who is on call at any moment of a year, hand-overs in the nights when clocks change, holes and mistakes."
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from mlops_nb.config.on_call import ON_CALL_FILE, OnCall, Override, Person, QuietHours, Shift, read_on_call
from mlops_nb.core.errors import UserError

HOUR = timedelta(hours=1)
START = datetime(2026, 1, 1, tzinfo=UTC)


def rota(zone, *shifts, people="ab", **more):
    return OnCall(timezone=zone, people={p: Person() for p in people}, shifts=[*shifts], **more)


def by_hand(rota, at):
    "Who is on call, told the long way: each wall-clock minute of a shift, compared as text."
    zone = ZoneInfo(rota.timezone)
    for shift in rota.shifts:
        for back in (0, 1):
            day = (at.astimezone(zone) - timedelta(days=back)).date()
            begins = datetime.fromisoformat(f"{day} {shift.start}").replace(tzinfo=zone).astimezone(UTC)
            last = day + timedelta(days=shift.end <= shift.start)
            ends = datetime.fromisoformat(f"{last} {shift.end}").replace(tzinfo=zone).astimezone(UTC)
            if begins <= at < ends and day.strftime("%a").lower() in shift.days:
                n = (day - datetime.fromisoformat(shift.first_day).date()).days // shift.turn_days
                return shift.people[n % len(shift.people)]


@pytest.mark.parametrize("zone", ["UTC", "Europe/Vienna", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"])
def test_each_hour_of_a_year_has_the_person_that_the_wall_clock_says(zone):
    "Also where clocks move by half an hour, and where they move in the other half of the year."
    r = rota(zone, Shift(people=["a"], days=["mon", "tue"], start="09:30", end="17:00"),
             Shift(people=["a", "b"], start="02:30", end="02:30", first_day="2026-01-05"))
    moments = [START + 7 * HOUR * n for n in range(1251)]
    assert [r.person_at(t) for t in moments] == [by_hand(r, t) for t in moments]
    assert not r.holes(START, 366)


@pytest.mark.parametrize("at", ["00:00", "01:59", "02:00", "02:30", "02:59", "03:00", "03:30"])
@pytest.mark.parametrize("night", ["2026-03-29", "2026-10-25"])
def test_a_hand_over_in_the_night_of_the_change_happens_once(night, at):
    r = rota("Europe/Vienna", Shift(people=["a"], start="12:00", end=at), Shift(people=["b"], start=at, end="12:00"))
    start = datetime.fromisoformat(f"{night} 00:00").replace(tzinfo=ZoneInfo(r.timezone)).astimezone(UTC) - 2 * HOUR
    seen = [r.person_at(start + timedelta(minutes=5 * n)) for n in range(12 * 10)]
    assert seen == sorted(seen) and set(seen) == {"a", "b"}  # a before b, never back, never nobody
    turns = r.turns(start, 1)
    assert [who for _, _, who in turns[:2]] == ["a", "b"] and all(x[1] == y[0] for x, y in zip(turns, turns[1:]))


def test_a_turn_has_23_and_25_hours_twice_a_year():
    r, zone = rota("Europe/Vienna", Shift(people=["a", "b"], turn_days=1)), ZoneInfo("Europe/Vienna")
    def hours(day):
        a, b, _ = r.turns(datetime.fromisoformat(day).replace(tzinfo=zone), 2)[0]
        return (b - a) / HOUR
    assert [hours(d) for d in ("2026-03-29", "2026-10-25", "2026-07-01")] == [23, 25, 24]


def test_a_hole_is_found_before_it_comes_and_an_override_fills_it():
    week = Shift(people=["a"], days=["mon", "tue", "wed", "thu", "fri"])
    monday = datetime(2026, 11, 2, tzinfo=UTC)
    assert rota("UTC", week).holes(monday, 7) == [(monday + 120 * HOUR, monday + 168 * HOUR)]
    filled = rota("UTC", week, overrides=[Override(person="b", start="2026-11-07 00:00", end="2026-11-08 12:00")])
    assert filled.holes(monday, 7) == [(monday + 156 * HOUR, monday + 168 * HOUR)]
    assert filled.person_at(monday + 121 * HOUR) == "b" and filled.person_at(monday + 157 * HOUR) is None
    assert rota("UTC", Shift(people=["a"])).next_person(monday) is None


def test_quiet_hours_follow_the_wall_clock():
    r = rota("Europe/Vienna", Shift(people=["a"]), quiet_hours=QuietHours(start="19:00", end="08:00", days=["sun"]))
    moments = [datetime(2026, m, 4, h, 30, tzinfo=UTC) for m, h in ((2, 7), (2, 6), (6, 6), (6, 17), (10, 10))]
    assert [*map(r.is_quiet, moments)] == [False, True, False, True, True]  # 8:30, 7:30, 8:30 in summer; a Sunday


GOOD = "timezone: UTC\npeople: {ana: {}, bo: {}}\nshifts: [{people: [ana]}]\n"


@pytest.mark.parametrize("old, new, says", [
    ("UTC", "Europe/Viena", "there is no time zone 'Europe/Viena'"),
    ("[ana]", "[anna]", "shifts.1 names 'anna', who is not in people; did you mean 'ana'"),
    ("[ana]}", "[ana], start: \"25:00\"}", "shifts.1.*start is '25:00'"),
    ("[ana]}", "[ana], first_day: \"2026-02-30\"}", "'2026-02-30' is no day of the calendar"),
    ("[ana]}", "[ana], days: [monday]}", "shifts"),
    ("[{people: [ana]}]", "[]", "shifts"),
    ("people: {ana: {}, bo: {}}", "people: {}", "people"),
    ("ana: {}", "ana: {zone: UTC}", "no key 'zone'"),
    ("ana: {}", "ana: {timezone: Mars}", "there is no time zone 'Mars'"),
    ("shifts:", "overrides: [{person: bo, start: \"2026-01-02 10:00\", end: \"2026-01-02 09:00\"}]\nshifts:",
     "overrides.1.*not after"),
    ("shifts:", "escalation: [{after_minutes: 5, to: everyone}]\nshifts:", "escalation.1 names 'everyone'"),
    ("shifts:", "shifts", "is not YAML"),
])
def test_a_mistake_names_its_place(tmp_path, old, new, says):
    assert GOOD.count(old) == 1
    (tmp_path / ON_CALL_FILE).write_text(GOOD.replace(old, new))
    with pytest.raises(UserError, match=says) as error: read_on_call(tmp_path)
    assert ON_CALL_FILE in str(error.value) and "\n" not in str(error.value)


def test_no_file_is_no_rota_and_a_small_one_will_do(tmp_path):
    assert read_on_call(tmp_path) is None
    (tmp_path / ON_CALL_FILE).write_text(GOOD)
    r = read_on_call(tmp_path)
    assert r.person_at(START) == "ana" and not r.is_quiet(START) and [s.after_minutes for s in r.escalation] == [15, 30]
