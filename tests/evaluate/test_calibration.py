"""Probabilities put right: the order stays, nothing is certain, one row is the batch, and nothing moves without
evidence."""

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import ndtr
from support import trained_project as modelling

from mlops_nb.batch.batch_scoring import score_files
from mlops_nb.bundle.bundle import check_golden_examples
from mlops_nb.bundle.onnx_export import export_onnx, predict_onnx
from mlops_nb.bundle.stage import run_bundle
from mlops_nb.config.params import EvaluateParams, read_params, write_params
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.evaluate.calibration import (
    CALIBRATION_FOLDS,
    assign_folds,
    choose_calibration,
    cross_fitted_loss,
    fit_isotonic,
    fit_platt,
    fit_temperature,
)
from mlops_nb.evaluate.decision_threshold import choose_threshold
from mlops_nb.evaluate.metrics import row_loss
from mlops_nb.evaluate.stage import read_evaluation, run_evaluate
from mlops_nb.explain.stage import read_explanation, run_explain
from mlops_nb.model.calibrators import IsotonicCalibrator, PlattCalibrator, TemperatureCalibrator
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.stats.roc_auc import roc_auc
from mlops_nb.train.baselines import run_baselines
from mlops_nb.train.stage import open_trained_predictor

quick = settings(deadline=None, max_examples=60)
shares = st.lists(
    st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5, 1e-300, 1 - 2**-53])), min_size=1, max_size=60
)


def drawn(seed, n): return np.random.default_rng(seed).integers(0, 2, n).astype(float)


def sound(before, after):
    "Probabilities, in the order they were in."
    assert np.isfinite(after).all() and (after > 0).all() and (after < 1).all()
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order]) >= -1e-15).all() # rounding may swap what is equal to the last digit


@quick
@given(shares, st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_a_line_keeps_the_order_and_is_never_certain(p, a, b):
    p, apply = np.array(p), PlattCalibrator(a, b).apply
    sound(p, apply(p))
    assert np.array([apply(v) for v in p.tolist()]).tobytes() == apply(p).tobytes()


@quick
@given(shares, st.integers(0, 10**6), shares)
def test_knots_keep_the_order_and_are_never_certain(p, seed, others):
    p = np.array(p)
    found = fit_isotonic(drawn(seed, len(p)), p)
    assert (np.diff(found.x_thresholds) > 0).all() and (np.diff(found.y_thresholds) > 0).all()
    sound(np.array(others), found.apply(np.array(others)))
    lowest, highest = found.y_thresholds[1], found.y_thresholds[-2]
    assert 1 / (len(p) + 2) <= lowest <= highest <= 1 - 1 / (len(p) + 2)


@quick
@given(st.integers(2, 12), st.integers(1, 40), st.integers(0, 10**6), st.floats(0.05, 20))
def test_a_temperature_keeps_the_order_and_adds_up_to_one(k, n, seed, t):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(k, rng.choice([0.01, 1])), n)
    q = TemperatureCalibrator(t).apply(p)
    assert np.isfinite(q).all() and (q > 0).all() and np.abs(q.sum(1) - 1).max() < 1e-14
    assert (np.take_along_axis(q, p.argmax(1)[:, None], 1)[:, 0] == q.max(1)).all()


@pytest.mark.parametrize(
    "apply", [PlattCalibrator(1.3, -0.2).apply, fit_isotonic(drawn(0, 500), np.random.default_rng(1).random(500)).apply]
)
def test_a_row_alone_gets_the_bits_of_the_batch(apply):
    p = np.random.default_rng(2).random(5000)
    assert np.array([apply(p[i:i + 1])[0] for i in range(len(p))]).tobytes() == apply(p).tobytes()
    assert np.array([apply(v) for v in p.tolist()]).tobytes() == apply(p).tobytes()


@pytest.mark.parametrize("k", [3, 7, 8, 9, 130])
def test_a_row_of_classes_alone_gets_the_bits_of_the_batch(k):
    p = np.random.default_rng(k).dirichlet(np.ones(k), 700)
    apply = TemperatureCalibrator(1.7).apply
    assert np.array([apply(row) for row in p]).tobytes() == apply(p).tobytes()


def test_isotonic_like_scikit_learn_between_its_ends():
    from sklearn.isotonic import IsotonicRegression
    rng = np.random.default_rng(0)
    p = rng.random(3000).round(2)
    y = (rng.random(3000) < p**2).astype(float)
    said, at = np.unique(p, return_inverse=True)
    events, n = np.bincount(at, y), np.bincount(at).astype(float)
    events[0] += 1
    n[[0, -1]] += 1
    ours, theirs = fit_isotonic(y, p), IsotonicRegression().fit(said, events / n, sample_weight=n)
    assert np.allclose(ours.y_thresholds[1:-1], np.unique(theirs.predict(said)))
    assert np.abs(ours.apply(said) - theirs.predict(said)).max() < .1


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_the_auc_stays(method):
    rng = np.random.default_rng(3)
    p = rng.random(2000)
    y = (rng.random(2000) < p**3).astype(float)
    found = dict(platt=fit_platt, isotonic=fit_isotonic)[method](y, p)
    assert roc_auc(y, found.apply(p))(np.ones(2000)) == pytest.approx(roc_auc(y, p)(np.ones(2000)), abs=1e-12)


def test_a_line_that_would_turn_the_model_around_is_none():
    p = np.random.default_rng(0).random(1000)
    y = (np.random.default_rng(1).random(1000) > p).astype(float)
    assert fit_platt(y, p) is None and fit_platt(1 - y, p).slope > 0
    found, why = choose_calibration("binary", y, p, EvaluateParams(calibration=["platt"]))
    assert found is None and why.log_loss.keys() == {"none"}


@quick
@given(st.integers(0, 10**6), st.integers(10, 400), st.floats(0.3, 4), st.floats(-2, 2))
def test_what_is_chosen_is_never_worse_cross_fitted(seed, n, loud, shift):
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 1.5, n)
    y, p = (rng.random(n) < 1 / (1 + np.exp(-z))).astype(float), 1 / (1 + np.exp(-(loud * z + shift)))
    found, why = choose_calibration("binary", y, p, EvaluateParams(seed=seed % 7))
    assert (found is None) == (why.method == "none") and why.message.startswith(why.method.capitalize())
    if found is None: return
    assert why.log_loss[why.method] < why.log_loss["none"] == pytest.approx(row_loss("binary", y, p).mean())
    assert cross_fitted_loss("binary", y, p, why.method, seed % 7).mean() == pytest.approx(why.log_loss[why.method])


def test_right_probabilities_are_seldom_moved():
    moved = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = rng.beta(1, 3, 1500)
        moved += choose_calibration("binary", (rng.random(1500) < p).astype(float), p, EvaluateParams())[0] is not None
    assert moved <= 4 # two standard errors: one in forty, before the price of the fit


def test_a_drifting_series_is_not_calibrated_to_what_is_over():
    "The rate falls within the valid rows: a map to their mean is wrong at their end, and after it."
    better, by_time, by_chance = 0, [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        t = np.arange(3_000.)
        z = rng.normal(0, 1, 4_000)
        drift = np.r_[np.interp(t, [0, 3_000], [1.2, -1.0]), np.full(1_000, -1.2)] # the last thousand come later
        y = (rng.random(4_000) < 1 / (1 + np.exp(-(z + drift)))).astype(float)
        p = 1 / (1 + np.exp(-(z - 1.)))
        valid, later = slice(0, 3_000), slice(3_000, None)
        for found, order in ((by_time, t), (by_chance, None)):
            calibrator, _ = choose_calibration("binary", y[valid], p[valid], EvaluateParams(), order)
            q = p[later] if calibrator is None else calibrator.apply(p[later])
            found.append(row_loss("binary", y[later], q).mean())
        better += by_time[-1] < by_chance[-1]
    assert better >= 9 and np.mean(by_time) < np.mean(by_chance) - .05


def test_classes_that_drift_are_not_calibrated_to_what_is_over():
    "Too shy until shortly before the end, and too bold from then on: one temperature would make it worse."
    by_time, by_chance, none = [], [], []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        t, z = np.arange(4_000.), rng.normal(0, 1.3, (4_000, 3))
        true = np.exp(z * np.where(t > 2_700, .5, 1.3)[:, None])
        y = (rng.random(4_000)[:, None] > (true / true.sum(1, keepdims=True)).cumsum(1)).sum(1).clip(max=2) * 1.0
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        for found, order in ((by_time, t[:3_000]), (by_chance, None)):
            calibrator, _ = choose_calibration("multiclass", y[:3_000], p[:3_000], EvaluateParams(), order)
            q = p[3_000:] if calibrator is None else calibrator.apply(p[3_000:])
            found.append(row_loss("multiclass", y[3_000:], q).mean())
        none.append(row_loss("multiclass", y[3_000:], p[3_000:]).mean())
    assert np.mean(by_time) <= np.mean(none) + .001 < np.mean(by_chance) - .02


def test_repeated_entities_do_not_make_a_calibrator_certain():
    "The probabilities are right, but thirty customers of fifty rows happen to differ from them."
    moved = {"rows": 0, "entities": 0}
    who = np.repeat(np.arange(30), 50)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        known, hidden = ((2 * rng.normal(size=30)[who] + rng.normal(size=1500)) / 5**.5 for _ in range(2))
        y, p = (known + hidden > .74) * 1.0, ndtr(known - .74)
        for unit, clusters in (("rows", None), ("entities", who)):
            moved[unit] += choose_calibration("binary", y, p, EvaluateParams(), clusters=clusters)[0] is not None
    assert moved["rows"] > 20 and moved["entities"] <= 6


def test_folds_keep_the_rows_of_an_entity_together():
    who = np.random.default_rng(0).integers(0, 40, 500)
    fold = assign_folds(drawn(0, 500), 1, np.unique(who, return_inverse=True)[1])
    per_entity = [np.unique(fold[who == k]) for k in np.unique(who)]
    assert all(len(f) == 1 for f in per_entity) and np.ptp(np.bincount(np.concatenate(per_entity))) == 0


def test_in_time_a_lasting_fault_is_still_corrected():
    rng = np.random.default_rng(0)
    z, t = rng.normal(0, 1.5, 3_000), np.arange(3_000.)
    y = (rng.random(3_000) < 1 / (1 + np.exp(-z))).astype(float)
    found, why = choose_calibration("binary", y, 1 / (1 + np.exp(-2 * z)), EvaluateParams(), t)
    assert why.method == "platt" and found.slope == pytest.approx(.5, abs=.05) and "in the order of time" in why.message
    loss = cross_fitted_loss("binary", y, 1 / (1 + np.exp(-2 * z)), "platt", order=t)
    assert np.isnan(loss[:600]).all() and np.isfinite(loss[600:]).all()
    alone = fit_platt(y[:600], 1 / (1 + np.exp(-2 * z[:600]))) # the second block is judged by the first
    judged = row_loss("binary", y[600:1200], alone.apply(1 / (1 + np.exp(-2 * z[600:1200]))))
    assert loss[600:1200] == pytest.approx(judged)


@pytest.mark.parametrize("y, p, why", [
    (np.zeros(100), np.full(100, .1), "fewer than two classes"),
    (drawn(0, 100), np.full(100, np.nan), "no numbers"),
    (np.r_[np.zeros(96), np.ones(4)], np.linspace(.1, .9, 100), "fewer than two classes"),
    (np.zeros(0), np.zeros(0), "fewer than two classes")])
def test_too_little_to_choose_by(y, p, why):
    found, about = choose_calibration("binary", y, p, EvaluateParams())
    assert found is None and about.method == "none" and why in about.message and about.log_loss == {}


def test_constant_scores_move_to_the_rate():
    y = np.r_[np.zeros(800), np.ones(200)]
    found, about = choose_calibration("binary", y, np.full(1000, .6), EvaluateParams())
    assert about.method == "isotonic" and found.apply(np.array([.6]))[0] == pytest.approx(201 / 1002)
    assert choose_calibration("binary", y, np.full(1000, .2), EvaluateParams())[1].method == "none"


def test_no_candidates():
    found, about = choose_calibration(
        "binary", drawn(0, 100), np.full(100, 0.5), EvaluateParams(calibration=["temperature"])
    )
    assert found is None and "names no candidate" in about.message


@quick
@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(2, 5))
def test_folds_hold_each_class_evenly(seed, n, k):
    y = np.random.default_rng(seed).integers(0, k, n).astype(float)
    fold = assign_folds(y, seed)
    counts = np.array([[((fold == f) & (y == c)).sum() for f in range(CALIBRATION_FOLDS)] for c in range(k)])
    assert (np.ptp(counts, axis=1) <= 1).all() and np.ptp(counts.sum(0)) <= 1


@pytest.mark.parametrize("scale, t", [(0, 1), (1e-9, 1), (1, 1), (100, 1)])
def test_a_temperature_of_hopeless_scores_stays_between_its_ends(scale, t):
    rng = np.random.default_rng(0)
    z = scale * rng.normal(size=(200, 3))
    p = np.exp(z - z.max(1, keepdims=True))
    found = fit_temperature(rng.integers(0, 3, 200).astype(float), p / p.sum(1, keepdims=True))
    assert 1 / 20 <= found.temperature <= 20


# ---- in the pipeline


def test_an_old_policy_has_none():
    old = b'{"task":"binary","classes":["a","b"],"threshold":0.5,"costs":{}}'
    assert msgspec.json.decode(old, type=Policy).calibrator is None


@pytest.mark.parametrize(
    "calibration",
    [PlattCalibrator(0.5, 1.0), IsotonicCalibrator([0.0, 0.5, 1.0], [0.1, 0.2, 0.9]), TemperatureCalibrator(2.0), None],
)
def test_a_policy_is_plain_numbers(calibration):
    told = msgspec.json.encode(Policy("binary", ["a", "b"], calibrator=calibration))
    assert msgspec.json.decode(told, type=Policy).calibrator == calibration


CALIBRATIONS = {
    "binary": [PlattCalibrator(0.6, 0.4), IsotonicCalibrator([0.0, 0.3, 0.6, 1.0], [0.05, 0.1, 0.7, 0.8])],
    "multiclass": [TemperatureCalibrator(2.5)],
}


@pytest.mark.parametrize("task, which", [("binary", 0), ("binary", 1), ("multiclass", 0)])
def test_a_bundle_answers_with_calibrated_probabilities_everywhere(task, which, tmp_path):
    root, calibration = modelling.judged(modelling.trained(tmp_path / "p", task), task), CALIBRATIONS[task][which]
    policy = read_json(root / "artifacts/evaluation/policy.json", Policy)
    policy.calibrator = calibration
    write_json(root / "artifacts/evaluation/policy.json", policy)
    run_bundle(root)
    predictor, frame = Predictor.open(root / "artifacts/bundle"), modelling.rows(300, seed=4, task=task)
    plain = open_trained_predictor(root)
    want = predictor.predict(frame)
    assert want.tobytes() == calibration.apply(plain.predict(frame)).tobytes() != plain.predict(frame).tobytes()
    assert predictor.predict_raw(frame).tobytes() == plain.predict_raw(frame).tobytes()
    assert np.array([predictor.predict_one(r) for r in frame.to_dicts()]).tobytes() == want.tobytes()
    frame.write_parquet(tmp_path / "in.parquet")
    score_files(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet", chunk_rows=64)
    scored = pl.read_parquet(tmp_path / "out.parquet")
    assert scored.select("^score.*$").to_numpy().reshape(want.shape).tobytes() == want.tobytes()
    assert scored["decision"].to_list() == predictor.decide(want).tolist()
    assert check_golden_examples(root / "artifacts/bundle") is None


@pytest.mark.parametrize("learner", ["gbdt", "net"])
@pytest.mark.parametrize("task, which", [("binary", 0), ("binary", 1), ("multiclass", 0)])
def test_a_model_leaves_as_onnx_with_its_calibration(task, which, learner, tmp_path):
    root, calibration = (
        modelling.judged(modelling.trained(tmp_path / "p", task, n=500, learner=learner), task),
        CALIBRATIONS[task][which],
    )
    policy = read_json(root / "artifacts/evaluation/policy.json", Policy)
    policy.calibrator = calibration
    write_json(root / "artifacts/evaluation/policy.json", policy)
    run_bundle(root)
    parity = export_onnx(root / "artifacts/bundle", tmp_path / "out")
    predictor, frame = Predictor.open(root / "artifacts/bundle"), modelling.rows(80, seed=5, task=task)
    said = predict_onnx((tmp_path / "out/model.onnx").read_bytes(), predictor.encode_frame(frame))
    assert np.allclose(said, predictor.predict(frame), rtol=parity.tolerance, atol=parity.tolerance)
    assert np.abs(said - predictor.model.predict(predictor.encode_frame(frame))).max() > .05


@pytest.fixture(scope="module")
def exaggerating(tmp_path_factory):
    "A project whose trees are far too sure of themselves."
    root = tmp_path_factory.mktemp("loud")
    modelling.trained(root, n=2500)
    file = root / "artifacts/models/gbdt/model.txt"
    file.write_text(file.read_text().replace("objective=binary sigmoid:1", "objective=binary sigmoid:9"))
    params = read_params(root / "params.yaml")
    params.evaluate.n_resamples = 40
    write_params(params, root / "params.yaml")
    run_baselines(root)
    run_evaluate(root)
    run_explain(root)
    return root


def test_the_stage_puts_right_what_exaggerates(exaggerating):
    found, kept = (
        read_evaluation(exaggerating),
        pl.read_parquet(exaggerating / "artifacts/evaluation/predictions.parquet"),
    )
    about = found.recalibration
    assert about.method == "platt" and about.log_loss["platt"] < about.log_loss["none"]
    assert (
        found.calibration.expected_calibration_error < about.uncalibrated.expected_calibration_error / 2
        and about.uncalibrated.slope < 0.5 < found.calibration.slope
    )
    predictor = open_trained_predictor(exaggerating)
    predictor.policy = read_json(exaggerating / "artifacts/evaluation/policy.json", Policy)
    test = pl.read_parquet(exaggerating / "artifacts/prepared/test.parquet")
    scores = kept.filter(split="test")["score"].to_numpy()
    assert predictor.predict(test).tobytes() == scores.tobytes()  # what was measured is what will be answered
    tables = [
        pl.read_parquet(exaggerating / f"artifacts/evaluation/{n}.parquet")
        for n in ("calibration_curve", "calibration_curve_uncalibrated")
    ]
    assert tables[0]["n_rows"].sum() == tables[1]["n_rows"].sum() == len(test) and not tables[0].equals(tables[1])


def test_the_threshold_is_chosen_on_calibrated_scores(exaggerating):
    found, kept = (
        read_evaluation(exaggerating),
        pl.read_parquet(exaggerating / "artifacts/evaluation/predictions.parquet"),
    )
    valid = kept.filter(split="valid")
    assert found.decision_settings.threshold == choose_threshold(
        valid["_target"].to_numpy(), valid["score"].to_numpy(), found.decision_settings.costs
    )
    assert found.threshold.low <= found.decision_settings.threshold <= found.threshold.high


def test_examples_of_the_explanation_are_calibrated_too(exaggerating):
    test = pl.read_parquet(exaggerating / "artifacts/evaluation/predictions.parquet").filter(split="test")
    assert {x.prediction for x in read_explanation(exaggerating).worst_predicted} <= set(test["score"])


def test_without_candidates_the_stage_moves_nothing(exaggerating):
    params = read_params(exaggerating / "params.yaml")
    params.evaluate.calibration = []
    write_params(params, exaggerating / "params.yaml")
    run_evaluate(exaggerating)
    assert read_json(exaggerating / "artifacts/evaluation/policy.json", Policy).calibrator is None
    assert not (exaggerating / "artifacts/evaluation/calibration_curve_uncalibrated.parquet").exists()
    assert read_evaluation(exaggerating).calibration == read_evaluation(exaggerating).recalibration.uncalibrated


def test_a_wrong_name_is_a_sentence(exaggerating):
    path = exaggerating / "params.yaml"
    path.write_text(path.read_text().replace("calibration: []", "calibration: [plat]"))
    with pytest.raises(UserError, match="calibration is .'plat'., but one of platt, isotonic, temperature"):
        read_params(path)
