"Ensembles in one file: the weighted sum of raw scores, the same bits alone and in a batch, and nothing of a torn file."
import lightgbm as lgb
import numpy as np
import pytest
from fastcore.test import expect_fail
from hypothesis import given
from hypothesis import strategies as st
from support.lightgbm_models import frame, train
from support.net_problem import SMALL, problem

from mlops_nb.core.errors import UserError
from mlops_nb.model.booster import Booster
from mlops_nb.model.ensemble import Ensemble, ensemble_files, pack_ensemble, read_members
from mlops_nb.model.net import Net
from mlops_nb.train.net_trainer import TrainingJob, fit_net

X = frame(300)[0]


def texts(kind, **more): return [train(kind, trees, **more).model_to_string() for trees in (8, 15)]


def ensemble(link, found, weights): # In the order in which they are given
    return Ensemble(pack_ensemble(link, [("model.txt", w, t.encode()) for w, t in zip(weights, found)]))


@pytest.mark.parametrize("kind, link", [("binary", "logit"), ("multiclass", "softmax"), ("regression", "identity"),
                                        ("poisson", "log")])
def test_it_is_the_weighted_sum_before_the_link(kind, link):
    found = texts(kind)
    both, (one, other) = ensemble(link, found, (.3, .7)), map(Booster, found)
    raw = .3 * one.predict_raw(X) + .7 * other.predict_raw(X)
    np.testing.assert_allclose(both.predict_raw(X), raw, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(both.contributions(X).sum(-1), raw, rtol=1e-9, atol=1e-9)
    e = np.exp(raw)
    expected = {"logit": e / (1 + e), "identity": raw, "log": e,
                "softmax": e / e.sum(-1, keepdims=True) if link == "softmax" else None}[link]
    np.testing.assert_allclose(both.predict(X), expected, rtol=1e-9)


@pytest.fixture(scope="module")
def mixed():
    "Trees and a net."
    rows, valid = problem()
    trees = lgb.train(dict(objective="binary", verbosity=-1, num_threads=1), lgb.Dataset(rows.X, rows.y), 10)
    net = fit_net(rows, valid, TrainingJob("binary", SMALL)).model
    members = [("model.txt", .6, trees.model_to_string().encode()), ("model.safetensors", .4, net)]
    return pack_ensemble("logit", members), valid.X


def test_trees_and_a_net(mixed):
    data, rows = mixed
    model = Ensemble(data)
    trees, net = model.models
    assert isinstance(trees, Booster) and isinstance(net, Net) and model.n_background == net.n_background
    assert [model.predict_one(x) for x in rows[:40]] == model.predict(rows)[:40].tolist()
    parts = model.contributions(rows[:10])
    np.testing.assert_allclose(parts.sum(1), model.predict_raw(rows[:10]), atol=1e-6)
    errors, of_net = model.contribution_errors(rows[:10]), net.contribution_errors(rows[:10])
    np.testing.assert_allclose(errors.standard_errors, .4 * of_net.standard_errors)
    np.testing.assert_allclose(errors.missed, .4 * of_net.missed)


def test_what_it_is_made_of(tmp_path, mixed):
    assert ensemble_files(tmp_path) == []
    (tmp_path / "model.ensemble").write_bytes(mixed[0])
    assert ensemble_files(tmp_path) == ["model.safetensors", "model.txt"]
    link, members = read_members(mixed[0])
    assert link == "logit" and pack_ensemble(link, members) == mixed[0]


DATA = pack_ensemble("logit", [("model.txt", 1.0, texts("binary")[0].encode())])


@given(st.integers(0, len(DATA) - 1))
def test_a_file_that_is_cut_off_is_refused(n):
    with expect_fail(UserError): read_members(DATA[:n])


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_in_words(data):
    with expect_fail(UserError, "ensemble"): read_members(data)


@pytest.mark.parametrize("old, new, says", [
    (b'"logit"', b'"probit"', "another version"), (b"model.txt", b"model.pkl", "another version"),
    (b'"weight"', b'"wait"', "damaged"), (b'"bytes":', b'"bytes":-', "another version"),
    (b'"members":[{', b'"members":[],"more":[{', "damaged")])
def test_a_header_that_says_something_else_is_refused(old, new, says):
    assert old in DATA
    with pytest.raises(UserError, match=says): Ensemble(DATA.replace(old, new, 1))


def test_members_of_other_columns_are_refused(mixed):
    _, members = read_members(mixed[0])
    with pytest.raises(UserError, match="other columns"):
        Ensemble(pack_ensemble("logit", [members[0], ("model.txt", 1.0, texts("binary")[0].encode())]))
