"Error budgets without Prometheus: sampled counters, what is a finding, and what a used-up budget holds back."
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from support import stub_releases as stubs

from mlops_nb.config.settings import Settings
from mlops_nb.config.slo import read_slos, write_default_slos
from mlops_nb.core.errors import UserError
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor.counter_queries import Selector
from mlops_nb.monitor.counter_samples import (
    counter_values,
    prune_counter_samples,
    record_counters,
    sample_counters,
)
from mlops_nb.monitor.metrics_export import export_metrics
from mlops_nb.monitor.results import budget_results
from mlops_nb.monitor.slo_evaluator import slo_report, update_slos
from mlops_nb.monitor.slo_freeze import freeze_budgets, frozen_budgets
from mlops_nb.release import operations, releases
from mlops_nb.report.monitoring_figures import budget_figure

NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
GOOD, BAD = ('mlops_nb_requests_total{endpoint="churn",route="predict",status="%d"}' % s for s in (200, 503))


@pytest.fixture
def project(tmp_path):
    (tmp_path / "settings.ini").write_text("[release]\nendpoint = churn\n")
    write_default_slos(tmp_path, "churn")
    return tmp_path


def feed(store, minute, **counters):
    named = {{"good": GOOD, "bad": BAD}[k]: float(v) for k, v in counters.items()}
    with store.transaction() as t: record_counters(t, "test", named, NOON + timedelta(minutes=minute))


def look(project, store, minute):
    found = update_slos(project, store, NOON + timedelta(minutes=minute))
    return {(f.rule, f.labels.get("window", "")) for f in found if f.subject == "availability"}


def test_counters_restart_and_appear_late_and_time_is_kept(store):
    "In DuckDB and PostgreSQL."
    seen = [dict(good=100), dict(good=110, bad=2), dict(good=3, bad=2), dict(good=3, bad=2)]
    for minute, counters in enumerate(seen): feed(store, minute, **counters)
    with store.transaction() as t:
        assert counter_values(t, NOON + timedelta(minutes=9)) == {GOOD: 13, BAD: 2}
        assert counter_values(t, NOON - timedelta(minutes=1)) == {}
        assert t.query("SELECT count(*) AS n FROM counter_samples")["n"][0] == 4  # those at rest take no room
        prune_counter_samples(t, NOON + timedelta(minutes=5))
        assert counter_values(t, NOON + timedelta(minutes=9)) == {GOOD: 13, BAD: 2}  # windows still begin right
        assert t.query("SELECT count(*) AS n FROM counter_samples")["n"][0] == 2


def test_one_failure_in_a_quiet_night_is_nobodys_alarm_and_an_outage_is(project, duckdb_store):
    update_slos(project, duckdb_store, NOON - timedelta(days=1))
    feed(duckdb_store, 0, good=0, bad=0)
    assert look(project, duckdb_store, 0) == set()
    feed(duckdb_store, 1, good=0, bad=1)  # one of one
    assert look(project, duckdb_store, 1) == set()
    feed(duckdb_store, 6, good=0, bad=30)
    assert {("slo_burn", "1h"), ("slo_burn", "6h"), ("slo_budget", "")} <= look(project, duckdb_store, 6)
    feed(duckdb_store, 14, good=900, bad=30)  # it is over, and stays in the long windows
    assert ("slo_burn", "1h") not in look(project, duckdb_store, 14)


def test_a_finding_keeps_its_beginning_and_a_slower_one_depends_on_the_faster(project, duckdb_store):
    feed(duckdb_store, 0, good=0, bad=0)
    update_slos(project, duckdb_store, NOON)
    for minute in (5, 6):
        feed(duckdb_store, minute, good=0, bad=30 * minute)
        found = update_slos(project, duckdb_store, NOON + timedelta(minutes=minute))
    burns = {f.labels["window"]: f for f in found if f.rule == "slo_burn"}
    assert "slo_budget" not in {f.rule for f in found}  # on the first day
    assert {f.started_at for f in burns.values()} == {NOON + timedelta(minutes=5)}
    assert burns["6h"].depends_on == [burns["1h"].key] and burns["1h"].depends_on == []
    assert burns["1h"].severity == "page" and burns["1d"].severity == "ticket"


def test_no_data_is_a_finding_of_its_own_but_not_on_the_first_day(project, duckdb_store):
    assert update_slos(project, duckdb_store, NOON) == []
    feed(duckdb_store, 31, good=5)
    assert look(project, duckdb_store, 31) == set()  # availability is known, others are not
    feed(duckdb_store, 36, good=9)
    found = update_slos(project, duckdb_store, NOON + timedelta(minutes=75))
    severities = {f.subject: f.severity for f in found if f.rule == "slo_no_data"}
    assert severities["availability"] == "page" and severities["latency"] == "ticket"  # that never had a figure


def test_without_events_nothing_is_known_of_a_budget(project, store):
    "In DuckDB and PostgreSQL: no budget is whole because nobody asked; such a budget freezes nothing either."
    feed(store, 0, good=0, bad=0)
    statuses, _, _ = slo_report(project, store, NOON)
    assert {s.budget_left for s in statuses} == {None} and not any(s.is_exhausted for s in statuses)
    budgets = budget_results(store, NOON)
    assert budgets["budget_left"].null_count() == len(budgets) and frozen_budgets(project) == []
    assert "slo_budget_left" not in export_metrics(project, store, NOON).read_text()
    page = budget_figure(budgets).text
    assert "No events" in page and "100" not in page
    feed(store, 60, good=900, bad=30)
    slo_report(project, store, NOON + timedelta(minutes=60))
    budgets = budget_results(store, NOON + timedelta(minutes=60))
    assert budgets["slo"][0] == "availability" and budgets["budget_left"][0] < 0  # the unknown come last
    assert "nothing is known of availability-probe" in budget_figure(budgets).text


def test_without_slo_yaml_nothing_happens(tmp_path, duckdb_store):
    assert update_slos(tmp_path, duckdb_store, NOON) == []
    assert frozen_budgets(tmp_path) == [] and not (tmp_path / ".mlops").exists()


def test_a_query_for_prometheus_alone_leaves_the_others_measured(project, duckdb_store):
    path = project / "slo.yaml"
    path.write_text(path.read_text().replace("sum(rate(mlops_nb_unlogged_rows_total[{{.window}}]))",
                                             "avg_over_time(lost[{{.window}}])"))
    statuses, _, refused = slo_report(project, duckdb_store, NOON)
    assert [*refused] == ["log-completeness"] and len(statuses) == len(read_slos(project).slos) - 1


def test_too_many_series_are_refused(duckdb_store):
    with pytest.raises(UserError, match="5,000 are sampled"), duckdb_store.transaction() as t:
        record_counters(t, "test", {f"a{i}": 1. for i in range(5001)}, NOON)


def test_damaged_files_of_counters_are_left_out(tmp_path, duckdb_store):
    (tmp_path / ".mlops").mkdir()
    (tmp_path / "predictions/metrics").mkdir(parents=True)
    (tmp_path / "predictions/metrics/counter_0.db").write_bytes(b"\xff" * 64)
    (tmp_path / ".mlops/probe.prom").write_text("# TYPE a_total counter\na_total 3\n")
    (tmp_path / ".mlops/torn.prom").write_bytes(b"a{b=\xff")
    with duckdb_store.transaction() as t:
        sample_counters(t, tmp_path, Settings(), [Selector("a_total")], datetime.now(UTC))
        assert counter_values(t, datetime.now(UTC)) == {"a_total": 0}


def test_results_are_exported_as_prometheus_reads_them(project, duckdb_store):
    from prometheus_client.parser import text_string_to_metric_families
    feed(duckdb_store, 0, good=0, bad=0)
    feed(duckdb_store, 1, good=100, bad=0)
    update_slos(project, duckdb_store, NOON + timedelta(minutes=1))
    path = export_metrics(project, duckdb_store, NOON + timedelta(minutes=1))
    found = {(s.name, s.labels.get("slo")): s.value for f in text_string_to_metric_families(path.read_text())
             for s in f.samples}
    assert found["mlops_nb_monitor_slo_budget_left", "availability"] == 1
    assert path.stat().st_mode & 0o777 == 0o644  # node_exporter is another user


def test_a_used_up_budget_holds_promotions_back_and_a_reason_goes_past_it(tmp_path, monkeypatch):
    root = stubs.make_project(tmp_path / "project")
    stubs.use_stubs(monkeypatch.setattr)
    monkeypatch.setattr(operations, "judge_release", lambda *_: SimpleNamespace(action="promote"))
    release = releases.start_release(root, stubs.B)
    freeze_budgets(root, {"availability": -1.})
    assert releases.what_holds_back(root, release) == []  # there is no slo.yaml
    write_default_slos(root, "rows")
    (sentence,) = releases.what_holds_back(root, release)
    assert "error budget of availability is used up" in sentence and "--reason" in sentence
    assert releases.advance_release(root, release, stubs.Verdict("promote")).step == release.step
    with pytest.raises(UserError, match="is used up"): operations.promote_step(root, release.id)
    release = operations.promote_step(root, release.id, reason="it mends the outage", by="ana")
    assert release.step == 1
    (past,) = open_ledger(root).entries(kinds=("slo.overridden",))
    assert (past.by, past.subject, past.data) == ("ana", release.id, {"step": 1, "reason": "it mends the outage"})
    assert releases.what_holds_back(root, release)  # the next step waits again
    freeze_budgets(root, {"availability": .5})
    assert releases.what_holds_back(root, release) == []
    freeze_budgets(root, {"availability": -1.})
    rolled = releases.roll_back_release(root, release, "worse")
    assert rolled.status == "rolled_back"  # never held back
