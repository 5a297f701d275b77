"Models and weights as one model: trees become one text, nets and graphs stand beside them."
import numpy as np
import pytest
from support.lightgbm_models import frame, train

from mlops_nb.model.booster import Booster
from mlops_nb.model.ensemble import Ensemble
from mlops_nb.train.model_combination import add_weighted_trees, combine_models, raw_link
from mlops_nb.train.onnx_conversion import exported_parity

X = frame(400)[0]
LINKS = {"binary": "logit", "multiclass": "softmax", "regression": "identity", "poisson": "log"}


@pytest.mark.parametrize("kind", LINKS)
def test_trees_become_one_text(kind):
    texts = [train(kind, n, **more).model_to_string() for n, more in ((10, {}), (25, dict(num_leaves=4)), (3, {}))]
    file, data = combine_models(LINKS[kind], [("model.txt", t.encode(), w) for t, w in zip(texts, (.5, .3, .2))], X)
    model = Booster(data.decode())
    expected = sum(w * Booster(t).predict_raw(X) for t, w in zip(texts, (.5, .3, .2)))
    assert file == "model.txt" and model.n_iterations == 38
    np.testing.assert_allclose(model.predict_raw(X), expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(model.contributions(X), sum(w * Booster(t).contributions(X)
                                                           for t, w in zip(texts, (.5, .3, .2))), atol=1e-8)
    one = model.predict_one(X[3])
    assert np.array_equal(one, model.predict(X)[3])


def test_counts_of_two_objectives_are_one_text():
    "Both have the link `log`, and the sum is of logarithms."
    texts = [train("poisson", 10, objective=objective).model_to_string() for objective in ("poisson", "tweedie")]
    file, data = combine_models("log", [("model.txt", t.encode(), .5) for t in texts], X)
    one, other = (Booster(t).predict(X) for t in texts)
    assert file == "model.txt"
    np.testing.assert_allclose(Booster(data.decode()).predict(X), np.sqrt(one * other), rtol=1e-9)


def test_weights_of_one_change_no_bit():
    text = train("binary", 10).model_to_string()
    assert np.array_equal(Booster(add_weighted_trees([text], [1.0])).predict(X), Booster(text).predict(X))


def test_what_was_said_of_the_parity_stays():
    text = train("regression", 5).model_to_string().encode()
    told = (b'\nmlops_nb:{"made_from":"XGBRegressor","n_rows":9,"n_threshold_rows":8,"max_difference":1e-7,'
            b'"tolerance":1e-5}\n')
    file, data = combine_models("identity", [("model.txt", text, .5), ("model.txt", text + told, .5)], X)
    assert exported_parity(file, data).max_difference == 1e-7
    np.testing.assert_allclose(Booster(data.decode()).predict(X), Booster(text.decode()).predict(X), rtol=1e-9)


def test_scales_that_cannot_be_added():
    assert raw_link(Booster(train("binary", 2).model_to_string()), "binary") == "logit"
    forest = Booster(train("regression", 2).model_to_string()) # a forest of a class: its score is a probability
    assert raw_link(forest, "binary") is None and raw_link(forest, "regression") == "identity"


def test_trees_of_other_columns_stand_beside_each_other():
    "As XGBoost's and LightGBM's do whose columns have other names."
    one, other = (train("binary", n).model_to_string() for n in (4, 6))
    other = other.replace("feature_names=Column_0", "feature_names=f0")
    file, data = combine_models("logit", [("model.txt", t.encode(), .5) for t in (one, other)], X)
    assert file == "model.ensemble" and len(Ensemble(data).models) == 2
