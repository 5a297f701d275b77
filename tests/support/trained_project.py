"A small trained project of each task, for the tests of what comes after training."
import os

import numpy as np
import polars as pl

from mlops_nb.config.params import NetParams, Params, PrepareParams, SplitParams, read_params, write_params
from mlops_nb.config.schema import Column, Schema, write_schema
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.data.prepare import run_prepare
from mlops_nb.train.stage import open_trained_predictor, run_train

os.environ.setdefault("MLOPS_NB_RUN_THREADS", "1") # several trainings at once on few cores wait for each other

CLASSES = {"binary": ["no", "yes"], "multiclass": ["bus", "car", "feet, or bike"], "regression": None}

FEATURES = '''import numpy as np

import mlops_nb.model.features as fx


@fx.feature
def ratio(x, count): return x / count


@fx.feature(type="category")
def weekday(when):
    days = when.astype("datetime64[D]").astype(int)
    return np.where(np.isnat(when), None, np.array(list("abcdefg"))[days % 7])
'''


def rows(n=900, seed=0, task="binary"):
    "Rows of the contract: numbers, whole numbers, categories, booleans, a timestamp, a text; with missing values."
    rng = np.random.default_rng(seed)

    def holes(values):
        return pl.Series(values).to_frame().select(pl.when(pl.Series(rng.random(n) > .1)).then(pl.first())).to_series()
    x, count, place = rng.normal(size=n), rng.integers(0, 50, n), rng.choice(["Amsterdam", "Örebro", "a | b", "東京",
                                                                              "?"], n)
    raw = x + (place == "Örebro") + count / 25 + rng.normal(size=n)
    k = len(CLASSES[task] or [])
    target = (raw if task == "regression"
              else np.array(CLASSES[task])[np.digitize(raw, np.quantile(raw, np.arange(1, k) / k))])
    return pl.DataFrame({"id": [f"r{i}" for i in range(n)], "x": holes(x), "count": count, "place": holes(place),
                         "known": rng.random(n) < .5,
                         "when": holes(np.datetime64("2026-01-01T00:00:00", "us")
                                       + rng.integers(0, 200, n).astype("timedelta64[h]")),
                         "note": ["free text"] * n, "y": target})


def schema(task):
    return Schema("rows", task, "y", classes=CLASSES[task], entity="id", segments=["known"], missing_values=["?"],
                  columns={
        "id": Column("text", feature=False), "x": Column("number", nullable=True, range=(-10, 10)),
        "count": Column("integer", range=(0, 50)), "place": Column("category", nullable=True),
        "known": Column("boolean"), "when": Column("timestamp", nullable=True),
        "note": Column("text", feature=False),
        "y": Column("number" if task == "regression" else "category", doc="what is asked")})


def trained(root, task="binary", features=True, n=900, learner="gbdt", counts=False):
    """A project that has been prepared and trained; with `counts` the values of a regression are whole and not
    negative, and trees count."""
    root.mkdir(parents=True, exist_ok=True)
    write_schema(schema(task), root / "schema.yaml")
    (root / "features.py").write_text(FEATURES, encoding="utf-8")
    params = Params(prepare=PrepareParams(features_file="features.py" if features else None,
                                          split=SplitParams(method="random")))
    params.train.gbdt.n_estimators, params.train.gbdt.num_leaves = 20, 7
    params.train.net = NetParams(ensemble_size=4, d_hidden=24, d_embedding=8, n_bins=8, max_epochs=6, batch_size=64,
                                 learning_rate=0.01)
    params.train.learners = [learner]
    (root / "artifacts/accepted").mkdir(parents=True, exist_ok=True)
    known = rows(n, task=task)
    if counts: known, params.train.gbdt.objective = known.with_columns(pl.col("y").exp().floor()), "poisson"
    accepted = known.with_columns(pl.col("place").replace({"?": None}), _source=pl.lit("rows.csv"),
                                  _row=pl.int_range(n))
    accepted.write_parquet(root / "artifacts/accepted/part-0.parquet")
    write_params(params, root / "params.yaml")
    run_prepare(root)
    run_train(root, learner)
    return root


def judged(root, task="binary"):
    "What evaluation and explanation leave behind, as far as a bundle needs it."
    art, binary = root / "artifacts", task == "binary"
    figure, learner = {"value": .8, "low": .7, "high": .9}, read_params(root / "params.yaml").train.learners[0]
    write_json(art / "evaluation/policy.json",
               {"task": task, "classes": CLASSES[task], "threshold": .37 if binary else None,
                                                "costs": {"false_positive": 1.0} if binary else {}})
    write_json(art / "evaluation/evaluation.json", {"learner": learner, "primary_metric": "m",
                                                    "metrics": {"test": {"m": figure}, "valid": {"m": figure}},
                                                    "better": "higher", "confidence": .95})
    predictor = open_trained_predictor(root, learner)
    names, scored = predictor.score_columns, []
    for split in ("valid", "test"):
        frame = pl.read_parquet(art / f"prepared/{split}.parquet")
        scored.append(frame.select("_source", "_row").hstack(pl.DataFrame(
            predictor.predict(frame).reshape(len(frame), -1), names)).with_columns(split=pl.lit(split)))
    pl.concat(scored).write_parquet(art / "evaluation/predictions.parquet")
    write_json(art / "metrics.json", {"test": {"m": .8}, "valid": {"m": .8}})
    write_json(art / "explanation/attribution_baseline.json", {"n_rows": 10, "features": []})
    return root
