"The stage explain on small projects of all three tasks."
import numpy as np
import polars as pl
import pytest
from support.small_project import TASKS, small_project

from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.evaluate.metrics import row_loss
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.explain.stage import read_explanation, run_explain
from mlops_nb.model.predictor import Predictor


@pytest.fixture(scope="module", params=TASKS)
def project(request, tmp_path_factory):
    "An evaluated and explained project."
    root = small_project(tmp_path_factory.mktemp(request.param), request.param)
    run_evaluate(root)
    run_explain(root)
    return root


def test_same_inputs_same_bytes(project):
    before = file_hashes(project / "artifacts")
    run_explain(project)
    assert file_hashes(project / "artifacts") == before


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n", [1, 3])
def test_tiny_test_sets(task, n, tmp_path):
    root = small_project(tmp_path / "p", task, (500, 5, n))
    run_evaluate(root)
    run_explain(root)
    assert len(read_explanation(root).worst_predicted) == n


def test_explanation_files(project):
    found, task = read_explanation(project), read_evaluation(project).task
    k = 3 if task == "multiclass" else 1
    assert found.n_rows == 300 // k and found.n_test_rows == 900 and found.additivity_error < 1e-6
    parts = pl.read_parquet(project / "artifacts/explanation/contributions.parquet")
    assert len(parts) == found.n_rows * k and parts.select("_source", "_row", "_class").n_unique() == len(parts)
    ranked = pl.read_parquet(project / "artifacts/explanation/importance.parquet")
    every = ranked.filter(pl.col("class").is_null())
    assert every["feature"].to_list()[0] == found.top_features[0] and every["mean_abs"].is_sorted(descending=True)
    for f, v in every.select("feature", "mean_abs").rows(): assert parts[f].abs().mean() == pytest.approx(v)
    assert len(ranked) == 4 * (1 + (k if k > 1 else 0))
    for name in ("dependence", "points"):
        assert set(pl.read_parquet(project / f"artifacts/explanation/{name}.parquet")["feature"]) == set(
            found.top_features
        )


def test_worst_predicted_are_the_largest_losses(project):
    found, evaluation = read_explanation(project), read_evaluation(project)
    kept = pl.read_parquet(project / "artifacts/evaluation/predictions.parquet").filter(split="test")
    s = kept.select(pl.col("^score.*$")).to_numpy()
    loss = row_loss(evaluation.task, kept["_target"].to_numpy(), s[:, 0] if s.shape[1] == 1 else s)
    assert [w.row for w in found.worst_predicted] == np.argsort(-loss, kind="stable")[:10].tolist()
    assert [w.loss for w in found.worst_predicted] == pytest.approx(np.sort(loss)[::-1][:10])


def test_best_explained_are_the_simplest_stories(project):
    found = read_explanation(project)
    shares = [e.top3_share for e in found.best_explained]
    assert shares == sorted(shares, reverse=True) and len(shares) == 10
    for e in found.best_explained + found.worst_predicted:
        sizes = [abs(r.contribution) for r in e.contributions]
        assert sizes == sorted(sizes, reverse=True) and e.base_value + sum(
            r.contribution for r in e.contributions
        ) == pytest.approx(e.raw_score)
        assert sum(sizes[:3]) / sum(sizes) == pytest.approx(e.top3_share)
        assert e.values["plan"] in ("basic", "family", "plus") and isinstance(e.values["since"], str)


def test_contributions_that_do_not_add_up_stop_the_stage(project, monkeypatch):
    honest, before = Predictor.contributions, file_hashes(project / "artifacts")
    monkeypatch.setattr(Predictor, "contributions", lambda self, frame: honest(self, frame) * (1 + 1e-4))
    with pytest.raises(UserError, match="do not add up to the raw scores"): run_explain(project)
    monkeypatch.setattr(Predictor, "contributions", lambda self, frame: honest(self, frame) * np.nan)
    with pytest.raises(UserError, match="do not add up"): run_explain(project)
    assert file_hashes(project / "artifacts") == before


def test_a_model_without_a_split_explains_nothing(tmp_path):
    root = small_project(tmp_path / "p", "binary", rounds=1, min_data_in_leaf=10**6)
    run_evaluate(root)
    run_explain(root)
    found = read_explanation(root)
    assert found.best_explained[0].top3_share is None and found.additivity_error == 0
    assert read_evaluation(root).score_summary["test"].n_unique == 1


def test_pairs_and_lines_are_explained(project):
    found, folder = read_explanation(project), project / "artifacts/explanation"
    pairs, grid = (pl.read_parquet(folder / f"{n}.parquet") for n in ("interactions", "partial_dependence_2d"))
    n = min(6, len(found.top_features))
    assert len(pairs) == n * (n - 1) // 2 and {*pairs["feature"], *pairs["other_feature"]} == set(
        found.top_features[:6]
    )
    assert {grid["feature"][0], grid["other_feature"][0]} == {*pairs.row(0)[:2]} and grid["value"].is_finite().all()
    for rows in (found.best_explained, found.worst_predicted):
        assert [e.local_surrogate is not None for e in rows] == [True] * 3 + [False] * 7
        assert all(
            set(t.column for t in e.local_surrogate.terms) <= {"plan", "tenure", "charge"}
            and e.local_surrogate.fidelity <= 1
            for e in rows[:3]
        )
