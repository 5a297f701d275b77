"Slices, groups and residuals."
import datetime as dt

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from mlops_nb.evaluate.metrics import METRICS, PRIMARY_METRIC, EvaluatedRows, weighted_metric
from mlops_nb.evaluate.slices import (
    Slice,
    SliceFigure,
    bin_column,
    binned_residuals,
    compare_with_rest,
    evaluate_slices,
    lacks_skill,
    measure_slice,
    primary_metric_and_gap,
    simpler_and_better,
    simpler_gains,
    slice_table,
    weighted_recalibrated_skill,
    weighted_skill_score,
)
from mlops_nb.stats.bootstrap import Estimate, Resampling
from mlops_nb.stats.jackknife import standard_error

quick = settings(deadline=None, max_examples=80)
columns = st.one_of(
    st.lists(st.one_of(st.none(), st.integers(-5, 5)), min_size=1, max_size=40).map(
        lambda v: pl.Series("c", v, pl.Int64)
    ),
    st.lists(st.one_of(st.none(), st.floats(width=32)), min_size=1, max_size=40).map(
        lambda v: pl.Series("c", v, pl.Float64)
    ),
    st.lists(st.one_of(st.none(), st.sampled_from("abcdefg")), min_size=1, max_size=40).map(
        lambda v: pl.Series("c", v, pl.String)
    ),
    st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=40).map(lambda v: pl.Series("c", v, pl.Boolean)),
    st.lists(
        st.one_of(st.none(), st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1))), min_size=1, max_size=40
    ).map(lambda v: pl.Series("c", v, pl.Datetime("us"))),
)


@quick
@given(columns, st.integers(1, 6), st.integers(1, 4))
def test_every_row_is_in_one_group_that_has_a_name(values, bins, most):
    codes, labels = bin_column(values, bins, most)
    assert len(codes) == len(values) and sorted(set(codes)) == list(range(len(labels)))
    assert len(labels) <= max(bins + 1, most + 2) and all(isinstance(x, str) and x for x in labels)
    missing = values.is_null() | (values.is_nan().fill_null(False) if values.dtype.is_float() else False)
    assert [labels[c] == "(missing)" for c in codes] == missing.to_list()


def test_few_numbers_are_not_cut():
    assert bin_column(pl.Series("weekday", [0, 1, 2, 6, 6, 6, 6, 6, 6]), 7)[1] == ["0", "1", "2", "6"]


def test_times_are_cut_by_time():
    days = pl.Series([dt.datetime(2026, 1, 1) + dt.timedelta(days=i) for i in range(100)]).cast(pl.Datetime("us"))
    codes, labels = bin_column(days, 4)
    assert (np.diff(codes) >= 0).all() and labels[0] == "2026-01-01 00:00:00 to 2026-01-25 00:00:00"


def test_many_categories_are_bounded():
    _, labels = bin_column(pl.Series([f"c{i}" for i in range(1000)] + ["c7"]), max_categories=5)
    assert labels == ["c7", "c0", "c1", "c10", "c100", "(others)"]


def data(task, n=1200, seed=0, unknown=.3):
    rng = np.random.default_rng(seed)
    region = pl.Series("region", rng.choice(["n", "s", "e"], n, p=[0.2, 0.4, 0.4]))
    if task == "binary":
        p = rng.random(n)
        return region, (rng.random(n) < p).astype(float), p
    if task == "multiclass":
        p = rng.dirichlet(np.ones(3), n)
        return region, np.array([rng.choice(3, p=q) for q in p], float), p
    if task == "multilabel":
        p = rng.random((n, 3))
        y = (rng.random((n, 3)) < p).astype(float)
        y[(rng.random((n, 3)) < unknown) & (np.arange(3) != rng.integers(0, 3, n)[:, None])] = np.nan
        return region, y, p
    return region, (y := rng.normal(size=n)), y + rng.normal(size=n)


@pytest.mark.parametrize("task", METRICS)
def test_a_slice_is_the_metric_on_its_rows(task):
    region, y, s = data(task)
    scored = EvaluatedRows(task, y, s, resampling=Resampling(30))
    found, small = evaluate_slices(scored, pl.DataFrame({"region": region}), ["region"])

    def at(rows): return weighted_metric(task, PRIMARY_METRIC[task], y[rows], s[rows])(np.ones(rows.sum()))

    assert {x.value for x in found} == {"n", "s", "e"} and not small
    for x in found:
        rows = (region == x.value).to_numpy()
        assert (x.n_rows, x.estimate.value, x.rest) == (rows.sum(), pytest.approx(at(rows)), pytest.approx(at(~rows)))
        sign = -1 if METRICS[task][PRIMARY_METRIC[task]].better == "higher" else 1
        assert (
            x.gap.value == pytest.approx(sign * (x.estimate.value - x.rest)) and x.gap.low <= x.gap.value <= x.gap.high
        )
        assert x.metrics.keys() == METRICS[task].keys() and x.metrics[PRIMARY_METRIC[task]] == x.estimate.value


def test_a_broken_slice_is_worse_by_more_than_chance():
    region, y, s = data("regression")
    s = s + np.where(region == "n", 3, 0)
    slices, _ = evaluate_slices(EvaluatedRows("regression", y, s), pl.DataFrame({"region": region}), ["region"])
    found = {x.value: x for x in slices}
    assert found["n"].gap.low > 0 and found["s"].gap.high < 0
    assert slice_table(list(found.values()))["value"][0] == "n"


def test_small_slices_are_counted_not_judged():
    region = pl.Series(["a"] * 500 + ["b"] * 20 + ["c"] * 5 + [None] * 3)
    y = np.tile([0.0, 1.0], 264)
    rows = EvaluatedRows("binary", y, y, resampling=Resampling(5))
    found, small = evaluate_slices(rows, pl.DataFrame({"r": region}), ["r"], min_rows=100)
    assert [x.value for x in found] == ["a"] and [(x.n_slices, x.n_rows) for x in small] == [(3, 28)]


def test_a_column_with_one_value_has_no_rest():
    y = np.tile([0.0, 1.0], 300)
    assert evaluate_slices(EvaluatedRows("binary", y, y), pl.DataFrame({"r": ["x"] * 600}), ["r"]) == ([], [])
    assert slice_table([]).columns[:3] == ["column", "value", "n_rows"]


def test_a_slice_with_one_class_is_undefined():
    y = np.r_[np.zeros(300), np.tile([0.0, 1.0], 150)]
    rows = EvaluatedRows("binary", y, np.linspace(0, 1, 600), resampling=Resampling(20))
    here, rest, gap, *_ = measure_slice(rows, np.arange(600) < 300)
    assert here.value is None and rest is not None and gap.value is None and gap.low is None


def test_no_segments():
    assert evaluate_slices(EvaluatedRows("binary", np.ones(3), np.ones(3)), pl.DataFrame(), []) == ([], [])


@pytest.mark.parametrize("task", METRICS)
def test_residuals_add_up_to_the_whole(task):
    region, y, s = data(task)
    frame = pl.DataFrame({"region": region, "x": np.random.default_rng(1).normal(size=len(y))})
    several = dict.fromkeys(("multiclass", "multilabel"), ["a", "b", "c"])
    classes = (several | {"binary": ["no", "yes"], "regression": None})[task]
    table = binned_residuals(frame, ["region", "x"], y, s, classes)
    for k, c in enumerate(several.get(task, [classes and classes[1]])):
        true = (y == k) if task == "multiclass" else y[:, k] if task == "multilabel" else y
        residual = true - (s if s.ndim == 1 else s[:, k])
        residual = residual[~np.isnan(residual)]
        for feature in ("region", "x"):
            part = table.filter(pl.col("feature") == feature, pl.col("class").eq_missing(pl.lit(c, pl.String)))
            n, total = len(residual), (part["mean"] * part["n_rows"]).sum()
            assert part["n_rows"].sum() == n and total / n == pytest.approx(residual.mean(), abs=1e-12)


def test_residual_intervals_cover_where_entities_repeat():
    "A feature that stays with an entity, whose rows are wrong together: row by row 51 % of the intervals hold zero."
    rng, found = np.random.default_rng(0), {"rows": [], "entities": []}
    who = np.repeat(np.arange(100), 30)
    for _ in range(100):
        frame = pl.DataFrame({"x": rng.normal(size=100)[who]})
        y = rng.normal(size=100)[who] + rng.normal(size=3000)
        for unit, clusters in (("rows", None), ("entities", who)):
            t = binned_residuals(frame, ["x"], y, np.zeros(3000), n_bins=4, clusters=clusters)
            found[unit].append(((t["low"] <= 0) & (t["high"] >= 0)).mean())
    assert np.mean(found["rows"]) < .7 and .92 <= np.mean(found["entities"]) <= .98


def test_residuals_of_a_single_row_have_no_interval():
    table = binned_residuals(pl.DataFrame({"x": [1.0]}), ["x"], np.array([3.0]), np.array([1.0]))
    assert table.select("mean", "low", "high").row(0) == (2.0, None, None)


def test_the_skill_score_is_the_share_of_the_constants_error_that_is_saved():
    for task in METRICS:
        _, y, s = data(task, seed=3, unknown=0)
        w, target = np.random.default_rng(0).integers(0, 3, len(y)) * 1., y
        if task == "multiclass": target = (y[:, None] == np.arange(3)) * 1.
        target, scores = target.reshape(len(y), -1), s.reshape(len(y), -1)
        error = (w @ (target - scores)**2).sum()
        constant = (w @ (target - w @ target / w.sum())**2).sum()
        rows = EvaluatedRows(task, y, s)
        assert weighted_skill_score(rows)(w) == pytest.approx(1 - error / constant)
        lines = [np.polyval(np.polyfit(x, t, 1, w=w**.5), x) for x, t in zip(scores.T, target.T, strict=True)]
        best = 1 - (w @ (target - np.transpose(lines))**2).sum() / constant
        assert weighted_skill_score(rows)(w) <= weighted_recalibrated_skill(rows)(w) == pytest.approx(best)
    ones = np.ones(4)
    assert np.isnan(weighted_skill_score(EvaluatedRows("regression", ones, ones))(ones))
    assert weighted_recalibrated_skill(EvaluatedRows("regression", np.arange(4.), ones))(ones) == 0


@pytest.mark.parametrize("task", METRICS)
def test_nothing_simpler_is_better_than_the_truth(task):
    rng = np.random.default_rng(1)
    region, y, s = data(task, 2000)
    if task == "regression": y = s + rng.normal(size=len(s))
    worse = s[rng.permutation(len(s))]
    gains = simpler_gains(EvaluatedRows(task, y, s), {"linear": worse, "same": s})
    assert gains["recalibrated"].low < 0 < gains["recalibrated"].high
    assert gains["linear"].high < 0 == gains["same"].value
    gains = simpler_gains(EvaluatedRows(task, y, worse), {"linear": s})
    assert 0 < gains["recalibrated"].low < gains["linear"].low


def test_what_is_better_by_a_trifle_does_not_count():
    def named(**gains):
        s = Slice("region", "n", 900, Estimate(.6), .8, Estimate(.2), .1, .4, Estimate(.3, .21, .39), gains, {})
        return list(simpler_and_better(s)), lacks_skill(s, .5), lacks_skill(s, .6)
    some = dict(recalibrated=Estimate(.05, .041, .06), linear=Estimate(.2, .1, .3))
    assert named(**some) == (["linear", "recalibrated"], True, False)
    assert named(recalibrated=Estimate(.05, .039, .06), linear=Estimate(None)) == ([], True, False)


BIAS = SliceFigure(lambda r: weighted_metric("regression", "bias", r.y, r.scores), True, "real")


def width(e, free): return (e.high - e.low) / 2 / stats.t.ppf(.975, free)


@pytest.mark.parametrize("per", [1, 20])
def test_a_gap_of_independent_sides_has_the_sum_of_their_variances(per):
    "Sixty units of one value each, ten of them in the slice: the textbook's standard errors."
    who = np.repeat(np.arange(60), per)
    y = np.random.default_rng(0).choice([-1., 1], 60)[who] # each changes a mean about equally
    clusters = who if per > 1 else None
    rows = EvaluatedRows("regression", y, np.zeros(len(y)), resampling=Resampling(clusters=clusters))
    (here, _, gap), = compare_with_rest(rows, [BIAS], who < 10)
    a, b = y[::per][:10], y[::per][10:]
    changes = np.r_[(a - a.mean()) / 9, (b - b.mean()) / 49]
    assert width(here, standard_error(changes[:10])[1]) == pytest.approx(stats.sem(a))
    scaled = np.r_[changes[:10] * .9**.5, changes[10:] * .98**.5]
    free = min(standard_error(scaled)[1], 9 if per > 1 else np.inf)
    assert width(gap, free) == pytest.approx(np.hypot(stats.sem(a), stats.sem(b)))


def test_what_an_entity_has_in_common_cancels_in_a_gap_within_it():
    "Half of the rows of each entity are in the slice: a shift of the entity says nothing of the gap."
    rng, who = np.random.default_rng(0), np.repeat(np.arange(60), 20)
    y, shift, mask = rng.normal(size=1200), 100 * rng.normal(size=60)[who], np.arange(1200) % 2 == 0

    def gap(y):
        rows = EvaluatedRows("regression", y, np.zeros(1200), resampling=Resampling(clusters=who))
        return compare_with_rest(rows, [BIAS], mask)[0][2]
    with_shift, without = gap(y + shift), gap(y)
    assert (with_shift.low, with_shift.high) == (pytest.approx(without.low), pytest.approx(without.high))


@pytest.mark.parametrize("task", ["regression", "binary"])
@pytest.mark.parametrize("within", [False, True])
def test_segments_of_repeated_entities_cover(task, within):
    "A hundred entities of 30 rows, who differ: the gap of two sides that are alike holds zero."
    who, held = np.repeat(np.arange(100), 30), []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        own, x = rng.normal(size=100)[who], rng.normal(size=3000)
        mask = rng.random(3000) < .35 if within else who < 33
        y = own + x + rng.normal(size=3000)
        if task == "binary": y = (y > 1) * 1.
        rows = EvaluatedRows(task, y, x, resampling=Resampling(clusters=who))
        (_, _, gap), = compare_with_rest(rows, [primary_metric_and_gap(task)], mask)
        held.append(gap.low <= 0 <= gap.high)
    assert np.mean(held) >= .92


def test_nothing_is_drawn():
    region, y, s = data("binary", 4000)
    frame = pl.DataFrame({"region": region, "x": s})
    found = [evaluate_slices(EvaluatedRows("binary", y, s, resampling=Resampling(n, seed=n)), frame, ["region", "x"])
             for n in (1, 50)]
    assert found[0] == found[1]
