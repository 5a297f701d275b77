"New projects made by `mlops-nb init`, and what must hold in each after `dvc repro`."
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import lightgbm as lgb
import numpy as np
import polars as pl
from fastcore.nbio import mk_cell, new_nb, write_nb

from mlops_nb.config.schema import read_schema
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.ingest import read_raw_batches, scan_data
from mlops_nb.data.prepare import DatasetInfo
from mlops_nb.model.predictor import Predictor
from mlops_nb.pipeline import STAGES, run_stage
from mlops_nb.stats.monitoring_baseline import MonitoringBaseline
from support.shop_project import nb_inside
from support.tracking_store import ready_store

BIN = Path(sys.executable).parent
ENV = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "OMP_WAIT_POLICY": "passive",
       "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true",
       "MLOPS_NB_RUN_THREADS": "1"} # projects are made beside one another


def run(*command, cwd, rc=0):
    "Run a command as a person would; its output, both streams in one."
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          text=True,
                          timeout=500)
    assert rc is None or done.returncode == rc, f"{command} ended with {done.returncode}:\n{done.stdout[-3000:]}"
    return done.stdout if rc is not None else done


def new_project(root, data, target, *options):
    "`mlops-nb init`, and a store of MLflow that is ready."
    run("mlops-nb", "init", root, "--data", data, "--target", target, *options, cwd=root.parent)
    return ready_store(root)


def stub_pages(root, *names):
    "Empty pages of a project in place of those that a test is not about: a real one takes some seconds."
    stub = new_nb([mk_cell("root = '.'\nprevious = ''", metadata={"tags": ["parameters"]})])
    for name in names: write_nb(stub, root / f"nbs/reports/{name}.ipynb")


def run_stages(root, last, first="features", learner="gbdt"):
    """What `dvc repro` would run, in this process, which imports once what each stage would for itself. That both leave
    the same files is in end_to_end/test_shapes.py."""
    names = list(STAGES)
    for name in names[names.index(first):names.index(last) + 1]:
        run_stage(name, root, learner if STAGES[name].matrix else None)


def ran(output): return re.findall(r"Running stage '([^']+)'", output)


def files(path):
    "sha256 of a file, or of every file below a folder."
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found if p.is_file()}


# ---- what must hold in every project


def check_counts(root):
    v = read_json(root / "artifacts/validation.json", dict)
    rows = {"accepted": root / "artifacts/accepted", "quarantined": root / "quarantine"}
    for name, folder in rows.items():
        assert v[name] == sum(pl.read_parquet(f, glob=False).height for f in folder.glob("*.parquet"))
    assert v["accepted"] + v["quarantined"] == v["received"] == scan_data(root).select(pl.len()).collect().item() > 0
    return v


def check_release(root, gate):
    "Deployed if, and only if, the gate was passed; `gate check` says the same."
    deployment = read_json(root / "artifacts/deployment.json", dict)
    stored = [p.name for p in (root / "bundles").glob("*") if p.name != "released"]
    plans = list((root / "releases").glob("*.json")) if (root / "releases").exists() else []
    assert deployment["deployed"] == gate["passed"] and deployment["bundle"] == gate["bundle"]
    assert (stored, len(plans)) == (([gate["bundle"]], 1) if gate["passed"] else ([], 0))
    if plans: assert read_json(plans[0], dict)["variants"][0]["bundle"] == gate["bundle"]
    said = nb_inside("gate", "check", cwd=root)
    assert said.returncode == (not gate["passed"]) and gate["message"] in said.stdout + said.stderr


def check_parity(root, place):
    "The bundle at `place` gives the raw test rows, as they were delivered, the very scores that were evaluated."
    predictor, keys, seen = Predictor.open(place), ["_source", "_row"], 0
    p = predictions(root)
    for _, frame in read_raw_batches(root):
        rows = frame.join(p.select(*keys, "^score.*$"), on=keys, how="inner")
        scores, seen = predictor.predict(rows), seen + len(rows)
        assert np.array_equal(scores, rows.select("^score.*$").to_numpy().reshape(scores.shape))
    assert seen == len(p) > 0


def check_baseline(root, place):
    "The bundle at `place` knows how its training rows, its scores and its errors were distributed."
    b, schema = read_json(place / "baseline.json", MonitoringBaseline), read_schema(root / "schema.yaml")
    train, valid = (pl.read_parquet(root / f"artifacts/prepared/{s}.parquet", glob=False) for s in ("train", "valid"))
    features = read_json(root / "artifacts/prepared/dataset.json", DatasetInfo).features
    assert {*features, *schema.feature_columns, schema.target} <= b.data.columns.keys()
    assert all(sum(h.counts) == len(train) for h in b.data.columns.values())
    scores = predictions(root).select("^score.*$")
    for name, bins in b.calibration.items():
        assert bins.rows == np.histogram(scores[name], [-np.inf, *b.scores[name].edges, np.inf])[0].tolist()
        assert sum(b.scores[name].counts) == len(valid)
    assert b.calibration.keys() == {*scores.columns} and {s.segment.column for s in b.segments} <= {*schema.segments}
    assert (place / "baseline.json").stat().st_size < 250_000 + 1_000 * len(b.data.columns)


def check_pages(root, gate, output):
    "Four pages that need nothing else, and a last line that is true."
    folder = root / "reports/pipeline" / gate["bundle"][:12]
    pages = [folder / f"{n}.html"
             for n in ("data", "evaluation", "explanation", "model_card")] + [root / "reports/index.html"]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert text.count("<script") <= (page.stem == "evaluation") and "<script src" not in text # moves the threshold
        assert "Traceback" not in text and "default-src 'none'" in text
        loads = re.findall(r"<(?:img|link|source|video|audio|iframe|embed|object|use)\b[^>]*?\b"
                           r"(?:src|href|data)=[\"']?([^\"' >]*)", text)
        assert all(u.startswith(("data:", "#")) for u in loads) and not re.search(r"@import|url\(\s*['\"]?https?:",
                                                                                  text), (page, loads)
    for link in re.findall(r'href="([^"#]*)"', (root / "reports/index.html").read_text(encoding="utf-8")):
        if link == "data:," or link.startswith("https://"): continue # the empty icon; commit and CI run
        assert (root / "reports" / link).exists(), link
    last = [x for x in output.splitlines() if x.startswith("The gate ")][-1]
    start = "The gate passed. " if gate["passed"] else "The gate failed. Nothing was deployed: "
    assert last.startswith(start) and gate["message"] in last and (root / last.rsplit("Look at ", 1)[1]).exists()
    lines = output.splitlines() # after it come only DVC's own remarks
    assert not any(x.startswith("> mlops-nb") or "error" in x.lower() for x in lines[lines.index(last) + 1:])


def check_project(root, output, pages=True):
    "All of it, the pages only where they were made; gives the gate's verdict."
    gate = read_json(root / "artifacts/gate.json", dict)
    assert gate["passed"] == all(r["passed"] for r in gate["results"])
    check_counts(root)
    check_release(root, gate)
    place = root / "bundles" / gate["bundle"] if gate["passed"] else root / "artifacts/bundle"
    check_parity(root, place)
    check_baseline(root, place)
    if pages: check_pages(root, gate, output)
    return gate


def check_rest(root):
    "There is nothing to do after a run, though it deployed a model; only the release plan is looked at again."
    before = (root / "dvc.lock").read_bytes()
    assert ran(run("dvc", "repro", cwd=root)) == ["deploy"]
    assert (root / "dvc.lock").read_bytes() == before
    assert run("dvc", "status", cwd=root).split() == ["deploy:", "always", "changed"]


# ---- against plain LightGBM


def predictions(root, part="test"):
    return pl.read_parquet(root / "artifacts/evaluation/predictions.parquet",
                           glob=False).filter(pl.col("split") == part)


def plain(X, y, test, order=None, objective="regression"):
    """The reference: LightGBM with learning rate 0.05, stopped after 50 rounds without gain on the last fifth of the
    training rows.

    `X`: (n, k) with categories as Categorical; `test`: (n,) bool; `order`: (n,) the training rows' order, None for a
    random one.
    """
    categories = [i for i, t in enumerate(X.dtypes) if t == pl.Categorical]
    M = X.with_columns(pl.col(pl.Categorical).to_physical()).cast(pl.Float64).fill_null(np.nan).to_numpy()
    rest = np.flatnonzero(~test)
    rest = np.random.default_rng(0).permutation(rest) if order is None else rest[np.argsort(order[rest], kind="stable")]
    train, valid = np.split(rest, [int(.8 * len(rest))])
    data = lgb.Dataset(M[train], y[train], categorical_feature=categories)
    params = dict(objective=objective, learning_rate=.05, num_leaves=31, verbose=-1, num_threads=1, deterministic=True)
    model = lgb.train(params, data, 2000, valid_sets=[data.create_valid(M[valid], y[valid])],
                      callbacks=[lgb.early_stopping(50, verbose=False)])
    return model.predict(M[test], num_iteration=model.best_iteration)


def rmse(y, p): return float(np.sqrt(np.mean((y - p) ** 2)))


def auc(y, p):
    _, inverse, counts = np.unique(p, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n = y.sum()
    return float((rank[y == 1].sum() - n * (n + 1) / 2) / (n * (len(y) - n)))


def surely_worse_by(metric, y, ours, theirs, resamples=200):
    """How much worse `ours` surely is: the low end of the 95 % interval of a paired bootstrap over the rows, in units
    of the metric.

    Negative, where being as good as `theirs` is compatible with the rows. `metric`: `rmse` (lower is better) or `auc`
    (higher is).
    """
    rng, sign = np.random.default_rng(0), 1 if metric is rmse else -1
    draws = (rng.integers(0, len(y), len(y)) for _ in range(resamples))
    return float(np.quantile([sign * (metric(y[i], ours[i]) - metric(y[i], theirs[i])) for i in draws], .025))
