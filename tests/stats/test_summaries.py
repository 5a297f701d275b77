"Summaries of columns merge exactly."
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.schema import Column, Schema
from mlops_nb.stats.sketches import MAX_COUNTERS, approx_n_unique
from mlops_nb.stats.summaries import STATISTICS_SCHEMA, merge_summaries, statistics_frame, summarize_columns


def schema_of(**columns):
    return Schema("t", "regression", "y", dict(columns, y=Column("number")))


def test_frequent_categories_survive_many_merges_of_noise():
    r = np.random.default_rng(0)
    batches = []
    for i in range(30):
        rare = [f"id-{i}-{k}" for k in range(5_000)]
        frame = pl.DataFrame(dict(c=rare + ["big"] * 1000, y=r.normal(size=6_000)))
        batches.append(summarize_columns(frame, schema_of(c=Column("category"))))
    c = merge_summaries(batches)["c"]
    assert next(iter(c.top_values)) == "big" and 30_000 - c.rows / MAX_COUNTERS <= c.top_values["big"] <= 30_000
    assert abs(approx_n_unique(c.hashes) / 150_001 - 1) < 0.15
    assert len(c.top_values) <= MAX_COUNTERS


def test_summary_of_odd_columns():
    s = schema_of(nothing=Column("number", nullable=True),
                 nan=Column("number", nullable=True), flag=Column("boolean"),
                 huge=Column("number"), big=Column("integer"), when=Column("timestamp", nullable=True),
                 words=Column("text"))
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
    s = schema_of(a=Column("number"), c=Column("category"))
    full = pl.DataFrame(dict(a=[1.0, 2.0], c=["x", "y"], y=[0.0, 1.0]))
    empty = summarize_columns(full.clear(), s)
    both = merge_summaries([empty, summarize_columns(full, s), empty])
    assert both["a"].rows == 2 and both["a"].mean == 1.5 and both["c"].top_values == {"x": 1, "y": 1}
    assert merge_summaries([empty, empty])["a"].rows == 0
    assert statistics_frame({"p": empty}).height == 3


@given(st.lists(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=40), min_size=1, max_size=5))
@settings(deadline=None, max_examples=50)
def test_moments_merge(batches):
    s = schema_of()
    frames = [pl.DataFrame(dict(y=b), schema=dict(y=pl.Float64)) for b in batches]
    got = merge_summaries([summarize_columns(f, s) for f in frames])["y"]
    x = np.array([v for b in batches for v in b if v is not None])
    assert (got.rows, got.missing) == (sum(map(len, batches)), sum(v is None for b in batches for v in b))
    if len(x):
        assert got.mean == pytest.approx(x.mean(), abs=1e-6)
        assert got.m2 == pytest.approx(((x - x.mean())**2).sum(), rel=1e-6, abs=1e-5)
        assert (got.min, got.max) == (x.min(), x.max())


def test_batches_merge_though_one_lacks_a_column_and_none_are_nothing():
    s = schema_of(a=Column("number"))
    full = pl.DataFrame(dict(a=[1.0, 2.0], y=[0.0, 1.0]))
    merged = merge_summaries([summarize_columns(f, s) for f in (full.drop("a"), full, full.drop("y"))])
    assert (merged["a"].rows, merged["y"].rows) == (4, 4) and merge_summaries([]) == {}


def test_the_table_never_says_more_distinct_values_than_are_possible():
    schema = Schema("d", "regression", "x", dict(x=Column("number"), k=Column("integer"), t=Column("text")))
    for seed in range(8): # the estimate is off by some percent, in either direction
        n, rng = 30_000, np.random.default_rng(seed)
        frame = pl.DataFrame(dict(x=rng.random(n), k=rng.permutation(n) % 20_000 + seed,
                                  t=[f"{seed}-{i}" for i in range(n)]))
        found = statistics_frame({"p": summarize_columns(frame, schema)})
        assert all(d <= most for d, most in zip(found["distinct"], [n, 20_000, n], strict=True))
