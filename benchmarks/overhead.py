"Pipeline overhead against plain LightGBM."
import json
import shutil
import statistics
import subprocess
import sys
import time

from common import (
    ENV,
    HERE,
    TAXI,
    THREADS,
    quick,
    report,
    row,
    run,
    stage_records,
    stage_seconds,
    taxi_project,
    workplace,
)


def bare(tmp, months, same):
    clock = time.perf_counter()
    command = [sys.executable, HERE / "bare_lightgbm.py", TAXI, months, str(THREADS), same]
    done = subprocess.run(command, cwd=tmp, env=ENV, capture_output=True, text=True)
    if done.returncode: raise SystemExit(f"bare_lightgbm.py ended with {done.returncode}: {done.stderr[-2000:]}")
    return time.perf_counter() - clock, json.loads(done.stdout)


def pipeline(tmp, i):
    "Seconds of all stages but `explain` and `report`; and what was found."
    project = tmp / f"run{i}"
    shutil.copytree(tmp / "taxi", project, symlinks=True)
    whole, stages = run("dvc", "repro", "deploy", cwd=project), stage_seconds(project)
    started = {r["stage"]: r["started"] for r in stage_records(project)}
    explaining = started["bundle"] - started["explain"]
    training = json.loads((project / "artifacts/models/gbdt/training.json").read_text())
    dataset = json.loads((project / "artifacts/prepared/dataset.json").read_text())
    test = json.loads((project / "artifacts/metrics.json").read_text())["test"]
    shutil.rmtree(project)
    return whole - explaining, whole, stages, dict(rows=dataset["used"], trees=training["best_iteration"],
                                                   rmse=test["rmse"])


def main():
    times, months = (1, "2021-0[12]") if quick() else (3, "*")
    if not TAXI.exists(): return report([], [f"The taxi trips are not at ../shared/data/{TAXI.name}: not measured."])
    with workplace() as tmp:
        taxi_project(tmp / "taxi", months)
        turns = [(pipeline(tmp, i), bare(tmp, months, "same"), bare(tmp, months, "defaults")) for i in range(times)]
    ours, theirs, default = (statistics.median(turn[i][0] for turn in turns) for i in range(3))
    (_, whole, stages, found), (_, plain), _ = turns[-1]
    each = ", ".join(f"{name} {s:.1f}" for name, s in stages.items())
    report([
        row("pipeline on all taxi months, without SHAP and reports", f"{ours:.1f} s", "bare LightGBM script",
            f"{theirs:.1f} s",
            f"{ours / theirs:.2f}×", "≤ 1.5×", ours / theirs <= 1.5),
        row("… the same", f"{ours:.1f} s", "the script, LightGBM choosing how to build histograms",
            f"{default:.1f} s", f"{ours / default:.2f}×"),
    ], [
        "Overhead: the wall time of `dvc repro deploy` (every stage but report, DVC's own time included) less the time "
        "from the start of "
        "the stage explain to the start of the next. The peer is benchmarks/bare_lightgbm.py in a process of its own: "
        "read the Parquet "
        "files, the same calendar features, split, parameters and threads, early stopping, prediction, two metrics. "
        "Same parameters includes `deterministic` and `force_col_wise`: with them a model does not depend on the "
        "number of threads; "
        "left to itself LightGBM is faster here, and the second row shows by how much. "
        f"Median of {times}, in turns; the project is made by `mlops-nb init` before the clock starts.",
        f"The last pipeline took {whole:.1f} s in all, of which {each}. It used {found['rows']:,} rows and kept "
        f"{found['trees']} trees, "
        f"RMSE {found['rmse']:.3f} min; the script {plain['rows']:,} rows and {plain['trees']} trees, RMSE "
        f"{plain['rmse']:.3f} min."])


if __name__ == "__main__": main()
