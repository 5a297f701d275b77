"A change of a distribution is reported when it is real, and only then."
import msgspec
import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2_contingency

from mlops_nb.config.schema import Column, Schema
from mlops_nb.stats.drift_test import Baseline, ReferenceHistogram, detect_drift, fit_baseline, jensen_shannon_test
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


def test_same_rows_give_the_baseline_back(baseline):
    s = summarize_columns(rows(50_000, 0), SCHEMA)
    for c, r in baseline.columns.items(): assert r.bin_counts(s[c]).tolist() == r.counts


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
    assert "any other value" in drifted(new, baseline)["c"].message
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
    tests = [jensen_shannon_test(before, r.multinomial(n, p)) for _ in range(2_000)]
    share = np.mean([t.distance > t.critical_value for t in tests])
    assert 0.003 < share < 0.025


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
    assert baseline.columns["x"].counts[1] == baseline.columns["x"].counts[-1] == 0
    values = [1.7976931348623157e308, -1.7976931348623157e308] * 3000 + list(range(5000))
    huge = fit_baseline(pl.DataFrame(dict(y=values)), schema_of())
    assert all(np.isfinite(e) for e in huge.columns["y"].edges)
    assert msgspec.json.decode(msgspec.json.encode(huge), type=Baseline) == huge


def test_bin_names_are_readable():
    r = ReferenceHistogram([0] * 5, edges=[1.0, 5.0, 9.0])
    assert [r.bin_label([i]) for i in range(5)] == ["missing", "below 1", "from 1 below 5", "from 5 up to 9", "above 9"]
    assert r.bin_label([0, 1]) == "missing or below 1" and r.bin_label([1, 2, 3, 4]) == "any number"
    assert ReferenceHistogram([0] * 4, categories=["a", "b"]).bin_label([2, 3]) == "b, any other value"
