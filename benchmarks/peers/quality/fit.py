"Fit a system on rows.parquet within a time, and write what it says of test.parquet: `fit.py SYSTEM TASK SECONDS SEED`."
import json
import sys
import time

import numpy as np
import pandas as pd

system, task, seconds, seed = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
rows, test = (pd.read_parquet(f"{name}.parquet") for name in ("rows", "test"))
for frame in (rows, test):
    for c in frame.columns:
        kind = str(frame[c].dtype)
        if kind.startswith("datetime") and system == "plain LightGBM":
            frame[c] = frame[c].astype("int64") # the others read dates
        elif kind in ("object", "str", "string"): frame[c] = frame[c].astype("category")
for c in rows.columns:
    if str(rows[c].dtype) == "category": test[c] = test[c].astype(pd.CategoricalDtype(rows[c].cat.categories))
X, y = rows.drop(columns="_target"), rows["_target"]


def autogluon(preset):
    from autogluon.tabular import TabularPredictor
    model = TabularPredictor("_target", problem_type=task, eval_metric="roc_auc" if task == "binary" else "rmse",
                             path="autogluon", verbosity=0, learner_kwargs={"random_state": seed}) # 0 by itself
    model.fit(rows, presets=preset, time_limit=seconds, num_cpus=2)
    return (lambda: model.predict_proba(test)[1] if task == "binary" else model.predict(test)), len(model.model_names())


def flaml():
    from flaml import AutoML
    model = AutoML()
    model.fit(X, y, task="classification" if task == "binary" else "regression", time_budget=seconds, seed=seed,
              metric="roc_auc" if task == "binary" else "rmse", verbose=0, n_jobs=2)
    return (lambda: model.predict_proba(test)[:, 1] if task == "binary" else model.predict(test)), 1


def lightgbm():
    import lightgbm as lgb
    kind = lgb.LGBMClassifier if task == "binary" else lgb.LGBMRegressor
    model = kind(n_estimators=200, learning_rate=.05, random_state=seed, n_jobs=2, verbosity=-1).fit(X, y)
    return (lambda: model.predict_proba(test)[:, 1] if task == "binary" else model.predict(test)), 1


SYSTEMS = {"AutoGluon medium": lambda: autogluon("medium_quality"), "AutoGluon best": lambda: autogluon("best_quality"),
           "FLAML": flaml, "plain LightGBM": lightgbm}
test = test.drop(columns="_target")
clock = time.perf_counter()
predict, n_models = SYSTEMS[system]()
fitted = time.perf_counter() - clock
clock = time.perf_counter()
scores = np.asarray(predict(), float)
np.save("scores.npy", scores)
print(json.dumps(dict(seconds=fitted, rows_per_second=len(test) / (time.perf_counter() - clock), models=n_models)))
