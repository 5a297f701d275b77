"Drift is found when it matters, once, by whoever runs the monitor and however often; and nothing else is."
import shutil
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mlops_nb.config.schema import Column, ColumnDrift, Schema
from mlops_nb.config.settings import Settings
from mlops_nb.core.errors import UserError
from mlops_nb.monitor import drift
from mlops_nb.monitor.drift import drift_ranking, update_drift
from mlops_nb.monitor.drift_streams import parse_alarm_budget, read_windows
from mlops_nb.monitor.log_counts import append_counts
from mlops_nb.monitor.record_counts import RECORD_COUNTS, BundleCells
from mlops_nb.monitor.store import MonitorStore
from mlops_nb.stats.drift_test import Baseline, ReferenceHistogram
from mlops_nb.stats.monitoring_baseline import MonitoringBaseline

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
HOUR, WEEK = timedelta(hours=1), timedelta(weeks=1)
AGE = ReferenceHistogram([100, 0, 3000, 4000, 2900, 0], edges=[18., 35., 50., 90.])
PLAN = ReferenceHistogram([0, 6000, 3900, 100], categories=["basic", "plus"], groups=[])
SCORE = ReferenceHistogram([0, 2500, 2500, 2500, 2500], edges=[.1, .2, .4])
SHARES = {("column", "age"): AGE.counts, ("column", "plan"): PLAN.counts, ("score", "churn"): SCORE.counts,
          ("decision", "decision"): [500, 7000, 2500, 0]}
SCHEMA = Schema("t", "binary", "churn", classes=["no", "yes"], columns={
    "age": Column("number", owner="warehouse"), "plan": Column("category", drift=ColumnDrift(floor=.4)),
    "churn": Column("category")})
CELLS = BundleCells(SCHEMA, MonitoringBaseline(
    Baseline(10_000, {"age": AGE, "plan": PLAN}), {"churn": SCORE},
    {"features": [dict(feature="age", mean_abs=.1), dict(feature="plan", mean_abs=.3)]}), None)


def counts_of(bundle, start, hours, rows=300, seed=0, **changed):
    "Counts of some hours; nights have a third of the rows and other people. `changed`: shares of a name."
    rng, tables = np.random.default_rng(seed), []
    times = np.array([(start + i * HOUR).replace(tzinfo=None) for i in range(hours)], "datetime64[us]")
    night = times.astype("datetime64[h]").astype(int) % 24 < 6
    for (kind, name), usual in SHARES.items():
        shares = np.tile(np.array(changed.get(name, usual), float), (hours, 1))
        shares[:, -2] *= np.where(night, 1.3, 1)
        n = rng.multinomial(rng.poisson(np.where(night, rows / 3, rows)), shares / shares.sum(1, keepdims=True))
        at, cell = np.nonzero(n)
        tables.append(pl.DataFrame(dict(hour=times[at], cell=cell, n=n[at, cell])).with_columns(
            bundle=pl.lit(bundle), variant=pl.lit("champion"), segment_column=pl.lit(""), segment_value=pl.lit(""),
            kind=pl.lit(kind), name=pl.lit(name), cells=pl.lit(n.shape[1])))
    first = tables[0].with_columns(kind=pl.lit("source"), name=pl.lit("source"))
    return pl.concat([*tables, first]).select(*RECORD_COUNTS).cast(RECORD_COUNTS)


QUIET = MONDAY + timedelta(days=15) # of a model that nothing happened to


@pytest.fixture(scope="module")
def quiet_stores(tmp_path_factory):
    "Fifteen days of counts, and the same after some runs that learned what is usual."
    folder = tmp_path_factory.mktemp("drift")
    counted, learned = folder / "counted.duckdb", folder / "learned.duckdb"
    with pytest.MonkeyPatch.context() as patch:
        watch_of(MonitorStore(f"duckdb:///{counted}"), folder, patch).count("b1", MONDAY, 15 * 24)
        shutil.copyfile(counted, learned)
        watch = watch_of(MonitorStore(f"duckdb:///{learned}"), folder, patch)
        for days in (1, 3, 14, 15): assert watch.run(MONDAY + timedelta(days=days)) == []
    return counted, learned


@pytest.fixture
def quiet_watch(quiet_stores, tmp_path, monkeypatch): # what is usual is learned, up to QUIET
    shutil.copyfile(quiet_stores[1], tmp_path / "m.duckdb")
    return watch_of(MonitorStore(f"duckdb:///{tmp_path / 'm.duckdb'}"), tmp_path, monkeypatch)


@pytest.fixture
def watch(tmp_path, monkeypatch):
    return watch_of(MonitorStore(f"duckdb:///{tmp_path / 'm.duckdb'}"), tmp_path, monkeypatch)


def watch_of(store, tmp_path, monkeypatch):
    monkeypatch.setattr(drift, "_open_cells", lambda root, settings, bundle: CELLS)
    settings = Settings()

    class Watch:
        endpoint = settings.release.endpoint

        def count(self, *args, **more):
            with store.transaction() as t: append_counts(t, self.endpoint, counts_of(*args, **more))

        def run(self, now): return update_drift(tmp_path, store, now, settings)

        def query(self, sql): return store.query(sql)

    Watch.store = store
    return Watch()


BROKEN = [6000, 0, 1200, 1600, 1200, 0] # more than half of the ages are missing


def test_a_broken_column_is_found_within_hours_named_and_over_when_it_is_mended(quiet_watch):
    watch = quiet_watch
    watch.count("b1", QUIET, 10, seed=1, age=BROKEN)
    found = watch.run(QUIET + 10 * HOUR)
    assert [(f.rule, f.subject, f.owner, f.severity) for f in found] == [("drift", "age", "warehouse", "page")]
    assert "missing" in found[0].summary and "2 weeks of history" in found[0].summary
    assert QUIET - HOUR <= found[0].started_at <= QUIET + 3 * HOUR and found[0].value > .4
    first = watch.query("SELECT min(window_start) AS at FROM drift WHERE alarm")["at"][0]
    assert first.replace(tzinfo=UTC) <= QUIET + 6 * HOUR
    ranking = drift_ranking(watch.store, watch.endpoint, QUIET, QUIET + 10 * HOUR)
    assert ranking["name"][0] == "age" and ranking["weight"].to_list() == pytest.approx([.25, .75])
    watch.count("b1", QUIET + 10 * HOUR, 36, seed=2)
    assert watch.run(QUIET + 46 * HOUR) == []


def test_decisions_are_told_by_their_classes(quiet_watch):
    quiet_watch.count("b1", QUIET, 12, seed=1, decision=[500, 4000, 5500, 0])
    found = quiet_watch.run(QUIET + 12 * HOUR)
    assert [(f.rule, f.subject, f.severity) for f in found] == [("prediction_drift", "decision", "ticket")]
    assert "yes" in found[0].summary and "cells" not in found[0].summary
    assert "the same hours of earlier weeks" in found[0].summary


def test_however_often_it_runs_the_result_is_the_same(quiet_watch):
    watch, end = quiet_watch, QUIET + 6 * HOUR
    watch.count("b1", QUIET, 6, seed=1, age=BROKEN)
    often = [watch.run(end - 3 * HOUR), watch.run(end), watch.run(end), watch.run(end - HOUR)][1]
    assert often
    rows = "SELECT name, window_start, jensen_shannon, e_value, detector, alarm FROM drift ORDER BY name, window_start"
    judged = watch.query(rows)
    assert judged.unique(["name", "window_start"]).height == judged.height # each window once
    assert judged.height == 3 * (15 * 24 + 6) + 24 + 6 # the decision has no past before it was learned
    with watch.store.transaction() as t:
        t.execute("DELETE FROM drift")
        t.execute("DELETE FROM state")
    assert watch.run(end) == often and watch.query(rows).equals(judged)


def test_a_change_below_the_floor_is_no_alarm(quiet_watch):
    quiet_watch.count("b1", QUIET, 24, seed=1, plan=[0, 4000, 5900, 100]) # floor 0.4
    assert quiet_watch.run(QUIET + timedelta(days=1)) == []
    found = quiet_watch.query("SELECT detector, threshold FROM drift WHERE name = 'plan' ORDER BY window_start DESC "
                              "LIMIT 1")
    assert found["detector"][0] > 3 * found["threshold"][0] # it was seen, and does not matter


def test_a_new_model_borrows_and_keeps_what_does_not_depend_on_it(quiet_watch):
    watch = quiet_watch
    watch.count("b2", QUIET, 30, seed=3)
    assert watch.run(QUIET + 20 * HOUR) == [] # less than a day: nothing is judged yet
    watch.count("b2", QUIET + 30 * HOUR, 30, seed=4, churn=[0, 500, 500, 4000, 5000])
    found = watch.run(QUIET + 60 * HOUR)
    assert [(f.rule, f.subject) for f in found] == [("prediction_drift", "churn")]
    assert "too little history" in found[0].summary
    with watch.store.transaction() as t:
        old, new = (t.state(f"drift_pasts:{watch.endpoint}:{b}") for b in ("b1", "b2"))
    assert new["column/age"] == old["column/age"] and new["score/churn"] != old["score/churn"]


def test_hours_that_come_late_change_the_counts_and_not_what_was_judged(watch):
    watch.count("b1", MONDAY, 3 * 24)
    now = MONDAY + timedelta(days=3)
    watch.run(now)
    rows = "SELECT * FROM drift ORDER BY name, window_start"
    judged = watch.query(rows)
    watch.count("b1", MONDAY + 20 * HOUR, 4, seed=5, age=BROKEN)
    assert watch.run(now) == [] and watch.query(rows).equals(judged)


def test_windows_with_few_rows_or_none_are_no_evidence(watch):
    watch.count("b1", MONDAY, 26)
    watch.count("b1", MONDAY + 30 * HOUR, 5, rows=6, seed=1, age=BROKEN)
    assert watch.run(MONDAY + 40 * HOUR) == []
    few = watch.query("SELECT p_value, e_value, moved, rows FROM drift WHERE window_start >= '2026-03-03 02:00:00'")
    assert few.height and few["p_value"].null_count() == few.height and set(few["moved"]) == {"too few rows"}


def test_without_a_bundle_earlier_weeks_are_the_reference(quiet_stores, tmp_path, monkeypatch):
    shutil.copyfile(quiet_stores[0], tmp_path / "m.duckdb")
    watch = watch_of(MonitorStore(f"duckdb:///{tmp_path / 'm.duckdb'}"), tmp_path, monkeypatch)
    monkeypatch.setattr(drift, "_open_cells", lambda root, settings, bundle: None)
    watch.count("b1", QUIET, 10, seed=1, age=BROKEN)
    assert watch.run(QUIET) == []
    found = watch.run(QUIET + 10 * HOUR)
    assert [f.subject for f in found] == ["age"] and "the same hours of earlier weeks" in found[0].summary


def test_in_postgresql_too(postgresql_store, tmp_path, monkeypatch):
    watch = watch_of(postgresql_store, tmp_path, monkeypatch)
    watch.count("b1", MONDAY, 30)
    watch.count("b1", MONDAY + 30 * HOUR, 24, seed=1, age=BROKEN)
    assert watch.run(MONDAY + 30 * HOUR) == []
    assert [f.subject for f in watch.run(MONDAY + 54 * HOUR)] == ["age"]
    assert drift_ranking(watch.store, watch.endpoint, MONDAY + 30 * HOUR, MONDAY + 54 * HOUR)["name"][0] == "age"


def test_a_quiet_endpoint_is_watched_in_longer_windows(watch):
    day = timedelta(days=1)
    watch.count("b1", MONDAY, 10 * 24, rows=20)
    watch.count("b1", MONDAY + 10 * day, 2 * 24, rows=20, seed=1, age=BROKEN)
    assert watch.run(MONDAY + 10 * day) == []
    assert [f.subject for f in watch.run(MONDAY + 12 * day)] == ["age"]
    windows = watch.query("SELECT window_start, window_end FROM drift")
    assert set(windows["window_end"] - windows["window_start"]) == {6 * HOUR}


@pytest.mark.parametrize("text", ["0 per year", "one per week", "1 per day", "1.2.3 per week", ""])
def test_a_budget_that_cannot_be_kept_is_refused(text):
    with pytest.raises(UserError, match="false_alarms"): parse_alarm_budget(text)


def test_windows_of_days_sum_the_hours(watch):
    watch.count("b1", MONDAY, 48)
    ids = dict(watch.query("SELECT series_id, cells FROM series WHERE name = 'age'").iter_rows())
    start = MONDAY.replace(tzinfo=None)
    hours, days = (read_windows(watch.store, ids, start, start + timedelta(days=2), h) for h in (1, 24))
    for i in ids: assert np.array_equal(hours[i].reshape(2, 24, -1).sum(1), days[i])


def judged_days(sizes, state, floor=.1):
    "Whether a stream has drifted at the end of each day, by the effect of each day; the evidence is beyond doubt."
    found, start = [], MONDAY.replace(tzinfo=None) + timedelta(days=judged_days.day)
    for day, size in enumerate(sizes):
        for hour in range(24):
            drift.judge_window(state, start + timedelta(days=day, hours=hour), np.array([3.]), ["column/age"],
                               np.ones(1), np.array([floor]), lambda i, since, size=size: size)
        found.append(bool(state.drifted))
    judged_days.day += len(sizes)
    return found


@pytest.fixture
def judged_state():
    judged_days.day, start = 0, MONDAY.replace(tzinfo=None)
    return drift.DriftState(1, start, start, weeks=8, threshold=20.)


def test_a_difference_around_its_floor_is_told_once(judged_state):
    sizes = .1 + .03 * np.random.default_rng(3).standard_normal(100)
    assert (sizes > .125).any() and (sizes < .08).any()
    told = judged_days(sizes, judged_state)
    assert sum(b and not a for a, b in zip([False, *told], told)) == 1


@pytest.mark.parametrize("quiet_days, size, is_told", [
    (0, .15, False), (25, .15, False), (29, .15, True), (3, .199, False), (3, .201, True)])
def test_what_was_told_is_told_again_when_it_doubles_or_was_away_for_weeks(judged_state, quiet_days, size, is_told):
    assert judged_days([.15, .079], judged_state) == [True, False]
    judged_days([.02] * quiet_days, judged_state)
    assert judged_days([size], judged_state) == [is_told]


def test_a_drift_is_open_until_it_is_well_below_its_floor(judged_state):
    assert judged_days([.15, .09, .081, .079], judged_state) == [True, True, True, False]


def test_a_feature_is_explained_by_the_columns_it_reads_and_a_segment_by_all_rows():
    now = MONDAY.replace(tzinfo=None)
    streams = [drift.DriftStream(1, "column", "bill"), drift.DriftStream(2, "column", "share", sources=["bill", "cap"]),
               drift.DriftStream(3, "column", "cap"), drift.DriftStream(4, "column", "bill", "region", "north"),
               drift.DriftStream(5, "column", "share", "region", "north", sources=["bill", "cap"])]
    state = drift.DriftState(1, now, now, drifted={
        s.key: drift.DriftedStream(now, .5, 100) for s in streams if s.name != "cap"})
    found = {f.key: f.depends_on for f in drift.drift_findings("churn", state, streams)}
    assert found == {"drift:churn:bill": [], "drift:churn:share": ["drift:churn:bill"],
                     "drift:churn:bill{segment=region=north}": ["drift:churn:bill"],
                     "drift:churn:share{segment=region=north}": ["drift:churn:share", "drift:churn:bill"]}
