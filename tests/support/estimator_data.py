"Rows with missing values and targets of each task, for tests of what an estimator says by itself and when exported."
import numpy as np

from mlops_nb.train.onnx_conversion import ModelInterface

rng = np.random.default_rng(0)
FULL = rng.normal(size=(400, 3))
LOGIT = 2 * FULL[:, 0] + FULL[:, 1]**2 - 1 + rng.normal(size=400)
X = np.where(rng.random(FULL.shape) < .1, np.nan, FULL)
TARGETS = dict(binary=(LOGIT > 0).astype(int), multiclass=np.digitize(LOGIT, [-1, 1]), regression=LOGIT)
N_CLASSES = dict(binary=2, multiclass=3, regression=0)


def interface(task): return ModelInterface(task, ["a", "b", "c"], N_CLASSES[task])
