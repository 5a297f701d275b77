"""A change request as a runner sees it: a fresh clone in which the steps of the generated workflow run one by one, and
after them the script for GitLab. What only the services do (checkout, an interpreter, keeping pages) is checked by
name."""
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from ruamel.yaml import YAML
from support.shop_project import ENV, done, edit, finished

# What the services put for the expressions of the workflow, on a change request against main.
GITHUB = {"github.base_ref && format('origin/{0}', github.base_ref) || 'HEAD~1'": "origin/main",
          "steps.pages.outputs.artifact-url": "https://github.example.org/pages.zip",
          "github.event.pull_request.number": "7", "github.repository": "corner/shop", "github.token": "a-token"}
ACTIONS = {"actions/checkout", "actions/setup-python", "actions/upload-artifact"}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    "A fresh clone at a commit that asks for more than the model can do; data and models are on a DVC remote."
    place = tmp_path_factory.mktemp("change")
    author = shutil.copytree(finished(tmp_path_factory), place / "author", symlinks=True)
    done("dvc", "remote", "add", "-q", "--default", "storage", place / "storage", cwd=author)
    for words in (["add", "-A"], ["commit", "-qm", "first model"]): done("git", *words, cwd=author)
    done("dvc", "push", "-q", cwd=author)
    edit(author / "params.yaml", "thresholds: {}", "thresholds:\n    roc_auc: 0.99")
    for page in (author / "nbs/reports").glob("*.ipynb"): # that notebooks make pages is tested elsewhere
        cell = nbformat.v4.new_code_cell("root, previous = '.', ''", metadata={"tags": ["parameters"]})
        nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=nbformat.read(page, 4).metadata), page)
    done("git", "checkout", "-qb", "stricter", cwd=author)
    done("git", "commit", "-qam", "ask for more", cwd=author)
    done("git", "clone", "-q", author, place / "shop", cwd=place)
    return place / "shop"


def service(folder, name, script):
    "A program of the runner, in `folder`, that keeps what it was given."
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def environment(clone, tmp_path, more):
    "The variables of a runner; pip reads the requirements and the wheel, and installs nothing, since all is here."
    path = f"{tmp_path / 'bin'}{os.pathsep}{ENV['PATH']}"
    pip = {"PIP_DRY_RUN": "1", "PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1"}
    runner = {"GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"), "CI": "true", "PATH": path, "TMP_LOG": str(tmp_path)}
    return ENV | pip | runner | more


def values(env, contexts):
    "Variables of a job or step, with the expressions of the service replaced."
    return {k: re.sub(r"\$\{\{ (.*?) \}\}", lambda m: contexts[m[1]], v) for k, v in (env or {}).items()}


def bash(script, clone, env):
    "One step, as the runners call the shell; gives the ended process."
    assert "${{" not in script, "a branch's name would be run"
    return subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script], cwd=clone, env=env,
                          capture_output=True, text=True, timeout=300)


def run_steps(job, clone, env, contexts=GITHUB):
    "The steps of a job until one fails; gives the last one and what came of it."
    for step in job["steps"]:
        if "uses" in step:
            name, version = step["uses"].split("@")
            assert name in ACTIONS and re.fullmatch(r"v\d+", version), step
            if name.endswith("upload-artifact"): assert (clone / step["with"]["path"] / "index.html").exists()
            continue
        ended = bash(step["run"], clone, env | values(job["env"], contexts) | values(step.get("env"), contexts))
        if ended.returncode: return step, ended
    return step, ended


def read_yaml(path): return YAML(typ="safe").load(path)


@pytest.mark.slow
def test_a_change_that_fails_its_gate_is_commented_and_red_on_github(clone, tmp_path):
    job = read_yaml(clone / ".github/workflows/pipeline.yml")["jobs"]["pipeline"]
    env = environment(clone, tmp_path, {})
    service(tmp_path / "bin", "gh", 'echo "$@" > "$TMP_LOG/gh"; cp .mlops/comment.md "$TMP_LOG/posted.md"')
    step, ended = run_steps(job, clone, env)
    assert step["name"] == "Gate" and ended.returncode == 1, (step["name"], ended.stdout, ended.stderr)
    assert "0.99" in ended.stderr and len(ended.stderr.splitlines()) == 1
    said = (tmp_path / "posted.md").read_text()
    assert said == (tmp_path / "summary.md").read_text()
    assert "the gate failed" in said and "| gate.thresholds.roc_auc | – | 0.99 |" in said
    assert "no change" in said and GITHUB["steps.pages.outputs.artifact-url"] in said
    assert (tmp_path / "gh").read_text().startswith("pr comment 7 --edit-last --create-if-none")

    # a fork: its token may only read, or there is none
    comment, = (s for s in job["steps"] if "ci comment" in s.get("run", ""))
    service(tmp_path / "bin", "gh", "exit 1")
    service(tmp_path / "bin", "mlops-nb", 'cat "$TMP_LOG/posted.md"')
    for token in ("reads-only", ""):
        (tmp_path / "summary.md").unlink()
        contexts = GITHUB | {"github.token": token}
        ended = bash(comment["run"], clone, env | values(comment["env"], contexts))
        assert ended.returncode == 0 and ("::warning::" in ended.stdout) == bool(token)
        assert "the gate failed" in (tmp_path / "summary.md").read_text()


@pytest.mark.slow
def test_gitlab_runs_the_same_commands_and_comments_with_a_token(clone, tmp_path):
    job = read_yaml(clone / ".gitlab-ci.yml")["pipeline"]
    github = read_yaml(clone / ".github/workflows/pipeline.yml")["jobs"]["pipeline"]["steps"]
    commands = [s["run"] for s in github if "run" in s]
    assert job["script"][:3] == commands[:3] and job["script"][-1] == commands[-1]
    assert job["image"] == f"python:{sys.version_info.major}.{sys.version_info.minor}"
    request = {"CI_MERGE_REQUEST_IID": "3", "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main", "CI_PROJECT_ID": "11",
               "CI_JOB_URL": "https://gitlab.example.org/-/jobs/5", "CI_API_V4_URL": "https://gitlab.example.org/api/v4"}
    service(tmp_path / "bin", "curl", 'echo "$@" > "$TMP_LOG/curl"')
    for token in ("a-token", ""):
        env = environment(clone, tmp_path, request | {"GITLAB_TOKEN": token})
        if not token: service(tmp_path / "bin", "mlops-nb", 'echo "the gate failed" "$@"')
        ended = bash(job["script"][3], clone, env)
        assert ended.returncode == 0, ended.stderr
        assert "the gate failed" in ended.stdout and "jobs/5/artifacts/file/reports/index.html" in ended.stdout
        if token: assert "projects/11/merge_requests/3/notes" in (tmp_path / "curl").read_text()
        else: assert not (tmp_path / "curl").exists()
        (tmp_path / "curl").unlink(missing_ok=True)


def test_the_workflow_may_do_little_and_holds_no_secret(clone):
    workflow = read_yaml(clone / ".github/workflows/pipeline.yml")
    job = workflow["jobs"]["pipeline"]
    assert workflow["permissions"] == {"contents": "read"} and workflow["concurrency"]["cancel-in-progress"]
    assert job["permissions"] == {"contents": "read", "pull-requests": "write"} and job["timeout-minutes"] <= 60
    for step in job["steps"]:
        for used in re.findall(r"\$\{\{ (.*?) \}\}", str(step.get("env", ""))): assert used in GITHUB, used
    for name in (".github/workflows/pipeline.yml", ".gitlab-ci.yml"):
        text = (clone / name).read_text()
        assert "AWS_SECRET_ACCESS_KEY" in text and not re.search(r"(?m)^[^#\n]*secrets\.", text)
