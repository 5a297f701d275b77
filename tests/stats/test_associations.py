"Correlations and associations: the figures of scipy, and nothing found in noise."
import numpy as np
import polars as pl
import pytest
from scipy import stats

from mlops_nb.stats.associations import (
    Association,
    correlation_ratio,
    cramers_v,
    measure_association,
    measure_associations,
    spearman_correlation,
)

RNG = np.random.default_rng(3)
TIES, NORMAL = RNG.integers(0, 6, 300), RNG.normal(size=300)
GROUPS = RNG.integers(0, 5, 300)


@pytest.mark.parametrize("x, y", [(NORMAL, NORMAL**3 + 1), (TIES, NORMAL + TIES), (NORMAL, -TIES), (TIES, GROUPS),
                                  (NORMAL * 1e300, NORMAL)])
def test_rank_correlation_is_that_of_scipy(x, y):
    assert spearman_correlation(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


@pytest.mark.parametrize("other", [GROUPS, (GROUPS + TIES // 4) % 5, GROUPS // 2, TIES])
def test_cramers_v_is_the_corrected_one_of_scipys_chi_squared(other):
    table = stats.contingency.crosstab(GROUPS, other).count
    n, (r, k) = table.sum(), table.shape
    phi2 = stats.chi2_contingency(table, correction=False).statistic / n
    corrected = max(0, phi2 - (k - 1) * (r - 1) / (n - 1))
    least = min(k - (k - 1)**2 / (n - 1), r - (r - 1)**2 / (n - 1)) - 1
    assert cramers_v(GROUPS, other) == pytest.approx(min(1, np.sqrt(corrected / least)), abs=1e-12)
    assert cramers_v(GROUPS, other) <= stats.contingency.association(table, method="cramer") + 0.01


@pytest.mark.parametrize("x", [NORMAL, NORMAL + GROUPS, TIES + 3. * GROUPS])
def test_correlation_ratio_is_that_of_scipys_analysis_of_variance(x):
    k, n = 5, len(x)
    f = stats.f_oneway(*(x[g == GROUPS] for g in range(k))).statistic
    explained = f * (k - 1) / (f * (k - 1) + n - k)
    corrected = max(0, 1 - (1 - explained) * (n - 1) / (n - k))
    assert correlation_ratio(GROUPS, x) == pytest.approx(np.sqrt(corrected), abs=1e-12)


def test_many_categories_of_noise_are_no_association():
    many = np.random.default_rng(0).integers(0, 60, 400)
    assert cramers_v(many, TIES.repeat(2)[:400]) < 0.12 and correlation_ratio(many, NORMAL.repeat(2)[:400]) < 0.25


def test_what_cannot_be_measured_is_none_and_missing_values_are_left_out_by_pair():
    constant, ids = np.ones(300), np.arange(300)
    assert spearman_correlation(constant, NORMAL) is None and cramers_v(GROUPS, constant.astype(int)) is None
    assert correlation_ratio(ids, NORMAL) is None and correlation_ratio(GROUPS, constant) is None
    x = pl.Series("x", NORMAL).to_frame().select(pl.when(pl.Series(TIES > 0)).then("x"))["x"]
    y = pl.Series("y", np.where(TIES == 1, np.inf, NORMAL))
    same = Association("x", "y", "Spearman correlation", pytest.approx(1), (TIES > 1).sum())
    assert measure_association(x, y) == same
    assert measure_association(x.head(20), y.head(20)).value is None


def test_each_pair_has_the_measure_of_its_kinds():
    frame = pl.DataFrame(dict(a=NORMAL, b=[f"<{g}>" for g in GROUPS], c=GROUPS > 2, d=TIES))
    found = {(a.first, a.second): a.measure for a in measure_associations(frame)}
    assert found == {("a", "b"): "correlation ratio", ("a", "c"): "correlation ratio", ("b", "c"): "Cramér's V",
                     ("a", "d"): "Spearman correlation", ("b", "d"): "correlation ratio",
                     ("c", "d"): "correlation ratio"}
