"What a change request is told: hostile names, a base that cannot be read, and whether the check will be green."
import subprocess

import pytest
from support.shop_project import run

from mlops_nb.ci.change_report import ModelFigures, change_report
from mlops_nb.config.settings import read_settings
from mlops_nb.core.typed_yaml import write_json
from mlops_nb.release.gate import GateReport, GateResult
from mlops_nb.release.release_plan import plan_path, write_empty_record
from mlops_nb.stats.bootstrap import Estimate


def git(root, *words): assert run("git", *words, cwd=root).returncode == 0


@pytest.fixture
def project(tmp_path):
    "A project with the results of one run, committed; `base` is a tag."
    (tmp_path / "artifacts/evaluation").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("train: {num_leaves: 31}\n")
    rule = GateResult("segment: a|b @ana", .1, .2, True, "In <b>north</b> | it is `0.2`.")
    write_json(tmp_path / "artifacts/gate.json", GateReport(True, "0a1b2c3d4e5f", "All 1 rules held.", [rule]))
    write_json(tmp_path / "artifacts/metrics.json", {"test": {"rmse": 2.0}})
    write_json(tmp_path / "artifacts/evaluation/evaluation.json",
               ModelFigures("regression", "rmse", .95, {"test": {"rmse": Estimate(2.0, 1.8, 2.2)}}))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    for words in (("add", "-A"), ("commit", "-qm", "a"), ("tag", "base")): git(tmp_path, *words)
    return tmp_path


def test_names_from_data_are_text_and_nothing_else(project):
    write_empty_record(plan_path(project, read_settings(project)))
    said = change_report(project, "base")
    assert "the gate passed" in said and "<b>" not in said and "@ana" not in said
    rows = [line for line in said.splitlines() if line.startswith("| held")]
    assert len(rows) == 1 and rows[0].count("|") == 4


def test_a_gate_that_does_not_count_is_not_called_passed(project):
    said = change_report(project, "base") # no record says whether a model was ever released
    assert "the gate failed" in said and "does not count" in said


@pytest.mark.parametrize("metrics", ["<<<<<<< HEAD\n", "[1, 2]", '{"test": [0.5]}', '{"test": {"rmse": "low"}}'])
def test_a_base_with_strange_metrics_is_not_compared_with(project, metrics):
    (project / "artifacts/metrics.json").write_text(metrics)
    git(project, "commit", "-qam", "strange")
    write_json(project / "artifacts/metrics.json", {"test": {"rmse": 2.0}})
    row, = (line for line in change_report(project, "HEAD").splitlines() if "Root mean squared error" in line)
    assert row.split("|")[2].strip() == "–" and row.split("|")[4].strip() == "–"


def test_other_data_and_another_split_are_said(project):
    (project / "data.dvc").write_text("outs: []\n")
    (project / "params.yaml").write_text("train: {num_leaves: 15}\nprepare: {split: {method: time}}\n")
    said = change_report(project, "base")
    assert "data.dvc and prepare.split changed, so the figures may be of other test rows" in said
    assert "| train.num_leaves | 31 | 15 |" in said
