"The peer of `overhead.py`: a plain script that trains LightGBM on the taxi trips. Prints what it found as JSON."
import json
import sys
from pathlib import Path

import lightgbm as lgb
import numpy as np
import polars as pl

LEFT_OUT = ["lpep_pickup_datetime", "lpep_dropoff_datetime", "ehail_fee", "minutes"]


def main(folder, months, threads, same):
    minutes = (pl.col("lpep_dropoff_datetime") - pl.col("lpep_pickup_datetime")).dt.total_seconds() / 60
    clock = pl.col("lpep_pickup_datetime")
    paths = sorted(Path(folder).glob(f"green_tripdata_{months}.parquet"))
    files = [pl.scan_parquet(f).with_columns(pl.col("ehail_fee").cast(pl.Float64)) for f in paths]
    frame = (pl.concat(files,
        how="vertical_relaxed").with_columns(minutes.alias("minutes")).filter(pl.col("minutes").is_between(1, 60))
             .with_columns(clock.dt.hour().alias("hour"), (clock.dt.weekday() - 1).alias("weekday"),
                           clock.dt.month().alias("month"),
                           pl.col("store_and_fwd_flag").cast(pl.Categorical).to_physical())
             .sort("lpep_pickup_datetime", maintain_order=True).collect())
    y, X = frame["minutes"].to_numpy(), frame.drop(LEFT_OUT).cast(pl.Float64).to_numpy()
    test = round(len(y) * .8)
    valid = round(test * .8)
    params = dict(objective="regression", metric="rmse", learning_rate=.05, num_leaves=31, min_data_in_leaf=20,
                  num_threads=int(threads),
                  verbosity=-1)
    if same == "same": params |= dict(deterministic=True, force_col_wise=True) # else the threads matter in the last bit
    flag = [frame.drop(LEFT_OUT).columns.index("store_and_fwd_flag")]
    train = lgb.Dataset(X[:valid], y[:valid], categorical_feature=flag)
    model = lgb.train(params, train, 2000, valid_sets=[lgb.Dataset(X[valid:test], y[valid:test], reference=train)],
                      callbacks=[lgb.early_stopping(50, verbose=False)])
    p = model.predict(X[test:])
    print(json.dumps(dict(rows=len(y), trees=model.best_iteration, rmse=float(np.sqrt(np.mean((p - y[test:]) ** 2))),
                          mae=float(np.abs(p - y[test:]).mean()))))


if __name__ == "__main__": main(*sys.argv[1:])
