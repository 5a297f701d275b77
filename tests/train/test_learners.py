"""Two learners in one project: the valid rows choose, the test rows only tell, and what was chosen is what is explained
and packed."""
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trained_project as modelling

from mlops_nb.bundle.bundle import open_bundle
from mlops_nb.bundle.stage import run_bundle
from mlops_nb.config.params import read_params, write_params
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.evaluate.metrics import METRICS, PRIMARY_METRIC, weighted_metric
from mlops_nb.evaluate.model_selection import rank_learners, select_model
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.explain.stage import run_explain
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.gate import GateReport, run_gate
from mlops_nb.stats.bootstrap import Resampling
from mlops_nb.train import baselines
from mlops_nb.train.stage import run_train


@pytest.fixture(scope="module", params=["binary", "multiclass", "regression"])
def project(request, tmp_path_factory):
    root = modelling.trained(tmp_path_factory.mktemp("both") / request.param, request.param)
    run_train(root, "net")
    baselines.run_baselines(root)
    choose(root, "best")
    return root


def choose(root, rule, learners=("gbdt", "net")):
    p = read_params(root / "params.yaml")
    p.train.learners, p.train.model_selection = list(learners), rule
    write_params(p, root / "params.yaml")


def figures(e, part): return {c.learner: c.metrics[part][e.primary_metric].value for c in e.candidates}


def test_the_best_on_the_valid_rows_is_judged_explained_and_packed(project):
    choose(project, "best")
    run_evaluate(project)
    e = read_evaluation(project)
    valid = figures(e, "valid")
    assert list(valid) == ["gbdt", "net"]
    assert e.learner == (max if e.better == "higher" else min)(valid, key=valid.get)
    assert e.metrics["valid"][e.primary_metric].value == valid[e.learner]
    assert e.selection_reason.startswith(f"{e.learner} was the best of 2 learners. On the valid rows: ")
    other = next(name for name in valid if name != e.learner)
    assert [c.kind for c in e.comparisons] == ["baseline", "baseline", "learner"] and e.comparisons[-1].name == other
    assert e.comparisons[-1].metrics[e.primary_metric].other_value == pytest.approx(figures(e, "test")[other],
                                                                                    rel=1e-12)
    run_explain(project)
    run_bundle(project)
    file = {"gbdt": "model.txt", "net": "model.safetensors"}[e.learner]
    assert file in open_bundle(project / "artifacts/bundle").manifest.files


def test_a_learner_named_is_taken_and_what_that_costs_is_said(project):
    both = (("net", "gbdt"), ("gbdt", "net"))
    for name, other in both if "binary" in project.name else both[:1]:
        choose(project, name)
        run_evaluate(project)
        e = read_evaluation(project)
        assert e.learner == name and e.selection_reason.startswith(f"{name} was named by train.model_selection")
        assert other in e.selection_reason
        run_explain(project)
        run_bundle(project)
        sealed = Predictor.open(project / "artifacts/bundle")
        rows = pl.read_parquet(project / "artifacts/prepared/test.parquet")
        kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet").filter(split="test")
        names = [c for c in sealed.output_schema() if c != "decision"]
        np.testing.assert_array_equal(sealed.predict(rows).reshape(len(rows), -1), kept.select(names).to_numpy())
        rules = [r.name for r in gate_rules(project)]
        assert rules and not any("learner" in r for r in rules), "a learner that was not chosen is no rule of the gate"


def gate_rules(root):
    run_gate(root)
    return read_json(root / "artifacts/gate.json", GateReport).results


def test_the_test_rows_have_no_say(project):
    choose(project, "best")
    run_evaluate(project)
    before, path = read_evaluation(project), project / "artifacts/prepared/test.parquet"
    test = pl.read_parquet(path)
    try:
        test.with_columns(pl.col("_target").shuffle(seed=1)).write_parquet(path)
        run_evaluate(project)
        after = read_evaluation(project)
    finally: test.write_parquet(path)
    assert (after.learner, after.selection_reason) == (before.learner, before.selection_reason)
    assert figures(after, "test") != figures(before, "test") and figures(after, "valid") == figures(before, "valid")


def test_the_same_again_is_the_same_bytes(project):
    choose(project, "best")
    run_evaluate(project)
    first = file_hashes(project / "artifacts/evaluation")
    run_evaluate(project)
    assert file_hashes(project / "artifacts/evaluation") == first


def test_a_learner_to_select_must_be_trained(tmp_path):
    root = modelling.trained(tmp_path)
    choose(root, "net", ["gbdt"])
    with pytest.raises(UserError, match=r"'model_selection' is 'net', which is not among the learners \(gbdt\)"):
        read_params(root / "params.yaml")


def test_a_model_that_is_not_there_names_its_stage(tmp_path):
    root = modelling.trained(tmp_path)
    choose(root, "best")
    with pytest.raises(UserError, match="net.*run the stage train"): run_evaluate(root)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["binary", "regression"]), st.integers(0, 10**6), st.integers(2, 4))
def test_the_first_in_the_ranking_is_never_worse(task, seed, learners):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, 40).astype(float) if task == "binary" else rng.normal(size=40)
    y[:2] = 0, 1
    scores = {f"l{i}": rng.random(40).round(rng.integers(0, 3)) for i in range(learners)}
    if rng.random() < .3: scores["l0"] = np.full(40, np.nan)
    order, m = rank_learners(task, y, scores), PRIMARY_METRIC[task]
    worth = [weighted_metric(task, m, y,
                             scores[name])(np.ones(40)) * (1 if METRICS[task][m].better == "higher" else -1)
                             for name in order]
    known = [w for w in worth if np.isfinite(w)]
    assert known == sorted(known,
                           reverse=True) and np.isfinite(worth[:len(known)]).all() and sorted(order) == sorted(scores)
    assert select_model(task, "best", y, scores, resampling=Resampling(20)).learner == order[0]
