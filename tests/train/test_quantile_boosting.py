"Quantiles in one model: the trees of each to the last bit, stopping on half of the rows, resuming, refusals."
import lightgbm as lgb
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.bundle.onnx_export import append_calibrator, predict_onnx, trees_to_onnx
from mlops_nb.config.params import TrainParams
from mlops_nb.core.errors import UserError
from mlops_nb.model.booster import Booster
from mlops_nb.model.calibrators import ConformalCalibrator
from mlops_nb.model.lightgbm_text import parse_header
from mlops_nb.train.dataset import TrainingPart
from mlops_nb.train.gbdt import GbdtJob, fit_gbdt
from mlops_nb.train.quantile_boosting import calibration_rows, fit_quantiles, merge_models

LEVELS = [0.1, 0.5, 0.9]


def part(n, seed):
    rng = np.random.default_rng(seed)
    X = np.c_[rng.integers(0, 6, n), rng.normal(size=(n, 2))].astype(float)
    X[rng.random(X.shape) < 0.05] = np.nan
    return TrainingPart(X, 3 * np.nan_to_num(X[:, 1]) + (1 + np.nan_to_num(X[:, 0])) * rng.normal(size=n))


@pytest.fixture(scope="module")
def parts(): return part(700, 0), part(400, 1)


def job(**how):
    g = {"n_estimators": 40, "early_stopping_rounds": 5, "num_leaves": 7, "checkpoint_every": 7} | how.pop("gbdt", {})
    return GbdtJob("regression", msgspec.convert({"gbdt": g}, TrainParams), categorical=[0], **how)


def own_text(X, y, n_trees, alpha):
    params = dict(objective="quantile", alpha=alpha, verbosity=-1, num_threads=1, num_leaves=5)
    return lgb.train(params, lgb.Dataset(X, y), n_trees).model_to_string()


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=2, max_size=5))
def test_each_score_of_a_merged_model_is_that_of_its_own(sizes):
    X, y = np.random.default_rng(0).normal(size=(2, 60, 2))
    texts = [own_text(X, y[:, 0], n, (i + 1) / 7) for i, n in enumerate(sizes)]
    merged = Booster(merge_models(texts))
    assert merged.n_classes == len(sizes) and merged.n_iterations == max(sizes)
    for k, text in enumerate(texts):
        assert np.array_equal(merged.predict(X)[:, k], lgb.Booster(model_str=text).predict(X))
    assert all(np.array_equal(merged.predict_one(x), merged.predict(X)[i]) for i, x in enumerate(X[:5]))


def test_a_model_of_quantiles_answers_alike_in_large_and_small_pieces_and_as_onnx(parts):
    fitted = fit_quantiles(*parts, job(), LEVELS)
    model, X = Booster(fitted.model.decode()), parts[1].X
    assert parse_header(fitted.model.decode()).link == "identity"
    few, many = model.contributions(X[:300]), model.contributions(np.tile(X, (2, 1))) # LightGBM's own, and by tables
    assert np.allclose(few.sum(-1), model.predict(X[:300])) and np.allclose(many[:300], few)
    assert np.allclose(predict_onnx(trees_to_onnx(fitted.model.decode()), X[:50]), model.predict(X[:50]), rtol=1e-9)


@pytest.mark.parametrize("shifts, median", [([-2., 0., 3.], 1), ([9., 0., -9.], 1), ([0., 1., -5.], 0),
                                            ([-1., 2., 0.], 2)])
def test_corrected_quantiles_as_onnx(parts, shifts, median):
    text, X = fit_quantiles(*parts, job(gbdt={"n_estimators": 5}), LEVELS).model.decode(), parts[1].X
    c = ConformalCalibrator(shifts, median)
    found = predict_onnx(append_calibrator(trees_to_onnx(text), c), X)
    assert np.allclose(found, c.apply(Booster(text).predict(X)), rtol=1e-9) and (np.diff(found, axis=1) >= 0).all()


def test_a_large_model_is_read_in_blocks_and_gives_the_same_bits_row_by_row(parts, monkeypatch):
    text, X = fit_quantiles(*parts, job(), LEVELS).model.decode(), parts[1].X
    monkeypatch.setattr("mlops_nb.model.booster._BLOCK_BYTES", len(text) // 4)
    blocks = Booster(text)
    assert len(blocks._handles) > 2
    assert all(np.array_equal(blocks.predict_one(x), p) for x, p in zip(X[:40], blocks.predict(X[:40])))


def test_half_of_the_validation_rows_stops_the_training(parts):
    train, valid = parts
    kept = calibration_rows(len(valid.y))
    other = valid._replace(y=np.where(kept, 1e6, valid.y)) # rows that only the correction may see
    assert fit_quantiles(train, valid, job(), LEVELS) == fit_quantiles(train, other, job(), LEVELS)
    found = fit_quantiles(train, valid, job(), LEVELS)
    stopping = TrainingPart(valid.X[~kept], valid.y[~kept])
    alone = [fit_gbdt(train, stopping, job(quantile=q)) for q in LEVELS]
    assert found.best_iteration == max(a.best_iteration for a in alone)
    assert found.best_loss == pytest.approx(np.mean([a.best_loss for a in alone]))
    assert found.loss_curve[0].valid == pytest.approx(np.mean([a.loss_curve[0].valid for a in alone]))
    assert found.loss_curve[-1].train == pytest.approx(np.mean([a.loss_curve[-1].train for a in alone]))


def test_the_loss_is_the_pinball_loss(parts):
    from sklearn.metrics import mean_pinball_loss
    train, valid = parts
    for q in LEVELS:
        found = fit_gbdt(train, valid, job(quantile=q))
        said = Booster(found.model.decode()).predict(valid.X)
        assert found.best_loss == pytest.approx(mean_pinball_loss(valid.y, said, alpha=q), rel=1e-5)
        assert found.rmse is None


@pytest.mark.parametrize("n", [0, 1, 2, 9, 1000])
def test_one_half_of_the_rows_is_for_calibration(n):
    assert calibration_rows(n).sum() == n // 2 and np.array_equal(calibration_rows(n), calibration_rows(n))


class Killed(Exception): pass


@pytest.mark.parametrize("sampled", [{}, {"subsample": 0.7, "colsample_bytree": 0.7}])
def test_a_training_that_was_interrupted_ends_with_the_same_bytes(parts, tmp_path, sampled):
    how = dict(gbdt={"early_stopping_rounds": 40} | sampled)
    whole, seen = fit_quantiles(*parts, job(**how), LEVELS), []
    kept = job(checkpoint=str(tmp_path / "state.json"), **how)

    def killed(i, loss):
        if i == 20: raise Killed
    with pytest.raises(Killed): fit_quantiles(*parts, kept, LEVELS, on_iteration=killed)
    resumed = fit_quantiles(*parts, kept, LEVELS, on_iteration=lambda i, loss: seen.append(i), on_start=seen.append)
    assert resumed == whole and seen[0] is True and seen[1] == 15


def test_what_cannot_be_trained_is_refused_in_words(parts):
    earlier = fit_gbdt(*parts, job(quantile=0.5)).model
    with pytest.raises(UserError, match="quantiles cannot go on from a model; set train.init_model to null"):
        fit_quantiles(*parts, job(init_model=earlier), LEVELS)
