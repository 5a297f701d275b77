"Paired comparisons."
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from scipy import stats

from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.evaluate.comparison import (
    align_scores,
    compare_with_baselines,
    compare_with_champion,
    describe_difference,
    find_anchor,
    metric_difference,
    paired_differences,
    score_with_champion,
    scores_to_array,
    signed_gain,
)
from mlops_nb.evaluate.metrics import METRICS, PRIMARY_METRIC, DecisionSettings, EvaluatedRows, weighted_metric
from mlops_nb.stats.bootstrap import Estimate, Resampling, Units


def data(task, n=600, seed=0):
    rng = np.random.default_rng(seed)
    if task == "regression":
        y = rng.normal(size=n)
        return y, y + rng.normal(0, 0.5, n), y + rng.normal(0, 1, n)
    if task == "multilabel": # of a fifth of the rows the second label is not known
        z = rng.normal(0, 1.5, (n, 3))
        p, good, bad = (1 / (1 + np.exp(-z - rng.normal(0, noise, z.shape))) for noise in (1e-9, .3, 3))
        y = (rng.random((n, 3)) < p).astype(float)
        y[::5, 1] = np.nan
        return y, good, bad
    k = 2 if task == "binary" else 3
    z = rng.normal(0, 1.5, (n, k))

    def soft(a): return np.exp(a) / np.exp(a).sum(1, keepdims=True)
    y = np.array([rng.choice(k, p=q) for q in soft(z)], float)
    good, bad = soft(z + rng.normal(0, 0.3, z.shape)), soft(z + rng.normal(0, 3, z.shape))
    return (y, good[:, 1], bad[:, 1]) if task == "binary" else (y, good, bad)


@pytest.mark.parametrize("task", METRICS)
def test_a_model_against_itself_differs_by_exactly_nothing(task):
    y, s, _ = data(task)
    for d in paired_differences(task, y, s, s.copy(), resampling=Resampling(50)).values():
        assert (d.gain.value, d.gain.low, d.gain.high, d.value) == (0, 0, 0, d.other_value)


@pytest.mark.parametrize("task", METRICS)
def test_better_is_positive_and_swapping_changes_the_sign(task):
    y, good, bad = data(task)
    up, down = (
        paired_differences(task, y, *pair, resampling=Resampling(60))[PRIMARY_METRIC[task]]
        for pair in ((good, bad), (bad, good))
    )
    assert up.gain.low > 0 > down.gain.high
    assert [up.gain.value, up.gain.low, up.gain.high] == pytest.approx(
        [-down.gain.value, -down.gain.high, -down.gain.low]
    )


@pytest.mark.parametrize("task", METRICS)
def test_figures_are_those_of_the_metrics(task):
    y, a, b = data(task)
    for m, d in paired_differences(
        task, y, a, b, DecisionSettings(0.3), DecisionSettings(0.7), resampling=Resampling(5)
    ).items():
        assert d.value == weighted_metric(task, m, y, a, DecisionSettings(0.3))(np.ones(len(y)))
        assert d.other_value == weighted_metric(task, m, y, b, DecisionSettings(0.7))(np.ones(len(y)))


def test_a_gain_of_few_entities_covers():
    "Thirty entities of thirty rows; the gain in AUC over a rival that knows less was held in 92 %."
    def draw(rng, n, per):
        who = np.repeat(np.arange(n), per)
        def shared(): return (rng.normal(size=n)[who] + rng.normal(size=n * per)) / 2**0.5
        known, hidden, blur = shared(), shared(), shared()
        return who, (known + hidden > 0.74) * 1.0, known, 0.8 * known + 0.6 * blur
    _, y, ours, rival = draw(np.random.default_rng(10**9), 400_000, 1)
    def auc(y, s): return weighted_metric("binary", "roc_auc", y, s)
    truth, inside = auc(y, ours)(np.ones(len(y))) - auc(y, rival)(np.ones(len(y))), 0
    for seed in range(500):
        who, y, ours, rival = draw(np.random.default_rng(seed), 30, 30)
        e = metric_difference(METRICS["binary"]["roc_auc"], auc(y, ours), auc(y, rival), Units(30, who), 900, 30).gain
        inside += e.low <= truth <= e.high
    assert 463 <= inside <= 487, inside


def test_the_gain_of_an_accuracy_is_that_of_mcnemar():
    "The variance of a difference of paired shares, from the four counts."
    rng = np.random.default_rng(0)
    y, a, b = (rng.random(400) < 0.5) * 1.0, rng.random(400), rng.random(400)
    right = [(s >= 0.5) == (y == 1) for s in (a, b)]
    only_a, only_b = (right[0] & ~right[1]).mean(), (right[1] & ~right[0]).mean()
    se = ((only_a + only_b - (only_a - only_b)**2) / 399)**0.5
    gain = paired_differences("binary", y, a, b)["accuracy"].gain
    assert gain.high - gain.value == pytest.approx(1.966 * se, rel=0.01)


def test_the_same_decisions_on_a_few_events_are_not_the_same_recall_for_certain():
    y = (np.arange(40) < 20) * 1.0
    a, b = np.where(y == 1, 0.8, 0.2), np.where(y == 1, 0.7, 0.1)
    gain = paired_differences("binary", y, a, b)["recall"].gain
    exact = stats.binomtest(0, 20).proportion_ci(method="exact").high
    assert (gain.value, gain.low, gain.high) == pytest.approx((0, -exact, exact))
    assert paired_differences("binary", y, a, a)["recall"].gain == Estimate(0, 0, 0)


def test_of_a_bias_the_size_counts():
    assert signed_gain("zero", np.array([-3.0, 0.1]), np.array([1.0, -0.5])).tolist() == pytest.approx([-2, 0.4])


def test_an_undefined_figure_compares_as_undefined():
    s = np.linspace(0, 1, 30)
    d = paired_differences("binary", np.ones(30), s, s[::-1], resampling=Resampling(10))["roc_auc"]
    assert d.gain.value is None and d.gain.low is None
    assert "undefined" in describe_difference("binary", "champion", d)
    broken = paired_differences(
        "binary", np.tile([0.0, 1], 15), np.where(s > 0.9, np.nan, s), s, resampling=Resampling(10)
    )["brier"]
    assert broken.value is None and broken.other_value is not None and broken.gain.value is None


@pytest.mark.parametrize("estimate, text", [
    (Estimate(0.1, 0.05, 0.2), "does not explain"), (Estimate(-0.1, -0.2, -0.05), "does not explain"),
    (Estimate(0.1, -0.1, 0.2), "may be chance"), (Estimate(0.1), "too few rows"), (Estimate(0, 0, 0), "the same")])
def test_sentences(estimate, text):
    from mlops_nb.evaluate.comparison import MetricDifference
    assert text in describe_difference("binary", "champion", MetricDifference(0.8, 0.7, estimate))


def test_scores_are_matched_by_origin():
    keys = pl.DataFrame({"_source": ["a", "a", "b"], "_row": [0, 1, 0]})
    scores = pl.DataFrame(
        {"_source": ["b", "a", "a", "c"], "_row": [0, 1, 0, 9], "split": "test", "linear": [3.0, 2.0, 1.0, 0.0]}
    )
    assert align_scores(scores, keys)["linear"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("change", [lambda s: s.head(1), lambda s: pl.concat([s, s.head(1)])], ids=["missing", "twice"])
def test_scores_that_do_not_match_are_refused(change):
    scores = pl.DataFrame({"_source": ["a", "a"], "_row": [0, 1], "linear": [3.0, 2.0]})
    with pytest.raises(UserError, match="run the stage baseline again"):
        align_scores(change(scores), scores.select("_source", "_row"))


def test_score_arrays():
    assert scores_to_array(pl.Series([1, 2])).tolist() == [1, 2]
    assert scores_to_array(pl.Series([[0.1, 0.9]], dtype=pl.Array(pl.Float64, 2))).shape == (1, 2)


def test_each_baseline_decides_by_its_own_threshold():
    y = np.r_[np.ones(50), np.zeros(50)]
    keys = pl.DataFrame({"_source": "a", "_row": np.arange(100)})
    scores = pl.concat([keys.with_columns(split=pl.lit(p), linear=pl.lit(y) * 0.1) for p in ("valid", "test")])
    rows = dict.fromkeys(("valid", "test"), EvaluatedRows("binary", y, y))
    (c,) = compare_with_baselines(rows, dict.fromkeys(rows, keys), scores)
    assert c.metrics["accuracy"].other_value == 1 and (c.name, c.kind) == ("linear", "baseline")


def champion(task="binary", classes=("no", "yes"), inputs=("x",), predict=None):
    schema = Schema("d", task, "y", {"x": Column("number")}, classes=list(classes) if classes else None)
    return SimpleNamespace(schema=schema, inputs=list(inputs),
                           predict_point=predict or (lambda f: np.full(len(f), 0.2)))


NOW = champion().schema


@pytest.mark.parametrize("other, why", [
    (champion("regression", None), "regression task"), (champion(classes=("no", "maybe")), "classes are now no, yes"),
    (champion(inputs=("x", "gone")), "gone: gone")])
def test_a_champion_that_does_not_fit(other, why):
    with pytest.raises(UserError, match=why): score_with_champion(other, pl.DataFrame({"x": [1.0]}), NOW)


def test_classes_in_another_order_are_put_into_ours():
    frame = pl.DataFrame({"x": [1.0]})
    assert score_with_champion(champion(classes=("yes", "no")), frame, NOW) == pytest.approx([0.8])
    three = champion("multiclass", "cab", predict=lambda f: np.array([[0.5, 0.3, 0.2]]))
    assert score_with_champion(three, frame, champion("multiclass", "abc").schema).tolist() == [[0.3, 0.2, 0.5]]


def test_the_same_model_with_its_classes_in_the_other_order_decides_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    ours = np.r_[rng.random(2000), 0.25] # one score lies at the threshold itself
    rows = EvaluatedRows("binary", (rng.random(2001) < ours) * 1.0, ours, DecisionSettings(threshold=0.25))
    turned = champion(classes=("yes", "no"), predict=lambda f: 1 - f["x"].to_numpy())
    turned.policy = SimpleNamespace(threshold=float(np.nextafter(0.75, 1)))
    monkeypatch.setattr("mlops_nb.model.predictor.Predictor.open", lambda *a, **k: turned)
    found = compare_with_champion(Path("bundle"), NOW, rows, pl.DataFrame({"x": ours}))
    for metric in ("accuracy", "precision", "recall", "f1", "cost", "roc_auc", "log_loss"):
        d = found.metrics[metric]
        assert d.value == pytest.approx(d.other_value, abs=1e-12), metric


@pytest.mark.parametrize("champion, anchor", [("aa", "bb"), ("released/aa", "bb"), ("aa", "released/bb"),
                                              ("released/aa", "released/bb")])
def test_the_best_champion_so_far_is_found_in_a_clone_too(tmp_path, champion, anchor):
    for name in (champion, anchor): (tmp_path / name).mkdir(parents=True)
    (tmp_path / champion / "provenance.json").write_text('{"anchor": "bb"}')
    assert find_anchor(tmp_path / champion) == tmp_path / anchor
