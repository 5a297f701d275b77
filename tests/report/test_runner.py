"""report.run: parameters are checked, limits hold, failures are loud, and nothing is left running."""
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import psutil
import pytest

from mlops_nb.config.settings import ReportSettings
from mlops_nb.core.errors import UserError
from mlops_nb.report.notebook_parameters import check_parameters, notebook_parameters, read_notebook
from mlops_nb.report.runner import find_kernel, run_notebook, run_report_notebook, write_missing_report

REPORTS = Path(__file__).parents[2] / "nbs/reports"


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
    (dict(h="true"), True), (dict(i="3"), 3), (dict(i="x"), "x"), (dict(e="3"), 3), (dict(e="0.5"), 0.5),
    (dict(e="None"), None), (dict(e="True"), True), (dict(d="None"), None), (dict(k="None"), None),
    (dict(j="x/y"), "x/y"), (dict(k="null"), None), (dict(k="9"), 9)])
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


LOOSE = """
%matplotlib inline
import json
c = {}
limit = None
hours = 24 * 7
share = 1 / 3
delay = -5
start, end = "2021-01-01", "2021-12-31"
(low, [high, *rest]) = 1, [2, 3]
first = second = 0.5
pair = (1, 2)
box: tuple[int, int] = (3, 4)
c["k"] = 1
c.attribute = 2
none: int = None
name = "a" + "b"
title = f"{name}!"
number = int("3")
if hours > 3:
    inner = 1
"""


def test_every_form_of_an_assignment(tmp_path):
    nb = notebook(tmp_path / "loose.ipynb", code(LOOSE, "parameters"))
    assert notebook_parameters(nb) == dict(
        c=dict, limit=Any, hours=int, share=float, delay=int, start=str, end=str, low=int, high=Any, rest=Any,
        first=float, second=float, pair=list, box=list, none=Optional[int], name=str, title=str, number=int, inner=Any)
    got = check_parameters(nb, dict(limit="3", hours="48", pair="[5, 6]", none="None", first="inf"))
    assert got == dict(limit=3, hours=48, pair=[5, 6], none=None, first=float("inf"))
    with pytest.raises(UserError, match="'hours' got '1.5'; a whole number"): check_parameters(nb, dict(hours="1.5"))
    with pytest.raises(UserError, match="'pair' got '5, 6'; a JSON list"): check_parameters(nb, dict(pair="5, 6"))


@pytest.mark.parametrize("name, secret", [
    ("api_token", True), ("TOKEN", True), ("github_token", True), ("accessToken", True), ("refresh_tokens", True),
    ("db_password", True), ("passphrase", True), ("aws_secret", True), ("access_key", True), ("credentials", True),
    ("max_tokens", False), ("n_tokens", False), ("tokens", False), ("token_limit", False), ("max_token", False),
    ("tokenizer", False), ("min_token_count", False), ("key", False), ("max_api_tokens", True)])
def test_a_token_is_a_secret_and_tokens_are_counted(tmp_path, name, secret):
    nb = notebook(tmp_path / "t.ipynb", code(f"{name} = 5", "parameters"))
    if not secret: assert check_parameters(nb, {name: "7"}) == {name: 7}; return
    with pytest.raises(UserError, match=f"parameter '{name}' looks like a secret"): check_parameters(nb, {name: "7"})


def test_which_cell_holds_the_parameters(tmp_path):
    two = notebook(tmp_path / "two.ipynb", code("a = 1", "parameters"), "a", code("a = 2", "parameters"))
    with pytest.raises(UserError, match="cells 2 and 4 are both tagged parameters"): check_parameters(two, dict(a=3))
    text = notebook(tmp_path / "text.ipynb", dict(cell_type="markdown", id="m", source="a = 1",
                                                  metadata=dict(tags=["parameters"])))
    with pytest.raises(UserError, match="cell 2 is tagged parameters and holds no code"): notebook_parameters(text)


def test_a_parameter_is_checked_before_anything_starts_or_is_removed(declared, tmp_path):
    (tmp_path / "p.html").write_text("old")
    with pytest.raises(UserError, match="did you mean"): run_notebook(declared, tmp_path / "p.html", dict(aa=1))
    assert (tmp_path / "p.html").read_text() == "old"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"cells": ', "no json", '{"worksheets": []}'])
def test_a_file_that_is_no_notebook(tmp_path, content):
    (tmp_path / "x.ipynb").write_text(content)
    with pytest.raises(UserError, match="x.ipynb is not a notebook"):
        run_notebook(tmp_path / "x.ipynb", tmp_path / "x.html")


@pytest.mark.parametrize("call", [lambda root, path: run_notebook(path, root / "page.html", dict(nothing=1), cwd=root),
                                  lambda root, path: run_report_notebook(root, "monitoring", ["nothing=1"])])
def test_a_report_that_an_older_project_lacks_is_written(call, tmp_path):
    "And read like the others: here a parameter is refused."
    path = tmp_path / "nbs/reports/monitoring.ipynb"
    path.parent.mkdir(parents=True)
    with pytest.raises(UserError, match="no parameter 'nothing'"): call(tmp_path, path)
    assert path.read_bytes() == (REPORTS / path.name).read_bytes()
    path.write_text("{}")
    assert not write_missing_report(path) and path.read_text() == "{}"  # it is the project's own


@pytest.mark.parametrize("place", ["monitoring.ipynb", "reports/monitoring.ipynb", "nbs/reports/of_nobody.ipynb",
                                   "nbs/reports/../monitoring.ipynb", "nbs/reports/__init__.py"])
def test_only_reports_of_the_package_are_written_and_only_into_a_project(place, tmp_path):
    assert not write_missing_report(tmp_path / place) and [*tmp_path.iterdir()] == []


def test_a_missing_notebook_and_broken_parameters(tmp_path):
    with pytest.raises(UserError, match="There is no notebook"):
        run_notebook(tmp_path / "none.ipynb", tmp_path / "x.html")
    with pytest.raises(UserError, match="cell 2, tagged parameters, is not valid Python at its line 2"):
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


def test_a_notebook_as_other_programs_write_it(tmp_path):
    "No metadata, no outputs, no ids, text in one piece; a value that JSON has no word for."
    cells = [dict(cell_type="code", source="limit = None\nshare = 0.5", metadata=dict(tags=["parameters"])),
             dict(cell_type="code", source="f'{limit!r} {share!r}'"), dict(cell_type="markdown", source=["# A\n", "b"])]
    (tmp_path / "n.ipynb").write_text(json.dumps(dict(cells=cells, nbformat=4, nbformat_minor=4)))
    run_notebook(tmp_path / "n.ipynb", tmp_path / "n.html", dict(limit="None", share="nan"), cwd=tmp_path)
    assert "None nan" in (tmp_path / "n.html").read_text()


# A kernel of another language: it answers each cell with the cell's own text.
PARROT = """
from ipykernel.kernelapp import IPKernelApp
from ipykernel.kernelbase import Kernel

class Parrot(Kernel):
    implementation = banner = 'parrot'
    implementation_version = '1'
    language_info = dict(name='R', mimetype='text/x-r', file_extension='.r')

    async def do_execute(self, code, silent, *args, **kwargs):
        text = dict(name='stdout', text=f'parrot says {code}')
        self.send_response(self.iopub_socket, 'stream', text)
        return dict(status='ok', execution_count=self.execution_count, payload=[], user_expressions={})

IPKernelApp.launch_instance(kernel_class=Parrot)
"""


def r_notebook(path, **metadata):
    nb = notebook(path, code("limit <- 5\nmax.rows = 3", "parameters"), "summary(limit)")
    nb.write_text(json.dumps(json.loads(nb.read_text()) | dict(metadata=metadata)))
    return nb


@pytest.mark.parametrize("metadata", [
    dict(kernelspec=dict(name="ir", display_name="R", language="R")), dict(language_info=dict(name="R")),
    dict(kernelspec=dict(name="ir42", language="r")), dict(kernelspec=dict(name="ir"))])
def test_a_notebook_of_another_language_runs_on_its_own_kernel_or_not_at_all(tmp_path, monkeypatch, metadata):
    nb = r_notebook(tmp_path / "r.ipynb", **metadata)
    sentence = "is written in [rR], and no" if "language" in str(metadata) else "needs the kernel 'ir' and does not"
    with pytest.raises(UserError, match=sentence):
        run_notebook(nb, tmp_path / "r.html", cwd=tmp_path)
    assert not (tmp_path / "r.html").exists()
    spec = tmp_path / "jupyter" / "kernels" / "ir"
    spec.mkdir(parents=True)
    (spec / "parrot.py").write_text(PARROT)
    argv = [sys.executable, str(spec / "parrot.py"), "-f", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps(dict(argv=argv, display_name="R", language="R")))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    run_notebook(nb, tmp_path / "r.html", {"limit": "3", "max.rows": "7"}, cwd=tmp_path)
    page = (tmp_path / "r.html").read_text()
    assert "parrot says summary(limit)" in page and "limit = 3\nmax.rows = 7" in page
    with pytest.raises(UserError, match="has no parameter 'limt'"):
        run_notebook(nb, tmp_path / "r.html", dict(limt=1), cwd=tmp_path)


@pytest.mark.parametrize("name", ["python3", "conda-env-other-py", "my-venv"])
def test_a_python_notebook_of_another_environment_runs_in_this_one(tmp_path, name):
    nb = r_notebook(tmp_path / "p.ipynb", kernelspec=dict(name=name, language="python"))
    assert find_kernel(nb, read_notebook(nb)) == ("python3", "python")


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


def test_output_is_bounded(tmp_path):
    nb = notebook(tmp_path / "l.ipynb", "'kept'", "import time\nwhile True: print('x' * 50_000); time.sleep(.001)")
    with pytest.raises(UserError, match=r"Cell .* printed more than 2 MiB; print less, or raise max_output_mib") as e:
        run_notebook(nb, tmp_path / "l.html", limits=ReportSettings(max_output_mib=2), cwd=tmp_path)
    kept = next((tmp_path / ".mlops" / "failed").glob("l-*.ipynb"))
    assert kept.name in str(e.value) and kept.stat().st_size < 4 * 2**20
    assert not (tmp_path / "l.html").exists()


def test_a_gigabyte_at_once_is_stopped_by_either_limit(tmp_path):
    nb = notebook(tmp_path / "g.ipynb", "print('x' * 2**30)")
    with pytest.raises(UserError, match="printed more than 2 MiB|MiB of memory and 600 MiB are allowed"):
        run_notebook(nb, tmp_path / "g.html", limits=ReportSettings(max_output_mib=2, max_memory_mib=600), cwd=tmp_path)


def test_secrets_are_neither_in_the_environment_nor_in_what_is_left(tmp_path, monkeypatch):
    monkeypatch.setenv("WAREHOUSE_PASSWORD", "tiger<&>lily")
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", "postgresql://me:orchid-7@127.0.0.1:1/x")
    nb = notebook(tmp_path / "s.ipynb", "import os", "print(os.environ.get('WAREHOUSE_PASSWORD', 'it is hidden'))",
                  "print(os.environ['MLOPS_NB_LEDGER_URI'])")
    places = dict(output_path=tmp_path / "s.html", executed_path=tmp_path / "s-run.ipynb", cwd=tmp_path)
    run_notebook(nb, **places)
    for place in (tmp_path / "s.html", tmp_path / "s-run.ipynb"):
        assert "it is hidden" in place.read_text() and "orchid-7" not in place.read_text()
    run_notebook(nb, **places, limits=ReportSettings(secrets="WAREHOUSE_PASSWORD"))
    for place in (tmp_path / "s.html", tmp_path / "s-run.ipynb"):
        assert "tiger" not in place.read_text() and "lily" not in place.read_text()
    bad = notebook(tmp_path / "b.ipynb", "import os; raise ValueError(os.environ['MLOPS_NB_LEDGER_URI'])")
    with pytest.raises(UserError) as e: run_notebook(bad, tmp_path / "b.html", cwd=tmp_path)
    kept = next((tmp_path / ".mlops" / "failed").glob("b-*.ipynb"))
    assert "orchid-7" not in str(e.value) and "orchid-7" not in kept.read_text()


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
    asker.wait(90)
    assert gone(pids, 60)
    end = time.monotonic() + 60
    while list((tmp_path / "temporary").glob("mlops_nb-*")) and time.monotonic() < end: time.sleep(0.1)
    assert not list((tmp_path / "temporary").glob("mlops_nb-*")) and not (tmp_path / "o.html").exists()
