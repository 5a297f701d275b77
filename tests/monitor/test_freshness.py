"Ages, figures of serving, and traffic: no alarm without a history, an outage is seen in its second hour."
import os
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mlops_nb.bundle.store import lookup_table_path
from mlops_nb.config.schema import Column, ColumnDrift
from mlops_nb.config.settings import write_settings
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.examples.subscribers import subscriber_schema
from mlops_nb.monitor.bin_counts import LATENCY_EDGES_US, cell_numbers, latency_histogram
from mlops_nb.monitor.check_results import counted_champion
from mlops_nb.monitor.freshness import check_freshness, latency_percentile, remember_data_time
from mlops_nb.monitor.traffic_checks import WEEK_HOURS, check_traffic, compare_missing, unusual_hours
from mlops_nb.monitor.validation_checks import compare_test_rows
from mlops_nb.stats.drift_test import ReferenceHistogram

NOW = datetime(2026, 11, 2, 12, 20, tzinfo=UTC)
LAST_HOUR = datetime(2026, 11, 2, 11)
PLANS = ReferenceHistogram([10, 500, 490, 0], categories=["basic", "plus"], groups=[])


@pytest.fixture
def project(tmp_path):
    write_settings(tmp_path)
    return tmp_path


def count(store, rows):
    "Counts as (kind, variant, bundle, hour, cell, n)."
    with store.transaction() as t:
        first = t.query("SELECT count(*) AS n FROM series")["n"][0]
        for i, (kind, variant, bundle, hours, cell, n) in enumerate(rows):
            t.append("series", pl.DataFrame(dict(series_id=first + i, endpoint="model", bundle=bundle, variant=variant,
                                                 kind=kind, segment_column="", segment_value="", name=kind, cells=80)))
            hourly = pl.DataFrame(dict(series_id=first + i, hour=hours, cell=cell, n=n))
            t.append("counts", hourly)
            daily = hourly.group_by("series_id", pl.col("hour").dt.truncate("1d").alias("day"), "cell").agg(pl.sum("n"))
            t.append("daily_counts", daily)


def test_ages_of_the_model_its_data_and_its_table(project, store):
    assert check_freshness(project, store, NOW) == []  # nothing was counted yet
    bundle, old = "b" * 64, datetime(2026, 4, 1)
    count(store, [("outcome", "champion", "a" * 64, old, 1, 10), ("outcome", "champion", bundle, old, 1, 10),
                  ("outcome", "champion", bundle, LAST_HOUR, 1, 10), ("source", "champion", bundle, LAST_HOUR, 2, 10)])
    assert counted_champion(store, "model", NOW) == bundle
    assert [f.key for f in check_freshness(project, store, NOW)] == ["freshness:model:model"]
    write_json(project / "artifacts/gate.json", dict(bundle=bundle))
    write_json(project / "artifacts/prepared/dataset.json", dict(parts=dict(
        train=dict(time=["2024-01-01T00:00:00", "2025-01-01T00:00:00"]), test=dict(time=None))))
    assert remember_data_time(project, store) == {bundle: "2025-01-01T00:00:00"}
    write_json(project / "artifacts/gate.json", dict(bundle="c" * 64))  # another was trained: the time is remembered
    table = lookup_table_path(bundle, project / "tables")
    table.parent.mkdir()
    table.touch()
    made = (NOW - timedelta(days=8)).timestamp()
    os.utime(table, (made, made))
    found = {f.subject: f for f in check_freshness(project, store, NOW)}
    assert {*found} == {"model", "data of the model", "features of the lookup table"}
    assert found["features of the lookup table"].value == pytest.approx(8, abs=.01)
    assert all(f.next_command and f.endpoint == "model" for f in found.values())


def test_figures_of_serving(project, duckdb_store):
    cell = int(cell_numbers(latency_histogram(), pl.Series([4100]))[0])
    count(duckdb_store, [(kind, "champion", bundle, LAST_HOUR, cell, n) for kind, bundle, cell, n in (
        ("outcome", "b", 1, 95), ("outcome", "", 2, 5), ("outcome", "b", 5, 40), ("source", "b", 3, 19),
        ("source", "b", 1, 76), ("own_latency", "b", cell, 9))])
    assert check_freshness(project, duckdb_store, NOW) == []
    measured = dict(duckdb_store.query("SELECT subject, value FROM checks WHERE monitor = 'serving'").iter_rows())
    assert measured["champion failed"] == .05  # of 100 rows: probes are none
    assert (measured["from cache"], measured["champion p95"]) == (.2, 5.)
    assert measured["champion rows an hour"] == pytest.approx(100 / 24)


def test_percentiles_of_latencies_are_right_to_a_cell():
    us = np.random.default_rng(0).lognormal(8, 1, 5000)
    counts = np.bincount(cell_numbers(latency_histogram(), pl.Series(us)), minlength=len(LATENCY_EDGES_US) + 2)
    for share in (.5, .95, .99):
        assert 1 <= latency_percentile(counts, share) * 1000 / np.quantile(us, share) <= 1.29


def traffic(rng, weeks, noise=.1, growth=1.01):
    h = np.arange(weeks * WEEK_HOURS)
    rhythm = (1.2 + np.sin((h % 24 - 9) * np.pi / 12)) * np.where(h // 24 % 7 >= 5, .4, 1) * growth**(h / WEEK_HOURS)
    days = rng.gamma(noise**-2, noise**2, weeks * 7).repeat(24)
    return rng.poisson(100 * rhythm * days)


def looks(rows, weeks=13):
    return [unusual_hours(rows[h - weeks * WEEK_HOURS:h], 2)[1].all() for h in range(weeks * WEEK_HOURS, len(rows), 5)]


@pytest.mark.parametrize("noise, growth", [(.02, 1.), (.1, 1.01), (.25, 1.02)])
def test_no_alarm_in_a_healthy_half_year(noise, growth):
    assert sum(looks(traffic(np.random.default_rng(1), 39, noise, growth))) == 0


def test_an_outage_and_a_surge_are_seen_in_their_second_hour():
    rows, at = traffic(np.random.default_rng(2), 20), 15 * WEEK_HOURS + 33
    for n in (0, 5 * rows[at]):
        changed = rows.copy()
        changed[at:at + 4] = n
        assert [unusual_hours(changed[:at + k], 2)[1].all() for k in range(4)] == [False, False, True, True]
    quiet = np.full(20 * WEEK_HOURS, 3)  # three rows an hour: an empty hour is nothing unusual
    quiet[-2:] = 0
    assert not unusual_hours(quiet, 2)[1].any()


def test_a_history_of_less_than_four_weeks_says_nothing():
    rows = np.r_[np.zeros(10 * WEEK_HOURS, int), np.full(4 * WEEK_HOURS + 1, 100), 0, 0]
    assert unusual_hours(rows[:-2], 2) is None and unusual_hours(rows, 2)[1].all()


def test_an_endpoint_that_falls_silent(project, store):
    hours = [LAST_HOUR - timedelta(hours=h) for h in range(2, 36 * 24)]
    probes = [LAST_HOUR - timedelta(hours=h) for h in (0, 1)]
    count(store, [("outcome", "champion", "b", hours, 1, 50), ("outcome", "old", "a", hours, 3, 50),
                  ("outcome", "champion", "b", probes, 5, 500)])
    [silent] = check_traffic(project, store, NOW)
    assert (silent.key, silent.value, silent.limit) == ("volume:model:requests", 0, 100)
    assert check_traffic(project, store, NOW - timedelta(hours=2)) == []


def test_requests_without_a_value():
    schema = subscriber_schema()
    schema.columns["plan"] = Column("category", owner="sales")
    ask = lambda *n: compare_missing({"plan": np.array(n)}, {"plan": PLANS}, schema, "model")
    assert [r.ok for r in ask(20, 500, 480, 0)] == [True] and ask(100, 0, 0, 0) == []
    [found] = ask(300, 400, 300, 0)
    assert (found.ok, found.owner, found.value) == (False, "sales", .3)
    assert compare_missing({}, {"plan": PLANS}, schema, "model") == []


def test_test_rows_against_production():
    schema = subscriber_schema()
    rng = np.random.default_rng(0)
    test = {"plan": np.array([0, 1500, 1500, 0])}
    compare = lambda counts: compare_test_rows(test, {"plan": np.array(counts)}, {"plan": PLANS}, schema)
    healthy = [compare([0, *rng.multinomial(300, [.5, .5]), 0])[0].ok for _ in range(50)]
    assert all(healthy) and compare([0, 50, 50, 0]) == []  # too few
    [differs] = compare([0, 100, 900, 0])
    assert not differs.ok and "basic" in differs.message and "10.0 % of production" in differs.message
    schema.columns["plan"].drift = ColumnDrift(floor=.6)
    assert compare([0, 100, 900, 0])[0].ok


def test_one_ticket_names_the_columns_that_differ():
    schema = subscriber_schema()
    schema.columns["plan"].owner, schema.columns["tenure"].owner = "products", "products"
    columns, test = {c: PLANS for c in ("plan", "tenure", "charge", "score")}, np.array([0, 1500, 1500, 0])
    now = {c: np.array([0, 100, 900, 0] if c != "charge" else [0, 500, 500, 0]) for c in columns}
    [found] = compare_test_rows(dict.fromkeys(columns, test), now, columns, schema, "the labelled rows of today")
    assert found.message.startswith("The test rows no longer look like the labelled rows of today in 3 of 4 columns: ")
    assert found.owner == "products" and len(found.causes) == 3 and "charge" not in found.message
    assert compare_test_rows({}, now, columns, schema) == []
