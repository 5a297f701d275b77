"LightGBM's text is read as LightGBM means it, and refused if it is not whole."
import lightgbm as lgb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.lightgbm_models import KINDS, frame, train

from mlops_nb.core.errors import UserError
from mlops_nb.model.lightgbm_text import gain_importance, parse_header, parse_trees, split_into_blocks, with_num_threads

TEXT = train("binary").model_to_string()
LINKS = {"binary": "logit", "multiclass": "softmax", "regression": "identity", "poisson": "log", "unbalanced": "logit",
         "onevsall": "logit", "huge": "identity"}


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request):
    reference = train(request.param, trees=10)
    return request.param, reference, reference.model_to_string()


def test_the_header_is_what_lightgbm_says(pair):
    kind, reference, text = pair
    header = parse_header(text)
    assert header.feature_names == reference.feature_name() and header.n_features == reference.num_feature()
    assert header.n_trees_per_iteration == header.n_classes == reference.num_model_per_iteration()
    assert header.n_iterations == reference.current_iteration() and len(header.tree_sizes) == reference.num_trees()
    assert header.link == LINKS[kind] and not header.average_output


def test_what_is_said_of_forests_and_linear_trees():
    X, rng = frame(600)
    y = np.nan_to_num(X[:, 0]) + rng.normal(size=len(X))
    for more in (dict(boosting="rf", bagging_fraction=.5, bagging_freq=1), dict(linear_tree=True)):
        text = lgb.train(dict(objective="poisson" if "boosting" in more else "regression", verbosity=-1,
                              num_threads=1) | more,
                         lgb.Dataset(X, np.abs(y)), 5).model_to_string()
        header = parse_header(text)
        assert header.average_output == ("boosting" in more) == (header.link == "log")
        assert {t.is_linear for t in parse_trees(text)} == {"linear_tree" in more}


def walk(tree, x):
    node = 0 if len(tree.split_feature) else ~0
    while node >= 0:
        left = bool(tree.goes_left(node, x[[tree.split_feature[node]]])[0])
        if tree.is_categorical[node]: assert left == (x[tree.split_feature[node]] in tree.left_codes(node))
        node = (tree.left_child if left else tree.right_child)[node]
    return tree.leaf_value[~node]


def by_hand(text, x):
    k, trees = parse_header(text).n_classes, parse_trees(text)
    return [sum(walk(t, x) for t in trees[c::k]) for c in range(k)]


def test_walking_the_trees_by_hand_is_the_raw_score(pair):
    _, reference, text = pair
    X, _ = frame(40, seed=1)
    raw = reference.predict(X, raw_score=True).reshape(len(X), -1)
    np.testing.assert_allclose([by_hand(text, x) for x in X], raw, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(x=arrays(np.float64, 6, elements=st.floats(-1e6,
                                                  1e6) | st.sampled_from([np.nan, 0., -0., 1e-36,
                                                                          -1e-36]) | st.integers(-3, 210).map(float)),
       more=st.sampled_from([{}, dict(zero_as_missing=True), dict(use_missing=False)]))
def test_any_row_is_walked_as_lightgbm_does(x, more):
    known = test_any_row_is_walked_as_lightgbm_does.__dict__.setdefault("known", {})
    model, text = known.get(str(more)) or known.setdefault(str(more), (m := train("binary", trees=4, **more),
                                                                       m.model_to_string()))
    assert by_hand(text, x)[0] == pytest.approx(model.predict(x[None], raw_score=True)[0], abs=1e-12)


def test_blocks_hold_every_tree_once(pair):
    _, reference, text = pair
    blocks = [lgb.Booster(model_str=b.decode()) for b in split_into_blocks(text, len(text) // 4)]
    assert len(blocks) > 2 and sum(b.num_trees() for b in blocks) == reference.num_trees()
    assert all(b.num_trees() % reference.num_model_per_iteration() == 0 for b in blocks)
    X, _ = frame(50, seed=2)
    np.testing.assert_allclose(sum(b.predict(X, raw_score=True) for b in blocks), reference.predict(X, raw_score=True),
                               rtol=1e-9, atol=1e-12)


def test_gain_importance_is_lightgbms(pair):
    _, reference, text = pair
    np.testing.assert_allclose(gain_importance(text), reference.feature_importance("gain"), rtol=1e-4)


def test_the_number_of_threads_is_all_that_changes():
    more = train("binary", num_threads=2).model_to_string()
    assert more != TEXT and with_num_threads(more, 1) == TEXT == with_num_threads(TEXT)


# ---- what is no whole model

def test_a_torn_model_is_refused():
    text = TEXT
    end = text.index("end of trees")
    for cut in [0, 1, 4, 5, 50, 200, text.index("\n\n"), text.index("Tree=1"), end // 2, end - 1, end, end + 5]:
        with pytest.raises(UserError, match="not a LightGBM model|damaged"): parse_header(text[:cut])


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_a_lost_stretch_of_the_trees_is_refused(data):
    text = TEXT
    start = data.draw(st.integers(text.index("\n\n") + 2, text.index("end of trees") - 2))
    n = data.draw(st.integers(1, 400))
    with pytest.raises(UserError): parse_header(text[:start] + text[min(start + n, text.index("end of trees")):])


@pytest.mark.parametrize("text", ["", "tree", "tree\n\n", "{}", "\0" * 100, "tree\nnum_class=1\n\n", "ä" * 50,
                                  "tree\nnum_class=1\nfeature_names=a\nmax_feature_idx=0\ntree_sizes=x\n\n"])
def test_what_is_no_model_is_refused(text):
    with pytest.raises(UserError, match="not a LightGBM model"): parse_header(text)
