"The models that `serving.py` serves beside the one of its first rows: trained here, without a pipeline around them."
from typing import NamedTuple

import lightgbm as lgb
import numpy as np
import polars as pl

from mlops_nb.bundle.bundle import write_bundle
from mlops_nb.config.params import EncoderParams, PolicyRule
from mlops_nb.config.schema import Column, Schema
from mlops_nb.model.booster import Booster
from mlops_nb.model.calibrators import IsotonicCalibrator, PlattCalibrator
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import Features
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor

N_ROWS, N_KNOTS = 6000, 60
OBJECTIVES = {"binary": {"objective": "binary"}, "five classes": {"objective": "multiclass", "num_class": 5},
              "regression": {"objective": "regression"}, "Poisson": {"objective": "poisson"}}


class Trees(NamedTuple):
    "What is trained."
    objective: str = "binary" # a key of `OBJECTIVES`
    trees: int = 300 # of all classes together
    columns: int = 28 # numbers

    def __str__(self): return f"{self.trees:,} trees, {self.columns} columns, {self.objective}"


class Case(NamedTuple):
    "One row of the table."
    model: Trees = Trees()
    calibration: str = "" # Platt, isotonic
    rules: bool = False
    cache: bool = False
    form: str = "matrix" # columns: one tensor a column; objects: JSON objects

    def __str__(self):
        forms = {"columns": "one tensor a column", "objects": "JSON objects"}
        changes = [self.calibration, "rules" * self.rules, "cache" * self.cache, forms.get(self.form, "")]
        return ", ".join(filter(None, [str(self.model), *changes]))


CASES = [Case(), Case(calibration="Platt"), Case(calibration="isotonic"), Case(rules=True), Case(cache=True),
         Case(form="columns"), Case(form="objects"), Case(Trees(trees=100)), Case(Trees(trees=1000)),
         Case(Trees(trees=3000)), Case(Trees(columns=10)), Case(Trees(columns=200)), Case(Trees("five classes")),
         Case(Trees("regression")), Case(Trees("Poisson"))]


class Trained(NamedTuple):
    "A model with what its bundle needs."
    schema: Schema
    encoder: Encoder
    text: str
    frame: pl.DataFrame


def _target(objective, z, rng):
    "What is predicted, from a sum with noise: as the schema writes it and as LightGBM takes it; and the classes."
    if objective == "regression": return z, z, None
    if objective == "Poisson": return (n := rng.poisson(np.exp(z / 4)).astype(float)), n, None
    codes = (z > 0).astype(int) if objective == "binary" else np.digitize(z, [-2, -0.7, 0.7, 2])
    classes = [f"k{i}" for i in range(codes.max() + 1)]
    return np.array(classes)[codes], codes.astype(float), classes


def train(model):
    "Trees of 31 leaves on numbers."
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N_ROWS, model.columns)).round(4)
    written, y, classes = _target(model.objective, X[:, :5].sum(1) + X[:, 5] * X[:, 6] + rng.normal(size=N_ROWS), rng)
    names = [f"c{i:03}" for i in range(model.columns)]
    frame = pl.DataFrame({**dict(zip(names, X.T, strict=True)), "event": written})
    task = {"binary": "binary", "five classes": "multiclass"}.get(model.objective, "regression")
    event = Column("category", domain=classes) if classes else Column("number")
    schema = Schema("rows", task, "event", classes=classes, columns={**{c: Column("number") for c in names},
                                                                     "event": event})
    encoder = Encoder.fit(frame, schema, None, EncoderParams())
    params = dict(num_leaves=31, learning_rate=0.02, verbosity=-1, seed=0, **OBJECTIVES[model.objective])
    data = lgb.Dataset(encoder.transform(frame), y)
    trees = lgb.train(params, data, model.trees // params.get("num_class", 1))
    return Trained(schema, encoder, trees.model_to_string(), frame)


def pack(folder, trained, case):
    "Write the bundle of a case."
    rising = np.sort(np.random.default_rng(1).random((2, N_KNOTS)), axis=1)
    x, y = [0.0, *rising[0].tolist(), 1.0], [1e-6, *rising[1].tolist(), 1 - 1e-6]
    calibrator = {"Platt": PlattCalibrator(1.1, -0.05), "isotonic": IsotonicCalibrator(x, y)}
    rules = [PolicyRule(when={"c000": [2.5, None]}, review=True), PolicyRule(when={"c001": [2, None]}, max_score=0.9)]
    schema = trained.schema
    policy = Policy(schema.task, schema.classes, 0.3 if schema.task == "binary" else None,
                    calibrator=calibrator.get(case.calibration), rules=rules if case.rules else [])
    predictor = Predictor(schema, Features({}, {}, {}), trained.encoder, Booster(trained.text), policy)
    write_bundle(folder, predictor, "model.txt", trained.text.encode(), trained.frame, "# A model",
                 dict(metrics={}, provenance={}, baseline={}))
