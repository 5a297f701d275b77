"Quantiles from nets and from a project's own learners: each level learned, one file, half of the rows untouched."
import numpy as np
import polars as pl
import pytest

from mlops_nb.config.params import NetParams, TrainParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.model.booster import Booster
from mlops_nb.model.encoder import EncodedColumn, Encoder
from mlops_nb.model.net import Net
from mlops_nb.model.onnx_model import OnnxModel
from mlops_nb.train.custom_learners import CustomFit, run_custom_learner
from mlops_nb.train.dataset import TrainingPart, entity_groups
from mlops_nb.train.learners import fit_learner
from mlops_nb.train.merged_quantiles import merge_quantile_models
from mlops_nb.train.quantile_boosting import calibration_rows, merge_models, stopping_rows

LEVELS = [0.1, 0.5, 0.9]
SCHEMA = Schema("q", "regression", "y", {"a": Column("number"), "b": Column("number"), "y": Column("number")},
                quantiles=LEVELS)
ENCODER = Encoder([EncodedColumn("a", "number"), EncodedColumn("b", "number")])


def part(n, seed):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 2))
    return TrainingPart(X, 100 + 20 * X[:, 0] + 5 * (1 + np.abs(X[:, 1])) * rng.normal(size=n))


PARTS = part(1200, 0), part(400, 1)


def below(predicted): return (PARTS[1].y[:, None] <= predicted).mean(0)


@pytest.fixture(scope="module")
def net():
    small = NetParams(ensemble_size=4, d_hidden=24, d_embedding=0, n_blocks=1, max_epochs=25, learning_rate=.01)
    return fit_learner("net", PARTS, SCHEMA, ENCODER, TrainParams(net=small))


def test_a_net_learns_each_quantile(net):
    model, X = Net(net.model), PARTS[1].X
    q = model.predict(X)
    assert q.shape == (400, 3) and np.abs(below(q) - LEVELS).max() < .09
    assert all(np.array_equal(model.predict_one(x), row) for x, row in zip(X[:20], q))
    shares = model.contributions(X[:3])
    assert shares.shape == (3, 3, 3) and np.allclose(shares.sum(-1), q[:3])
    loss = np.mean([np.maximum(a * (PARTS[1].y - v), (a - 1) * (PARTS[1].y - v)) for a, v in zip(LEVELS, q.T)])
    assert net.best_loss == pytest.approx(loss, rel=.15) # on the other half alone


def test_a_net_never_sees_the_rows_that_correct_it(net):
    kept = calibration_rows(400)
    other = PARTS[1]._replace(y=np.where(kept, 1e6, PARTS[1].y))
    again = fit_learner("net", (PARTS[0], other), SCHEMA, ENCODER, TrainParams(net=Net(net.model).network.params))
    assert again.model == net.model


def test_a_net_of_quantiles_as_onnx(net):
    from mlops_nb.bundle.onnx_export import net_to_onnx, predict_onnx
    model, X = Net(net.model), PARTS[1].X[:50]
    assert np.allclose(predict_onnx(net_to_onnx(model), X), model.predict(X), rtol=1e-5)


@pytest.mark.parametrize("learner", ["gbdt", "net"])
def test_quantiles_go_on_from_no_model(learner):
    with pytest.raises(UserError, match="quantiles cannot go on from a model"):
        fit_learner(learner, PARTS, SCHEMA, ENCODER, init_model=b"x")


OWN = '''
from mlops_nb.train.custom_learners import learner


@learner("boosted")
def boosted(X, y, quantile, seed):
    from sklearn.ensemble import GradientBoostingRegressor
    return GradientBoostingRegressor(loss="quantile", alpha=quantile, n_estimators=40, random_state=seed).fit(X, y)


@learner("linear")
def linear(X, y, quantile):
    from sklearn.linear_model import QuantileRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    return make_pipeline(StandardScaler(), QuantileRegressor(quantile=quantile, alpha=0)).fit(X, y)


@learner("stopped")
def stopped(X, y, X_valid, y_valid, quantile):
    from lightgbm import LGBMRegressor, early_stopping
    assert len(y_valid) == 200, len(y_valid)
    return LGBMRegressor(objective="quantile", alpha=quantile, n_estimators=200, verbosity=-1).fit(
        X, y, eval_set=[(X_valid, y_valid)], callbacks=[early_stopping(5, verbose=False)])


@learner("one")
def one(X, y):
    from sklearn.linear_model import LinearRegression
    return LinearRegression().fit(X, y)
'''


@pytest.mark.parametrize("name, load", [("boosted", "model.txt"), ("linear", "model.onnx"), ("stopped", "model.txt")])
def test_an_own_learner_is_called_for_each_quantile(tmp_path, name, load):
    (tmp_path / "learners.py").write_text(OWN)
    fit = CustomFit(name, str(tmp_path / "learners.py"), "regression", 0, ["a", "b"], [], {}, 0, quantiles=LEVELS)
    file, data = run_custom_learner(fit, PARTS[0], stopping_rows(PARTS[1]), tmp_path)
    assert file == load
    model = OnnxModel(data) if file == "model.onnx" else Booster(data.decode())
    q = model.predict(PARTS[1].X)
    assert q.shape == (400, 3) and np.abs(below(q) - LEVELS).max() < .1
    assert all(np.array_equal(model.predict_one(x), row) for x, row in zip(PARTS[1].X[:10], q))
    shares = model.contributions(PARTS[1].X[:2])
    assert shares.shape == (2, 3, 3) and np.allclose(shares.sum(-1), q[:2])


def test_one_that_takes_no_quantile_is_refused_in_words(tmp_path):
    (tmp_path / "learners.py").write_text(OWN)
    fit = CustomFit("one", str(tmp_path / "learners.py"), "regression", 0, ["a", "b"], [], {}, 0, quantiles=LEVELS)
    with pytest.raises(UserError, match="'one': it takes no quantile, and schema.yaml asks for quantiles; add the arg"):
        run_custom_learner(fit, *PARTS, tmp_path)


def test_models_of_other_sizes_answer_in_one_file_as_alone():
    from sklearn.ensemble import RandomForestRegressor

    from mlops_nb.train.onnx_conversion import ModelInterface, export_model
    models = [export_model(RandomForestRegressor(n, max_depth=2, random_state=0).fit(PARTS[0].X, PARTS[0].y),
                           ModelInterface("regression", ["a", "b"], 0))[1] for n in (2, 5)]
    merged = Booster(merge_quantile_models("model.txt", models, PARTS[1].X).decode()).predict(PARTS[1].X)
    assert np.allclose(merged, np.stack([Booster(m.decode()).predict(PARTS[1].X) for m in models], 1))


def test_one_file_that_answers_otherwise_is_refused():
    from mlops_nb.train.onnx_conversion import ModelInterface, export_model
    tree = pytest.importorskip("sklearn.tree").DecisionTreeRegressor(max_depth=2).fit(PARTS[0].X, PARTS[0].y)
    stump, interface = type(tree)(max_depth=1).fit(PARTS[0].X, PARTS[0].y), ModelInterface("regression", ["a", "b"], 0)
    text, other = (export_model(one, interface)[1] for one in (tree, stump))
    def wrong(texts): return merge_models(texts[:1] * 2)
    with pytest.raises(UserError, match="answer otherwise in one file than alone"):
        merge_quantile_models("model.txt", [text, other], PARTS[1].X, wrong)


@pytest.mark.parametrize("n_groups", [2, 7, 300])
def test_rows_of_one_entity_are_on_one_side(n_groups):
    groups = np.random.default_rng(0).integers(0, n_groups, 1000)
    kept = calibration_rows(1000, groups)
    assert not {*groups[kept]} & {*groups[~kept]} and kept.sum() <= 500
    if n_groups == 300: assert kept.sum() > 480
    stopped = stopping_rows(TrainingPart(np.arange(1000.)[:, None], np.arange(1000.), groups=groups))
    assert np.array_equal(stopped.y, np.flatnonzero(~kept)) and np.array_equal(stopped.groups, groups[~kept])


@pytest.mark.parametrize("largest, kept", [(300, 500), (510, 490), (900, 100), (1000, 500)])
def test_one_large_entity_leaves_rows_to_correct_with(largest, kept):
    "Such as all rows that name none; where there is no other, its rows are drawn one by one."
    groups = np.maximum(np.arange(1000) - largest + 1, 0)
    assert calibration_rows(1000, groups).sum() == kept


def test_groups_are_the_entities_of_a_schema_with_quantiles():
    from msgspec import structs
    frame = pl.DataFrame({"a": [1., 2, 3], "who": ["x", None, "x"]})
    assert entity_groups(frame, SCHEMA) is None
    grouped = structs.replace(SCHEMA, entity="who", columns=SCHEMA.columns | {"who": Column("category")})
    assert entity_groups(frame, grouped).tolist() == [1, 0, 1]
    assert entity_groups(frame, structs.replace(grouped, quantiles=None)) is None
