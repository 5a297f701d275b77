"A project in a notebook: it runs what the command line runs, and shows what the pipeline wrote."
import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from fastcore.nbio import mk_cell, read_nb, write_nb
from IPython.core.interactiveshell import InteractiveShell
from support.shop_project import finished

from mlops_nb import Project
from mlops_nb.core.errors import UserError
from mlops_nb.notebook import RevisionComparison, StageRuns


@pytest.fixture(scope="module")
def good(tmp_path_factory): return finished(tmp_path_factory)


@pytest.fixture
def project(good, tmp_path): return Project(shutil.copytree(good, tmp_path / "corner", symlinks=True))


def test_a_cell_runs_the_code_of_the_notebook_that_was_just_edited(project, monkeypatch, capsys):
    monkeypatch.setenv("PATH", "/usr/bin:/bin") # a kernel that an application started
    monkeypatch.chdir(project.root / "nbs")
    edited, made = project.root / project.params.prepare.features_notebook, project.features_path
    assert "twice_the_visits" not in made.read_text()
    nb = read_nb(edited)
    code = '#| export\n@feature\ndef twice_the_visits(visits):\n    "Twice"\n    return 2 * visits'
    nb.cells.append(mk_cell(code))
    write_nb(nb, edited)
    shell = InteractiveShell()
    for line in ("%load_ext mlops_nb", "%run_stage features"): assert shell.run_cell(line).success
    done = shell.run_cell("%run_stage features").result
    assert "def twice_the_visits" in made.read_text() and not done.records
    assert shell.user_ns["project"].root.samefile(project.root)
    shown = capsys.readouterr().out
    assert "Running stage 'features':" in shown and "> mlops-nb" not in shown and "didn't change" not in shown
    assert "cross_validation" in repr(shell.run_cell("%run_stage").result)
    wrong = shell.run_cell("%run_stage evalute")
    said, = wrong.error_in_exec._render_traceback_()
    assert said.startswith("error: There is no stage 'evalute'; did you mean 'evaluate'? The stages are features, ")


def test_the_failure_of_a_stage_is_its_sentence(project):
    (project.root / "params.yaml").write_text("nonsense: [")
    with pytest.raises(UserError, match="params.yaml") as e: project.train()
    assert "\n" not in str(e.value) and "failed to reproduce" not in str(e.value)


def test_model_evaluation_and_report_are_the_pipelines(project, monkeypatch):
    assert project.model.id and project.model.threads == project.n_threads
    found = project.evaluation
    metrics = found.details.metrics["test"]
    assert [r["metric"] for r in found.rows()] == [*metrics]
    assert f"<td>{metrics['roc_auc'].value:.4g}</td>" in found._repr_html_()
    assert "Gate: All" in found.title and "roc_auc" in repr(found)
    asked = []
    monkeypatch.setattr("mlops_nb.report.runner.run_report_notebook",
                        lambda *args: asked.append(args) or Path("reports/R&D<x>.html"))
    page = project.report("data", "rows=5")
    assert asked == [(project.root, "data", ("rows=5",))]
    assert 'href="reports/R&amp;D&lt;x&gt;.html"' in page._repr_html_()
    assert repr(page) == "The page is reports/R&D<x>.html"
    shutil.rmtree(project.root / "artifacts/bundle")
    with pytest.raises(UserError, match="train a model first"): _ = project.model
    assert project.params.train.learners[0] in repr(project) and "model     " in project._repr_html_()


def test_a_comparison_is_the_one_of_dvc(project):
    subprocess.run(["git", "tag", "before"], cwd=project.root, check=True)
    found = project.compare("before")
    assert found.params["train.gbdt.checkpoint_every"] == {"old": 200, "new": 5, "diff": -195}
    auc = project.evaluation.details.metrics["test"]["roc_auc"].value
    assert found.metrics["test.roc_auc"]["new"] == pytest.approx(auc)
    assert "checkpoint_every" in repr(found) and "<td>200</td>" in found._repr_html_()
    with pytest.raises(UserError, match="nowhere"): project.compare("nowhere")


def test_what_is_shown_is_escaped_and_nothing_is_shown_as_nothing():
    wild = RevisionComparison("<b>", {"<i>": {"old": "<u>", "new": 1.23456}}, {})
    shown = wild._repr_html_()
    assert not {"<b>&lt;", "<i>", "<u>"} & set(shown.split()) and "&lt;i&gt;</td><td>&lt;u&gt;</td><td>1.235<" in shown
    assert repr(RevisionComparison("HEAD", {}, {})) == "Nothing changed since HEAD"
    assert repr(StageRuns([])) == "Everything was up to date"


def test_a_project_is_found_from_the_folders_below_it(project, tmp_path):
    with contextlib.chdir(project.root / "nbs"): assert Project.open().root.samefile(project.root)
    with contextlib.chdir(tmp_path), pytest.raises(UserError, match="There is no schema.yaml"): Project.open()
