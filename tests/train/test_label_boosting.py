"Several labels in one model of trees, and in one net: each learned from the rows of which it is known."
from functools import partial

import numpy as np
import pytest
from msgspec import structs

from mlops_nb.config.params import GbdtParams, NetParams, TrainParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.model.booster import Booster
from mlops_nb.model.encoder import EncodedColumn, Encoder
from mlops_nb.model.net import Net
from mlops_nb.train.dataset import TrainingPart, check_target
from mlops_nb.train.gbdt import GbdtJob, fit_gbdt
from mlops_nb.train.label_boosting import fit_labels, label_part
from mlops_nb.train.learners import fit_learner

LABELS = ["l0", "l1", "l2"]
SCHEMA = Schema("labels", "multilabel", "", {n: Column("number") for n in ("a", "b")} |
                {n: Column("integer", nullable=True) for n in LABELS}, targets=LABELS)
ENCODER = Encoder([EncodedColumn("a", "number"), EncodedColumn("b", "number")])
PARAMS = TrainParams(gbdt=GbdtParams(n_estimators=40, learning_rate=.2, early_stopping_rounds=5, checkpoint_every=10))


def part(n, seed, unknown=.4):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    z = np.c_[2 * X[:, 0], 2 * X[:, 1], X.sum(1) - 2]
    y = (rng.random((n, 3)) < 1 / (1 + np.exp(-z))).astype(float)
    y[(rng.random((n, 3)) < unknown) & (np.arange(3) != rng.integers(0, 3, n)[:, None])] = np.nan
    return TrainingPart(X, y, rng.uniform(.5, 2, n))


TRAIN, VALID = part(1500, 0), part(500, 1)._replace(weights=None)
JOB = GbdtJob("multilabel", PARAMS)


@pytest.fixture(scope="module")
def fitted(): return fit_labels(TRAIN, VALID, JOB)


def test_each_label_is_the_binary_model_of_its_known_rows(fitted):
    model, losses = Booster(fitted.model.decode()), []
    for k in range(3):
        alone = fit_gbdt(label_part(TRAIN, k), label_part(VALID, k), structs.replace(JOB, task="binary"))
        losses.append(alone.best_loss)
        assert np.array_equal(model.predict(VALID.X)[:, k], Booster(alone.model.decode()).predict(VALID.X))
    assert fitted.best_loss == pytest.approx(np.mean(losses))
    assert model.link == "logit" if hasattr(model, "link") else not model.identity_link


def test_rows_alone_and_contributions(fitted):
    model, X = Booster(fitted.model.decode()), VALID.X
    assert all(np.array_equal(model.predict_one(x), p) for x, p in zip(X[:50], model.predict(X), strict=False))
    for rows in (X[:5], np.tile(X, (2, 1))): # walks, and tables
        assert np.allclose(model.contributions(rows).sum(-1), model.predict_raw(rows), atol=1e-9)


def test_what_is_not_known_changes_nothing_but_its_label(fitted):
    other = TRAIN._replace(y=TRAIN.y.copy())
    other.y[::2, 2] = np.nan
    again = Booster(fit_labels(other, VALID, JOB).model.decode()).predict(VALID.X)
    was = Booster(fitted.model.decode()).predict(VALID.X)
    assert np.array_equal(again[:, :2], was[:, :2]) and not np.array_equal(again[:, 2], was[:, 2])


def test_a_training_that_was_stopped_goes_on_to_the_same_model(fitted, tmp_path):
    class Stop(Exception): pass
    def stop(iteration, loss):
        if iteration == 12: raise Stop
    path = str(tmp_path / "state.json")
    fit = partial(fit_labels, TRAIN, VALID, structs.replace(JOB, checkpoint=path))
    with pytest.raises(Stop): fit(on_iteration=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["state-0.json"]
    assert fit().model == fitted.model


def test_a_net_learns_the_known_labels():
    small = NetParams(ensemble_size=2, d_hidden=24, d_embedding=0, n_blocks=1, max_epochs=8, learning_rate=.02)
    model = Net(fit_learner("net", (TRAIN, VALID), SCHEMA, ENCODER, TrainParams(net=small)).model)
    p, whole = model.predict(VALID.X), part(500, 1, unknown=0).y
    assert p.shape == (500, 3) and p.sum(1).max() > 1.5
    auc = [np.mean(p[y == 1, k][:, None] > p[y == 0, k]) for k, y in enumerate(whole.T)]
    assert min(auc) > .8
    assert np.allclose(model.predict_raw(VALID.X), np.log(p / (1 - p)))
    shares = model.contributions(VALID.X[:2])
    assert shares.shape == (2, 3, 3) and np.allclose(shares.sum(-1), model.predict_raw(VALID.X[:2]))
    assert all(np.array_equal(model.predict_one(x), row) for x, row in zip(VALID.X[:10], p, strict=False))


def test_what_cannot_be_learned_is_said():
    with pytest.raises(UserError, match="labels cannot go on from a model"):
        fit_labels(TRAIN, VALID, structs.replace(JOB, init_model=b"x"))
    with pytest.raises(UserError, match="'l1' is '1' in all 2 rows"):
        check_target(np.array([[0, 1, 0], [1, 1, 1], [1, np.nan, 1.]]), "train", SCHEMA)
