"The graph of a run: stages of its commit, with what became of them."
import pytest
from support.controlled_project import git

from mlops_nb.console.run_graph import run_graph, stage_needs
from mlops_nb.ledger.runs import PipelineRun, RunStep


def step(name, status, seconds=None, attempt=1):
    return RunStep(name=name, attempt=attempt, executor="host", started_at="", ended_at=None, status=status,
                   seconds=seconds, cpu_seconds=None, peak_memory_mib=None, message=None)


def run(*steps, status="running", commit="HEAD"):
    return PipelineRun(id="r1", status=status, queued_at="", queued_by="ana", reason="", trigger_name="",
                       git_commit=commit, data_version="", params_version="", attempts=1, steps=[*steps])


@pytest.fixture
def root(tmp_path):
    (tmp_path / "dvc.yaml").write_text("stages:\n  a: {outs: [x]}\n  b: {foreach: [1, 2], do: {outs: ['y/${item}']}}\n"
                                       "  c: {deps: [x, y], metrics: [z.json: {cache: false}]}\n"
                                       "  d: {deps: [z.json]}\n")
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]): git(tmp_path, *args)
    return tmp_path


def test_the_stages_of_this_project_have_an_order():
    from support.imports import ROOT
    needs = stage_needs((ROOT / "dvc.yaml").read_text())
    assert needs["prepare"] == ["features", "validate"] and "train" in needs["evaluate"] and "gate" in needs["deploy"]


@pytest.mark.parametrize("steps, status, expected", [
    ([], "running", ["waiting"] * 4), ([], "succeeded", ["unchanged"] * 4),
    ([step("a", "done", 1.0), step("b 1", "done", 2.0), step("b 2", "begun")], "running",
     ["done", "running", "waiting", "waiting"]),
    ([step("a", "done"), step("b 1", "begun")], "failed", ["done", "stopped", "waiting", "waiting"]),
    ([step("b 1", "failed"), step("b 1", "done", attempt=2)], "running", ["waiting", "done", "waiting", "waiting"])])
def test_states(root, steps, status, expected):
    assert [n.status for n in run_graph(root, run(*steps, status=status))] == expected


def test_levels_and_seconds(root):
    found = run_graph(root, run(step("b 1", "done", 2.0), step("b 2", "done", 3.0)))
    assert [(n.name, n.level, n.seconds) for n in found] == [
        ("a", 0, None), ("b", 0, 5.0), ("c", 1, None), ("d", 2, None)]


@pytest.mark.parametrize("commit", ["", "f" * 40, "--help", "HEAD; rm -rf ."])
def test_a_commit_that_is_not_known_has_no_graph(root, commit):
    assert run_graph(root, run(commit=commit)) == []


def test_a_circle_ends():
    text = "stages:\n  a: {deps: [y], outs: [x]}\n  b: {deps: [x], outs: [y]}\n"
    from mlops_nb.console.run_graph import _levels
    assert set(_levels(stage_needs(text))) == {"a", "b"}
