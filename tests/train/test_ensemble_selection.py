"Ensemble selection: near the best weights there are, honest about its gain, and one model where several bring nothing."
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from mlops_nb.core.errors import UserError
from mlops_nb.train.ensemble_selection import (
    _part_of_rows,
    add_greedily,
    is_surely_lower,
    raw_loss,
    read_recipe,
    select_ensemble,
)


def problem(link, n=1500, m=4, seed=0):
    "Targets, and models with a signal and errors of their own."
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(n, 3) if link == "softmax" else n)
    noise = rng.normal(size=(m, *signal.shape)) * np.linspace(.5, 1, m).reshape(-1, *[1] * signal.ndim)
    if link == "softmax": y = (signal + rng.gumbel(size=signal.shape)).argmax(1).astype(float)
    else: y = {"logit": (rng.random(n) < 1 / (1 + np.exp(-signal))).astype(float), "identity": signal,
               "log": np.exp(signal)}[link]
    return y, signal + noise * (.3 if link == "log" else 1)


@pytest.mark.parametrize("link", ["logit", "softmax", "identity", "log"])
def test_it_comes_near_the_best_weights_that_an_optimizer_finds(link):
    y, raw = problem(link)
    loss = lambda w: raw_loss(link, y, np.tensordot(w, raw, 1)).mean()
    best = minimize(loss, np.full(len(raw), 1 / len(raw)), method="SLSQP", bounds=[(0, 1)] * len(raw),
                    constraints=dict(type="eq", fun=lambda w: w.sum() - 1))
    turns = add_greedily(link, y, raw, 20)
    found = loss(np.bincount(turns, minlength=len(raw)) / 20)
    assert found <= best.fun * 1.01 and found < min(raw_loss(link, y, r).mean() for r in raw)


def test_no_other_choice_of_so_many_turns_is_much_better():
    y, raw = problem("identity", n=400, m=3)
    every = [raw_loss("identity", y, raw[[*c]].mean(0)).mean() for c in combinations_with_replacement(range(3), 5)]
    turns = add_greedily("identity", y, raw, 5)
    assert raw_loss("identity", y, raw[turns].mean(0)).mean() <= min(every) * 1.02


def test_no_more_members_than_are_allowed():
    y, raw = problem("identity", m=10)
    assert len({*add_greedily("identity", y, raw, 20)}) > 3
    assert len({*add_greedily("identity", y, raw, 20, max_members=3)}) <= 3
    assert add_greedily("identity", y, raw, 20, max_members=1) == [int(((raw - y)**2).mean(1).argmin())] * 20


@given(st.lists(st.floats(.05, 1), min_size=6, max_size=6))
def test_what_the_members_cost_together_is_bounded(costs):
    y, raw = problem("identity", n=300, m=6)
    costs = np.array(costs)
    turns = [*{*add_greedily("identity", y, raw, 10, costs=costs)}]
    assert costs[turns].sum() <= 1
    assert 0 in turns, "the best alone"


@given(st.lists(st.integers(0, 30), min_size=1, max_size=200))
def test_rows_of_one_entity_are_in_one_part(entities):
    groups = np.unique(entities, return_inverse=True)[1]
    part = _part_of_rows(len(groups), groups)
    assert all(len({*part[groups == g]}) == 1 for g in range(groups.max() + 1))


def test_the_gain_is_what_it_is_on_new_rows():
    "The cross-fitted loss of rows that were looked at is the loss of rows that were not, within its errors."
    off = []
    for seed in range(30):
        y, raw = problem("logit", n=4000, m=6, seed=seed)
        seen, new = slice(0, 600), slice(600, None)
        found = select_ensemble("logit", y[seen], raw[:, seen])
        mean = np.tensordot([found.weights.get(i, 0) for i in range(6)], raw[:, new], 1)
        off.append(raw_loss("logit", y[new], mean).mean() - found.loss)
    assert abs(np.mean(off)) < 3 * np.std(off) / 30**.5 + 1e-3, "not optimistic: no loss is lower than it will be"


def test_no_ensemble_where_no_mean_can_be_better():
    rng = np.random.default_rng(1)
    for _ in range(40):
        y, error = rng.normal(size=(2, 300))
        raw = y + error * rng.uniform(1, 1.2, size=(5, 1))
        found = select_ensemble("identity", y, raw)
        assert [*found.weights.values()] == [1.0] and found.loss == pytest.approx(found.single_loss)


def test_equal_models_are_surely_better_once_in_twenty():
    rng = np.random.default_rng(2)
    false = [is_surely_lower(*rng.exponential(size=(2, 500))) for _ in range(2000)]
    assert .035 < np.mean(false) < .065


def test_the_error_of_a_gain_counts_entities_and_not_rows():
    y, raw = problem("identity", n=300, m=2)
    alone = select_ensemble("identity", y, raw)
    often = select_ensemble("identity", np.repeat(y, 20), np.repeat(raw, 20, 1), np.repeat(np.arange(300), 20))
    assert often.standard_error == pytest.approx(alone.standard_error, rel=.15)


def test_a_recipe_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match="run the stage tune first"): read_recipe(tmp_path)
