"Summaries merge exactly, and value skew is reported when it is real and only then."
import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2_contingency

from mlops_nb.config.schema import Column, Schema
from mlops_nb.stats.statistics import (
    MAX_BUCKETS,
    MAX_COUNTERS,
    STATISTICS_SCHEMA,
    Baseline,
    ReferenceHistogram,
    jensen_shannon_test,
    approx_n_unique,
    fit_baseline,
    float_to_ordered_int,
    ordered_int_to_float,
    merge_summaries,
    build_sketch,
    kmv_sketch,
    statistics_frame,
    summarize_columns,
    top_counts,
    detect_drift,
)

finite = st.floats(allow_nan=False, allow_infinity=False)


def contract(**columns):
    return Schema("t", "regression", "y", dict(columns, y=Column("number")))


def numbers(values): return build_sketch(float_to_ordered_int(np.asarray(values, float)), np.ones(len(values), np.int64))


@given(st.lists(finite, min_size=1, max_size=50))
@settings(deadline=None, max_examples=200)
def test_keys_sort_like_the_values_and_go_back(values):
    x = np.array(values)
    assert np.array_equal(ordered_int_to_float(float_to_ordered_int(x)), x)
    assert np.array_equal(np.argsort(float_to_ordered_int(x), kind="stable"), np.argsort(x + 0.0, kind="stable"))


@given(st.integers(0, 2**32), st.integers(1, 20_000), st.floats(0, 1), st.sampled_from(["normal", "lognormal", "counts", "mixed"]))
@settings(deadline=None, max_examples=40)
def test_a_merged_sketch_is_the_sketch_of_everything(seed, n, share, kind):
    r = np.random.default_rng(seed)
    x = {"normal": r.normal(size=n), "lognormal": r.lognormal(0, 5, n), "counts": r.poisson(5, n) * 1.0,
         "mixed": np.concatenate([r.normal(size=n // 2), np.zeros(n - n // 2), [-1e308, 1e308]])}[kind]
    cut = int(share * len(x))
    one, two = numbers(x[:cut]).merge(numbers(x[cut:])), numbers(x)
    assert one.dropped_bits == two.dropped_bits and np.array_equal(one.keys, two.keys) and np.array_equal(one.counts, two.counts)
    assert len(two.keys) <= MAX_BUCKETS and two.counts.sum() == len(x)
    assert (np.diff(two.keys) > 0).all()


def test_a_sketch_drops_no_more_bits_than_it_must():
    x = np.arange(2 * MAX_BUCKETS, dtype=np.int64)
    assert build_sketch(x[:MAX_BUCKETS], np.ones(MAX_BUCKETS, np.int64)).dropped_bits == 0
    assert build_sketch(x[:MAX_BUCKETS + 1], np.ones(MAX_BUCKETS + 1, np.int64)).dropped_bits == 1
    assert build_sketch(x, np.ones(2 * MAX_BUCKETS, np.int64)).dropped_bits == 1


def test_few_distinct_values_stay_exact_however_close():
    x = np.repeat([2011.0, 2012.0, np.nextafter(2012.0, 3000)], 1000)
    s = numbers(x)
    assert s.dropped_bits == 0 and s.counts.tolist() == [1000] * 3


@pytest.mark.parametrize("q", [0.01, 0.5, 0.99])
def test_quantiles_are_near_the_true_ones(q):
    x = np.random.default_rng(1).lognormal(3, 1, 200_000)
    got = ordered_int_to_float(np.array([numbers(x).quantile_key(q)]))[0]
    assert abs(got / np.quantile(x, q) - 1) < 0.01


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000), max_size=3000))
@settings(deadline=None, max_examples=20)
def test_top_counts_are_lower_bounds_off_by_a_thousandth(counts):
    top = top_counts(counts)
    assert len(top) <= MAX_COUNTERS
    assert all(counts[k] - sum(counts.values()) / MAX_COUNTERS <= n <= counts[k] for k, n in top.items())


def test_frequent_categories_survive_many_merges_of_noise():
    r = np.random.default_rng(0)
    batches = []
    for i in range(30):
        rare = [f"id-{i}-{k}" for k in range(5_000)]
        batches.append(summarize_columns(pl.DataFrame(dict(c=rare + ["big"] * 1000, y=r.normal(size=6_000))), contract(c=Column("category"))))
    c = merge_summaries(batches)["c"]
    assert next(iter(c.top_values)) == "big" and 30_000 - c.rows / MAX_COUNTERS <= c.top_values["big"] <= 30_000
    assert abs(approx_n_unique(c.hashes) / 150_001 - 1) < 0.15
    assert len(c.top_values) <= MAX_COUNTERS


@pytest.mark.parametrize("n", [0, 1, 1023, 1024, 5_000, 300_000])
def test_distinct(n):
    got = approx_n_unique(kmv_sketch(pl.Series(range(n), dtype=pl.Int64).hash().to_numpy()))
    assert got == n if n < 1024 else abs(got / n - 1) < 0.15


def test_summary_of_odd_columns():
    s = contract(nothing=Column("number", nullable=True),
                 nan=Column("number", nullable=True), flag=Column("boolean"),
                 huge=Column("number"), big=Column("integer"), when=Column("timestamp", nullable=True), words=Column("text"))
    frame = pl.DataFrame(dict(nothing=[None, None, None], nan=[1.0, float("nan"), 3.0], flag=[True, False, True],
                              huge=[1e308, -1e308, 1e308], big=[2**63 - 1, -2**63, 0], when=[None, 0, 10**15],
                              words=["a", "b", "a"], y=[1.0, 2.0, 3.0]),
                         schema_overrides=dict(nothing=pl.Float64, big=pl.Int64, when=pl.Datetime("us")))
    got = summarize_columns(frame, s)
    assert (got["nothing"].missing, got["nothing"].min, got["nothing"].quantiles()) == (3, None, [])
    assert (got["nan"].missing, got["nan"].mean, got["nan"].min, got["nan"].max) == (1, 2.0, 1.0, 3.0)
    assert got["flag"].top_values == {"true": 2, "false": 1}
    assert got["huge"].mean == pytest.approx(1e308 / 3)
    assert got["big"].min == -2.0**63
    assert (got["when"].min, got["when"].max) == (0.0, 1e15)
    assert approx_n_unique(got["words"].hashes) == 2 and not got["words"].top_values
    table = statistics_frame({"p": got})
    assert table.schema == STATISTICS_SCHEMA and table.height == 8


def test_empty_frames_summarise_and_merge():
    s = contract(a=Column("number"), c=Column("category"))
    full = pl.DataFrame(dict(a=[1.0, 2.0], c=["x", "y"], y=[0.0, 1.0]))
    empty = summarize_columns(full.clear(), s)
    both = merge_summaries([empty, summarize_columns(full, s), empty])
    assert both["a"].rows == 2 and both["a"].mean == 1.5 and both["c"].top_values == {"x": 1, "y": 1}
    assert merge_summaries([empty, empty])["a"].rows == 0
    assert statistics_frame({"p": empty}).height == 3


@given(st.lists(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=40), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_moments_merge(batches):
    s = contract()
    got = merge_summaries([summarize_columns(pl.DataFrame(dict(y=b), schema=dict(y=pl.Float64)), s) for b in batches])["y"]
    x = np.array([v for b in batches for v in b if v is not None])
    assert (got.rows, got.missing) == (sum(map(len, batches)), sum(v is None for b in batches for v in b))
    if len(x):
        assert got.mean == pytest.approx(x.mean(), abs=1e-6)
        assert got.m2 == pytest.approx(((x - x.mean())**2).sum(), rel=1e-6, abs=1e-5)
        assert (got.min, got.max) == (x.min(), x.max())


# --- value skew ---------------------------------------------------------------------------------------------------------------------

SCHEMA = contract(x=Column("number", nullable=True), c=Column("category", nullable=True),
                  id=Column("category", feature=False), when=Column("timestamp"))


def rows(n, seed, shift=0.0, probabilities=(0.5, 0.3, 0.2), missing=0.0):
    r = np.random.default_rng(seed)
    x = pl.Series(r.normal(shift, 1, n)).zip_with(pl.Series(r.random(n) >= missing), pl.Series([None], dtype=pl.Float64))
    return pl.DataFrame(dict(x=x, c=r.choice(list("abc"), n, p=probabilities), id=[f"{seed}-{i}" for i in range(n)],
                             when=pl.Series(seed * 10**12 + np.arange(n)).cast(pl.Datetime("us")), y=r.normal(size=n)))


@pytest.fixture(scope="module")
def baseline(): return fit_baseline(rows(50_000, 0), SCHEMA)


def skewed(frame, baseline): return {s.column: s for s in detect_drift(summarize_columns(frame, SCHEMA), baseline)}


def test_baseline_survives_json_and_counts_every_row(baseline):
    again = msgspec.json.decode(msgspec.json.encode(baseline), type=Baseline)
    assert again == baseline
    assert set(baseline.columns) == {"x", "c", "y"} # no identifier, no clock
    assert all(sum(r.counts) == baseline.rows for r in baseline.columns.values())
    assert min(baseline.columns["x"].counts[2:-1]) > 0.09 * baseline.rows


def test_same_rows_give_the_baseline_back(baseline):
    s = summarize_columns(rows(50_000, 0), SCHEMA)
    for c, r in baseline.columns.items(): assert r.bin_counts(s[c]).tolist() == r.counts


@pytest.mark.parametrize("n", [1, 30, 500, 100_000])
def test_no_change_is_not_reported(baseline, n):
    assert not skewed(rows(n, 7), baseline)


def test_a_tiny_shift_of_many_rows_is_not_reported(baseline):
    assert not skewed(rows(100_000, 8, shift=0.05), baseline)


def test_real_changes_are_reported(baseline):
    assert set(skewed(rows(3_000, 9, shift=0.5), baseline)) == {"x"}
    assert "missing" in skewed(rows(3_000, 9, missing=0.3), baseline)["x"].message
    assert set(skewed(rows(3_000, 9, probabilities=(0.2, 0.3, 0.5)), baseline)) == {"c"}
    new = rows(3_000, 9).with_columns(c=pl.when(pl.int_range(pl.len()) % 5 == 0).then(pl.lit("new")).otherwise("c"))
    assert "any other value" in skewed(new, baseline)["c"].message
    broken = skewed(rows(3_000, 9).with_columns(x=pl.lit(0.0)), baseline)["x"]
    assert broken.distance > broken.min_distance and broken.distance > broken.critical_value and broken.p_value < 1e-6


def test_no_rows_are_no_evidence(baseline):
    assert not skewed(rows(10, 9).clear(), baseline)
    assert not detect_drift({}, baseline)


def test_columns_that_were_empty_or_constant_in_training():
    s = contract(n=Column("number", nullable=True), k=Column("integer"))
    train = pl.DataFrame(dict(n=[None] * 1000, k=[1] * 1000, y=np.arange(1000.0)), schema_overrides=dict(n=pl.Float64))
    b = fit_baseline(train, s)
    assert detect_drift(summarize_columns(train, s), b) == []
    now = train.with_columns(n=pl.lit(3.0), k=pl.lit(2, pl.Int64))
    assert {x.column for x in detect_drift(summarize_columns(now, s), b)} == {"n", "k"}


def test_g_statistic_is_the_one_of_the_textbook():
    a, b = np.array([100, 300, 600]), np.array([20, 45, 60])
    expected = chi2_contingency(np.array([a, b]), lambda_="log-likelihood", correction=False)
    assert jensen_shannon_test(a, b)[2] == pytest.approx(expected.pvalue, rel=1e-6)


@pytest.mark.parametrize("n", [200, 2_000])
def test_null_level_is_the_99th_percentile_of_chance(n):
    r, p = np.random.default_rng(0), np.array([0.02] + [0.098] * 10)
    before = (p * 50_000).astype(int)
    distances = [jensen_shannon_test(before, r.multinomial(n, p)) for _ in range(2_000)]
    share = np.mean([d > null for d, null, *_ in distances])
    assert 0.003 < share < 0.025


def test_false_reports_are_controlled_over_many_columns():
    s = Schema("many", "regression", "y", {f"x{i}": Column("number") for i in range(50)} | dict(y=Column("number")))

    def draw(n, seed):
        x = np.random.default_rng(seed).normal(size=(n, 51))
        return pl.DataFrame(x, [*s.columns])
    b = fit_baseline(draw(5_000, 0), s)
    assert sum(bool(detect_drift(summarize_columns(draw(300, i), s), b)) for i in range(1, 61)) <= 3


def test_an_atom_at_an_edge_stays_in_its_cell_when_the_new_rows_need_a_coarser_sketch():
    r = np.random.default_rng(0)

    def tips(n):
        other = np.where(r.random(n) < 0.3, 9.99, r.uniform(0, 9.99, n).round(2))
        return pl.DataFrame(dict(y=np.where(r.random(n) < 0.5, 2.75, other)))

    def fine(n):
        return tips(n).with_columns(y=pl.when(pl.col("y").is_in([2.75, 9.99])).then("y").otherwise(pl.col("y") + r.random(n) / 100))
    s = contract()
    b = fit_baseline(tips(20_000), s)
    now = summarize_columns(fine(60_000), s)
    assert now["y"].sketch.dropped_bits > 0 and detect_drift(now, b) == []


def test_values_outside_of_what_was_seen_have_cells_of_their_own(baseline):
    cells = baseline.columns["x"].bin_counts(summarize_columns(rows(10, 1).with_columns(x=pl.Series([99.0] * 6 + [-99.0] * 4)), SCHEMA)["x"])
    assert (cells[1], cells[-1], cells.sum()) == (4, 6, 10)
    assert baseline.columns["x"].counts[1] == baseline.columns["x"].counts[-1] == 0
    huge = fit_baseline(pl.DataFrame(dict(y=[1.7976931348623157e308, -1.7976931348623157e308] * 3000 + list(range(5000)))), contract())
    assert all(np.isfinite(e) for e in huge.columns["y"].edges)
    assert msgspec.json.decode(msgspec.json.encode(huge), type=Baseline) == huge


def test_cell_names_are_readable():
    r = ReferenceHistogram([0] * 5, edges=[1.0, 5.0, 9.0])
    assert [r.bin_label([i]) for i in range(5)] == ["missing", "below 1", "from 1 below 5", "from 5 up to 9", "above 9"]
    assert r.bin_label([0, 1]) == "missing or below 1" and r.bin_label([1, 2, 3, 4]) == "any number"
    assert ReferenceHistogram([0] * 4, categories=["a", "b"]).bin_label([2, 3]) == "b, any other value"
