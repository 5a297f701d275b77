"Wide tables: thousands of columns."
import sys

import numpy as np
from common import THREADS, quick, report, row, run, stage_seconds, workplace

PEER = """import sys
import lightgbm as lgb
import pandas as pd
rows = pd.read_csv(sys.argv[1])
X, y = rows.drop(columns="y"), rows["y"] == "yes"
for name in X.select_dtypes(exclude="number"): X[name] = X[name].astype("category")
test, valid = rows.index % 5 == 0, rows.index % 5 == 1
train = lgb.Dataset(X[~test & ~valid], y[~test & ~valid])
params = dict(objective="binary", learning_rate=.05, verbosity=-1, num_threads=int(sys.argv[2]))
booster = lgb.train(params, train, 2000, [train.create_valid(X[valid], y[valid])],
                    callbacks=[lgb.early_stopping(50, verbose=False)])
print(((booster.predict(X[test]) > .5) == y[test]).mean())
"""
SHAPES = [(2_500, 400, 5, 60), (500, 10_000, None, None)] # columns, rows, bounds of init and of `dvc repro` in seconds


def write_table(path, n_columns, n_rows):
    "Numbers with and without gaps, whole numbers, flags and a few categories; two columns say something about y."
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n_rows, n_columns))
    colors = np.array(["red", "green", "blue"])
    kinds = [lambda v: np.char.mod("%.4f", v), lambda v: np.char.mod("%.2f", 50 * v),
             lambda v: np.char.mod("%d", 100 * v), lambda v: np.where(v > 0, "1", "0"),
             lambda v: colors[np.digitize(v, [-.5, .5])]]
    columns = [kinds[max(0, j % 10 - 5)](x[:, j]) for j in range(n_columns)]
    for j in range(6, n_columns, 10): columns[j] = np.where(rng.random(n_rows) < .1, "", columns[j])
    y = np.where(x[:, 0] + x[:, 1] + rng.normal(size=n_rows) > 0, "yes", "no")
    names = ",".join([*(f"x{j}" for j in range(n_columns)), "y"])
    lines = (",".join(cells) for cells in zip(*columns, y, strict=True))
    path.write_text("\n".join([names, *lines]) + "\n")


def measure(folder, n_columns, n_rows, bound_init, bound_repro):
    "The rows of one shape, and the stages that took longest."
    folder.mkdir()
    write_table(folder / "wide.csv", n_columns, n_rows)
    (folder / "peer.py").write_text(PEER)
    peer = run(sys.executable, "peer.py", "wide.csv", THREADS, cwd=folder)
    init = run("mlops-nb", "init", "project", "--data", "wide.csv", "--target", "y", cwd=folder)
    repro = run("dvc", "repro", cwd=folder / "project")
    shape, script = f"{n_columns:,} columns × {n_rows:,} rows", "pandas.read_csv and lightgbm.train in a script"
    rows = [row(f"{shape}: {what}", f"{took:.1f} s", script, f"{peer:.1f} s", f"{took / peer:.1f}×",
                f"≤ {bound} s" if bound else "", took <= bound if bound else None)
            for what, took, bound in (("`init`", init, bound_init), ("`dvc repro`", repro, bound_repro))]
    slowest = sorted(stage_seconds(folder / "project").items(), key=lambda item: -item[1])[:5]
    return rows, f"{shape}: the longest stages were " + ", ".join(f"{s} {t:.1f} s" for s, t in slowest) + "."


def main():
    shapes = [(40, 300, None, None)] if quick() else SHAPES
    with workplace() as tmp:
        found = [measure(tmp / f"shape-{i}", *shape) for i, shape in enumerate(shapes)]
    report([r for rows, _ in found for r in rows],
           [*(note for _, note in found),
            "The script reads the file, trains on three fifths of the rows, stops by one and predicts the last; it "
            "infers no schema, checks, explains, bundles and reports nothing."])


if __name__ == "__main__": main()
