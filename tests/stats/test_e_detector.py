"Bets against a finite past are fair, detectors keep their word, and thresholds use the budget."
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta

from mlops_nb.stats.e_detector import (
    PAST_RISK,
    calibrate_threshold,
    count_alarms,
    e_benjamini_hochberg,
    fit_past_tail,
    mixture_bet,
    next_detectors,
    tail_bounds,
    tail_orders,
)


@pytest.mark.parametrize("p", [1e-6, .003, .2, .7])
def test_the_bet_is_the_integral(p):
    assert mixture_bet(p) == pytest.approx(quad(lambda k: k * p**(k - 1), 0, 1)[0], rel=1e-6)


@pytest.mark.parametrize("n", [30, 300, 1300])
def test_bounds_hold_together_in_as_many_pasts_as_stated(n):
    rng, orders = np.random.default_rng(n), tail_orders(n)
    above = np.sort(rng.random((3000, n)), 1)[:, orders - 1] # the share of all windows above each order
    held = (above <= tail_bounds(n)).all(1).mean()
    assert held == pytest.approx(1 - PAST_RISK, abs=.025)
    assert (tail_bounds(n) >= beta.ppf(1 - PAST_RISK, orders, n - orders + 1) - 1e-12).all() # each alone holds as well


def test_p_and_e_values_by_brute_force():
    rng = np.random.default_rng(0)
    past, new = rng.normal(size=200), np.r_[rng.normal(size=50), 9., -9., np.nan]
    tail = fit_past_tail(past)
    kept = past[-tail.rows:] # the oldest may be left out
    exact = np.array([np.nan if np.isnan(d) else (1 + (kept >= d).sum()) / (tail.rows + 1) for d in new])
    assert 190 <= tail.rows <= 200
    assert np.isnan(tail.p_values(new)[-1]) and np.isnan(tail.e_values(new)[-1])
    assert (tail.p_values(new)[:-1] >= exact[:-1] - 1e-12).all() # rounded up to an order that is kept
    assert (tail.p_values(new)[:-1] <= np.maximum(1.2 * exact[:-1], exact[:-1] + 1e-12)).all()
    assert (np.diff(tail.e_values(np.sort(new[:-1]))) >= 0).all()


def test_a_past_without_evidence_bets_nothing():
    tail = fit_past_tail(np.full(5, np.nan))
    assert tail.rows == 0 and np.isnan(tail.e_values(np.ones(3))).all()
    assert next_detectors(np.array([4.]), np.array([np.nan])).tolist() == [4.]


def test_bets_are_fair_in_the_pasts_in_which_the_bounds_hold():
    rng, means = np.random.default_rng(1), []
    future = np.sort(rng.random(20_000))
    for _ in range(200): means.append(fit_past_tail(rng.random(300)).e_values(future).mean())
    assert np.mean(np.array(means) <= 1) > 1 - PAST_RISK


def test_e_benjamini_hochberg_by_brute_force():
    rng = np.random.default_rng(2)
    for _ in range(200):
        m, w = np.exp(rng.normal(3, 3, 6)), rng.dirichlet(np.ones(6))
        best = np.zeros(6, bool)
        for limit in np.sort(m): # the largest set whose members all reach c over its weight
            chosen = m >= limit
            if (m[chosen] >= 50 / w[chosen].sum()).all() and chosen.sum() > best.sum(): best = chosen
        assert (e_benjamini_hochberg(m, w, 50) == best).all()


def test_false_alarms_of_the_safe_threshold_over_pasts_and_years():
    "Streams that depend on each other, windows that do not: at most one alarm in c windows on average."
    rng, c, alarms = np.random.default_rng(3), 100, []
    for _ in range(25):
        draw = lambda n: rng.normal(size=(n, 1)) * .7 + rng.normal(size=(n, 4))
        tails, future = [fit_past_tail(x) for x in draw(300).T], draw(1000)
        e = np.stack([t.e_values(x) for t, x in zip(tails, future.T)], 1)
        alarms.append(count_alarms(e[None], np.full(4, .25), np.array([c]))[0, 0])
    assert np.mean(alarms) <= 1000 / c


def test_a_calibrated_threshold_uses_the_budget_and_keeps_it():
    rng, alarms = np.random.default_rng(4), []
    for _ in range(6):
        draw = lambda n: rng.normal(size=(n, 3))
        past = draw(400)
        c = calibrate_threshold(past, np.full(3, 1 / 3), 365, 7)
        assert 4 <= c < 365
        e = np.stack([fit_past_tail(x).e_values(y) for x, y in zip(past.T, draw(10 * 365).T)], 1)
        alarms.append(count_alarms(e[None], np.full(3, 1 / 3), np.array([c]))[0, 0] / 10)
    assert .02 < np.mean(alarms) < 1


def test_a_change_is_found_soon():
    rng, delays = np.random.default_rng(5), []
    for _ in range(50):
        past, m = rng.normal(size=(1000, 5)), np.zeros(5)
        tails = [fit_past_tail(x) for x in past.T]
        hours = 0
        while m.mean() < 1000 and hours < 99:
            new, hours = rng.normal(size=5) + np.array([3., 0, 0, 0, 0]), hours + 1
            m = next_detectors(m, np.array([tail.e_values(x) for tail, x in zip(tails, new)]))
        delays.append(hours)
    assert np.median(delays) <= 10 and max(delays) < 30
