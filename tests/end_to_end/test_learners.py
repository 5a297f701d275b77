"""`dvc repro` with learners, trials of each and an ensemble of them, on the example project of this repository: what is
chosen, why, and what people see of it."""
import json
import subprocess
from pathlib import Path

import pytest
from support.project_checks import ran, run, stub_pages
from support.tracking_store import ready_store

from mlops_nb.bundle.bundle import open_bundle
from mlops_nb.config.params import NetParams, NetSearchSpace, read_params, write_params
from mlops_nb.evaluate.stage import read_evaluation
from mlops_nb.train.tuning import read_tuning_results

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# seconds, not minutes, on a CPU
NET = NetParams(ensemble_size=2, d_hidden=32, max_epochs=3, batch_size=2048, learning_rate=0.01, d_embedding=4,
                n_bins=8)
SPACE = NetSearchSpace(d_hidden=[16, 32], d_embedding=[2, 6], n_bins=[4, 12], n_blocks=[1, 2],
                       learning_rate=[0.003, 0.02, "log"])


def churn(to):
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, files):
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        (to / name).write_bytes((ROOT / name).read_bytes())
    run("git", "init", "-q", cwd=to)
    p = read_params(to / "params.yaml")
    p.simulate.n_subscribers = 500
    write_params(p, to / "params.yaml")
    run("mlops-nb", "simulate", cwd=to)
    return ready_store(to)


def test_learners_and_an_ensemble_from_raw_data_to_the_report(tmp_path):
    root, trials = churn(tmp_path / "project"), 3
    p = read_params(root / "params.yaml")
    p.train.learners, p.train.net, p.train.gbdt.n_estimators = ["gbdt", "net", "ensemble"], NET, 100
    p.train.refit, p.train.n_folds, p.tune.n_trials, p.tune.net = True, 2, trials, SPACE
    p.cross_validation.n_folds = p.cross_validation.n_seeds = 0
    p.evaluate.n_resamples, p.explain.max_rows = 100, 200
    write_params(p, root / "params.yaml")
    stub_pages(root, "data", "explanation")
    stages = ran(run("dvc", "repro", cwd=root))
    assert stages.index("tune") < stages.index("train@gbdt") and "train@net" in stages and stages[-1] == "report"
    tuned = read_tuning_results(root)
    assert {name: t.complete + t.pruned for name, t in tuned.items()} == {"gbdt": trials, "net": trials}
    assert all(t.best_loss <= t.untuned_loss for t in tuned.values())
    e = read_evaluation(root)
    valid = {c.learner: c.metrics["valid"][e.primary_metric].value for c in e.candidates}
    assert e.learner == max(valid, key=valid.get) and len(valid) == 3
    provenance = json.loads((root / "artifacts/bundle/provenance.json").read_text())
    assert provenance["training"]["learner"] == e.learner
    page = (root / "reports/pipeline" / open_bundle(root / "artifacts/bundle").id[:12] / "evaluation.html").read_text()
    for said in ("Model selection", f"{e.learner} was the best of 3 learners", "Hyperparameter tuning", "gbdt: ",
                 "net: ", "The best parameters", "out-of-fold, 2 folds"):
        assert said in page, said
    assert ran(run("dvc", "repro", cwd=root)) == ["deploy"]

    other = p.train.model_selection = next(name for name in ("ensemble", "gbdt") if name != e.learner)
    write_params(p, root / "params.yaml")
    again = ran(run("dvc", "repro", "gate", cwd=root))
    assert not [s for s in again if s.startswith("train")], "another choice trains nothing again"
    assert all(t.complete + t.pruned == trials for t in read_tuning_results(root).values())
    e = read_evaluation(root)
    assert (e.learner, e.n_folds) == (other, 2)
    report = json.loads((root / f"artifacts/models/{other}/training.json").read_text())
    assert report["n_folds"] == 2 and report["refit_rows"] > e.score_summary["valid"].n_rows, "windows"
    gate = json.loads((root / "artifacts/gate.json").read_text())
    assert {"leaks", "split: repeated rows", "scores: finite"} <= {r["name"] for r in gate["results"]}
    assert open_bundle(root / "artifacts/bundle").id == gate["bundle"]
    assert "out-of-fold: 2 folds" in (root / "artifacts/bundle/card.md").read_text()
