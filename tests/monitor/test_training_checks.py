"Checks of training, gate and machine: slower, failed, not converged, refused again and again, nearly full."
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from mlops_nb import pipeline
from mlops_nb.config.settings import write_settings
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.monitor import training_checks
from mlops_nb.monitor.training_checks import check_failures, check_fit, check_quota, check_training, days_until_full
from mlops_nb.monitor.validation_checks import MAX_VERDICTS, check_validation, check_verdicts, remember_verdict
from mlops_nb.train.dataset import LossCurvePoint
from mlops_nb.train.stage import TrainingReport

NOW = datetime(2026, 11, 2, 3, tzinfo=UTC)


@pytest.fixture
def project(tmp_path):
    write_settings(tmp_path)
    return tmp_path


def stage(root, seconds, name="train.gbdt", mib=100.):
    write_json(root / f".mlops/stages/{name}.json", dict(stage=name, seconds=seconds, peak_memory_mib=mib))


def keys(root, store, now=NOW): return {f.key for f in check_training(root, store, now)}


def test_a_stage_is_slow_only_against_runs_that_differ(project, duckdb_store):
    stage(project, 20.)
    for hour in range(2): assert keys(project, duckdb_store, NOW + timedelta(hours=hour)) == set()
    stage(project, 200.)  # one run was seen twice: that is no history
    assert keys(project, duckdb_store, NOW + timedelta(days=1)) == set()
    for day, seconds in enumerate((21., 22.)):
        stage(project, seconds)
        assert keys(project, duckdb_store, NOW + timedelta(days=2 + day)) == set()
    stage(project, 90.)
    assert keys(project, duckdb_store, NOW + timedelta(days=6)) == {"training:train.gbdt seconds"}
    stage(project, 30.)
    assert keys(project, duckdb_store, NOW + timedelta(days=7)) == set()


def test_a_stage_that_fails_is_a_finding_until_it_succeeds(project, duckdb_store, monkeypatch):
    outcome = []

    def run(root):
        if outcome: raise outcome[0]
        return {}

    monkeypatch.setattr(pipeline, "_call_stage", lambda stage, root, item: run(root))
    outcome.append(UserError("there is no column x"))
    with pytest.raises(UserError, match="no column x"): pipeline.run_stage("prepare", project)
    [failed] = check_failures(project)
    assert not failed.ok and "there is no column x" in failed.message
    assert keys(project, duckdb_store) == {"training:prepare failed"}
    outcome.clear()
    pipeline.run_stage("prepare", project)
    assert all(r.ok for r in check_failures(project)) and keys(project, duckdb_store) == set()


def test_records_that_are_cut_short_are_passed_over(project, duckdb_store):
    stage(project, 20.)
    for name in ("stages/gate.json", "stages/failures/gate.json"):
        path = project / ".mlops" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text('{"seconds": 1')
    (project / "artifacts/models/gbdt").mkdir(parents=True)
    (project / "artifacts/models/gbdt/training.json").write_text("{}")
    assert keys(project, duckdb_store) == set()


def test_more_memory_than_the_machine_has_left(project, duckdb_store, monkeypatch):
    monkeypatch.setattr(training_checks, "_machine_memory_mib", lambda: 1000.)
    stage(project, 20., mib=900.)
    assert keys(project, duckdb_store) == {"training:train.gbdt memory"}


@pytest.mark.parametrize("best, most, train, valid, wrong", [
    (40, 500, .30, .33, set()), (500, 500, .30, .33, {"gbdt convergence"}), (0, 500, .3, .3, {"gbdt convergence"}),
    (40, 500, .10, .33, {"gbdt overfitting"}), (1, 1, .30, .33, set()), (40, 500, 0., 0., set()),
    (40, 500, .3, math.inf, {"gbdt convergence", "gbdt overfitting"})])
def test_learning_curves(best, most, train, valid, wrong):
    report = TrainingReport("gbdt", "binary", ["no", "yes"], "log_loss", {}, most, best, best, valid,
                            [LossCurvePoint(0, .69, .69), LossCurvePoint(best, train, valid)], {})
    assert {r.subject for r in check_fit(report) if not r.ok} == wrong


def test_when_the_disk_is_full():
    now, rng = datetime(2026, 11, 20), np.random.default_rng(0)
    def history(values, step_days=.25):
        at = [now - timedelta(days=step_days * (len(values) - i)) for i in range(len(values))]
        return pl.DataFrame(dict(checked_at=at, value=values), schema_overrides=dict(value=pl.Float64))
    grows = .5 + .01 * np.arange(40) / 4 + rng.normal(0, 1e-4, 40)  # one percent a day
    assert days_until_full(history(grows), .6, now) == pytest.approx(40, rel=.02)
    for shares in ([.6] * 40, grows[::-1], [.1, .9], []): assert days_until_full(history(shares), .6, now) == math.inf
    assert days_until_full(history(grows[:7]), .6, now) == math.inf  # of less than two days


def test_a_full_disk_is_a_finding(project, duckdb_store, monkeypatch):
    usage = type("Usage", (), dict(total=100, used=95, free=5))
    monkeypatch.setattr(training_checks.shutil, "disk_usage", lambda path: usage)
    (project / "predictions").mkdir()
    (project / "predictions/a").write_bytes(bytes(2**20))
    disk, log = check_quota(project, duckdb_store, NOW)
    assert (disk.ok, log.ok, log.value) == (False, True, 1.)


def verdict(root, bundle, passed):
    write_json(root / "artifacts/gate.json", dict(passed=passed, bundle=bundle, message="AUC is low.",
                                                  results=[dict(name="auc", passed=passed)]))


def test_bundles_that_are_refused_in_a_row(project, duckdb_store):
    assert check_validation(project, duckdb_store, NOW) == []
    for i, (passed, found) in enumerate([(True, 0), (False, 0), (False, 0), (False, 1), (False, 1), (True, 0)]):
        verdict(project, f"b{i}", passed)
        for minute in (0, 30):  # seen twice, and counted once
            findings = check_validation(project, duckdb_store, NOW + timedelta(days=i, minutes=minute))
            assert len(findings) == found
        if found: assert findings[0].value == i and findings[0].causes == ["the rule 'auc'"]


def test_only_so_many_verdicts_are_remembered(project, duckdb_store):
    with duckdb_store.transaction() as t:
        t.set_state("gate_verdicts", [dict(bundle=f"{i}", passed=False, at="2026-01-01T00:00:00", failed=["auc"],
                                           message="") for i in range(MAX_VERDICTS)])
    verdict(project, "new", False)
    known = remember_verdict(project, duckdb_store, NOW)
    assert (len(known), known[-1]["bundle"]) == (MAX_VERDICTS, "new")
    assert check_verdicts(known)[0].value == MAX_VERDICTS
