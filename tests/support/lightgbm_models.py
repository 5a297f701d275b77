"Small LightGBM models of every objective, and rows for them."
import lightgbm as lgb
import numpy as np

KINDS = {"binary": {"objective": "binary"}, "multiclass": {"objective": "multiclass", "num_class": 4},
         "regression": {"objective": "regression"}, "poisson": {"objective": "poisson"},
         "unbalanced": {"objective": "binary", "is_unbalance": True},
         "onevsall": {"objective": "multiclassova", "num_class": 3},
         "huge": {"objective": "regression", "num_leaves": 255}}


def frame(n=1500, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    X[:, 1] = rng.integers(0, 200, n)     # a category with more values than one 32-bit word of codes
    X[:, 2] = rng.integers(0, 3, n)
    X[rng.random((n, 6)) < 0.1] = np.nan
    X[:, 5] = rng.integers(-2, 3, n)
    return X, rng


def train(kind, trees=25, **more):
    X, rng = frame()
    signal_ = np.nan_to_num(X[:, 0]) + (np.nan_to_num(X[:, 1]) % 7 > 3) + rng.normal(size=len(X))
    params = {"verbosity": -1, "num_threads": 1, "num_leaves": 15, **KINDS[kind], **more}
    classes = params.get("num_class", 2)
    y = {"regression": signal_, "huge": signal_, "poisson": np.exp(signal_ / 3)}.get(kind)
    if y is None: y = np.digitize(signal_, np.quantile(signal_, np.arange(1, classes) / classes)).astype(float)
    return lgb.train(params, lgb.Dataset(X, y, categorical_feature=[1, 2]), trees)
