"A change of a distribution is reported when it is real, and only then."
import re

import msgspec
import numpy as np
import polars as pl
import pytest
import scipy
from scipy.stats import chi2_contingency

from mlops_nb.config.schema import Column, Schema
from mlops_nb.stats.drift_test import (
    Baseline,
    ReferenceHistogram,
    _tail_bound,
    detect_drift,
    fit_baseline,
    fit_reference_histogram,
    jensen_shannon_test,
)
from mlops_nb.stats.summaries import summarize_columns


def schema_of(**columns):
    return Schema("t", "regression", "y", dict(columns, y=Column("number")))


SCHEMA = schema_of(x=Column("number", nullable=True), c=Column("category", nullable=True),
                  id=Column("category", feature=False), when=Column("timestamp"))


def rows(n, seed, shift=0.0, probabilities=(0.5, 0.3, 0.2), missing=0.0):
    r = np.random.default_rng(seed)
    nothing = pl.Series([None], dtype=pl.Float64)
    x = pl.Series(r.normal(shift, 1, n)).zip_with(pl.Series(r.random(n) >= missing), nothing)
    return pl.DataFrame(dict(x=x, c=r.choice(list("abc"), n, p=probabilities), id=[f"{seed}-{i}" for i in range(n)],
                             when=pl.Series(seed * 10**12 + np.arange(n)).cast(pl.Datetime("us")), y=r.normal(size=n)))


@pytest.fixture(scope="module")
def baseline(): return fit_baseline(rows(50_000, 0), SCHEMA)


def drifted(frame, baseline): return {s.column: s for s in detect_drift(summarize_columns(frame, SCHEMA), baseline)}


def test_baseline_survives_json_and_counts_every_row(baseline):
    again = msgspec.json.decode(msgspec.json.encode(baseline), type=Baseline)
    assert again == baseline
    assert set(baseline.columns) == {"x", "c", "y"} # no identifier, no clock
    assert all(sum(r.counts) == baseline.rows for r in baseline.columns.values())
    assert min(baseline.columns["x"].counts[2:-1]) > 0.09 * baseline.rows


def test_same_rows_give_the_baseline_back_but_for_the_extremes_that_no_other_row_has_seen(baseline):
    s = summarize_columns(rows(50_000, 0), SCHEMA)
    for c, r in baseline.columns.items():
        alone = [0, 1, -1, *[0] * (len(r.counts) - 5), -1, 1] if r.edges else 0
        assert (r.bin_counts(s[c]) + alone).tolist() == r.counts


@pytest.mark.parametrize("n", [1, 30, 500, 100_000])
def test_no_change_is_not_reported(baseline, n):
    assert not drifted(rows(n, 7), baseline)


def test_a_tiny_shift_of_many_rows_is_not_reported(baseline):
    assert not drifted(rows(100_000, 8, shift=0.05), baseline)


def test_real_changes_are_reported(baseline):
    assert set(drifted(rows(3_000, 9, shift=0.5), baseline)) == {"x"}
    assert "missing" in drifted(rows(3_000, 9, missing=0.3), baseline)["x"].message
    assert set(drifted(rows(3_000, 9, probabilities=(0.2, 0.3, 0.5)), baseline)) == {"c"}
    new = rows(3_000, 9).with_columns(c=pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.lit("new")).otherwise("c"))
    assert "never seen in training was 0.0 %, is 20.0 %" in drifted(new, baseline)["c"].message
    broken = drifted(rows(3_000, 9).with_columns(x=pl.lit(0.0)), baseline)["x"]
    assert broken.distance > broken.min_distance and broken.distance > broken.critical_value and broken.p_value < 1e-6


def test_no_rows_are_no_evidence(baseline):
    assert not drifted(rows(10, 9).clear(), baseline)
    assert not detect_drift({}, baseline)


def test_columns_that_were_empty_or_constant_in_training():
    s = schema_of(n=Column("number", nullable=True), k=Column("integer"))
    train = pl.DataFrame(dict(n=[None] * 1000, k=[1] * 1000, y=np.arange(1000.0)), schema_overrides=dict(n=pl.Float64))
    b = fit_baseline(train, s)
    assert detect_drift(summarize_columns(train, s), b) == []
    now = train.with_columns(n=pl.lit(3.0), k=pl.lit(2, pl.Int64))
    assert {x.column for x in detect_drift(summarize_columns(now, s), b)} == {"n", "k"}


def test_g_statistic_is_the_one_of_the_textbook():
    a, b = np.array([100, 300, 600]), np.array([20, 45, 60])
    expected = chi2_contingency(np.array([a, b]), lambda_="log-likelihood", correction=False)
    assert jensen_shannon_test(a, b).p_value == pytest.approx(expected.pvalue, rel=1e-6)


@pytest.mark.parametrize("n", [200, 2_000])
def test_critical_value_is_the_99th_percentile_of_chance(n):
    r, p = np.random.default_rng(0), np.array([0.02] + [0.098] * 10)
    before = (p * 50_000).astype(int)
    tests = [jensen_shannon_test(before, r.multinomial(n, p)) for _ in range(1_000)]
    share = np.mean([t.distance > t.critical_value for t in tests])
    assert 0.002 < share < 0.025


def test_false_reports_are_controlled_over_many_columns():
    s = Schema("many", "regression", "y", {f"x{i}": Column("number") for i in range(50)} | dict(y=Column("number")))

    def draw(n, seed):
        x = np.random.default_rng(seed).normal(size=(n, 51))
        return pl.DataFrame(x, [*s.columns])
    b = fit_baseline(draw(5_000, 0), s)
    assert sum(bool(detect_drift(summarize_columns(draw(300, i), s), b)) for i in range(1, 61)) <= 3


def test_an_atom_at_an_edge_stays_in_its_bin_when_the_new_rows_need_a_coarser_sketch():
    r = np.random.default_rng(0)

    def tips(n):
        other = np.where(r.random(n) < 0.3, 9.99, r.uniform(0, 9.99, n).round(2))
        return pl.DataFrame(dict(y=np.where(r.random(n) < 0.5, 2.75, other)))

    def fine(n):
        atom = pl.col("y").is_in([2.75, 9.99])
        return tips(n).with_columns(y=pl.when(atom).then("y").otherwise(pl.col("y") + r.random(n) / 100))
    s = schema_of()
    b = fit_baseline(tips(20_000), s)
    now = summarize_columns(fine(60_000), s)
    assert now["y"].sketch.dropped_bits > 0 and detect_drift(now, b) == []


def test_values_outside_of_what_was_seen_have_bins_of_their_own(baseline):
    outside = rows(10, 1).with_columns(x=pl.Series([99.0] * 6 + [-99.0] * 4))
    bins = baseline.columns["x"].bin_counts(summarize_columns(outside, SCHEMA)["x"])
    assert (bins[1], bins[-1], bins.sum()) == (4, 6, 10)
    values = [1.7976931348623157e308, -1.7976931348623157e308] * 3000 + list(range(5000))
    huge = fit_baseline(pl.DataFrame(dict(y=values)), schema_of())
    assert all(np.isfinite(e) for e in huge.columns["y"].edges)
    assert msgspec.json.decode(msgspec.json.encode(huge), type=Baseline) == huge


def test_bin_names_are_readable():
    r = ReferenceHistogram([0] * 5, edges=[1.0, 5.0, 9.0])
    assert [r.bin_label([i]) for i in range(5)] == ["missing", "below 1", "from 1 below 5", "from 5 up to 9", "above 9"]
    assert r.bin_label([1, 2]) == "below 5" and r.bin_label([1, 2, 3, 4]) == "any number"
    assert r.bin_label([1, 3, 4]) == "below 1, from 5"
    points = ReferenceHistogram([0] * 7, edges=[-1.5, 0.0, 5e-324, 7.0, 9.0])
    assert [points.bin_label([i]) for i in range(2, 7)] == [
        "from -1.5 below 0", "the value 0", "above 0 below 7", "from 7 up to 9", "above 9"]
    assert ReferenceHistogram([0] * 4, categories=["a", "b"]).bin_label([2, 3]) == "b, any other value"
    named = ReferenceHistogram([0] * 6, categories=["a"], groups=[["b"], ["c", "d", "e"]])
    assert named.bin_label([0, 2]) == "missing, b"
    assert named.bin_label([1, 2, 3, 4]) == "a, b, c … e and more"
    assert named.bin_label([4]) == "never seen in training"


# The shapes of columns that real tables have: each draws n values.
SHAPES = dict(
    continuous=lambda r, n: r.normal(size=n),
    zeros=lambda r, n: np.where(r.random(n) < 0.08, r.gamma(2, 10, n), 0),
    counts=lambda r, n: r.poisson(2, n).astype(float),
    two_mass_points=lambda r, n: np.select([(u := r.random(n)) < 0.6, u < 0.9], [0, 100], r.uniform(0, 100, n)),
    categories=lambda r, n: np.strings.add("c", r.integers(0, 400, n).astype(str)))


def column(shape, n, seed): return one_column(SHAPES[shape](np.random.default_rng(seed), n))


def one_column(values):
    "The summary of one column of numbers or names."
    kind = "category" if np.asarray(values).dtype.kind in "UT" else "number"
    schema = schema_of(v=Column(kind, nullable=True))
    return summarize_columns(pl.DataFrame(dict(v=values)), schema)["v"]


def drift_of(reference, current):
    "What is reported of a column with these summaries."
    baseline = Baseline(reference.rows, dict(v=fit_reference_histogram(reference)))
    return detect_drift(dict(v=current), baseline)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [60, 400, 5_000])
def test_chance_is_reported_once_in_a_hundred_times_whatever_the_column_holds(shape, n):
    "150 pairs of training and new rows: at 1 %, five reports or more come in 1.8 of 100 such tests."
    pairs = [(column(shape, 5_000, seed), column(shape, n, 1_000 + seed)) for seed in range(150)]
    assert sum(bool(drift_of(*pair)) for pair in pairs) <= 5


@pytest.mark.parametrize("k,n", [(50, 150), (100, 300), (15, 60), (30, 60)])
def test_a_small_training_set_raises_no_alarm_by_itself(k, n):
    """Of 100 comparisons 17, 7, 7 and 33 were reported when the share of the never seen counted as exact; the 30 are
    of very different frequency."""
    p = 1 / np.arange(1, k + 1) if k == 30 else np.ones(k)

    def names(rows, seed):
        return one_column(np.random.default_rng(seed).choice(k, rows, p=p / p.sum()).astype(str))
    assert sum(bool(drift_of(names(n, seed), names(2_000, 1_000 + seed))) for seed in range(100)) <= 4


def test_a_new_category_is_seen_by_a_small_training_set_too():
    def names(n, seed): return np.random.default_rng(seed).integers(0, 50, n).astype(str)
    now = names(500, 1)
    [found] = drift_of(one_column(names(300, 0)), one_column(np.where(np.arange(500) % 5 == 0, "new", now)))
    assert "never seen in training" in found.message


@pytest.mark.parametrize("n", [60, 400, 5_000])
def test_most_are_zero_and_the_others_become_ten_times_as_common(n):
    r = np.random.default_rng(0)
    roaming = np.where(r.random(n) < 0.8, r.gamma(2, 10, n), 0)
    [found] = drift_of(column("zeros", 5_000, 0), one_column(roaming))
    assert re.search("(the value 0 was 9|above 0.* was 8)", found.message) and found.p_value < 1e-6


@pytest.mark.parametrize("n", [60, 400, 5_000])
@pytest.mark.parametrize("successor,words", [("new", "never seen in training"), ("c399", " … c")])
def test_one_category_replaces_350_of_400_while_the_50_most_frequent_stay(n, successor, words):
    def names(n, seed):
        p = np.append(np.full(50, 1 / 100), np.full(350, 1 / 700))
        return np.strings.add("c", np.random.default_rng(seed).choice(400, n, p=p).astype(str))
    now = names(n, 1)
    replaced = np.where(np.isin(now, [f"c{i}" for i in range(50, 400)]), successor, now)
    [found] = drift_of(one_column(names(5_000, 0)), one_column(replaced))
    assert words in found.message and found.p_value < 1e-6


def test_many_new_names_are_seen_although_a_summary_loses_them():
    names = [f"{i:x}" for i in range(30_000)] + ["c1"] * 3_000
    [found] = drift_of(column("categories", 5_000, 0), one_column(names))
    assert "never seen in training" in found.message


def test_a_summary_that_loses_a_few_known_names_is_no_drift():
    def names(n, seed): # the last 150 are so rare that 10,000 rows hold few of them
        p = np.append(np.full(950, 1.0), np.full(150, 0.02))
        return one_column(np.random.default_rng(seed).choice(1_100, n, p=p / p.sum()).astype(str))
    before, now = names(10_000, 0), names(60_000, 1)
    assert len(before.top_values) < 1_000 and sum(now.top_values.values()) < now.rows
    assert drift_of(before, now) == []


def test_a_sparse_bin_never_hides_in_a_full_one():
    t = jensen_shannon_test(np.array([0, 18_400, 1_600]), np.array([0, 10, 40]))
    assert t.p_value < 1e-9 and t.distance > t.critical_value
    few = jensen_shannon_test(np.array([0, 18_400, 1_600]), np.array([0, 46, 4]))
    assert few.p_value > 0.5 and few.distance < few.critical_value


@pytest.mark.parametrize("a,b", [([0, 40, 3], [0, 9, 3]), ([2, 30, 0], [0, 17, 3]), ([0, 95, 5], [1, 9, 2])])
def test_p_value_of_few_rows_is_that_of_the_exact_test(a, b):
    "All ways to draw as many rows from both samples together, weighted by how likely they are."
    a, b = np.array(a), np.array(b)
    total, m = a + b, b.sum()
    ways = [x for x in np.ndindex(*np.minimum(total, m) + 1) if sum(x) == m]
    p = scipy.stats.multivariate_hypergeom.pmf(ways, total, m)

    def g(drawn):
        table = np.array([total - drawn, drawn])
        expected = table.sum(1, keepdims=True) * total / total.sum()
        return 2 * scipy.special.xlogy(table, table / np.where(total, expected, 1)).sum()
    exact = p[[g(np.array(x)) >= g(b) * (1 - 1e-9) for x in ways]].sum()
    assert jensen_shannon_test(a, b).p_value == pytest.approx(exact, rel=0.3)


def test_the_bound_of_far_tails_is_above_the_chi_square():
    "Where all bins are full the χ² is right; a bound may only be larger."
    for k in (2, 5, 12):
        for g in (30.0, 100.0, 300.0): assert scipy.special.chdtrc(k - 1, g) < _tail_bound(g, k) <= 1
    assert _tail_bound(300.0, 12) < 1e-20


def test_few_numbers_have_a_bin_each_and_gaps_are_bins_too():
    h = fit_reference_histogram(one_column(np.repeat([0.0, 2.0, 3.0], [600, 300, 100])))
    assert [h.bin_label([i]) for i, n in enumerate(h.counts) if n] == ["the value 0", "the value 2", "the value 3"]
    [found] = drift_of(one_column(np.repeat([0.0, 2.0], 500)), one_column(np.repeat([0.0, 1.0], [300, 700])))
    assert "above 0 below 2 was 0.0 %, is 70.0 %" in found.message


def test_two_mass_points_that_a_coarse_sketch_cannot_tell_apart_count_as_one():
    def prices(n, seed):
        r = np.random.default_rng(seed)
        return np.select([(u := r.random(n)) < 0.3, u < 0.5], [1000.0, 1000.001], r.lognormal(5, 2, n))
    before, now = one_column(prices(3_000, 0)), one_column(prices(60_000, 1))
    assert before.sketch.dropped_bits == 0 < now.sketch.dropped_bits
    assert drift_of(before, now) == []


def test_baseline_holds_labels_missing_and_never_seen_rates():
    columns = dict(c=Column("category", nullable=True), left=Column("category"))
    s = Schema("t", "binary", "left", columns, classes=["no", "yes"])
    names = [None] * 100 + ["rare"] + ["a"] * 899
    b = fit_baseline(pl.DataFrame(dict(c=names, left=["no"] * 800 + ["yes"] * 200)), s)
    assert dict(zip(b.columns["left"].categories, b.columns["left"].counts[1:])) == dict(no=800, yes=200)
    assert (b.columns["c"].counts[0], b.columns["c"].counts[-1]) == (100, 1) # a new category is expected in 1 of 1,000
    flipped = pl.DataFrame(dict(c=names, left=["no"] * 400 + ["yes"] * 600))
    assert [d.column for d in detect_drift(summarize_columns(flipped, s), b)] == ["left"]


def test_missing_and_unknown_shares():
    h = fit_reference_histogram(one_column(["a"] * 6 + ["b"] * 3 + ["once"]))
    assert (h.missing_share(), h.unknown_share()) == (0, .1)
    assert (h.missing_share([2, 1, 1, 0, 4]), h.unknown_share([2, 1, 1, 0, 4])) == (.25, .5)
    numbers = fit_reference_histogram(one_column(np.arange(100.0)))
    assert numbers.unknown_share() == .02 # the smallest and the largest
    assert fit_reference_histogram(one_column([f"id{i}" for i in range(100)])).unknown_share() is None
    assert (h.missing_share([0] * 5), h.unknown_share([0] * 5)) == (0, 0)


def test_a_computed_column_drifts_though_the_schema_does_not_name_it():
    r = np.random.default_rng(0)
    before, now = (pl.DataFrame(dict(y=r.normal(size=3_000), share=r.normal(shift, 1, 3_000))) for shift in (0, 1))
    b = fit_baseline(before, schema_of(), dict(share="number"))
    assert b.columns.keys() == {"y", "share"} and fit_baseline(before, schema_of()).columns.keys() == {"y"}
    assert [d.column for d in detect_drift(summarize_columns(now, schema_of(), dict(share="number")), b)] == ["share"]
    assert detect_drift(summarize_columns(now, schema_of()), b) == [] # who does not compute it compares the others


def test_a_baseline_of_an_older_version_is_read():
    "Without groups, what was never seen shares a bin with all categories that have none."
    old = b'{"rows":100,"columns":{"v":{"counts":[0,60,40],"edges":null,"categories":["a"]}}}'
    b = msgspec.json.decode(old, type=Baseline)
    assert detect_drift(dict(v=one_column(["a"] * 60 + ["z"] * 40)), b) == []
    assert len(detect_drift(dict(v=one_column(["z"] * 100)), b)) == 1
    assert b.columns["v"].bin_label([2]) == "any other value"


def test_a_distance_that_does_not_matter_needs_no_test_of_chance(monkeypatch):
    a, b = np.array([0, 500, 480, 3]), np.array([0, 450, 520, 5])
    whole = jensen_shannon_test(a, b)
    monkeypatch.setattr("mlops_nb.stats.drift_test._permutation_test", lambda *_: pytest.fail("chance was worked out"))
    short = jensen_shannon_test(a, b, whole.distance * 1.01)
    assert (short.distance, short.bins, short.p_value) == (whole.distance, whole.bins, 1.0)
    monkeypatch.undo()
    assert jensen_shannon_test(a, b, whole.distance * .99) == whole
