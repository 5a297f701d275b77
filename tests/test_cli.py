"The command line: help, exit codes, and what each verb says."
import json
import os
import re
import shutil
import subprocess
import sys

import polars as pl
import pytest
import typer
from fastcore.nbio import mk_cell, new_nb, write_nb
from support.shop_project import ENV, edit, finished, nb, nb_inside, run, sentence, shop
from typer.testing import CliRunner

import mlops_nb
from mlops_nb.cli import app
from mlops_nb.config.api_keys import SCOPES
from mlops_nb.config.schema import Column, Schema, read_schema, write_schema
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.ingest import read_data_manifest
from mlops_nb.pipeline import STAGES

TOP = typer.main.get_command(app)


@pytest.fixture(scope="module")
def good(tmp_path_factory): return finished(tmp_path_factory)


@pytest.fixture
def project(good, tmp_path): return shutil.copytree(good, tmp_path / "corner", symlinks=True)


def verbs(command=TOP, path=()):
    "Every verb, with the verbs below it."
    yield path
    for name, below in getattr(command, "commands", {}).items(): yield from verbs(below, (*path, name))


@pytest.mark.parametrize("verb", list(verbs()), ids=" ".join)
def test_every_verb_explains_itself(verb):
    shown = CliRunner().invoke(app, [*verb, "--help"])
    assert shown.exit_code == 0 and "Usage:" in shown.output
    text = [line for line in shown.output.splitlines() if line.strip()]
    assert len(text) > 1 and not text[1].lstrip().startswith(("Options", "-")) # a sentence follows the usage


@pytest.mark.parametrize("verb", [v for v in verbs() if v], ids=" ".join)
def test_every_help_ends_with_examples(verb):
    shown = CliRunner().invoke(app, [*verb, "-h"]).output
    before, _, examples = shown.partition("  Examples:\n")
    assert before and all("mlops-nb " + " ".join(verb) in line for line in examples.split("\n") if line.strip())


def test_the_help_lists_every_verb_in_a_section():
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "Other commands" not in shown and "Predictions:\n  score " in shown
    listed = re.findall(r"^  ([a-z][a-z-]+)  ", shown, re.M)
    assert sorted(listed) == sorted(TOP.commands)


def test_the_help_of_keys_names_every_scope():
    shown = CliRunner().invoke(app, ["key", "add", "-h"]).output
    assert all(scope in shown for scope in SCOPES)


def test_the_version():
    shown = CliRunner().invoke(app, ["--version"])
    assert (shown.exit_code, shown.output) == (0, f"mlops-nb {mlops_nb.__version__}\n")


def test_stages_are_listed_and_a_wrong_one_is_answered_with_the_list(tmp_path):
    listed = [line.split()[0] for line in nb_inside("stage", cwd=tmp_path).stdout.splitlines()]
    assert listed == [*STAGES]
    said = sentence(nb_inside("stage", "evalute", cwd=tmp_path))
    assert said == f"There is no stage 'evalute'; did you mean 'evaluate'? The stages are {', '.join(STAGES)}."


@pytest.mark.parametrize("words, env, shown", [([], "0", True), (["--quiet"], "0", False), ([], "1", False)])
def test_progress_goes_to_the_error_stream_unless_it_is_not_wanted(words, env, shown, monkeypatch, tmp_path):
    monkeypatch.setattr("mlops_nb.core.progress._QUICK_SECONDS", 0.0)
    monkeypatch.setattr("mlops_nb.core.progress._TERMINAL_INTERVAL", 3600.0)
    schema = tmp_path / "schema.yaml"
    write_schema(Schema("d", "binary", "y", classes=["a", "b"], columns={"y": Column("category")}), schema)
    done = CliRunner().invoke(app, [*words, "schema", "check", str(schema)], env={"MLOPS_NB_QUIET": env})
    assert done.stdout.endswith("enter the model.\n") and done.stdout.count("\n") == 1
    assert bool(re.fullmatch(r"schema: [\d.]+ s\n", done.stderr)) == shown and bool(done.stderr) == shown


# completion, asked of the shells themselves

QUESTIONS = {
    "bash": """source <(mlops-nb completion bash)
        ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mlops_nb_completion mlops-nb; echo "${COMPREPLY[@]}"; }
        ask mlops-nb rep; ask mlops-nb stage cross; ask mlops-nb score --loo; ask mlops-nb report run ev""",
    "fish": """mlops-nb completion fish | source
        for q in 'mlops-nb rep' 'mlops-nb stage cross' 'mlops-nb score --loo' 'mlops-nb report run ev'
            complete -C $q | string split -f1 \\t | string join ' '
        end""",
    "zsh": """autoload -Uz compinit; compinit -D -u; source <(mlops-nb completion zsh)
        _arguments() { print -r -- ${${*#*\\(\\(\\"}%%\\"*} }; _files() { print none }
        ask() { words=("$@"); CURRENT=$#; _mlops_nb_completion }
        ask mlops-nb rep; ask mlops-nb stage cross; ask mlops-nb score --loo; ask mlops-nb report run ev""",
}


@pytest.mark.parametrize("shell", list(QUESTIONS))
def test_a_shell_completes(shell, tmp_path):
    if not shutil.which(shell): pytest.skip(f"{shell} is not installed")
    (tmp_path / "nbs/reports").mkdir(parents=True)
    (tmp_path / "nbs/reports/evaluation.ipynb").touch()
    flags = {"bash": ["--norc", "-c"], "zsh": ["-f", "-c"], "fish": ["--no-config", "-c"]}[shell]
    done = run(shell, *flags, QUESTIONS[shell], cwd=tmp_path, env={"HOME": str(tmp_path)})
    assert done.stdout.splitlines() == ["report", "cross_validation", "--lookup-table", "evaluation"], done


def test_the_verbs_of_the_issue_exist():
    assert {("init",), ("ingest",), ("simulate",), ("stage",), ("gate", "check"), ("schema", "check"),
            ("schema", "diff"), ("score",),
            ("what-if",), ("report", "run"), ("control",)} <= set(verbs())


# exit codes

@pytest.mark.parametrize("args, says", [(["nonsense"], "No such command 'nonsense'"), (["ingest"], "Missing argument"),
                                        (["stage", "validate", "--fast"], "No such option"),
                                        (["gate", "chek"], "No such command 'chek'"),
                                        (["init", "new"], "Missing option")])
def test_a_misspelt_command_ends_with_2(tmp_path, args, says):
    done = nb(*args, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr and "Traceback" not in done.stderr


def test_help_ends_with_0_and_a_mistake_with_1(tmp_path):
    assert nb("--help", cwd=tmp_path).returncode == 0
    assert "schema.yaml does not exist" in sentence(nb("schema", "check", cwd=tmp_path))
    assert "There is no stage 'trian'; did you mean 'train'?" in sentence(nb("stage", "trian", cwd=tmp_path))
    assert "The stage validate is one for all; leave 'gbdt' out." in sentence(nb("stage", "validate", "gbdt",
                                                                                 cwd=tmp_path))


def as_command(cwd, code):
    "Run `main` in a process where `code` has prepared something."
    lines = ["import sys, mlops_nb.cli, mlops_nb.pipeline", code, "sys.argv = ['mlops-nb', 'stage', 'validate']",
             "mlops_nb.cli.main()"]
    return run(sys.executable, "-c", "\n".join(lines), cwd=cwd)


def test_a_fault_of_ours_ends_with_70_and_keeps_its_traceback_in_a_file(tmp_path):
    fault = "def fault(*args): raise ZeroDivisionError('the very\\nfault')\nmlops_nb.pipeline.run_stage = fault"
    said = sentence(as_command(tmp_path, fault), 70)
    assert said.startswith("a fault in mlops_nb: ZeroDivisionError: the very; its traceback is in .mlops/errors/")
    kept, = (tmp_path / ".mlops/errors").iterdir()
    assert said.endswith(f"{kept.relative_to(tmp_path)}.")
    assert kept.read_text().startswith("Traceback") and "ZeroDivisionError: the very" in kept.read_text()


@pytest.mark.parametrize("error, code, says", [
    ("OSError(28, 'No space left on device', 'artifacts/x')", 1, "artifacts/x: the disk is full"),
    ("RuntimeError('database or disk is full')", 1, "the disk is full"), ("MemoryError()", 1, "not enough memory"),
    ("PermissionError(13, 'Permission denied', 'data')", 1, "data: permission was denied"),
    ("KeyboardInterrupt()", 130, "interrupted; ")])
def test_errors_of_the_machine_end_in_a_sentence(tmp_path, error, code, says):
    assert says in sentence(as_command(tmp_path,
                                       f"def fault(*args): raise {error}\nmlops_nb.pipeline.run_stage = fault"), code)
    assert not (tmp_path / ".mlops").exists()


def test_a_closed_pipe_is_no_fault(good):
    shell = subprocess.run("mlops-nb --help | head -1", shell=True, cwd=good, env=ENV, capture_output=True, text=True,
                           timeout=60)
    assert "Traceback" not in shell.stderr


# begin

def test_init_leaves_a_folder_that_is_taken_alone(tmp_path):
    (tmp_path / "in.csv").write_text(shop(50), encoding="utf-8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("3 years of work")
    for folder, what in (("taken", "neither empty nor a git repository"), ("in.csv", "a file")):
        said = sentence(nb("init", folder, "--data", "in.csv", "--target", "bought", cwd=tmp_path))
        assert said == f"{folder} is {what}; name a folder that does not exist."
    assert os.listdir(tmp_path / "taken") == ["thesis.txt"]


def git(*words, cwd): return subprocess.run(["git", *words], cwd=cwd, check=True, capture_output=True, text=True).stdout


def clone(tmp_path, **files):
    "A fresh clone of a repository with these files."
    origin, here = tmp_path / "origin", tmp_path / "clone"
    origin.mkdir()
    git("init", "-q", "-b", "main", cwd=origin)
    for name, text in files.items():
        (origin / name).parent.mkdir(parents=True, exist_ok=True)
        (origin / name).write_text(text, encoding="utf-8")
    git("add", ".", cwd=origin)
    git("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first", cwd=origin)
    git("clone", "-q", str(origin), str(here), cwd=tmp_path)
    return here


def test_init_fills_a_fresh_clone_and_overwrites_nothing(tmp_path):
    readme, licence, ignore = "# Ours\n", "Free for all.\n", "*.pyc\n/data/\n"
    theirs = {"Makefile": "all:\n", "requirements.txt": "pandas\n", ".github/workflows/ours.yml": "on: push\n"}
    here = clone(tmp_path, **{"README.md": "", "LICENSE": licence, ".gitignore": ignore, "in.csv": shop(60)}, **theirs)
    (here / "README.md").write_text(readme) # somebody's edit that is not committed yet
    done = nb("init", ".", "--data", "in.csv", "--target", "bought", cwd=here)
    assert done.returncode == 0, done.stderr
    assert (here / "README.md").read_text() == readme and (here / "LICENSE").read_text() == licence
    ignored = (here / ".gitignore").read_text()
    assert ignored.startswith(ignore) and ignored.count("/data/") == 1 and "/reports/" in ignored
    kept, = (line for line in done.stdout.splitlines() if line.startswith("Kept as it was: "))
    assert "README.md, Makefile, requirements.txt (2 lines are added at its end), .gitignore (" in kept
    assert "LICENSE" not in kept, "only what init would have written is named"
    assert (here / "Makefile").read_text() == "all:\n"
    required = (here / "requirements.txt").read_text().splitlines()
    assert required[0] == "pandas" and (here / required[-1].split("[")[0]).exists(), "the wheel lies beside"
    assert {p.name for p in (here / ".github/workflows").iterdir()} == {"ours.yml", "pipeline.yml"}
    assert done.stdout.endswith("Next:\n  mlops-nb schema check  # after the review\n  dvc repro\n") # and no `cd .`
    assert git("status", "--porcelain", cwd=here) == " M README.md\n", "what was not of init is not committed"
    committed = set(git("show", "--name-only", "--format=", "HEAD", cwd=here).split())
    assert {".dvc/config", ".gitignore", "schema.yaml", "data.dvc", "clone/__init__.py", ".gitlab-ci.yml",
            ".github/workflows/pipeline.yml", "requirements.txt", "constraints.txt"} <= committed
    assert not {c for c in committed if c in ("in.csv", "README.md") or c.startswith((".mlops", "data/"))}
    assert not [p for p in os.listdir(here) if p.startswith(".mlops-nb")] and (here / "data/manifest.json").exists()
    assert nb_inside("schema", "check", cwd=here).returncode == 0 and (here / "clone/features.py").exists()
    again = sentence(nb_inside("init", ".", "--data", "in.csv", "--target", "bought", cwd=here))
    assert again.startswith(". already has data, data.dvc, schema.yaml,") and "which init would write" in again


def test_titles_comments_and_names_with_commas(tmp_path):
    rows = "".join(f"{i % 7},{i % 3},{'yes' if i % 4 else 'no'}\n# {i}\n" for i in range(200))
    (tmp_path / "in.csv").write_text('Report, May\n\n"a,b",c,"y ""q"""\n' + rows)
    how = ("--target", 'y "q"', "--exclude", '"a,b"')
    said = sentence(nb_inside("init", "new", "--data", "in.csv", *how, cwd=tmp_path))
    assert "if a title stands above the table, give --skip" in said
    done = nb("init", "new", "--data", "in.csv", *how, "--skip", "2", "--comment", "#", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    schema = read_schema(tmp_path / "new/schema.yaml")
    assert list(schema.columns) == ["a,b", "c", 'y "q"'] and list(schema.feature_columns) == ["c"]
    (tmp_path / "more.csv").write_text('% made by hand\n"a,b",c,"y ""q"""\n1,2,yes\n')
    (tmp_path / "none.csv").write_text('"a,b",c,"y ""q"""\n')
    done = nb_inside("ingest", "../more.csv", "--comment", "%", cwd=tmp_path / "new")
    assert "1 new with 1 rows" in done.stdout, done.stderr
    assert "1 of the new have no rows" in nb_inside("ingest", "../none.csv", cwd=tmp_path / "new").stdout


def test_init_fills_the_empty_folder_one_stands_in(tmp_path):
    (tmp_path / "in.csv").write_text(shop(60), encoding="utf-8")
    (tmp_path / "new").mkdir()
    done = nb("init", ".", "--data", "../in.csv", "--target", "bought", cwd=tmp_path / "new")
    assert done.returncode == 0, done.stderr
    assert {"schema.yaml", ".git", ".dvc", "data", "new"} <= set(os.listdir(tmp_path / "new"))
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "new"]


NOBODY = {"GIT_AUTHOR_EMAIL": "", "GIT_COMMITTER_EMAIL": "", "GIT_AUTHOR_NAME": "", "GIT_COMMITTER_NAME": ""}


@pytest.mark.parametrize("why", ["nobody", "hook", "ignored"])
def test_where_git_cannot_commit_init_says_so_and_the_project_is_whole(tmp_path, why):
    here = clone(tmp_path, **{"README.md": "", "in.csv": shop(60), ".gitignore": "new/\n" if why == "ignored" else ""})
    if why == "hook":
        hook = here / ".git/hooks/pre-commit"
        hook.write_text("#!/bin/sh\necho no commits on Sundays >&2\nexit 1\n")
        hook.chmod(0o755)
    head = git("rev-parse", "HEAD", cwd=here)
    done = nb("init", "new", "--data", "in.csv", "--target", "bought", cwd=here, env=NOBODY if why == "nobody" else {})
    said, = done.stderr.strip().splitlines()
    assert done.returncode == 0 and said.startswith("warning: Nothing was committed ("), done.stderr
    assert {"nobody": "ident", "hook": "no commits on Sundays", "ignored": "ignored"}[why] in said
    assert git("rev-parse", "HEAD", cwd=here) == head and nb_inside("schema", "check", cwd=here / "new").returncode == 0


def test_init_commits_nothing_where_it_is_asked_not_to(tmp_path):
    here = clone(tmp_path, **{"README.md": "", "in.csv": shop(60)})
    done = nb("init", ".", "--data", "in.csv", "--target", "bought", "--no-commit", cwd=here)
    assert done.returncode == 0 and not done.stderr
    assert git("log", "--format=%s", cwd=here) == "first\n" and "?? schema.yaml" in git("status", "-s", cwd=here)


def test_init_that_fails_leaves_a_clone_as_it_was(tmp_path):
    here = clone(tmp_path, **{"README.md": "# Ours", ".gitignore": "*.pyc", "in.csv": shop(60)})
    before = tree(here)
    wrong = nb_inside("init", ".", "--data", "in.csv", "--target", "bougth", cwd=here)
    assert "did you mean 'bought'" in sentence(wrong)
    assert tree(here) == before
    fault = ("import mlops_nb.scaffold as s\ns._SETUP = 'import sys; sys.exit(\"no DVC today\")'\n"
             "sys.argv = ['mlops-nb', 'init', '.', '--data', 'in.csv', '--target', 'bought']\nmlops_nb.cli.main()")
    said = sentence(run(sys.executable, "-c", f"import sys, mlops_nb.cli\n{fault}", cwd=here))
    assert said == "setting up DVC failed in .: no DVC today; fix that and run init again." and tree(here) == before


def tree(folder):
    "Every path below a folder with its content, without git's own bookkeeping."
    return {p.relative_to(folder).as_posix(): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")
            if ".git/" not in p.as_posix()}


@pytest.mark.parametrize("folder", ["new", "."])
def test_a_dry_run_writes_nothing_and_says_the_same(tmp_path, folder):
    here = clone(tmp_path, **{"README.md": "# Ours", ".gitignore": "*.pyc", "in.csv": shop(60)})
    words = ("init", folder, "--data", "in.csv", "--target", "bought", "--exclude", "city")
    before = tree(here)
    dry = nb_inside(*words, "--dry-run", cwd=here)
    assert dry.returncode == 0 and tree(here) == before, dry.stderr
    assert dry.stdout.endswith("\nNothing was written, because of --dry-run.\n")
    wet = nb(*words, cwd=here)
    assert wet.returncode == 0 and wet.stdout + "\nNothing was written, because of --dry-run.\n" == dry.stdout
    taken = nb_inside(*words, "--dry-run", cwd=here)
    assert taken.returncode == 1 and ("already has" in taken.stderr or "neither empty" in taken.stderr)


@pytest.mark.parametrize("options", [("--ordered", "--group", "city"), ("--group", "city", "--split-column", "member"),
                                     ("--test-files", "in.csv", "--ordered")])
def test_init_refuses_two_splits(tmp_path, options):
    (tmp_path / "in.csv").write_text(shop(50), encoding="utf-8")
    said = sentence(nb_inside("init", "new", "--data", "in.csv", "--target", "bought", *options, cwd=tmp_path))
    assert "ask for different splits; give one of them." in said and all(o in said for o in options
                                                                         if o.startswith("--"))
    assert os.listdir(tmp_path) == ["in.csv"]


def test_init_fills_an_empty_folder(tmp_path):
    (tmp_path / "in.csv").write_text(shop(200), encoding="utf-8")
    (tmp_path / "new").mkdir()
    done = nb("init", "new", "--data", "in.csv", "--target", "bought", "--time", "day", "--exclude", "city, member",
              cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "new: binary of bought from 3 of 7 columns; 200 rows of in.csv."
    told = {line.split()[0]: line for line in lines[2:] if line.startswith(("day ", "city ", "bought ", "spent "))}
    assert [told[n].split()[1:3] for n in ("day", "city", "bought", "spent")] == [
        ["timestamp", "time"], ["category", "left"], ["integer", "target"], ["number", "feature"]]
    assert "left out: excluded" in told["city"]
    assert "Split by time: the newest rows by day are the test set, because --time names it." in lines
    assert lines[-4:] == ["Next:", "  cd new", "  mlops-nb schema check  # after the review", "  dvc repro"]
    assert sorted(os.listdir(tmp_path)) == ["in.csv", "new"]
    checked = nb_inside("schema", "check", cwd=tmp_path / "new")
    assert checked.stdout == "schema.yaml: binary of bought, 7 columns, 3 of them enter the model.\n"


def test_init_says_what_looks_like_a_leak_and_leaves_it_a_feature(tmp_path):
    header, *lines = shop(200).splitlines()
    told = [f"{header},receipt", *(f"{line},{f'R{i % 3}' * int(line[-1])}" for i, line in enumerate(lines))]
    (tmp_path / "in.csv").write_text("\n".join(told) + "\n", encoding="utf-8")
    done = nb("init", "new", "--data", "in.csv", "--target", "bought", "--time", "day", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    check, = (line for line in done.stdout.splitlines() if "CHECK for a leak: " in line)
    said = check.partition("CHECK for a leak: ")[2]
    assert said.startswith("receipt has a value only where bought is 1,") and "accepted" in said
    assert said in (tmp_path / "new/schema.yaml").read_text(encoding="utf-8")
    assert "Review first what is marked CHECK in schema.yaml: age, receipt." in done.stdout
    assert "receipt" in read_schema(tmp_path / "new/schema.yaml").feature_columns


def test_the_same_data_twice_adds_nothing(project):
    before = read_data_manifest(project)
    (project / "more.csv").write_text(shop(80, seed=9), encoding="utf-8")
    assert nb_inside("ingest", "more.csv", cwd=project).stdout == "Data batches: 1 new with 80 rows, 0 known already.\n"
    once, tracked = read_data_manifest(project), (project / "data.dvc").read_text()
    assert len(once.files) == len(before.files) + 1
    assert nb_inside("ingest", "more.csv", cwd=project).stdout == "Data batches: 0 new with 0 rows, 1 known already.\n"
    assert read_data_manifest(project) == once and (project / "data.dvc").read_text() == tracked
    (project / "more.csv").write_text(shop(90, seed=10), encoding="utf-8")
    assert "add --replace" in sentence(nb_inside("ingest", "more.csv", cwd=project))
    assert nb_inside("ingest", "more.csv", "--replace", cwd=project).returncode == 0
    assert sum(f.rows for f in read_data_manifest(project).files) == sum(f.rows for f in before.files) + 90


def test_simulate_makes_data_only_where_it_is_missing(project, tmp_path):
    before = read_data_manifest(project)
    assert nb_inside("simulate", "--if-missing", cwd=project).returncode == 0 and read_data_manifest(project) == before
    assert "which is not simulated" in sentence(nb_inside("simulate", cwd=project))
    assert read_data_manifest(project) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "params.yaml").write_text("simulate: {n_subscribers: 200, n_months: 6}\n")
    assert nb_inside("simulate", "--if-missing", cwd=empty).returncode == 0
    made = read_data_manifest(empty)
    assert made.files and (empty / "truth/truth.parquet").exists()
    assert nb_inside("simulate", "--if-missing", cwd=empty).returncode == 0 and read_data_manifest(empty) == made


# judge

def test_gate_check_both_ways(project):
    passed = nb_inside("gate", "check", cwd=project)
    assert passed.returncode == 0 and "passed" in passed.stdout, passed.stderr
    edit(project / "params.yaml", "thresholds: {}", "thresholds: {roc_auc: 0.999}")
    assert nb_inside("stage", "gate", cwd=project).returncode == 0 # the pipeline goes on to its reports
    said = sentence(nb_inside("gate", "check", cwd=project))
    assert "The gate failed" in said and "roc_auc" in said and "0.999" in said
    (project / "artifacts/gate.json").unlink()
    assert "gate.json does not exist" in sentence(nb_inside("gate", "check", cwd=project))


def test_schema_diff_says_a_sentence_a_change(project):
    shutil.copy(project / "schema.yaml", project / "new.yaml")
    assert nb_inside("schema", "diff", "schema.yaml", "new.yaml", cwd=project).stdout == ""
    edit(project / "new.yaml", "\n  visits:", "\n  calls:")
    edit(project / "new.yaml", "Rome]", "Rome, Oslo]")
    said = nb_inside("schema", "diff", "schema.yaml", "new.yaml", cwd=project).stdout.splitlines()
    assert said == ["The domain of 'city' gained Oslo.", "The column 'visits' (integer) is gone.",
                    "The column 'calls' (integer) is new."]


# use

def test_score_uses_the_champion_or_the_bundle_that_is_named(project):
    rows = pl.DataFrame({"day": ["2025-01-05"] * 3, "city": ["Rome", "Oslo", None], "age": [70, 20, None],
                         "spent": [1.0, 2.0, None],
                         "visits": [1, 19, None], "member": ["yes", "no", None]})
    rows.write_parquet(project / "rows.parquet")
    done = nb_inside("score", "rows.parquet", "scores.parquet", cwd=project)
    assert done.returncode == 0 and "3 rows scored" in done.stdout, done.stderr
    scores = pl.read_parquet(project / "scores.parquet")
    assert scores["score"].is_between(0, 1).to_list() == [True, True, None] and set(scores["decision"]) <= {"0", "1",
                                                                                                            None}
    assert "1 of them broke the schema" in done.stdout
    assert pl.read_parquet(project / "scores.quarantined.parquet")["_reasons"].to_list() == [
        [f"{c}: missing" for c in ("city", "age", "spent", "visits", "member")]]
    named = nb_inside("score", "rows.parquet", "again.parquet", "--bundle", "artifacts/bundle", cwd=project)
    assert named.returncode == 0 and pl.read_parquet(project / "again.parquet").equals(scores)
    rows.drop("age").write_parquet(project / "short.parquet")
    assert "'age' (" in sentence(nb_inside("score", "short.parquet", "x.parquet", cwd=project))
    missing = nb_inside("score", "rows.parquet", "x.parquet", "--bundle", "nope", cwd=project)
    assert "is not a folder" in sentence(missing)
    assert "nope.parquet does not exist" in sentence(nb_inside("score", "nope.parquet", "x.parquet", cwd=project))
    assert not (project / "x.parquet").exists()
    shutil.rmtree(project / "releases")
    assert "No model is released here" in sentence(nb_inside("score", "rows.parquet", "x.parquet", cwd=project))


def test_what_if_answers_for_people_and_for_programs(project):
    done = nb_inside("what-if", "--row", "3", "--set", "age=70", "--set", "visits=20", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "after the change" in done.stdout and "The nearest real row with another" in done.stdout
    found = json.loads(nb_inside("what-if", "--row", "3", "--set", "age=70", "--as-json", cwd=project).stdout)
    row = pl.read_parquet(project / "artifacts/prepared/test.parquet").row(2, named=True)
    assert found["changes"] == [{"column": "age", "before": row["age"], "after": 70}]
    assert (found["nearest_counterfactual"]["prediction"]["decision"] ==
            found["sparse_counterfactual"]["prediction"]["decision"] != found["after"]["decision"])
    typed = json.dumps({k: row[k] for k in ("city", "age", "spent", "visits", "member")} | {"day": str(row["day"])})
    again = json.loads(nb_inside("what-if", "--json", typed, "--set", "age=70", "--as-json", "--bundle",
                                 "artifacts/bundle", cwd=project).stdout)
    assert again == found
    for args, says in ((["--set", "agee=3"], "there is no column 'agee'; did you mean 'age'?"),
                       (["--set", "age=old"], "is not an integer"),
                       (["--row", "0"], "has no row 0"), (["--json", "{}"], "has no column"),
                       (["--data", "x"], "x does not exist")):
        assert says in sentence(nb_inside("what-if", *args, cwd=project))


def test_compress_card_and_export(project):
    done = nb_inside("compress", "--n-trees", "3", "--output", "small", cwd=project)
    assert done.returncode == 0 and "trees in the place of" in done.stdout and "| roc_auc |" in done.stdout, done.stderr
    page = (project / "small/compression.html").read_text()
    assert "<td>bytes of the model</td>" in page and "<script" not in page
    for args in (("model-card", "--output", "small/model_card.html"), ("export-onnx", "--output", "small/onnx")):
        assert nb_inside(*args, "--bundle", "small/bundle", cwd=project).returncode == 0
    assert (project / "small/model_card.html").exists() and (project / "small/onnx/model.onnx").exists()
    shutil.rmtree(project / "releases")
    assert "No model is released here" in sentence(nb_inside("compress", cwd=project))


def test_report_run_checks_the_parameters_against_the_notebook(project):
    parameters = mk_cell("rows = 5 # how many\ntitle = 'Data' # above the table")
    parameters.metadata = {"tags": ["parameters"]}
    sheet = new_nb([mk_cell("# A sheet\n\n> Numbers.", "markdown"), parameters, mk_cell("f'{title} {rows * 2}'")])
    sheet.metadata = dict(kernelspec=dict(display_name="python3", language="python", name="python3"))
    write_nb(sheet, project / "nbs/reports/sheet.ipynb")
    def report(*given): return nb_inside("report", "run", "sheet", *given, cwd=project)
    done = report("-p", "rows=21", "-p", "title=Ten", "--output", "pages/sheet.html")
    assert done.returncode == 0, done.stderr
    assert "Ten 42" in (project / "pages/sheet.html").read_text() and done.stdout == "The page is pages/sheet.html\n"
    assert "has no parameter 'rosw'; did you mean 'rows'?" in sentence(report("-p", "rosw=5"))
    wrong = sentence(report("-p", "rows=many"))
    assert "rows" in wrong and "'many'" in wrong
    assert "write it as key=value" in sentence(report("-p", "rows"))
    assert "no report 'shete' in nbs/reports; did you mean 'sheet'?" in sentence(
        nb_inside("report", "run", "shete", cwd=project))
    edit(project / "nbs/reports/sheet.ipynb", "rows * 2", "rows / 0")
    assert "ZeroDivisionError" in sentence(report("--output",
                                                  "pages/failed.html")) and not (project / "pages/failed.html").exists()


def test_the_finished_project_is_deployed(good):
    assert read_json(good / "artifacts/deployment.json", dict)["deployed"]


def test_a_package_that_is_not_installed_is_named():
    from mlops_nb.command_line import exit_code_and_message
    code, said = exit_code_and_message(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert code == 1 and said.startswith("the package torch.nn is not installed") and "mlops-nb[" in said
