"Paired comparisons."
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest

from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.evaluate.comparison import align, champion_scores, compare, compare_baselines, gain, in_words, score_array
from mlops_nb.evaluate.metrics import METRICS, PRIMARY, Estimate, Terms, prepare


def data(task, n=600, seed=0):
    rng = np.random.default_rng(seed)
    if task == "regression":
        y = rng.normal(size=n)
        return y, y + rng.normal(0, 0.5, n), y + rng.normal(0, 1, n)
    k = 2 if task == "binary" else 3
    z = rng.normal(0, 1.5, (n, k))

    def soft(a): return np.exp(a) / np.exp(a).sum(1, keepdims=True)
    y = np.array([rng.choice(k, p=q) for q in soft(z)], float)
    good, bad = soft(z + rng.normal(0, 0.3, z.shape)), soft(z + rng.normal(0, 3, z.shape))
    return (y, good[:, 1], bad[:, 1]) if task == "binary" else (y, good, bad)


@pytest.mark.parametrize("task", METRICS)
def test_a_model_against_itself_differs_by_exactly_nothing(task):
    y, s, _ = data(task)
    for d in compare(task, y, s, s.copy(), replicates=50).values():
        assert (d.gain.value, d.gain.low, d.gain.high, d.worse, d.ours) == (0, 0, 0, 0, d.theirs)


@pytest.mark.parametrize("task", METRICS)
def test_better_is_positive_and_swapping_changes_the_sign(task):
    y, good, bad = data(task)
    up, down = (compare(task, y, *pair, replicates=60)[PRIMARY[task]] for pair in ((good, bad), (bad, good)))
    assert up.gain.low > 0 and up.worse == 0 and down.worse == 1
    assert [up.gain.value, up.gain.low, up.gain.high] == pytest.approx([-down.gain.value, -down.gain.high, -down.gain.low])


@pytest.mark.parametrize("task", METRICS)
def test_figures_are_those_of_the_metrics(task):
    y, a, b = data(task)
    for m, d in compare(task, y, a, b, Terms(0.3), Terms(0.7), replicates=5).items():
        assert d.ours == prepare(task, m, y, a, Terms(0.3))(np.ones(len(y)))
        assert d.theirs == prepare(task, m, y, b, Terms(0.7))(np.ones(len(y)))


def test_of_a_bias_the_size_counts(): assert gain("zero", np.array([-3.0, 0.1]), np.array([1.0, -0.5])).tolist() == pytest.approx([-2, 0.4])


def test_an_undefined_figure_compares_as_undefined():
    s = np.linspace(0, 1, 30)
    d = compare("binary", np.ones(30), s, s[::-1], replicates=10)["auc"]
    assert d.gain.value is None and d.worse is None
    assert "undefined" in in_words("binary", "champion", d)
    broken = compare("binary", np.tile([0.0, 1], 15), np.where(s > 0.9, np.nan, s), s, replicates=10)["brier"]
    assert broken.ours is None and broken.theirs is not None and broken.gain.value is None


@pytest.mark.parametrize("estimate, text", [
    (Estimate(0.1, 0.05, 0.2), "does not explain"), (Estimate(-0.1, -0.2, -0.05), "does not explain"),
    (Estimate(0.1, -0.1, 0.2), "may be chance"), (Estimate(0.1), "too few rows"), (Estimate(0, 0, 0), "the same")])
def test_sentences(estimate, text):
    from mlops_nb.evaluate.comparison import Difference
    assert text in in_words("binary", "champion", Difference(0.8, 0.7, estimate, 0.0))


def test_scores_are_matched_by_origin():
    keys = pl.DataFrame({"_source": ["a", "a", "b"], "_row": [0, 1, 0]})
    scores = pl.DataFrame({"_source": ["b", "a", "a", "c"], "_row": [0, 1, 0, 9], "part": "test", "linear": [3.0, 2.0, 1.0, 0.0]})
    assert align(scores, keys)["linear"].to_list() == [1, 2, 3]


@pytest.mark.parametrize("change", [lambda s: s.head(1), lambda s: pl.concat([s, s.head(1)])], ids=["missing", "twice"])
def test_scores_that_do_not_match_are_refused(change):
    scores = pl.DataFrame({"_source": ["a", "a"], "_row": [0, 1], "linear": [3.0, 2.0]})
    with pytest.raises(UserError, match="run the stage baseline again"): align(change(scores), scores.select("_source", "_row"))


def test_score_arrays():
    assert score_array(pl.Series([1, 2])).tolist() == [1, 2]
    assert score_array(pl.Series([[0.1, 0.9]], dtype=pl.Array(pl.Float64, 2))).shape == (1, 2)


def test_each_baseline_decides_by_its_own_threshold():
    y = np.r_[np.ones(50), np.zeros(50)]
    rows = pl.DataFrame({"_source": "a", "_row": np.arange(100), "_target": y})
    scores = pl.concat([rows.select("_source", "_row", part=pl.lit(p), linear=pl.lit(y) * 0.1) for p in ("valid", "test")])
    (c,) = compare_baselines("binary", rows, rows, y, Terms(0.5), scores, replicates=5)
    assert c.metrics["accuracy"].theirs == 1 and (c.name, c.kind) == ("linear", "baseline")


def champion(task="binary", classes=("no", "yes"), inputs=("x",), predict=None):
    schema = Schema("d", task, "y", {"x": Column("number")}, classes=list(classes) if classes else None)
    return SimpleNamespace(schema=schema, inputs=list(inputs), predict=predict or (lambda f: np.full(len(f), 0.2)))


NOW = champion().schema


@pytest.mark.parametrize("other, why", [
    (champion("regression", None), "regression task"), (champion(classes=("no", "maybe")), "classes are now no, yes"),
    (champion(inputs=("x", "gone")), "gone: gone")])
def test_a_champion_that_does_not_fit(other, why):
    with pytest.raises(UserError, match=why): champion_scores(other, pl.DataFrame({"x": [1.0]}), NOW)


def test_classes_in_another_order_are_put_into_ours():
    frame = pl.DataFrame({"x": [1.0]})
    assert champion_scores(champion(classes=("yes", "no")), frame, NOW) == pytest.approx([0.8])
    three = champion("multiclass", "cab", predict=lambda f: np.array([[0.5, 0.3, 0.2]]))
    assert champion_scores(three, frame, champion("multiclass", "abc").schema).tolist() == [[0.3, 0.2, 0.5]]
