"Sketches merge exactly, and are as near to the truth as they promise."
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.stats.sketches import (
    MAX_BUCKETS,
    MAX_COUNTERS,
    approx_n_unique,
    build_sketch,
    float_to_ordered_int,
    kmv_sketch,
    ordered_int_to_float,
    top_counts,
)

finite = st.floats(allow_nan=False, allow_infinity=False)


def numbers(values):
    return build_sketch(float_to_ordered_int(np.asarray(values, float)), np.ones(len(values), np.int64))


@given(st.lists(finite, min_size=1, max_size=50))
@settings(deadline=None, max_examples=200)
def test_keys_sort_like_the_values_and_go_back(values):
    x = np.array(values)
    assert np.array_equal(ordered_int_to_float(float_to_ordered_int(x)), x)
    assert np.array_equal(np.argsort(float_to_ordered_int(x), kind="stable"), np.argsort(x + 0.0, kind="stable"))


@given(st.integers(0, 2**32), st.integers(1, 20_000), st.floats(0, 1),
       st.sampled_from(["normal", "lognormal", "counts", "mixed"]))
@settings(deadline=None, max_examples=40)
def test_a_merged_sketch_is_the_sketch_of_everything(seed, n, share, kind):
    r = np.random.default_rng(seed)
    x = {"normal": r.normal(size=n), "lognormal": r.lognormal(0, 5, n), "counts": r.poisson(5, n) * 1.0,
         "mixed": np.concatenate([r.normal(size=n // 2), np.zeros(n - n // 2), [-1e308, 1e308]])}[kind]
    cut = int(share * len(x))
    one, two = numbers(x[:cut]).merge(numbers(x[cut:])), numbers(x)
    assert one.dropped_bits == two.dropped_bits
    assert np.array_equal(one.keys, two.keys) and np.array_equal(one.counts, two.counts)
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
    got = ordered_int_to_float(numbers(x).quantile_keys([q]))[0]
    assert abs(got / np.quantile(x, q) - 1) < 0.01


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 1000), max_size=3000))
@settings(deadline=None, max_examples=20)
def test_top_counts_are_lower_bounds_off_by_a_thousandth(counts):
    top = top_counts(counts)
    assert len(top) <= MAX_COUNTERS
    assert all(counts[k] - sum(counts.values()) / MAX_COUNTERS <= n <= counts[k] for k, n in top.items())


@pytest.mark.parametrize("n", [0, 1, 1023, 1024, 5_000, 300_000])
def test_distinct(n):
    got = approx_n_unique(kmv_sketch(pl.Series(range(n), dtype=pl.Int64).hash().to_numpy()))
    assert got == n if n < 1024 else abs(got / n - 1) < 0.15
