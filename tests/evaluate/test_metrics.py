"Metrics against scikit-learn, weights against repeated rows, and everything that is undefined."

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk

from mlops_nb.config.params import CostParams
from mlops_nb.evaluate.metrics import (
    METRICS,
    PRIMARY_METRIC,
    DecisionSettings,
    estimate_metrics,
    row_loss,
    weighted_metric,
)
from mlops_nb.stats.bootstrap import Estimate, Resampling, Units, bootstrap_replicates, bootstrap_weights
from mlops_nb.stats.jackknife import standard_error

TERMS = DecisionSettings(0.4, CostParams(true_positive=-3, false_positive=2, true_negative=0.5, false_negative=7), 0.7,
                         thresholds=[.3, .45, .6])
quick = settings(deadline=None, max_examples=60)


def rows(task, n, seed, coarse=False):
    "Targets and scores with the same class more than once where n allows; `coarse` scores are full of ties."
    rng = np.random.default_rng(seed)
    if task == "regression":
        y = rng.normal(size=n)
        s = y + rng.normal(size=n)
        return (y.round(1), s.round(1)) if coarse else (y, s)
    if task == "multilabel": # three, told apart less and less; of each a fifth is not known, never all of a row
        s = rng.random((n, 3))
        y = (rng.random((n, 3)) < .5 + np.array([1., .7, .4]) * (s - .5)).astype(float)
        y[(rng.random((n, 3)) < .2) & (np.arange(3) != rng.integers(0, 3, n)[:, None])] = np.nan
        return y, ((s * 4).round() / 4 if coarse else s)
    k = 2 if task == "binary" else 4
    p = rng.dirichlet(np.ones(k), n)
    if coarse: p = (p * 4).round() + 0.1
    p /= p.sum(1, keepdims=True)
    y = rng.integers(0, k, n).astype(float)
    return y, p[:, 1] if task == "binary" else p


def reference(task, y, s, w):
    "What scikit-learn says."
    sw = dict(sample_weight=w)
    if task == "regression":
        return dict(
            rmse=sk.root_mean_squared_error(y, s, **sw),
            mae=sk.mean_absolute_error(y, s, **sw),
            r2=sk.r2_score(y, s, **sw),
            bias=np.average(s - y, weights=w),
            within_tolerance=np.average(np.abs(s - y) <= TERMS.tolerance, weights=w),
        )
    if task == "multiclass":
        d = s.argmax(1)
        return dict(log_loss=sk.log_loss(y, s, labels=range(4), **sw), accuracy=sk.accuracy_score(y, d, **sw),
                    macro_f1=sk.f1_score(y[w > 0], d[w > 0], average="macro", sample_weight=w[w > 0]),
                    roc_auc_ovr=np.mean([sk.roc_auc_score(y == k, s[:, k], **sw) for k in range(4)]))
    if task == "multilabel": return reference_of_labels(y, s, w)
    return reference_of_events(y, s, w, TERMS.threshold)


def reference_of_labels(y, s, w):
    known = ~np.isnan(y)
    each = [reference_of_events(y[m, k], s[m, k], w[m], TERMS.thresholds[k]) for k, m in enumerate(known.T)]
    mean = lambda name: np.mean([x[name] for x in each])
    d, p = s >= TERMS.thresholds, np.clip(np.where(y == 1, s, 1 - s), np.finfo(float).eps, 1 - np.finfo(float).eps)
    cell = np.repeat(w[:, None], 3, 1)[known]
    whole = known.all(1)
    return dict(
        log_loss=np.average(np.nanmean(np.where(known, -np.log(p), np.nan), 1), weights=w),
        macro_roc_auc=mean("roc_auc"), worst_roc_auc=min(x["roc_auc"] for x in each),
        macro_average_precision=mean("average_precision"), macro_f1=mean("f1"), cost=mean("cost"),
        micro_f1=sk.f1_score(y[known], d[known], sample_weight=cell),
        hamming_loss=np.average(y[known] != d[known], weights=cell),
        subset_accuracy=sk.accuracy_score(y[whole].astype(int), d[whole].astype(int), sample_weight=w[whole]))


def reference_of_events(y, s, w, threshold):
    sw = dict(sample_weight=w)
    d = s >= threshold
    (tn, fp), (fn, tp) = sk.confusion_matrix(y, d, labels=[0, 1], **sw)
    c = TERMS.costs
    return dict(
        roc_auc=sk.roc_auc_score(y, s, **sw),
        average_precision=sk.average_precision_score(y, s, **sw),
        log_loss=sk.log_loss(y, s, **sw),
        brier=sk.brier_score_loss(y, s, **sw),
        accuracy=sk.accuracy_score(y, d, **sw),
        precision=sk.precision_score(y, d, **sw),
        recall=sk.recall_score(y, d, **sw),
        f1=sk.f1_score(y, d, **sw),
        cost=(tp * c.true_positive + fp * c.false_positive + tn * c.true_negative + fn * c.false_negative) / w.sum(),
    )


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("task", METRICS)
@quick
@given(n=st.integers(40, 120), seed=st.integers(0, 10**6))
def test_like_scikit_learn(task, coarse, n, seed):
    y, s = rows(task, n, seed, coarse)
    w = np.random.default_rng(seed).integers(0, 4, n).astype(float)
    for name, expected in reference(task, y, s, w).items():
        found = weighted_metric(task, name, y, s, TERMS)(w) # NaN where the reference is: a class without a weight
        assert found == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True), name


def test_every_metric_is_compared_or_tested_here():
    compared = {t: set(reference(t, *rows(t, 80, 0), np.ones(80))) for t in METRICS}
    assert {t: set(m) - compared[t] for t, m in METRICS.items()} == {
        "binary": set(),
        "multiclass": set(),
        "multilabel": set(),
        "regression": {"median_absolute_error"},
    }
    assert all(PRIMARY_METRIC[t] in METRICS[t] and METRICS[t][PRIMARY_METRIC[t]].better != "zero" for t in METRICS)


@pytest.mark.parametrize("task", METRICS)
@quick
@given(n=st.integers(1, 30), seed=st.integers(0, 10**6), coarse=st.booleans())
def test_a_weight_is_a_repeated_row(task, n, seed, coarse):
    y, s = rows(task, n, seed, coarse)
    w = np.random.default_rng(seed + 1).integers(0, 4, n)
    again = np.repeat(np.arange(n), w)
    for name in METRICS[task]:
        a, b = (
            weighted_metric(task, name, y, s, TERMS)(w.astype(float)),
            weighted_metric(task, name, y[again], s[again], TERMS)(np.ones(len(again))),
        )
        assert a == pytest.approx(b, rel=1e-9, abs=1e-9, nan_ok=True), name


@quick
@given(n=st.integers(1, 40), seed=st.integers(0, 10**6))
def test_median_like_scikit_learn(n, seed):
    y, s = rows("regression", n, seed, coarse=True)
    assert weighted_metric("regression", "median_absolute_error", y, s)(np.ones(n)) == pytest.approx(
        sk.median_absolute_error(y, s)
    )


@pytest.mark.parametrize("name", METRICS["binary"])
def test_order_of_rows_does_not_matter(name):
    y, s = rows("binary", 500, 0, coarse=True)
    mix = np.random.default_rng(1).permutation(500)
    assert weighted_metric("binary", name, y[mix], s[mix], TERMS)(np.ones(500)) == pytest.approx(
        weighted_metric("binary", name, y, s, TERMS)(np.ones(500))
    )


def test_one_class_is_undefined_where_it_must_be():
    y, s = np.zeros(10), np.linspace(0, 1, 10)
    found = {m: e.value for m, e in estimate_metrics("binary", y, s, DecisionSettings(2.0), Resampling(20)).items()}
    assert {m for m, v in found.items() if v is None} == {"roc_auc", "average_precision", "precision", "recall", "f1"}
    assert found["accuracy"] == 1


def test_constant_scores_rank_nothing():
    y = np.array([0.0, 1, 1, 0, 1])
    at = weighted_metric("binary", "roc_auc", y, np.full(5, 0.3))
    assert {at(w) for w in (bootstrap_weights(5, i) for i in range(50)) if 0 < (w * y).sum() < 5} == {0.5}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", ["y", "s"])
@pytest.mark.parametrize("task", METRICS)
def test_what_is_no_number_is_never_averaged_away(task, where, bad):
    y, s = rows(task, 50, 0)
    (y if where == "y" else s)[7] = bad
    assert all(
        e == Estimate(None) for e in estimate_metrics(task, y, s).values()
    )


def test_undefined_is_null_in_json_and_comes_back():
    e = estimate_metrics("binary", np.ones(5), np.full(5, 0.5), resampling=Resampling(10))["roc_auc"]
    assert b'"value":null' in msgspec.json.encode(e)
    assert msgspec.json.decode(msgspec.json.encode(e), type=Estimate) == e


def by_leaving_out(at, numbers):
    return np.array([at((numbers != i) * 1.0) for i in range(numbers.max() + 1)])


@pytest.mark.parametrize("entities", [False, True])
@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("task", METRICS)
def test_without_each_unit_is_what_leaving_it_out_gives(task, coarse, entities):
    "The closed forms against the metric on the other rows; average precision to first order, the median smoothed."
    y, s = rows(task, 80, 3, coarse)
    numbers = np.random.default_rng(1).permutation(np.arange(80) // 4 if entities else np.arange(80))
    for name in METRICS[task]:
        if name == "median_absolute_error": continue
        at = weighted_metric(task, name, y, s, TERMS)
        found = at.without(Units(numbers.max() + 1, numbers if entities or coarse else None))
        expected = by_leaving_out(at, numbers if entities or coarse else np.arange(80))
        first_order = name.endswith("average_precision")
        assert found == pytest.approx(expected, abs=0.15 * np.ptp(expected) if first_order else 1e-12), name


@pytest.mark.parametrize("entities", [False, True])
@pytest.mark.parametrize("task", METRICS)
def test_the_standard_error_is_that_of_a_bootstrap(task, entities):
    "Of 400 rows, or of 400 in 200 entities, against 2,000 draws."
    y, s = rows(task, 400, 5)
    who = np.arange(400) // 2 if entities else None
    units = Resampling(clusters=who).units(400)
    at = [weighted_metric(task, name, y, s, TERMS) for name in METRICS[task]]
    drawn = bootstrap_replicates(lambda w: [f(w) for f in at], 400, Resampling(2000, seed=2, clusters=who)).std(0)
    for name, f, reference in zip(METRICS[task], at, drawn, strict=True):
        tolerance = 0.2 if name == "median_absolute_error" else 0.08
        assert standard_error(f(np.ones(400)) - f.without(units))[0] == pytest.approx(reference, rel=tolerance), name


def test_the_standard_error_of_an_auc_is_that_of_delong():
    "DeLong et al. (1988) by their own formula: the variances of the placement values of events and of non-events."
    y, s = rows("binary", 300, 8, coarse=True)
    below = (s[y == 1][:, None] > s[y == 0]) + 0.5 * (s[y == 1][:, None] == s[y == 0])
    reference = below.mean(1).var(ddof=1) / (y == 1).sum() + below.mean(0).var(ddof=1) / (y == 0).sum()
    at = weighted_metric("binary", "roc_auc", y, s)
    assert standard_error(below.mean() - at.without(Units(300)))[0] == pytest.approx(reference**0.5, rel=0.01)


def test_nothing_is_drawn():
    y, s = rows("binary", 300, 0)
    assert estimate_metrics("binary", y, s, resampling=Resampling(5, seed=1, threads=3)) == estimate_metrics(
        "binary", y, s)


def test_entities_of_one_row_are_rows():
    y, s = rows("binary", 300, 0)
    alone, rate = (estimate_metrics("binary", y, s, TERMS, Resampling(clusters=c)) for c in (np.arange(300), None))
    for name, e in alone.items(): # of entities the degrees of freedom have a limit, so a little wider
        assert [e.low, e.high] == pytest.approx([rate[name].low, rate[name].high], rel=5e-3), name


def test_more_confidence_is_wider():
    y, s = rows("binary", 300, 0)
    narrow, wide = (
        estimate_metrics("binary", y, s, resampling=Resampling(confidence_level=c))["roc_auc"] for c in (0.5, 0.99)
    )
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_a_wrong_certainty_is_finite():
    assert np.isfinite(row_loss("binary", np.array([1.0, 0.0]), np.array([0.0, 1.0]))).all()


@pytest.mark.parametrize("events", [10, 20, 60])
def test_intervals_cover_with_few_events(events):
    "A population whose AUC is known: normal scores, one apart. The percentile interval held it in 88 % with 10 events."
    rng, n, truth = np.random.default_rng(events), events * 20, stats.norm.cdf(1 / 2**0.5)
    inside, tried = dict(roc_auc=[], log_loss=[], recall=[], brier=[]), 1000
    prior = np.log(0.05 / 0.95)

    def draw(n):
        y = (rng.random(n) < 0.05).astype(float)
        return y, 1 / (1 + np.exp(-(prior + rng.normal(y, 1) - 0.5)))
    y, p = draw(400_000)
    log_loss, found, brier = row_loss("binary", y, p).mean(), (p[y == 1] >= 0.1).mean(), ((p - y)**2).mean()
    for _ in range(tried):
        e = estimate_metrics("binary", *draw(n), DecisionSettings(0.1))
        for name, true in (("roc_auc", truth), ("log_loss", log_loss), ("recall", found), ("brier", brier)):
            if e[name].low is not None: inside[name].append(e[name].low <= true <= e[name].high)
    share = {name: np.mean(held) for name, held in inside.items()}
    assert all(0.925 <= x <= 0.975 for x in share.values()), share


@pytest.mark.parametrize("n", [200, 1000])
def test_intervals_of_a_regression_cover_with_heavy_tails(n):
    "Errors of Student's t with 5 degrees of freedom: the logarithm of a bootstrap held the RMSE in 92 %."
    truth, inside = dict(rmse=(5 / 3)**0.5, mae=0.9489), dict(rmse=0, mae=0)
    for seed in range(1000):
        e = estimate_metrics("regression", np.random.default_rng([seed, n]).standard_t(5, n), np.zeros(n))
        for name, true in truth.items(): inside[name] += e[name].low <= true <= e[name].high
    assert all(930 <= x <= 970 for x in inside.values()), inside


def test_few_and_unequal_entities_cover():
    "Thirty entities, some with a hundred rows and most with a few, half of the noise their own."
    inside = {"auc": 0, "log_loss": 0}
    def draw(rng, sizes):
        who = np.repeat(np.arange(len(sizes)), sizes)
        known, hidden = (rng.normal(size=len(sizes))[who] + rng.normal(size=len(who)) for _ in range(2))
        return who, (known + hidden > 0) * 1.0, stats.norm.cdf(known / 2**0.5)
    _, y, p = draw(np.random.default_rng(10**9), np.ones(400_000, int))
    truth = {name: weighted_metric("binary", m, y, p)(np.ones(len(y))) for name, m in
             (("auc", "roc_auc"), ("log_loss", "log_loss"))}
    for seed in range(500):
        rng = np.random.default_rng(seed)
        who, y, p = draw(rng, np.minimum(rng.zipf(1.8, size=30), 100) + 2)
        e = estimate_metrics("binary", y, p, resampling=Resampling(clusters=who))
        for name, m in (("auc", "roc_auc"), ("log_loss", "log_loss")):
            inside[name] += e[m].low <= truth[name] <= e[m].high
    assert min(inside.values()) >= 460, inside # 475 of 500 are expected


def test_a_perfect_model_of_few_events_is_not_known_to_be_perfect():
    y = np.r_[np.zeros(90), np.ones(10)]
    e = estimate_metrics("binary", y, y)["roc_auc"]
    assert e.value == e.high == 1 and 0.6 < e.low < 0.75


def test_single_row():
    e = estimate_metrics("regression", np.array([3.0]), np.array([2.0]), resampling=Resampling(5))
    assert (e["rmse"].value, e["median_absolute_error"].value, e["bias"].value, e["r2"].value) == (1, 1, -1, None)


def test_poisson_deviance_like_scikit_learn():
    from sklearn.metrics import mean_poisson_deviance
    rng = np.random.default_rng(0)
    y, p, w = rng.poisson(1, 300).astype(float), rng.uniform(.1, 4, 300), rng.integers(0, 3, 300).astype(float)
    at = weighted_metric("regression", "poisson_deviance", y, p)
    assert at(w) == pytest.approx(mean_poisson_deviance(y, p, sample_weight=w))
    for wrong in (weighted_metric("regression", "poisson_deviance", y - 1, p),
                  weighted_metric("regression", "poisson_deviance", y, p - p.min())): assert np.isnan(wrong(w))
    with pytest.raises(KeyError): weighted_metric("binary", "poisson_deviance", y, p)
