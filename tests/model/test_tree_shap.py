"Shapley values from tables are LightGBM's own, whatever the trees look like."
import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.lightgbm_models import KINDS, frame, train

from mlops_nb.model.booster import Booster
from mlops_nb.model.tree_shap import leaf_shap_values, read_shap_trees, tree_contributions


def same(model, X, classes=1, atol=1e-11):
    "Both ways to the contributions agree, and ours add up."
    found = tree_contributions(read_shap_trees(model.model_to_string()), X, classes)
    assert found.shape == (len(X), classes, X.shape[1] + 1)
    np.testing.assert_allclose(found.reshape(len(X), -1), model.predict(X, pred_contrib=True, num_threads=1),
                               rtol=1e-10, atol=atol)
    raw = model.predict(X, raw_score=True, num_threads=1).reshape(len(X), classes)
    assert (np.abs(found.sum(-1) - raw) <= 1e-11 * np.maximum(1, np.abs(raw))).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_objective(kind):
    same(train(kind), frame(300, seed=1)[0], KINDS[kind].get("num_class", 1))


@pytest.mark.parametrize("more", [dict(zero_as_missing=True), dict(use_missing=False), dict(boosting="dart"),
                                  dict(max_cat_to_onehot=300),
                                  dict(num_leaves=2), dict(num_leaves=120, min_data_in_leaf=3),
                                  dict(min_gain_to_split=1e9),
                                  dict(boost_from_average=False), dict(bagging_fraction=.5, bagging_freq=1),
                                  dict(max_bin=3)], ids=str)
def test_every_way_to_split(more):
    model = train("regression", **more)
    X = frame(300, seed=1)[0]
    same(model, np.vstack([X, np.zeros((1, 6)), np.full((1, 6), np.nan), np.full((1, 6), 1e-36),
                           np.full((1, 6), np.inf), -X[:5],
                           np.full((1, 6), -np.inf), X[:5] + .5]))


def test_weights_do_not_count_as_rows():
    X, rng = frame()
    data = lgb.Dataset(X, np.nan_to_num(X[:, 0]) + rng.normal(size=len(X)), weight=rng.random(len(X)) * 9,
                       categorical_feature=[1, 2])
    same(lgb.train(dict(objective="regression", verbosity=-1, num_threads=1), data, 10), X[:200])


def test_a_path_with_more_features_than_a_table_has_room_for():
    "A staircase: each split takes a feature of its own, so that patterns grow to thirty bits."
    rng = np.random.default_rng(0)
    X = (rng.random((6000, 30)) < .85).astype(float)
    y = np.where((X == 1).all(1), 30, (X == 1).argmin(1)).astype(float) ** 2
    model = lgb.train(dict(objective="regression", num_leaves=60, min_data_in_leaf=1, min_sum_hessian_in_leaf=0,
                           learning_rate=.5,
                           verbosity=-1, num_threads=1), lgb.Dataset(X, y), 5)
    assert max(len(set(t.split_feature)) for t in read_shap_trees(model.model_to_string())) > 16
    same(model, X[:400], atol=1e-7) # LightGBM divides its way back along a path, and loses digits on a long one


@pytest.fixture(scope="module")
def model(): return train("regression", 10)


ROWS = arrays(np.float64, st.tuples(st.integers(1, 12), st.just(6)),
              elements=st.floats(width=64) | st.integers(-3, 210).map(float))


@settings(max_examples=60, deadline=None)
@given(ROWS)
def test_any_numbers(model, X):
    # a category is a 32-bit integer in C, and a larger number has no defined answer
    X[:, [1, 2]] = np.clip(X[:, [1, 2]], -1e6, 1e6)
    same(model, X)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(.01, 1), st.booleans()), min_size=1, max_size=6), st.floats(-10, 10))
def test_a_leaf_is_shared_as_the_definition_says(path, value):
    from itertools import permutations
    covers, met = np.array([c for c, _ in path]), np.array([m for _, m in path])
    def game(known): return value * np.prod([met[j] if j in known else covers[j] for j in range(len(path))])
    counted, orders = np.zeros(len(path)), [*permutations(range(len(path)))]
    for order in orders:
        for i, j in enumerate(order): counted[j] += (game(order[:i + 1]) - game(order[:i])) / len(orders)
    found = leaf_shap_values(np.array([int(sum(m << j for j, m in enumerate(met.tolist())))]), covers, value)[:, 0]
    np.testing.assert_allclose(found, counted, atol=1e-12)


@pytest.mark.parametrize("more", [dict(boosting="rf", bagging_fraction=.5, bagging_freq=1), dict(linear_tree=True)],
                         ids=str)
def test_what_is_left_to_lightgbm(more):
    X, rng = frame(600)
    y = np.nan_to_num(X[:, 0]) + rng.normal(size=len(X))
    model = lgb.train(dict(objective="regression", verbosity=-1, num_threads=1) | more, lgb.Dataset(X, y), 5)
    assert read_shap_trees(model.model_to_string()) is None
    if "boosting" in more:
        assert np.array_equal(Booster(model.model_to_string()).contributions(X), model.predict(X, pred_contrib=True))


def test_without_counts_it_is_left_to_lightgbm(model):
    text = model.model_to_string()
    first = next(line for line in text.splitlines() if line.startswith("leaf_count="))
    none = ("leaf_count=" + " 0" * len(first.split())).ljust(len(first)) # as many bytes
    assert read_shap_trees(text) and read_shap_trees(text.replace(first, none)) is None
    assert read_shap_trees(text.replace(first, " " * len(first))) is None


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_a_row_gets_the_same_among_few_and_among_many(kind):
    booster, X = Booster(train(kind).model_to_string()), frame(1200, seed=2)[0]
    many = booster.contributions(X)
    # 500, 700
    assert many.tobytes() == np.concatenate([booster.contributions(X[:500]), booster.contributions(X[500:])]).tobytes()
    np.testing.assert_allclose(np.concatenate([booster.contributions(X[i:i + 100]) for i in range(0, 1200, 100)]), many,
                               atol=1e-12)
