"A small project of each task, as the stages before evaluate leave it: rows in three splits, trees and a baseline."
import lightgbm as lgb
import numpy as np
import polars as pl

from mlops_nb.config.params import EncoderParams, EvaluateParams, ExplainParams, Params, write_params
from mlops_nb.config.schema import Column, Schema, write_schema
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features

TASKS = ["binary", "multiclass", "regression"]
CLASSES = {"binary": ["stays", "leaves"], "multiclass": ["low", "mid", "high"], "regression": None}
FEATURES = """import mlops_nb.model.features as fx

@fx.feature
def paid_so_far(tenure, charge):
    "Charges times months"
    return tenure * charge
"""


def small_schema(task):
    return Schema(
        "subscribers",
        task,
        target="outcome",
        classes=CLASSES[task],
        segments=["plan", "tenure"],
        columns=dict(
            plan=Column("category"),
            tenure=Column("integer"),
            charge=Column("number", nullable=True),
            since=Column("timestamp"),
            outcome=Column("number"),
        ),
    )


def small_rows(task, n, source, seed):
    rng = np.random.default_rng(seed)
    plan, tenure = rng.choice(["basic", "family", "plus"], n), rng.integers(0, 72, n)
    charge = np.where(rng.random(n) < 0.1, np.nan, rng.normal(60, 20, n))
    z = 1 - tenure / 18 + 1.5 * (plan == "plus") + 0.02 * np.nan_to_num(charge)
    p = 1 / (1 + np.exp(-z))
    y = {"binary": rng.random(n) < p, "multiclass": (rng.random(n) < p).astype(int) + (rng.random(n) < p),
         "regression": z + rng.normal(0, 1, n)}[task].astype(float)
    return pl.DataFrame(dict(plan=plan, tenure=tenure, charge=pl.Series(charge, nan_to_null=True), outcome=y, _target=y,
                             paid_so_far=tenure * charge, _source=source, _row=np.arange(n), p=p)).with_columns(
        since=pl.datetime(2026, 1, 1) + pl.duration(days="_row"))


def small_project(root, task, sizes=(1500, 800, 900), rounds=30, **options):
    "A project as the stages before evaluate leave it."
    schema = small_schema(task)
    parts = {
        p: small_rows(task, n, f"{p}.csv", i)
        for i, (p, n) in enumerate(zip(("train", "valid", "test"), sizes, strict=True))
    }
    for folder in ("artifacts/prepared", "artifacts/models/gbdt", "artifacts/models/baseline"):
        (root / folder).mkdir(parents=True)
    params = Params(evaluate=EvaluateParams(n_resamples=40), explain=ExplainParams(max_rows=300))
    params.prepare.features_file = "features.py"
    (root / "features.py").write_text(FEATURES)
    write_params(params, root / "params.yaml")
    write_schema(schema, root / "schema.yaml")
    for part, frame in parts.items(): frame.drop("p").write_parquet(root / f"artifacts/prepared/{part}.parquet")
    encoder = Encoder.fit(parts["train"], schema, load_features(root / "features.py"), EncoderParams())
    (root / "artifacts/models/gbdt/encoder.json").write_bytes(encoder.to_json())
    objective = (
        dict(objective=task, num_class=3 if task == "multiclass" else 1, num_leaves=6, verbosity=-1, num_threads=1)
        | options
    )
    data = lgb.Dataset(
        encoder.transform(parts["train"]), parts["train"]["_target"].to_numpy(), categorical_feature=encoder.categorical
    )
    lgb.train(objective, data, rounds).save_model(root / "artifacts/models/gbdt/model.txt")
    write_baseline(root, task, parts)
    return root


def write_baseline(root, task, parts):
    y = parts["train"]["_target"].to_numpy()
    shares = np.bincount(y.astype(int), minlength=3) / len(y) if task == "multiclass" else y.mean()
    scores = [
        f.select("_source", "_row", split=pl.lit(p), constant=pl.Series([shares] * len(f)))
        for p, f in parts.items()
        if p != "train"
    ]
    pl.concat(scores).write_parquet(root / "artifacts/models/baseline/scores.parquet")
