"Fit the pipeline of `estimators.py` in a peer's own environment, on the same rows, and pickle it as the peer wants it."
import sys

import joblib
import numpy as np
from pipelines import PIPELINES

rows = np.load("rows.npz")
joblib.dump(PIPELINES[sys.argv[1]]().fit(rows["X"], rows["y"]), "model.joblib")
