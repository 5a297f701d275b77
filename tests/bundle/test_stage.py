"The stage `bundle`: the same inputs give the same bytes, and a stage that has not run is named."
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mlops_nb.bundle.bundle import open_bundle, read_data_baseline
from mlops_nb.bundle.stage import pack_bundle, run_bundle
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.model.predictor import Predictor
from mlops_nb.stats.monitoring_baseline import score_histogram


def test_the_same_project_gives_the_same_bytes_wherever_it_is(project, tmp_path):
    before = {p.name: p.read_bytes() for p in (project / "artifacts/bundle").iterdir()}
    moved = Path(shutil.copytree(project, tmp_path / "elsewhere"))
    run = subprocess.run([sys.executable, "-c",
                          "from mlops_nb.bundle.stage import run_bundle; print(run_bundle('.')['bundle'])"], cwd=moved,
                         capture_output=True, text=True, timeout=120,
                         env={**os.environ, "MLOPS_NB_RUN_THREADS": "3", "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo"})
    assert run.returncode == 0, run.stderr
    assert {p.name: p.read_bytes() for p in (moved / "artifacts/bundle").iterdir()} == before
    assert not [n for n, b in before.items() if str(project).encode() in b], "a path of this machine"


def test_another_parent_is_another_bundle(one):
    first, second = run_bundle(one)["bundle"], run_bundle(one, Path("store") / ("a" * 64))["bundle"]
    assert first != second
    assert read_json(one / "artifacts/bundle/provenance.json", dict)["parent"] == "a" * 64
    assert run_bundle(one)["bundle"] == first


MISSING = {"models/gbdt/model.txt": "train \\(gbdt\\)", "models/gbdt/encoder.json": "train \\(gbdt\\)",
           "evaluation/policy.json": "evaluate",
           "evaluation/evaluation.json": "evaluate", "metrics.json": "evaluate",
           "explanation/attribution_baseline.json": "explain",
           "prepared/train.parquet": "prepare", "prepared/test.parquet": "prepare"}


def test_a_stage_that_has_not_run_is_named(one):
    art = one / "artifacts"
    before = open_bundle(art / "bundle").id
    for name, stage in MISSING.items():
        (art / name).rename(one / "away")
        with pytest.raises(UserError, match=f"run the stage {stage} first"): pack_bundle(one)
        (one / "away").rename(art / name)
        assert open_bundle(art / "bundle").id == before, "a failed run must leave the last bundle"
    assert not [p for p in art.iterdir() if p.name.startswith(".")]


def test_a_full_disk_leaves_the_last_bundle(one, monkeypatch):
    before = open_bundle(one / "artifacts/bundle").id

    def full(*_, **__): raise OSError(28, "No space left on device")
    monkeypatch.setattr("mlops_nb.bundle.bundle.write_manifest", full)
    with pytest.raises(OSError): pack_bundle(one)
    assert open_bundle(one / "artifacts/bundle").id == before
    assert {p.name for p in (one / "artifacts").iterdir() if p.name.startswith((".", "bundle"))} == {"bundle"}


def test_the_baseline_is_that_of_the_training_rows(project):
    train = pl.read_parquet(project / "artifacts/prepared/train.parquet")
    base = read_data_baseline(project / "artifacts/bundle")
    assert base.rows == len(train) and sum(base.columns["x"].counts) == len(train)
    assert base.columns["x"].counts[0] == train["x"].null_count()
    scores = read_json(project / "artifacts/bundle/baseline.json", dict)["scores"]
    assert [*scores] == [c for c in Predictor.open(project / "artifacts/bundle").output_schema() if c != "decision"]
    valid = pl.read_parquet(project / "artifacts/prepared/valid.parquet", columns=["x"])
    assert all(sum(s["counts"]) == len(valid) and len(s["counts"]) == len(s["edges"]) + 2 for s in scores.values())


def test_the_card_says_what_was_measured(project):
    text, task = (project / "artifacts/bundle/card.md").read_text(), project.name.rstrip("0123456789")
    assert {"binary": "probability that `y` (what is asked) is `yes`. From 0.37 on",
            "multiclass": "3 classes of `y` (what is asked): bus, car, feet",
            "regression": "the value of `y` (what is asked)"}[task] in text
    assert "0.8 (0.7 to 0.9)" in text and "ratio, weekday" in text and "drawn at random" in text and "rows.csv" in text
    assert "TODO" not in text and "None" not in text.replace("\n\nNone.\n\n", "")


def test_constant_scores_have_a_distribution():
    reference = score_histogram(np.full(10, .5))
    assert reference.counts == [0, 0, 10, 0] and reference.bin_label([2]) == "the value 0.5"


def test_a_score_that_a_rule_gives_to_many_rows_has_a_bin_of_its_own():
    scores = np.append(np.full(900, .3), np.linspace(.01, .99, 100))
    reference = score_histogram(scores)
    labels = [reference.bin_label([i]) for i in range(len(reference.counts))]
    assert dict(zip(labels, reference.counts))["the value 0.3"] == 900 and sum(reference.counts) == 1000
