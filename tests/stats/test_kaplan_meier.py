"Delays by hand, with ties and censoring, and the coverage of the interval."
import numpy as np

from mlops_nb.stats.kaplan_meier import kaplan_meier


def by_definition(delays, known, at):
    left = 1.
    for t in sorted({d for d, k in zip(delays, known) if k and d <= at}):
        left *= 1 - sum(d == t and k for d, k in zip(delays, known)) / sum(d >= t for d in delays)
    return 1 - left


def test_it_is_the_product_over_the_delays():
    rng = np.random.default_rng(0)
    delays, known = rng.integers(0, 12, 60).astype(float), rng.random(60) < .6
    curve = kaplan_meier(delays, known)
    for at in range(13): assert np.isclose(curve.known_after(at), by_definition(delays, known, at))


def test_the_ends():
    assert kaplan_meier([], []).delay_until() is None
    everything = kaplan_meier([1, 2], [True, True])
    assert (everything.share_known[-1], everything.low[-1], everything.high[-1]) == (1, 1, 1)
    assert kaplan_meier([0, 0], [True, False]).known_after(0) == .5


def test_the_interval_holds_the_truth():
    covered = []
    for seed in range(120):
        rng = np.random.default_rng(seed)
        age, delay = rng.uniform(0, 20, 300), np.where(rng.random(300) < .5, rng.exponential(4, 300), np.inf)
        c = kaplan_meier(np.minimum(age, delay), delay <= age)
        i = np.searchsorted(c.delays, 8, "right") - 1
        covered.append(c.low[i] <= .5 * (1 - np.exp(-2)) <= c.high[i])
    assert .88 <= np.mean(covered) <= .99
