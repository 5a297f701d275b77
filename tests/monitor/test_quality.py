"Quality with late labels: each final row once, whatever becomes of its label afterwards."
from datetime import timedelta

import numpy as np
import polars as pl
import pytest
from support.counted_project import at_hour, pack, project, requests

from mlops_nb.config.params import Params, write_params
from mlops_nb.config.schema import Column, Schema
from mlops_nb.evaluate.metrics import DecisionSettings
from mlops_nb.model.features import Features, metric
from mlops_nb.model.policy import Policy
from mlops_nb.monitor.cohort_metrics import JudgedRows, QualityReference, estimated_metrics
from mlops_nb.monitor.quality import update_quality
from mlops_nb.monitor.store import MonitorStore
from mlops_nb.prediction_log.segments import Feedback
from mlops_nb.prediction_log.writer import PredictionLogWriter
from mlops_nb.stats.regression_estimate import residual_donors

DAY = timedelta(days=1)


@pytest.fixture
def followed(tmp_path):
    bundle = project(tmp_path, pack(tmp_path / "packed"))
    write_params(Params(), tmp_path / "params.yaml")
    log = PredictionLogWriter(tmp_path / "predictions", 0)
    for record in requests(80, bundle, hour=9): log.append(record)
    def tell(number, label, hours):
        time = int(at_hour(hours).timestamp() * 1e6)
        log.append(Feedback(id=f"1-{number}", time=time, endpoint="churn", label=label))
    for i in range(60): tell(i, "leaves" if i % 3 else "stays", 12)
    tell(0, "leaves", 13) # contradicts the first one
    tell(1, None, 13) # taken back
    tell("nobody", "leaves", 13)
    store = MonitorStore(f"duckdb:///{tmp_path}/monitor.duckdb")
    yield tmp_path, store, tell, lambda days: update_quality(tmp_path, store, at_hour(1) + days * DAY)
    log.close()


def figures(store, **where):
    given = "".join(f" AND {k} = ?" for k in where)
    return store.query("SELECT metric, rows, labelled, value, method, final FROM quality WHERE segment_column = ''"
                       f"{given} ORDER BY metric", (*where.values(),)).to_dicts()


def test_each_final_row_counts_once(followed):
    _, store, tell, run = followed
    run(1)
    estimated = figures(store, method="estimated")
    assert estimated and not any(f["final"] for f in estimated)
    run(4)
    final = figures(store, final=True)
    assert {f["metric"] for f in final} >= {"roc_auc", "brier", "label_share"}
    assert {(f["rows"], f["labelled"]) for f in final} == {(80, 59)} # without the one that was taken back
    with store.transaction() as t: guard = next(iter(t.state("quality:churn")["guards"].values()))
    assert guard["n_rows"] == 59
    for i in range(60): tell(i, "stays", 100) # all of them change, long after
    run(6)
    assert figures(store, final=True, cohort_start=at_hour(0).replace(tzinfo=None)) == final
    with store.transaction() as t: assert next(iter(t.state("quality:churn")["guards"].values()))["n_rows"] == 59


def test_an_estimate_bears_a_metric_that_refuses_some_of_the_drawn_outcomes():
    @metric("log_error", better="lower")
    def log_error(y, p):
        if (y < 0).any(): raise ValueError("a target below 0")
        return (np.log1p(y) - np.log1p(p)) ** 2
    rng = np.random.default_rng(0)
    predicted = rng.uniform(.5, 3, 400)
    features = Features({}, {}, {}, "", None, {}, {"log_error": log_error})
    schema = Schema("t", "regression", "y", columns={"y": Column("number")})
    reference = QualityReference("b", schema, Policy("regression"), {}, None, DecisionSettings(), features)
    rows = JudgedRows(pl.DataFrame({"score": predicted}), predicted, np.full(400, np.nan))
    found = estimated_metrics(reference, rows, residual_donors(predicted, predicted + rng.normal(size=400)))
    assert found["rmse"].low < 1 < found["rmse"].high and found["log_error"].value is None


def test_a_run_that_fails_half_way_is_made_up_for(followed, monkeypatch):
    _, store, _, run = followed
    with monkeypatch.context() as m:
        m.setattr("mlops_nb.monitor.quality._judge_final", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError): run(4)
    assert not figures(store, final=True)
    run(4)
    assert figures(store, final=True)


def test_a_day_whose_labels_did_not_change_is_not_measured_again(followed, monkeypatch):
    _, store, tell, run = followed
    asked = []
    monkeypatch.setattr("mlops_nb.monitor.quality._measure",
                        lambda run, state, cohort, final, share: (asked.append((cohort.start, final)), ([], {}))[1])
    monkeypatch.setattr("mlops_nb.monitor.quality.maturity", lambda *_: 60 * DAY)
    run(1)
    run(2)
    measured = [start for start, _ in asked]
    assert measured.count(at_hour(0)) == 1
    tell(70, "leaves", 49)
    run(3)
    assert [start for start, _ in asked].count(at_hour(0)) == 2


def test_a_bundle_that_is_gone_is_said(followed):
    root, store, _, run = followed
    for path in (root / "bundles").glob("*"): path.rename(root / path.name)
    found = run(4)
    assert [f.rule for f in found] == ["quality"] and "not judged" in found[0].summary
    assert not figures(store)


@pytest.mark.parametrize("from_hour, until_hour, n_rows", [(3, 20, None), (-30, 1, None), (-30, 0, 59), (24, 40, 59)])
def test_days_of_a_drift_that_is_over_are_measured_and_no_evidence(followed, from_hour, until_hour, n_rows):
    root, store, _, run = followed
    at = lambda hour: at_hour(hour).replace(tzinfo=None).isoformat()
    bundle = next((root / "bundles").iterdir()).name
    with store.transaction() as t:
        t.set_state(f"drift:churn:{bundle}", dict(hours=1, begun=at(0), next=at(60),
                                                  unhealthy=[[at(from_hour), at(until_hour)]]))
    run(4)
    assert figures(store, final=True) and store.query("SELECT * FROM residuals").height
    with store.transaction() as t: guards = t.state("quality:churn")["guards"]
    assert [g["n_rows"] for g in guards.values()] == ([n_rows] if n_rows else [])
