"Distances agree with other people's code, and chance is what they say it is."
import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance as wasserstein_of_scipy

from mlops_nb.stats.distances import (
    cell_midpoints,
    chance_divergence,
    effect_distance,
    jensen_shannon_divergence,
    moved_cells,
    population_stability_index,
    wasserstein_distance,
)


def random_counts(seed, shape=(50, 7), rows=400):
    rng = np.random.default_rng(seed)
    return rng.multinomial(rows, rng.dirichlet(np.ones(shape[1])), shape[0])


def test_jensen_shannon_is_scipys():
    reference, current = random_counts(0), random_counts(1)
    expected = [jensenshannon(p, q, base=2) for p, q in zip(reference, current)]
    assert np.allclose(jensen_shannon_divergence(reference, current)**.5, expected)


def test_wasserstein_is_scipys():
    edges = np.array([-3., -1., 0., 2., 2.5, 9.])
    at, reference, current = cell_midpoints(edges), random_counts(2, (20, 8)), random_counts(3, (20, 8))
    p = reference[:, 1:] / reference[:, 1:].sum(1, keepdims=True)
    spread = np.sqrt((p * at[1:]**2).sum(1) - (p * at[1:]).sum(1)**2)
    expected = [wasserstein_of_scipy(at[1:], at[1:], a, b) for a, b in zip(reference[:, 1:], current[:, 1:])]
    assert np.allclose(wasserstein_distance(reference, current, at), expected / spread)


@pytest.mark.parametrize("distance", [jensen_shannon_divergence, population_stability_index, effect_distance])
def test_no_rows_have_no_distance(distance):
    found = distance([5, 5, 0], [[0, 0, 0], [5, 5, 0]])
    assert np.isnan(found[0]) and found[1] == pytest.approx(0, abs=1e-12)


def test_wasserstein_without_spread_or_rows():
    at = cell_midpoints([0., 1.])
    assert np.isnan(wasserstein_distance([0, 5, 0, 0], [0, 0, 5, 0], at)) # all training rows in one cell
    assert np.isnan(wasserstein_distance([0, 5, 5, 0], [7, 0, 0, 0], at)) # only missing values came


@pytest.mark.parametrize(("cells", "rows"), [(4, 60), (12, 60), (12, 1000)])
def test_chance_is_what_chance_gives(cells, rows):
    rng, p = np.random.default_rng(cells), np.full(cells, 1 / cells)
    reference, current = rng.multinomial(5000, p, 4000), rng.multinomial(rows, p, 4000)
    found = jensen_shannon_divergence(reference, current).mean()
    assert found == pytest.approx(chance_divergence(cells, 5000, rows), rel=.15) # cells of five rows give a little more


def test_an_effect_does_not_depend_on_the_rows():
    rng, p, q = np.random.default_rng(0), np.full(10, .1), np.r_[[.16] * 5, [.04] * 5]
    true = jensen_shannon_divergence(1e9 * p, 1e9 * q)**.5
    for rows in (100, 400, 5000):
        found = np.sqrt((effect_distance(rng.multinomial(50_000, p), rng.multinomial(rows, q, 800))**2).mean())
        assert found == pytest.approx(true, rel=.08)


def test_the_cells_that_moved_come_first():
    assert moved_cells(np.array([10, 50, 40, 0]), np.array([60, 20, 15, 5]))[0] == 0
    assert moved_cells(np.array([1, 1]), np.array([5, 5])) == []


def test_a_measure_of_ones_own_reaches_the_table_of_drift():
    "The registry is what the monitor asks: nothing else has to be touched."
    from mlops_nb.monitor import drift
    from mlops_nb.stats import distances
    assert drift.OTHER_MEASURES is distances.OTHER_MEASURES
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 50, (2, 8))
    p, q = a / a.sum(), b / b.sum()
    mine = float(distances.hellinger_distance(a, b))
    assert abs(mine - np.sqrt(.5 * ((np.sqrt(p) - np.sqrt(q))**2).sum())) < 1e-12
