"""The three report notebooks on real artifacts of each task: they conclude, they escape, they say what is missing."""
import ast
import json
import re
import shutil
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import polars as pl
import pytest
from support.browser import measure_pages
from support.trained_project import rows, schema, trained

from mlops_nb.bundle.stage import run_bundle
from mlops_nb.config.params import read_params, write_params
from mlops_nb.config.schema import write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data.ingest import ingest
from mlops_nb.data.leakage import LeakFinding
from mlops_nb.data.prepare import read_dataset_info
from mlops_nb.data.validation import run_validate
from mlops_nb.evaluate.cross_validation import run_cross_validation
from mlops_nb.evaluate.stage import run_evaluate
from mlops_nb.explain.stage import run_explain
from mlops_nb.model.predictor import Predictor
from mlops_nb.release.gate import run_gate
from mlops_nb.report.glossary import GLOSSARY
from mlops_nb.report.html import sanitize_html
from mlops_nb.report.notebook_parameters import notebook_parameters
from mlops_nb.report.stage import run_report, summarize_run
from mlops_nb.train.baselines import run_baselines

NOTEBOOKS = Path(__file__).parents[2] / "nbs/reports"
NAMES = ["data", "evaluation", "explanation"]


def run(name, **parameters):
    "What a notebook shows, without a kernel: its cells run here."
    shown, space = [], {}
    for cell in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]:
        if cell["cell_type"] != "code": continue
        tree = ast.parse("".join(cell["source"]))
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, name, "exec"), space)
        if "parameters" in cell["metadata"].get("tags", []): space |= parameters
        if last: shown.append(eval(compile(last, name, "eval"), space).text)
    return shown


@pytest.fixture(scope="module", params=["binary", "multiclass", "regression"])
def project(request, tmp_path_factory):
    """A project of each task as the pipeline leaves it before its last stage; two rows in quarantine, texts that look
    like HTML."""
    root, task = tmp_path_factory.mktemp(request.param), request.param
    frame = rows(task=task).with_columns(place=pl.col("place").replace({"a | b": "<b>bold</b>"}))
    if task == "regression": frame = frame.with_columns(pl.col("y").exp().round(1)) # an amount
    frame = frame.with_columns(count=pl.when(pl.int_range(pl.len()) < 2).then(999).otherwise("count"))
    trained(root, task)
    shutil.rmtree(root / "artifacts")
    contract, params = schema(task), read_params(root / "params.yaml")
    contract.columns["known"].sensitive, params.evaluate.min_segment_rows = True, 20
    write_schema(contract, root / "schema.yaml")
    write_params(params, root / "params.yaml")
    frame.write_csv(root / "rows.csv")
    ingest(root / "rows.csv", root)
    run_validate(root)
    from mlops_nb.data.prepare import run_prepare
    from mlops_nb.train.stage import run_train
    from mlops_nb.train.tuning import run_tune
    params = read_params(root / "params.yaml")
    params.cross_validation.n_folds = params.cross_validation.n_seeds = 2
    params.tune.n_trials = dict(binary=12, multiclass=1, regression=8)[task]
    params.train.gbdt.objective = "poisson" # of the regression
    if task == "regression": params.tune.gbdt.objective = ["poisson", "squared"]
    write_params(params, root / "params.yaml")
    for stage in (run_prepare, run_tune, run_train, run_baselines, run_evaluate, run_cross_validation, run_explain,
                  run_bundle, run_gate):
        stage(root)
    verdict = read_json(root / "artifacts/gate.json", dict)
    deployment = dict(bundle=verdict["bundle"], deployed=verdict["passed"], message="Version 1 answers at rows.")
    write_json(root / "artifacts/deployment.json", deployment)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_a_report_concludes_first_and_shows_no_raw_text_of_the_data(project, name):
    shown = run(name, root=str(project))
    assert shown[0].startswith('<p class="verdict') and "<table" in shown[0]
    text = "".join(shown)
    assert "<b>bold" not in text and ">nan" not in text and "None<" not in text and "Timestamp" not in text
    assert len(text) < 1_500_000 and sanitize_html(text).count("<svg") == text.count("<svg")
    if name == "data": assert "2 rows (0.2 %)" in text and "count is out of its range" in text
    if name == "evaluation":
        for limit in ("Test rows", "Entities", "Detectable loss", "Late labels", "Duplicates", "Suspected leaks"):
            assert f"<td>{limit}</td>" in shown[0]
        assert ("<td>Events</td>" in shown[0]) == ("regression" not in project.name)
        assert "over 2 random folds" in text and ("The seed changes nothing" in text or "under 2 seeds" in text)
    if name == "explanation":
        assert f"the contribution in {Predictor.open(project / 'artifacts/bundle').raw_units}." in text
    if name == "explanation":
        assert text.count("rows.csv, row") == 20 + 6 and "act together most" in text and "Fidelity (R²)" in text
    if name == "evaluation":
        assert re.search(r"<b>Of \d+ comparisons of a group of rows with all others, the mean",
                         text) and "Predicted / observed" in text
        assert "<b>By known, the " in text and "How far the groups that differ most are apart." in text
        assert ("other inputs</summary>" in text) == ("multiclass" in project.name) # the other tasks have six
    for svg in text.split("<svg")[1:]: assert 'role="img"' in svg[:300] and "aria-label=" in svg[:300]


def test_the_change_since_the_run_before_is_told(project):
    described, header = summarize_run(project)
    for m in described.metrics: m.value *= 2
    described.row_counts["accepted"] -= 10
    described.test_rows = "of another month"
    write_json(project / "before.json", described)
    at = dict(root=str(project), previous="before.json")
    assert "+10" in run("data", **at)[0]
    first = run("evaluation", **at)[0]
    assert "Since the previous run" in first and first.count(", each on its own test rows</td>") == 3
    assert "Rank in the previous run" in run("explanation", **at)[0] and header.project == "rows"


def test_the_data_report_begins_with_the_suspected_leaks(project, tmp_path):
    if "binary" not in project.name: pytest.skip("one task is enough: what is shown does not depend on it")
    assert "leak" not in run("data", root=str(project))[0], "nothing is said where nothing was found"
    root = shutil.copytree(project, tmp_path / "p")
    info = read_dataset_info(root)
    info.leaks = [LeakFinding("count", "target copy", 0.99, "count alone predicts y.", "Take it away."),
                  LeakFinding("x", "missing values", 0.97, "Whether x is missing tells y.", "Take it away.", "<known>")]
    write_json(root / "artifacts/prepared/dataset.json", info)
    first = run("data", root=str(root))[0]
    assert "1 column may give the target away: count." in first and "Accepted: &lt;known&gt;" in first
    assert "count alone predicts y." in first and first.count("Take it away.") == 1


@pytest.mark.parametrize("name, file", [("data", "validation.json"), ("evaluation", "gate.json"),
                                        ("explanation", "explanation.json")])
def test_a_report_without_its_inputs_fails_with_a_sentence(project, tmp_path, name, file):
    shutil.copytree(project, tmp_path / "p", ignore=shutil.ignore_patterns(file))
    with pytest.raises(UserError, match=f"{file} does not exist; run"): run(name, root=str(tmp_path / "p"))


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_keep_their_parameters_and_hold_no_outputs(name):
    assert list(notebook_parameters(NOTEBOOKS / f"{name}.ipynb")) == ["root", "previous"]
    assert not any(c.get("outputs") for c in json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"])


# What of a page lies outside the screen, is out of order, or cannot be reached.
MEASURE = """(page, width) => {
  const seen = [...page.querySelectorAll('a, .verdict, b.pass, b.fail')].filter(
    e => e.getClientRects().length && !e.closest('.skip'));
  const outside = e => e.getBoundingClientRect().right > width || e.getBoundingClientRect().left < 0;
  const term = page.querySelector('.term'), look = page.defaultView.getComputedStyle;
  term.focus();
  return {width: page.documentElement.scrollWidth, outside: seen.filter(outside).map(e => e.outerHTML.slice(0, 99)),
    headings: [...page.querySelectorAll('h1, h2, h3')].map(e => +e.tagName[1]),
    definition: look(term, '::after').content, contents: look(page.querySelector('nav.contents')).display};
}"""


def test_the_stage_end_to_end(project, capsys, monkeypatch):
    if "binary" not in project.name: pytest.skip("one task is enough: the notebooks themselves are tested on all three")
    shutil.copytree(NOTEBOOKS, project / "nbs/reports", dirs_exist_ok=True)
    for name in ("GITHUB_RUN_ID", "CI_PIPELINE_ID"): monkeypatch.delenv(name, raising=False)
    assert run_report(project) == {"pages": 4}
    line = capsys.readouterr().out.strip().splitlines()[-1]
    passed = read_json(project / "artifacts/gate.json", dict)["passed"]
    assert line.startswith("The gate passed." if passed
                           else "The gate failed. Nothing was deployed:") and " Look at reports/" in line
    assert (project / line.rsplit(" ", 1)[1]).exists()
    pages = sorted(p.name for p in (project / "reports").rglob("*.html"))
    assert pages == ["data.html", "evaluation.html", "explanation.html", "index.html", "model_card.html"]
    for html in (project / "reports").rglob("*.html"):
        assert not any(s in html.read_text() for s in ("http://", "https://", "<script src", "//cdn"))
        assert html.read_text().count("<script") == (html.name == "evaluation.html"), "one moves the threshold"
    figures = {p.parent.name: ElementTree.parse(p) for p in (project / "reports").rglob("figures/*/*.svg")}
    assert figures.keys() == {"data", "evaluation", "explanation"}
    drawn, logged = ({p.parts[-2:] for p in (project / d).rglob("*.svg")} for d in ("reports", "mlartifacts"))
    assert logged == drawn and any("roc-curve" in name for _, name in drawn)
    on_a_phone = measure_pages(project, {p.stem: p for p in (project / "reports").rglob("*.html")}, 390, MEASURE)
    assert len(on_a_phone) == 5
    for name, page in on_a_phone.items():
        assert page["width"] <= 390 and not page["outside"], (name, page)
        assert all(b - a <= 1 for a, b in pairwise(page["headings"])) and page["headings"][0] == 1, (name, page)
        assert page["definition"].strip('"') in GLOSSARY.values() and page["contents"] == "none", (name, page)
