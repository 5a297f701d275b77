"Model quality."
import json

import numpy as np
import polars as pl
from common import ROOT, fewer_subscribers, fresh_copy, quick, report, row, run, workplace

from mlops_nb.config.params import NetParams, read_params, write_params

DATA = ROOT.parent / "shared" / "data"
ADULT = (f"{DATA}/adult/adult.[dt]*", "--target", "rtrim(outcome, '.')", "--test-files", "adult.test")
BIKE = (f"{DATA}/bike_sharing/hour.csv", "--target", "cnt", "--time", "dteday", "--exclude",
        "casual,registered,instant")
NET = NetParams(ensemble_size=8, d_hidden=256, max_epochs=8) # a TabM that two cores train in minutes


def project(to, data, *options):
    "A prepared project."
    run("mlops-nb", "init", to, "--data", data, *options, cwd=to.parent)
    for stage in ("validate", "prepare"): run("mlops-nb", "stage", stage, cwd=to)
    return to


def trained(root, learner="gbdt", trials=0, net=NET):
    "Scores and targets of the test rows, after tuning and training."
    from mlops_nb.train.stage import open_trained_predictor
    p = read_params(root / "params.yaml")
    p.train.learners, p.tune.n_trials, p.train.net = [learner], trials, net
    write_params(p, root / "params.yaml")
    run("mlops-nb", "stage", "tune", cwd=root)
    run("mlops-nb", "stage", "train", learner, cwd=root)
    test = pl.read_parquet(root / "artifacts/prepared/test.parquet")
    return open_trained_predictor(root, learner).predict(test), test["_target"].to_numpy()


def accuracy(scores, y): return float(((scores >= 0.5) == y).mean())


def rmse(scores, y): return float(np.sqrt(((scores - y) ** 2).mean()))


def adult(to, trials):
    root = project(to, *ADULT)
    plain, tuned, net = (accuracy(*trained(root, **how)) for how in ({}, {"trials": trials}, {"learner": "net"}))
    return [row("Adult, official test file: LightGBM, untuned", f"{plain:.4f}", bound="0.869 to 0.874",
                met=0.869 <= plain <= 0.874),
            row(f"… tuned, {trials} trials", f"{tuned:.4f}", "untuned", f"{plain:.4f}", f"{tuned - plain:+.4f}",
                "≥ untuned",
                tuned >= plain),
            row(f"… TabM, ensemble_size = {NET.ensemble_size}, d_hidden {NET.d_hidden}, {NET.max_epochs} epochs",
                f"{net:.4f}", bound="≥ 0.858", met=net >= 0.858)]


def bike(to, trials):
    root = project(to, *BIKE)
    plain, tuned = (rmse(*trained(root, trials=n)) for n in (0, trials))
    return [row(f"bike by time: RMSE, tuned, {trials} trials", f"{tuned:.1f}", "untuned", f"{plain:.1f}",
                f"{tuned / plain:.3f}×",
                "≤ 0.97×", tuned <= 0.97 * plain)]


def churn(to):
    fresh_copy(to)
    if quick(): fewer_subscribers(to, 600)
    run("mlops-nb", "simulate", cwd=to)
    run("dvc", "repro", "evaluate", cwd=to)
    found = json.loads((to / "artifacts/evaluation/evaluation.json").read_text())
    return [row("simulated churn: log loss above the least possible", f"{found['excess_log_loss']:.4f} nats",
                bound="≤ 0.01 nats",
                met=found["excess_log_loss"] <= 0.01)]


def main():
    trials = 4 if quick() else 50
    with workplace() as tmp: rows = [*adult(tmp / "adult", trials), *bike(tmp / "bike", trials), *churn(tmp / "churn")]
    note = ("Accuracy at 0.5. Tuning uses the validation set only, a fifth of the training rows; one worker, the "
            "search space "
            "of a new project. The bounds for Adult are from the literature (means over 15 seeds: LightGBM 0.8713, "
            "TabM 0.8582).")
    report(rows, [note])


if __name__ == "__main__": main()
