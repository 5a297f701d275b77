"A small problem for nets, and a net that is small enough for it."
import numpy as np

from mlops_nb.config.params import NetParams
from mlops_nb.train.dataset import TrainingPart

SMALL = NetParams(ensemble_size=4, d_hidden=24, n_blocks=2, d_embedding=8, n_bins=8, max_epochs=4, patience=4,
                  batch_size=64, dropout=0.2)


def problem(task="binary", n=600, seed=0):
    rng = np.random.default_rng(seed)
    X = np.column_stack([rng.normal(size=n), rng.lognormal(size=n), rng.integers(0, 5, n)])
    X[rng.random((n, 3)) < 0.1] = np.nan
    signal_ = np.nan_to_num(X[:, 0]) + (X[:, 2] == 3) + 0.3 * rng.normal(size=n)
    y = signal_ * 1000 + 5e6 if task == "regression" else np.digitize(signal_, [0.3] if task == "binary"
                                                                      else [-0.3, 0.7]).astype(float)
    return TrainingPart(X[: n * 2 // 3], y[: n * 2 // 3]), TrainingPart(X[n * 2 // 3:], y[n * 2 // 3:])
