"A small shop whose sales nobody forecasts: its data, a finished project around it, and the command line as a process."
import contextlib
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from mlops_nb.cli import app
from mlops_nb.command_line import exit_code_and_message
from mlops_nb.core.files import file_lock
from mlops_nb.core.manifest import file_hashes

os.environ.setdefault("MLOPS_NB_RUN_THREADS", "1") # for what runs in this process; as ENV for the others
BIN = Path(sys.executable).parent
ENV = {k: v for k, v in os.environ.items() if not k.startswith("MLOPS_NB_")} | {
    "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1", "MLOPS_NB_RUN_THREADS": "1",
    "MLOPS_NB_QUIET": "1", # how long something takes differs from run to run
    **{f"GIT_{role}_{key}": "ana@example.org" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}}
HEADER = "day,city,age,spent,visits,member,bought"


def shop(rows=1500, seed=1):
    "Customers over a year, as CSV: who bought depends on age and visits together, so that trees beat a line."
    r, lines = random.Random(seed), [HEADER]
    for i in range(rows):
        city, age, visits = r.choice(["Bonn", "Köln", "Paris", "Rome"]), r.randint(18, 80), r.randint(0, 20)
        p = 0.85 if (age > 45) != (visits > 10) else 0.1
        lines.append(f"2024-{1 + i * 12 // rows:02d}-{1 + i % 28:02d},{city},{age},"
                     f"{r.gammavariate(2, 30):.2f},{visits},{r.choice(['yes', 'no'])},{int(r.random() < p)}")
    return "\n".join(lines) + "\n"


def run(*command, cwd, env=None, **kw):
    "A command of the environment under test, to its end."
    return subprocess.run([str(c) for c in command], cwd=cwd, env=ENV | (env or {}), capture_output=True, text=True,
                          timeout=300, **kw)


def nb(*args, cwd, **kw): return run("mlops-nb", *args, cwd=cwd, **kw)


def nb_inside(*args, cwd):
    "The same command in this process: several times as quick, where a test is only about what is said."
    with contextlib.chdir(cwd): done = CliRunner().invoke(app, [str(a) for a in args])
    if done.exception is None or isinstance(done.exception, SystemExit): code, error = done.exit_code, done.stderr
    else:
        code, message = exit_code_and_message(done.exception)
        error = f"error: {message}\n"
    return subprocess.CompletedProcess(args, code, done.stdout, error)


def sentence(done, code=1):
    "The one sentence a person got; fails if it was more, or less, or a traceback."
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    said = lines[0].removeprefix("error: ")
    assert said.endswith(".") or "; known are " in said or said.endswith("?"), said
    return said


def leftovers(folder): return sorted(str(p.relative_to(folder)) for p in folder.rglob(".*.tmp"))


def results(root):
    "The hash of each file that the pipeline made from the data, but for what tells the time."
    return {f"{top}/{name}": sha for top in ("artifacts", "quarantine") for name,
            sha in file_hashes(root / top).items()}


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def done(*command, cwd):
    "A command that must succeed; gives what it printed."
    ended = run(*command, cwd=cwd)
    assert ended.returncode == 0, (command, ended.stdout, ended.stderr)
    return ended.stdout


def finished(tmp_path_factory):
    "A project that went through `dvc repro`, made once for all workers of a session. Copy it."
    home = tmp_path_factory.getbasetemp()
    home = home.parent if os.environ.get("PYTEST_XDIST_WORKER") else home
    root = home / "finished" / "corner"
    with file_lock(home / "finished.lock"):
        if not (root / "reports" / "index.html").exists():
            shutil.rmtree(root.parent, ignore_errors=True)
            root.parent.mkdir()
            (root.parent / "shop.csv").write_text(shop(), encoding="utf-8")
            made = nb("init", root, "--data", root.parent / "shop.csv", "--target", "bought", "--time", "day",
                      cwd=root.parent)
            assert made.returncode == 0, made.stderr
            edit(root / "params.yaml", "checkpoint_every: 200", "checkpoint_every: 5")
            edit(root / "params.yaml", "max_calibration_error: 0.25", "max_calibration_error: 0.5") # few rows
            done = run("dvc", "repro", cwd=root)
            assert done.returncode == 0, done.stdout + done.stderr
            (root.parent / "repro.log").write_text(done.stdout, encoding="utf-8")
    return root
