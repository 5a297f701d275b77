"ONNX: the same answers as the bundle, above all where another would differ; nothing is written otherwise."
import hashlib

import lightgbm as lgb
import numpy as np
import onnxruntime
import polars as pl
import polars.selectors as cs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import trained_project as modelling

from mlops_nb.bundle import onnx_export as export
from mlops_nb.bundle.onnx_export import (
    export_onnx,
    leaf_boundary_rows,
    neighbouring_floats,
    predict_onnx,
    read_onnx_trees,
    trees_to_onnx,
    with_column_values,
)
from mlops_nb.bundle.stage import pack_bundle
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.model.booster import Booster

EDGES = [0.0, -0.0, 1e-35, -1e-35, float(np.float32(1e-35)), -float(np.float32(1e-35)), 5e-324, -5e-324, 1e-36, -1e-36,
         2e-35, -2e-35,
         1e300, -1e300, 0.1, 16777217.0]


def fit(X, y, categorical=(), trees=8, **params):
    params = dict(objective="regression", num_leaves=6, min_data_in_leaf=1, min_sum_hessian_in_leaf=0,
                  min_data_in_bin=1, verbosity=-1,
                  num_threads=1, seed=0, max_cat_to_onehot=1, cat_smooth=0, min_data_per_group=1) | params
    return lgb.train(params, lgb.Dataset(X, y, categorical_feature=list(categorical)), trees).model_to_string()


def rows_of(text, X, categorical=()):
    "Every kind of row that could tell the two apart."
    trees = read_onnx_trees(text)
    numeric = [j for j in range(X.shape[1]) if j not in categorical]
    used = {j: [t.threshold[i] for t in trees for i, f in enumerate(t.feature) if f == j] for j in numeric}
    values = {j: np.r_[neighbouring_floats(np.array(t)) if t else [], EDGES, np.nan] for j, t in used.items()}
    values |= {j: np.r_[np.arange(70.), np.nan] for j in categorical}
    return np.concatenate([X, with_column_values(X, values), [*leaf_boundary_rows(trees, X[0])],
                           np.full((1, X.shape[1]), np.nan)])


def assert_same(text, X, categorical=()):
    rows = rows_of(text, X, categorical)
    ours, theirs = Booster(text).predict(rows), predict_onnx(trees_to_onnx(text), rows)
    assert ours.shape == theirs.shape and theirs.dtype == np.float64
    apart = np.abs(ours - theirs) / np.maximum(1, np.abs(ours))
    assert apart.max() < 1e-12, rows[apart.reshape(len(rows), -1).max(1).argmax()]


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_trees_on_any_numbers_answer_alike_at_every_threshold(data):
    seed, holes = data.draw(st.integers(0, 2**32 - 1)), data.draw(st.sampled_from([0, .2]))
    values = data.draw(st.lists(st.one_of(st.sampled_from(EDGES), st.floats(-1e6, 1e6)), min_size=2, max_size=12))
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.choice(values, 120), rng.choice(values, 120),
                         rng.integers(0, data.draw(st.integers(2, 66)), 120)])
    X[rng.random(X.shape) < holes] = np.nan
    y = np.nan_to_num(X[:, 0]) / 1e6 + np.isin(X[:, 2], [1, 3, 5, 33, 64]) + rng.normal(size=120)
    assert_same(fit(X, y, [2]), X, [2])


def test_counts():
    rng = np.random.default_rng(1)
    X = np.column_stack([rng.normal(size=400).round(1), rng.integers(0, 40, 400)])
    y = rng.poisson(np.exp(3 * X[:, 0] + np.isin(X[:, 1], [3, 30, 39]))).astype(float) # from 0 to thousands
    assert_same(fit(X, y, [1], 30, objective="poisson"), X, [1])


@pytest.mark.parametrize("objective, classes", [("binary", 1), ("multiclass", 3)])
def test_probabilities(objective, classes):
    rng = np.random.default_rng(1)
    X = np.column_stack([rng.normal(size=400).round(1), rng.integers(0, 40, 400)])
    y = np.digitize(X[:, 0] + np.isin(X[:, 1], [3, 30, 39]), [0] if classes == 1 else [-.5, .5]).astype(float)
    assert_same(fit(X, y, [1], 12, objective=objective, **({"num_class": 3} if classes > 1 else {})), X, [1])


def test_a_tree_of_one_leaf_and_a_feature_that_had_no_gaps():
    X = np.arange(40.)[:, None] - 20
    assert_same(fit(X, np.ones(40), trees=2), X) # nothing to split
    for target in (X[:, 0] > -3.5, X[:, 0] > 4.5): assert_same(fit(X, target * 1., trees=1, num_leaves=2), X)


def test_a_model_of_more_than_a_megabyte():
    rng = np.random.default_rng(2)
    X = rng.normal(size=(4000, 6))
    text = fit(X, X @ rng.normal(size=6), trees=60, num_leaves=400)
    assert len(text) > 1.5 * 2**20
    assert_same(text, X)


def test_what_onnx_cannot_express_is_refused():
    X = np.random.default_rng(3).normal(size=(200, 2))
    y = X[:, 0] * 2
    with pytest.raises(UserError, match="linear trees"): trees_to_onnx(fit(X, y, linear_tree=True, trees=3))
    with pytest.raises(UserError, match="objective 'mape' cannot be exported"):
        trees_to_onnx(fit(X, y, objective="mape"))
    with pytest.raises(UserError, match="0 as missing"): trees_to_onnx(fit(X.round(), y, zero_as_missing=True))
    with pytest.raises(UserError, match="not a LightGBM model"): read_onnx_trees("tree")


def test_neighbours():
    assert neighbouring_floats(np.array([1.0])).tolist() == [float(np.float32(1) - np.float32(2)**-24), 1 - 2**-53, 1.0,
                                                             1 + 2**-52, 1 + 2**-23]
    assert np.isfinite(neighbouring_floats(np.array([1e300, -1.7e308]))).all()


@pytest.mark.realdata
def test_adult_at_every_threshold(real_data):
    frame = pl.read_csv(real_data("adult") / "adult.data", infer_schema=False,
                        null_values=" ?").rename(str.strip).drop_nulls("outcome")
    numbers = ["age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week"]
    X = frame.drop("outcome").with_columns(pl.col(numbers).str.strip_chars().cast(pl.Float64),
                                           (~cs.by_name(numbers)).rank("dense"))
    words = [i for i, name in enumerate(X.columns) if name not in numbers]
    X, y = (X.cast(pl.Float64).fill_null(np.nan).to_numpy(),
            frame["outcome"].str.contains(">50K").to_numpy().astype(float))
    text = fit(X, y, words, 100, objective="binary", num_leaves=31, min_data_in_leaf=20)
    assert_same(text, X[:3000], words)


# ---- bundles

@pytest.fixture(scope="module", params=[(task, learner) for task in modelling.CLASSES for learner in ("gbdt", "net")],
                ids="-".join)
def project(request, tmp_path_factory):
    root, (task, learner) = tmp_path_factory.mktemp("project"), request.param
    pack_bundle(modelling.judged(modelling.trained(root, task, n=500, learner=learner), task))
    return root


def test_a_bundle_is_written_with_what_was_compared(project, tmp_path):
    bundle, test = project / "artifacts/bundle", pl.read_parquet(project / "artifacts/prepared/test.parquet")
    parity = export_onnx(bundle, tmp_path / "out", test)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["model.onnx", "parity.json"]
    assert read_json(tmp_path / "out/parity.json", export.ParityReport) == parity
    data, predictor = (tmp_path / "out/model.onnx").read_bytes(), export.Predictor.open(bundle)
    assert (parity.sha256 == hashlib.sha256(data).hexdigest() and parity.bundle_id == predictor.id
            and parity.feature_names == predictor.feature_names)
    assert all(c.n_decisions_changed == 0 and c.max_difference <= parity.tolerance
               for c in parity.checks) and sum(c.n_rows for c in parity.checks) > 500
    assert parity.category_codes["place"]["Amsterdam"] >= 2 and parity.policy == predictor.policy
    # as somebody else would use it: other threads, a row at a time, in rows never compared
    session, X = onnxruntime.InferenceSession(data), predictor.encode_frame(modelling.rows(60, seed=9))
    said = np.concatenate([session.run(["score"], {"X": row[None]})[0] for row in X])
    assert np.allclose(said, predictor.model.predict(X), rtol=parity.tolerance, atol=parity.tolerance)
    assert export_onnx(bundle, tmp_path / "again").sha256 == parity.sha256 # without the project


def test_a_model_that_answers_otherwise_is_not_written(project, tmp_path, monkeypatch):
    bundle = project / "artifacts/bundle"
    if (bundle / "model.txt").exists():
        monkeypatch.setattr(export, "trees_to_onnx", lambda text: trees_to_onnx(text, bits=32))
    else: monkeypatch.setattr(export, "_ndtri", lambda p: 5 * (p - .5))
    with pytest.raises(UserError,
                       match="does not answer as the bundle does .* so it was not written; use the bundle itself"):
        export_onnx(bundle, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_threshold_moved_by_one_bit_is_found(project, tmp_path, monkeypatch):
    bundle = project / "artifacts/bundle"
    if not (bundle / "model.txt").exists(): pytest.skip("a net has no thresholds")
    def moved(text):
        trees = read_onnx_trees(text)
        i = next(i for i, c in enumerate(trees[0].codes) if c is None)
        trees[0].threshold[i] = np.nextafter(trees[0].threshold[i], -np.inf)
        return trees
    monkeypatch.setattr(export, "trees_to_onnx", lambda text: with_trees(monkeypatch, moved(text), text))
    with pytest.raises(UserError, match="at and beside each threshold"): export_onnx(bundle, tmp_path / "out")


def with_trees(monkeypatch, trees, text):
    with monkeypatch.context() as m:
        m.setattr(export, "read_onnx_trees", lambda _: trees)
        return trees_to_onnx(text)
