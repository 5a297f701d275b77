"A real evaluation of made-up scores, of each task, without a project: what the report's figures are drawn from."
from types import SimpleNamespace

import numpy as np
import polars as pl

from mlops_nb.config.params import EvaluateParams
from mlops_nb.evaluate.comparison import compare_with_model
from mlops_nb.evaluate.curves import evaluation_curves
from mlops_nb.evaluate.decision_threshold import cost_curve, measure_calibration
from mlops_nb.evaluate.evaluation import evaluate_scores, scored_rows, split_resamplings
from mlops_nb.evaluate.model_selection import LearnerCandidate
from mlops_nb.evaluate.slices import binned_residuals, slice_table
from mlops_nb.stats.bootstrap import Resampling
from support.small_project import small_rows, small_schema

SAMPLING = Resampling(60)


def made_up_scores(task, rows, noise):
    "The true probabilities (or values), blurred."
    p = np.clip(rows["p"].to_numpy() + np.random.default_rng(3).normal(0, noise, len(rows)), 0.01, 0.99)
    if task == "binary": return p
    if task == "multiclass": return np.stack([(1 - p)**2, 2 * p * (1 - p), p**2], axis=1)
    return np.log(p / (1 - p))


def small_evaluation(task, learners=("gbdt",)): # Evaluation, tables by name
    "An evaluation with two baselines and a champion, and its tables."
    schema, params = small_schema(task), EvaluateParams(n_resamples=60, min_segment_rows=50)
    rows = {"valid": small_rows(task, 300, "valid", 1), "test": small_rows(task, 400, "test", 2)}
    y = {s: r["_target"].to_numpy() for s, r in rows.items()}
    scores, worse = ({s: made_up_scores(task, r, noise) for s, r in rows.items()} for noise in (0.05, 0.2))
    scored = scored_rows(schema, params, rows, scores, split_resamplings(params, rows, schema.entity))
    e = evaluate_scores(schema, params, scored, rows["test"], {"linear": worse["test"]})
    e.learner, e.selection_reason = learners[0], "It is better on the validation set."
    e.candidates = [LearnerCandidate(name, 2048 * (i + 1), e.metrics) for i, name in enumerate(learners)]
    constant = {s: np.broadcast_to(v.mean(0), v.shape).copy() for s, v in scores.items()}
    others = (("constant", "baseline", constant), ("linear", "baseline", worse), ("champion", "champion", scores))
    e.comparisons = [compare_with_model(scored, name, kind, other) for name, kind, other in others]
    curve = measure_calibration(task, y["test"], scores["test"], schema.classes)[1]
    tables = dict(slices=slice_table(e.slices), calibration_curve=curve,
                  residuals=binned_residuals(rows["test"], ["plan", "tenure", "charge"], y["test"], scores["test"],
                                             schema.classes))
    if task == "binary":
        tables["cost_curve"] = cost_curve(y["test"], scores["test"], e.decision_settings.costs, SAMPLING)
    if task == "regression":
        tables["predictions"] = pl.DataFrame(dict(split="test", _target=y["test"], score=scores["test"]))
    chosen = (e.decision_settings.threshold,)
    return e, tables | evaluation_curves(task, y["test"], scores["test"], schema.classes, chosen)


def training(learner, iterations=40, max_iterations=100):
    "A training's report, as far as it is drawn."
    curve = [SimpleNamespace(iteration=i, train=1 / i, valid=1 / i + 0.1) for i in range(1, iterations)]
    return SimpleNamespace(learner=learner, best_iteration=iterations - 10, iterations=iterations, loss_curve=curve,
                           max_iterations=max_iterations, eval_metric="log_loss")
