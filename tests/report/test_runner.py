"""report.run: parameters are checked, limits hold, failures are loud, and nothing is left running."""
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from mlops_nb.config.settings import ReportSettings
from mlops_nb.core.errors import UserError
from mlops_nb.report.notebook_parameters import check_parameters, notebook_parameters
from mlops_nb.report.runner import run_notebook


def code(source, *tags):
    return dict(cell_type="code", id=f"c{len(source)}", source=source, metadata=dict(tags=list(tags)), outputs=[],
                execution_count=None)


def notebook(path, *cells):
    cells = [dict(cell_type="markdown", id="t", source="# A report", metadata={}),
             *(code(c) if isinstance(c, str) else c for c in cells)]
    path.write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
    return path


def alive(pids): return [p for p in pids if psutil.pid_exists(p) and psutil.Process(p).status() != psutil.STATUS_ZOMBIE]


def gone(pids, seconds=10):
    end = time.monotonic() + seconds
    while alive(pids) and time.monotonic() < end: time.sleep(0.1)
    return not alive(pids)


# ---- parameters

PARAMETERS = """
import os
a = 1   # a whole number
b: float = 2
c = 'x'
d: str | None = None
e = None
f: list[int] = []
g = {'k': 1,
     'l': 2}
h: bool = False
i = os.getpid()
j: "Path" = None
k: int | None = 5
"""


@pytest.fixture
def declared(tmp_path): return notebook(tmp_path / "p.ipynb", code(PARAMETERS, "parameters"), "a")


@pytest.mark.parametrize("given, value", [
    (dict(a="7"), 7), (dict(a=7), 7), (dict(b="1e-3"), 1e-3), (dict(b=3), 3.0), (dict(c="7"), "7"),
    (dict(d="null"), "null"),
    (dict(d=None), None), (dict(e="anything"), "anything"), (dict(f="[1, 2]"), [1, 2]), (dict(g='{"k": 3}'), {"k": 3}),
    (dict(h="true"), True), (dict(i="3"), "3"), (dict(j="x/y"), "x/y"), (dict(k="null"), None), (dict(k="9"), 9)])
def test_text_becomes_the_type_the_notebook_declares(declared, given, value):
    got = check_parameters(declared, given)
    assert got == {next(iter(given)): value}
    assert type(got[next(iter(given))]) is type(value)


@pytest.mark.parametrize("given, sentence", [
    (dict(a="1.5"), "a whole number is expected"), (dict(a=None), "a whole number"), (dict(b="much"), "a number"),
    (dict(c=3), "text"),
    (dict(h="perhaps"), "true or false"), (dict(g="[1]"), "a JSON object"), (dict(k="x"), "got 'x'"),
    (dict(aa=1), "has no parameter 'aa'"),
    (dict(os="x"), "has no parameter 'os'"), (dict(api_key="x"), "secret"), (dict(DB_PASSWORD="x"), "secret"),
    (dict(token="x"), "secret")])
def test_wrong_parameters_are_refused_in_a_sentence(declared, given, sentence):
    with pytest.raises(UserError, match=sentence): check_parameters(declared, given)


def test_a_parameter_is_checked_before_anything_starts_or_is_removed(declared, tmp_path):
    (tmp_path / "p.html").write_text("old")
    with pytest.raises(UserError, match="did you mean"): run_notebook(declared, tmp_path / "p.html", dict(aa=1))
    assert (tmp_path / "p.html").read_text() == "old"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": ', "no json", '{"worksheets": []}'])
def test_a_file_that_is_no_notebook(tmp_path, content):
    (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(UserError, match="x.ipynb is not a notebook"):
        run_notebook(tmp_path / "x.ipynb", tmp_path / "x.html")


def test_a_missing_notebook_and_broken_parameters(tmp_path):
    with pytest.raises(UserError, match="There is no notebook"):
        run_notebook(tmp_path / "none.ipynb", tmp_path / "x.html")
    with pytest.raises(UserError, match="not valid Python at its line 2"):
        notebook_parameters(notebook(tmp_path / "y.ipynb", code("a = 1\nb = = 2", "parameters")))


# ---- running

def test_two_at_once_with_braces_in_the_path(tmp_path):
    folder = tmp_path / "a {strange} folder"
    folder.mkdir()
    nb = notebook(folder / "r.ipynb", code("n: int = 0", "parameters"),
                  "import os; f'n is {n} in {os.path.basename(os.getcwd())}'")
    with ThreadPoolExecutor(2) as pool:
        for run in [pool.submit(run_notebook, nb, folder / "out" / f"{n}.html", dict(n=n), cwd=folder) for n in (1, 2)]:
            run.result()
    for n in (1, 2): assert f"n is {n} in a {{strange}} folder" in (folder / "out" / f"{n}.html").read_text()
    assert not (folder / ".mlops").exists()


def test_the_sentence_of_a_failure(tmp_path):
    nb = notebook(tmp_path / "f.ipynb", "1",
                  "from mlops_nb.core.errors import UserError\nraise UserError('artifacts/gate.json does not exist; "
                  "run it.')")
    with pytest.raises(UserError) as e: run_notebook(nb, tmp_path / "f.html", cwd=tmp_path)
    assert "In cell [2]: artifacts/gate.json does not exist; run it." in str(e.value)
    assert not (tmp_path / "f.html").exists()
    kept = list((tmp_path / ".mlops" / "failed").glob("f-*.ipynb"))
    assert len(kept) == 1 and f".mlops/failed/{kept[0].name}" in str(e.value) and "UserError" in kept[0].read_text()


def test_time_limit_ends_the_whole_tree_even_what_detached_itself(tmp_path):
    nb = notebook(tmp_path / "t.ipynb", f"""
import os, subprocess, sys
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], start_new_session=True)
open({str(tmp_path / 'pids')!r}, 'w').write(f'{{os.getpid()}} {{child.pid}}')
while True: pass""")
    with pytest.raises(UserError, match="stopped after 8 seconds"):
        run_notebook(nb, tmp_path / "t.html", limits=ReportSettings(timeout_seconds=8), cwd=tmp_path)
    pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
    assert len(pids) == 2 and gone(pids)
    assert not (tmp_path / "t.html").exists()


def test_memory_limit(tmp_path):
    nb = notebook(tmp_path / "m.ipynb", "import time",
                  "x = bytearray(2**30)\nfor i in range(0, len(x), 4096): x[i] = 1\ntime.sleep(60)")
    start = time.monotonic()
    with pytest.raises(UserError, match="MiB of memory and 700 MiB are allowed"):
        run_notebook(nb, tmp_path / "m.html", limits=ReportSettings(max_memory_mib=700), cwd=tmp_path)
    assert time.monotonic() - start < 50 and not (tmp_path / "m.html").exists()


def test_a_kernel_that_dies_is_a_failure_and_does_not_hang(tmp_path):
    nb = notebook(tmp_path / "k.ipynb", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "1")
    with pytest.raises(UserError, match="k.ipynb failed.*Kernel died"):
        run_notebook(nb, tmp_path / "k.html", limits=ReportSettings(timeout_seconds=60), cwd=tmp_path)
    assert not (tmp_path / "k.html").exists()


def test_a_killed_worker_is_a_failure(tmp_path):
    pids = tmp_path / "pids"
    nb = notebook(tmp_path / "w.ipynb", f"""
import os, signal, time
open({str(pids)!r}, 'w').write(str(os.getpid()))
os.kill(os.getppid(), signal.SIGKILL)
time.sleep(60)""")
    with pytest.raises(UserError, match="killed or crashed"):
        run_notebook(nb, tmp_path / "w.html", limits=ReportSettings(timeout_seconds=60), cwd=tmp_path)
    assert gone([int(pids.read_text())])


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
def test_nothing_survives_the_program_that_asked(tmp_path, sig):
    nb = notebook(tmp_path / "o.ipynb", f"""
import os
parent = os.popen(f'ps -o ppid= -p {{os.getppid()}}').read().strip()
open({str(tmp_path / 'tmp')!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}} {{parent}}')
os.rename({str(tmp_path / 'tmp')!r}, {str(tmp_path / 'pids')!r})
while True: pass""")
    (tmp_path / "temporary").mkdir()
    asker = subprocess.Popen([sys.executable, "-c",
                              f"from mlops_nb.report.runner import run_notebook\nrun_notebook({str(nb)!r}, 'o.html')"],
                             cwd=tmp_path, env=os.environ | dict(TMPDIR=str(tmp_path / "temporary")),
                             stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not (tmp_path / "pids").exists() and time.monotonic() < end: time.sleep(0.1)
    pids = [int(p) for p in (tmp_path / "pids").read_text().split()]
    assert len(alive(pids)) == 3
    asker.send_signal(sig)
    asker.wait(20)
    assert gone(pids)
    end = time.monotonic() + 10
    while list((tmp_path / "temporary").glob("mlops_nb-*")) and time.monotonic() < end: time.sleep(0.1)
    assert not list((tmp_path / "temporary").glob("mlops_nb-*")) and not (tmp_path / "o.html").exists()
