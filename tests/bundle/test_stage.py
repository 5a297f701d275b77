"The stage `bundle`: the same inputs give the same bytes, and a stage that has not run is named."
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest
from msgspec import structs

from mlops_nb.bundle.bundle import open_bundle, read_data_baseline
from mlops_nb.bundle.stage import pack_bundle, run_bundle, training_rows
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import write_manifest
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data.prepare import read_split
from mlops_nb.model.predictor import Predictor
from mlops_nb.stats.drift_test import fit_baseline
from mlops_nb.stats.monitoring_baseline import MonitoringBaseline, score_histogram
from mlops_nb.train.stage import open_trained_predictor


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


def read_baseline(root): return read_json(root / "artifacts/bundle/baseline.json", MonitoringBaseline)


def test_the_baseline_holds_the_features_that_the_project_computes(project):
    train, base = pl.read_parquet(project / "artifacts/prepared/train.parquet"), read_baseline(project).data
    assert {"ratio", "weekday", "y", "x"} <= base.columns.keys() and "note" not in base.columns
    ratio, weekday = base.columns["ratio"], base.columns["weekday"]
    assert ratio.counts[0] == train["ratio"].null_count() and sum(ratio.counts) == len(train)
    days = dict(train["weekday"].value_counts().iter_rows())
    assert dict(zip([None, *weekday.categories], weekday.counts)) == days


def observed_and_scored(project):
    "By score column: the scores of the test rows and what came about, from the model and the file alone."
    predictor, test = Predictor.open(project / "artifacts/bundle"), read_split(project, "test")
    scores, y = predictor.predict(test).reshape(len(test), -1), test["y"].to_list()
    if predictor.schema.task == "regression": return {"score": (scores[:, 0], np.array(y))}
    classes = predictor.schema.classes[1:] if scores.shape[1] == 1 else predictor.schema.classes
    return {n: (s, np.array([v == c for v in y], float)) for n, s, c in zip(predictor.score_columns, scores.T, classes)}


def test_calibration_and_residuals_are_of_the_test_rows_by_bin_of_the_score(project):
    base = read_baseline(project)
    known = observed_and_scored(project)
    assert base.calibration.keys() == base.scores.keys() == known.keys()
    for name, (score, came) in known.items():
        edges, bins = [-np.inf, *base.scores[name].edges, np.inf], base.calibration[name]
        assert sum(bins.rows) == len(score)
        for i, (low, high) in enumerate(zip(edges, edges[1:])):
            here = (low <= score) & (score < high)
            assert bins.rows[i] == here.sum()
            if not here.any(): continue
            residual = came[here] - score[here]
            assert bins.mean_score[i] == pytest.approx(score[here].mean())
            assert bins.mean_observed[i] == pytest.approx(came[here].mean())
            assert bins.residual_mean()[i] == pytest.approx(residual.mean(), abs=1e-12)
            assert bins.mean_squared_error()[i] == pytest.approx((residual**2).mean())
            if here.sum() > 1: assert bins.residual_variance()[i] == pytest.approx(residual.var(ddof=1), abs=1e-12)


def test_the_baseline_is_kept_by_segment(project):
    base = read_baseline(project)
    train, valid = (pl.read_parquet(project / f"artifacts/prepared/{s}.parquet") for s in ("train", "valid"))
    assert [(s.segment.column, s.segment.value) for s in base.segments] == sorted(
        [("known", "true"), ("known", "false")], key=lambda s: -(train["known"] == (s[1] == "true")).sum())
    for s in base.segments:
        mine = pl.col("known") == (s.segment.value == "true")
        assert s.rows == len(train.filter(mine)) and s.columns.keys() == base.data.columns.keys()
        assert s.columns["ratio"][0] == train.filter(mine)["ratio"].null_count()
        assert {sum(c) for c in s.scores.values()} == {len(valid.filter(mine))}
        assert s.calibration == {}, "fewer than a hundred test rows"


def test_a_computed_target_is_in_the_baseline_under_its_name(one, tmp_path):
    root = Path(shutil.copytree(one, tmp_path / "computed"))
    predictor = open_trained_predictor(root)
    train = read_split(root, "train")
    for task, target, classes in (("binary", "upper(y)", ["no", "yes"]), ("regression", "x - count", None)):
        predictor.schema = structs.replace(predictor.schema, task=task, target=target, classes=classes)
        rows, computed = training_rows(root, predictor)
        counts = fit_baseline(rows, predictor.schema, computed).columns[target]
        assert sum(counts.counts) == len(train) and computed[target] == ("category" if classes else "number")
        if classes:
            seen = dict(zip(counts.categories, counts.counts[1:]))
            assert seen == {c: (train["_target"] == i).sum() for i, c in enumerate(classes)}


def test_the_baseline_is_plain_json_of_few_bytes(project):
    text = (project / "artifacts/bundle/baseline.json").read_bytes()
    assert b"NaN" not in text and b"Infinity" not in text and json.loads(text) == msgspec.to_builtins(
        read_baseline(project))
    assert len(text) < 120_000


def test_a_bundle_of_an_older_version_has_neither_calibration_nor_segments(one, tmp_path):
    folder = Path(shutil.copytree(one / "artifacts/bundle", tmp_path / "bundle"))
    content = read_json(folder / "baseline.json", dict)
    for key in ("calibration", "segments"): del content[key]
    write_json(folder / "baseline.json", content)
    write_manifest(folder)
    old = read_json(open_bundle(folder).path / "baseline.json", MonitoringBaseline)
    assert (old.calibration, old.segments) == ({}, []) and old.data == read_data_baseline(folder)


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
