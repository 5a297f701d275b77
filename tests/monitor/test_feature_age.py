"Age of the rows behind the answers: as clients write times, for replies alone, as counters of an SLO."
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.counted_project import at_hour, requests

from mlops_nb.config.schema import Column, Schema
from mlops_nb.config.slo import read_slos, write_default_slos
from mlops_nb.monitor.bin_counts import cell_numbers
from mlops_nb.monitor.feature_age import (
    FEATURE_AGE_EDGES,
    SLO_AGES,
    add_feature_ages,
    age_quantile,
    check_feature_age,
    count_feature_ages,
    feature_age_columns,
    feature_age_counters,
    feature_age_histogram,
    feature_age_results,
)
from mlops_nb.monitor.log_counts import append_counts
from mlops_nb.monitor.metrics_export import export_metrics
from mlops_nb.monitor.slo_evaluator import slo_report
from mlops_nb.prediction_log.segments import record_frame

NOON = datetime(2026, 11, 2, 12, tzinfo=UTC)


def schema(event_time="seen", type_="timestamp", **how):
    return Schema("churn", "binary", "left", classes=["stays", "leaves"], event_time=event_time, columns=dict(
        seen=Column(type_, feature=False, **how), charge=Column("number"), left=Column("category")))


def ages(*sent, how=None):
    rows = pl.DataFrame({"time": [NOON] * len(sent), "columns.seen": sent}, strict=False)
    columns = feature_age_columns(rows, how or schema())
    return columns[0].values.to_list() if columns else None


def answered(*hours_ago, **other): # records whose event was so many hours before they were answered
    for i, (r, age) in enumerate(zip(requests(len(hours_ago), "b", hour=12), hours_ago, strict=True)):
        at = datetime.fromtimestamp(r.time / 1e6, UTC) - timedelta(hours=age or 0)
        r.columns["seen"], r.seq = [None if age is None else at.isoformat()[:26]], i
        for k, v in other.items(): setattr(r, k, v)
        yield r


@pytest.mark.parametrize("sent, age", [("2026-11-02T11:00:00", 3600), ("2026-11-02T11:00:00Z", 3600),
                                       ("2026-11-02T13:00:00+02:00", 3600), ("2026-11-03", -43200), ("soon", None)])
def test_times_as_clients_write_them(sent, age): assert ages(sent) == [age]


def test_the_time_zone_of_the_schema_holds():
    assert ages("2026-11-02T12:30:00", how=schema(time_zone="Europe/Vienna")) == [1800]


def test_what_has_no_age():
    assert ages(None, None) is None  # nobody sent a time
    assert ages(7, how=schema(type_="integer")) is None  # an event that is numbered
    assert ages("2026-11-02", how=schema(event_time=None)) is None
    assert feature_age_columns(pl.DataFrame({"time": [NOON]}), schema()) == []


def test_only_replies_that_were_computed_from_the_row_have_an_age():
    rows = [*answered(1, 1), *answered(1, mode="shadow"), *answered(1, mode="probe"), *answered(1, source="table"),
            *answered(1, score=[None]), *answered(1, bundle="gone"), *answered(None), *answered(48, source="cache")]
    found = count_feature_ages(record_frame(0, rows), {"b": schema()})
    hour, days = (FEATURE_AGE_EDGES.index(s) + 2 for s in (3600, 2 * 86400))
    assert dict(found.group_by("cell").agg(pl.sum("n")).iter_rows()) == {0: 1, hour: 2, days: 1}
    assert set(found.select("bundle", "variant", "kind", "segment_column").rows()) == {
        ("b", "champion", "feature_age", "")}


@given(st.lists(st.floats(-9, 1e9), min_size=1, max_size=50), st.sampled_from([.5, .95, 1]))
def test_a_quantile_is_the_upper_end_of_the_cell_of_the_exact_one(seconds, level):
    counts = np.bincount(cell_numbers(feature_age_histogram(), pl.Series(seconds)),
                         minlength=len(FEATURE_AGE_EDGES) + 2)
    exact = np.quantile(seconds, level, method="inverted_cdf")
    found = float(age_quantile(counts, level))
    assert found == min((e for e in FEATURE_AGE_EDGES if e > exact), default=np.inf)


def test_the_check_and_the_hours(store):
    with store.transaction() as t:
        for variant, *hours in (("champion", 1, 1, 30, None), ("challenger", 400)):
            counts = count_feature_ages(record_frame(0, [*answered(*hours, variant=variant)]), {"b": schema()})
            append_counts(t, "churn", counts)
            append_counts(t, "churn", counts.head(1).with_columns(kind=pl.lit("outcome"), name=pl.lit("outcome")))
    now = at_hour(13)
    found = {c.subject: c for c in check_feature_age(store, "churn", now)}
    assert found["champion p95"].value == 1.5 and "25% of them came without a time" in found["champion p95"].message
    assert found["challenger p95"].value == 21 and all(c.ok for c in found.values())
    hours = feature_age_results(store, "churn", now - timedelta(days=1), now).sort("variant")
    assert hours.select("variant", "rows", "without_time", "p50_hours", "p95_hours").rows() == [
        ("challenger", 1, 0, 504, 504), ("champion", 4, 1, 2, 36)]
    assert feature_age_results(store, "nobody", now - timedelta(days=1), now).height == 0


def test_an_objective_for_the_age_is_measured_and_is_a_ticket_when_rows_are_old(tmp_path, store):
    path = write_default_slos(tmp_path, "churn")
    head, _, tail = path.read_text().rpartition("2592000.\n")
    path.write_text(head + "2592000.\n" + tail.replace("  # ", "  "))
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n")
    assert read_slos(tmp_path).slos[-1].name == "feature-freshness"

    def feed(minute, *hours_ago):
        counts = count_feature_ages(record_frame(0, [*answered(*hours_ago)]), {"b": schema()})
        with store.transaction() as t: add_feature_ages(t, "churn", counts)
        statuses, findings, _ = slo_report(tmp_path, store, NOON + timedelta(minutes=minute))
        [status] = [s for s in statuses if s.slo == "feature-freshness"]
        return status, [f for f in findings if f.subject == "feature-freshness"]
    assert feed(0, 1)[0].budget_left is None
    status, found = feed(10, *[1] * 99)
    assert (status.good, status.bad, status.budget_left, found) == (99, 0, 1, [])
    status, found = feed(20, *[30] * 101)
    assert (status.good, status.bad) == (99, 101) and found[0].severity == "ticket" and "slo_burn" in found[0].key
    text = export_metrics(tmp_path, store, NOON).read_text()
    assert 'feature_age_rows_total{endpoint="churn",le="86400",variant="champion"} 100' in text


def test_each_age_of_an_slo_is_the_end_of_a_cell(store):
    assert {*SLO_AGES} <= {*FEATURE_AGE_EDGES}
    with store.transaction() as t:
        add_feature_ages(t, "churn", count_feature_ages(record_frame(0, []), {}))
        assert feature_age_counters(t) == {}
