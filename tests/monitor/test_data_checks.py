"Checks of the newest data batch: what upstream changed is found with its owner; without a history nothing is claimed."
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mlops_nb.config.schema import Column, write_schema
from mlops_nb.config.settings import write_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.data.ingest import DataManifest, IngestedSource
from mlops_nb.data.validation import PartitionCounts, ValidationReport
from mlops_nb.examples.subscribers import subscriber_schema, subscribers
from mlops_nb.monitor.check_results import KEEP_DAYS, CheckResult, read_check_history, record_checks, robust_center
from mlops_nb.monitor.data_checks import check_data, check_delivered_columns, read_data_history
from mlops_nb.stats.drift_test import DriftResult
from mlops_nb.stats.summaries import statistics_frame, summarize_columns

NOW = datetime(2026, 7, 10, tzinfo=UTC)
COLUMNS = {c: str(t) for c, t in subscribers(1).schema.items()}


@pytest.fixture
def project(tmp_path):
    schema = subscriber_schema()
    schema.event_time = "month"
    schema.columns["charge"].owner, schema.columns["plan"].owner = "billing", "sales"
    write_settings(tmp_path)
    write_schema(schema, tmp_path / "schema.yaml")
    return tmp_path


def write(root, n_rows, newest=None, put_away=0, columns=None, **report):
    "Monthly batches of so many rows; the newest one with other values, quarantined rows and columns."
    sources, counts, statistics = [], [], {}
    for i, n in enumerate(n_rows):
        last = i == len(n_rows) - 1
        rows = subscribers(200, seed=i).with_columns(month=pl.lit(datetime(2026, 1 + i, 1)), **(last and newest or {}))
        path, name = f"part-{i}.parquet", f"month {i + 1}.csv"  # 10 comes after 9, not after 1
        sources.append(IngestedSource(name, str(i), 1, n, {**COLUMNS, **(last and columns or {})}, "csv", i))
        counts.append(PartitionCounts(path, name, n, n, put_away if last else 0))
        statistics[path] = summarize_columns(rows, subscriber_schema())
    write_json(root / "data/manifest.json", DataManifest(sorted(sources, key=lambda s: s.name)))
    write_json(root / "artifacts/validation.json", ValidationReport(sum(n_rows), partitions=counts, **report))
    statistics_frame(statistics).write_parquet(root / "artifacts/statistics.parquet")
    return root


def found(root, store, now=NOW): return {f.key: f for f in check_data(root, store, now)}


def test_nothing_is_said_of_healthy_batches(project, duckdb_store):
    rng = np.random.default_rng(0)
    assert found(write(project, rng.poisson(1000, 7).tolist()), duckdb_store) == {}
    assert duckdb_store.query("SELECT count(*) AS n FROM checks WHERE NOT ok")["n"][0] == 0
    assert duckdb_store.query("SELECT count(DISTINCT subject) AS n FROM checks WHERE monitor = 'missing'")["n"][0] == 6


def test_what_upstream_broke_is_found_with_its_owner(project, store):
    write(project, [1000] * 6 + [300], dict(charge=pl.lit(None, pl.Float64)), 60, {"plan": "Int64"},
          violations={"plan:domain": 70, "tenure:range": 3})
    keys = found(project, store)
    assert {k: f.owner for k, f in keys.items()} == {
        "schema:plan": "sales", "volume:month 7.csv": "", "missing:charge": "billing", "corrupt:month 7.csv": "sales"}
    assert "was String and is Int64" in keys["schema:plan"].summary and "100.0%" in keys["missing:charge"].summary
    assert keys["corrupt:month 7.csv"].causes[0] == "plan breaks its domain 70 times (owner: sales)"
    assert all(f.next_command and f.started_at == NOW and f.severity == "ticket" for f in keys.values())


def test_a_finding_says_since_when_and_ends(project, duckdb_store):
    write(project, [1000] * 6 + [300])
    for hour in range(3): keys = found(project, duckdb_store, NOW + timedelta(hours=hour))
    assert keys["volume:month 7.csv"].started_at == NOW
    write(project, [1000] * 7)
    assert found(project, duckdb_store, NOW + timedelta(hours=3)) == {}
    write(project, [1000] * 6 + [300])
    again = NOW + timedelta(hours=4)
    assert found(project, duckdb_store, again)["volume:month 7.csv"].started_at == again


def test_without_a_history_nothing_is_unusual(project, duckdb_store):
    assert found(project, duckdb_store) == {}  # nothing was ingested
    assert found(write(project, [1000]), duckdb_store, datetime(2030, 1, 1, tzinfo=UTC)) == {}
    assert found(write(project, [1000, 2, 1000, 5]), duckdb_store) == {}


def test_ten_batches_come_in_the_order_of_their_numbers(project):
    history = read_data_history(write(project, [100] * 12))
    assert [b.name for b in history.batches[:3]] == ["month 12.csv", "month 11.csv", "month 10.csv"]


def test_a_new_column_is_noted_and_one_that_is_gone_is_a_finding(project):
    history = read_data_history(write(project, [100, 100], columns={"new": "String", "charge": "Null"}))
    del history.batches[0].columns["tenure"]
    assert {r.subject: r.ok for r in check_delivered_columns(history)} == {
        **dict.fromkeys(COLUMNS, True), "tenure": False, "new": True}


def test_late_data(project, duckdb_store):
    write(project, [100] * 7)
    assert "data_freshness:data" not in found(project, duckdb_store, datetime(2026, 8, 28, tzinfo=UTC))
    late = found(project, duckdb_store, datetime(2026, 9, 15, tzinfo=UTC))["data_freshness:data"]
    assert late.value == pytest.approx(76) and late.limit == pytest.approx(60, abs=2)


def test_skew_of_values_and_of_labels(project, duckdb_store):
    skew = [DriftResult(c, .3, .1, .02, 1e-9, f"{c} is another.") for c in ("charge", "left")]
    keys = found(write(project, [100] * 2, compared_source="month 2.csv", value_skew=skew), duckdb_store)
    assert {k: f.owner for k, f in keys.items()} == {"value_skew:charge": "billing", "label_skew:left": ""}


def test_the_contract_of_the_model_in_use(project, duckdb_store):
    bundle = "b" * 64
    write_json(project / "bundles" / bundle / "schema.json", subscriber_schema())
    with duckdb_store.transaction() as t:
        t.append("series", pl.DataFrame(dict(series_id=1, endpoint="model", bundle=bundle, variant="champion",
                                             kind="outcome", segment_column="", segment_value="", name="outcome")))
        t.append("counts", pl.DataFrame(dict(series_id=1, hour=datetime(2026, 7, 1), cell=1, n=10)))
    write(project, [100] * 2)
    assert found(project, duckdb_store) == {}  # another owner and an event time are no change of the data
    schema = subscriber_schema()
    schema.columns["plan"] = Column("category", domain=["basic", "family"], owner="sales")
    schema.columns["tenure"].range = (0, 900)
    del schema.columns["charge"]
    write_schema(schema, project / "schema.yaml")
    keys = found(project, duckdb_store)
    assert {k: f.owner for k, f in keys.items()} == {"contract:plan": "sales", "contract:charge": ""}
    assert "lost plus" in keys["contract:plan"].summary


def test_a_damaged_file_is_named(project, duckdb_store):
    write(project, [100] * 2)
    (project / "artifacts/validation.json").write_text('{"received":')
    with pytest.raises(UserError, match="validation.json cannot be read"): check_data(project, duckdb_store, NOW)


def test_old_results_are_removed_and_history_is_in_order(duckdb_store):
    result = CheckResult(monitor="quota", subject="disk", message="it's 50 %", value=.5)
    for days in (0, 5, KEEP_DAYS + 1): record_checks(duckdb_store, [result], NOW + timedelta(days=days))
    known = read_check_history(duckdb_store, "quota", "disk", NOW + timedelta(days=KEEP_DAYS + 2))
    assert len(known) == 2 and known["checked_at"].is_sorted()
    assert record_checks(duckdb_store, [], NOW) == []


def test_what_is_usual_needs_four_values_and_ignores_an_odd_one():
    assert robust_center([1, 2, 3]) is None and robust_center([1, 2, np.nan, 3]) is None
    assert robust_center([10, 10, 10, 10, 1e9]) == (10, 0)
