"TreeSHAP against shap and LightGBM."
import numpy as np
from common import THREADS, alternating, quick, report, row, seconds

from mlops_nb.model.booster import Booster


def model(rows, trees, columns=28):
    "LightGBM on made-up numbers with gaps and interactions, and the rows."
    import lightgbm
    rng = np.random.default_rng(0)
    X = rng.normal(size=(rows, columns))
    X[rng.random(X.shape) < .05] = np.nan
    z = np.nan_to_num(X)
    y = z[:, 0] + z[:, 1] * z[:, 2] + np.sin(2 * z[:, 3]) + .3 * z[:, 4] ** 2 + rng.normal(size=rows)
    params = dict(objective="regression", num_leaves=31, learning_rate=.05, num_threads=THREADS, verbosity=-1)
    return lightgbm.train(params, lightgbm.Dataset(X, y), trees), X


def main():
    import shap
    n, trees, times = (2_000, 60, 1) if quick() else (20_000, 300, 3)
    theirs, X = model(n, trees)
    booster, explainer, found = Booster(theirs.model_to_string()), shap.TreeExplainer(theirs), {}

    def ours(): found["ours"] = booster.contributions(X)
    def shapley(): found["shap"] = explainer.shap_values(X)
    def lightgbm(): found["lightgbm"] = theirs.predict(X, pred_contrib=True, num_threads=THREADS)
    a, b, c = alternating(times, *(lambda f=f: seconds(f) for f in (ours, shapley, lightgbm)))
    apart = np.abs(found["ours"][:, :-1] - found["shap"]).max()
    raw = booster.predict_raw(X)
    sums = (np.abs(found["ours"].sum(1) - raw) / np.maximum(1, np.abs(raw))).max()
    report([
        row(f"TreeSHAP of {n:,} rows, {trees} trees", f"{n / a:,.0f} rows/s", "`shap.TreeExplainer`",
            f"{n / b:,.0f} rows/s",
            f"{b / a:.1f}×", "≥ 5×", bool(b / a >= 5)),
        row("… the largest difference between the two", f"{apart:.1g}", bound="≤ 1e-4", met=bool(apart <= 1e-4)),
        row("… how far they are from adding up to the raw score", f"{sums:.1g}", bound="≤ 1e-6",
            met=bool(sums <= 1e-6)),
        row("… the same", f"{n / a:,.0f} rows/s", f"LightGBM's `pred_contrib`, {THREADS} threads",
            f"{n / c:,.0f} rows/s", f"{c / a:.1f}×"),
    ], [f"TreeSHAP: LightGBM with {trees} trees of 31 leaves on {X.shape[1]} columns of numbers, 5 % of them missing. "
        f"`Booster.contributions` and shap each use one thread; median of {times}, in turns. Reading the trees from "
        "the model's text is "
        "part of our figure, and making the explainer no part of shap's. The distance from the raw score is relative "
        "where it is above 1."])


if __name__ == "__main__": main()
