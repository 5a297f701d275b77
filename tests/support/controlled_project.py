"""A small repository and controllers that work on it in processes of their own. The commands of `dvc` are replaced by
one that notes when it begins and ends; everything else is as it is: git, worktrees, DBOS, the ledger."""
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

from mlops_nb.config.settings import read_settings
from mlops_nb.release.release_plan import plan_path, write_empty_record

ENV = {**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}

# Of the one controller that is to be lost; one that goes on has the usual lease, which a busy machine does not miss.
SHORT_LEASE = {"MLOPS_NB_CONTROL_LEASE_SECONDS": "8"}

STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path
from mlops_nb.control import controller, run_workflow
from mlops_nb.ledger import executors
from mlops_nb.ledger.ledger import Ledger

SECONDS = float(os.environ.get('STEP_SECONDS', '0.1'))
COMMAND = '''
import os, sys, time
from pathlib import Path
root, name = Path(os.environ['MLOPS_NB_CHECKOUT']), sys.argv[-1]
def note(what):
    with open(root / what, 'a') as f: f.write(name + ' ' + os.environ['MLOPS_NB_ATTEMPT'] + chr(10))
note('begun')
if (root / ('fail ' + name)).exists(): sys.exit((root / ('fail ' + name)).read_text())
end = time.time() + float(os.environ.get('STEP_SECONDS', '0.1'))
while time.time() < end or (root / ('hold ' + name)).exists(): time.sleep(.02)
run, done = os.environ['MLOPS_NB_PIPELINE_RUN'], root / '.mlops' / 'released'
if name == 'deploy' and run not in (done.read_text().split() if done.exists() else []):
    with open(done, 'a') as f: f.write(run + chr(10))
note('ended')
'''
plain = run_workflow.run_process
def run_process(command, *args): plain([sys.executable, '-c', COMMAND, command[-1]], *args)
run_workflow.run_process = run_process
run_workflow._outcome = lambda folder: ('succeeded', 'Released.', dict(bundle='a1b2'))

def dies_at(when, number, method):
    "A method of the ledger in which this process is killed, before or after its entry of that number."
    def die(what):
        with open('kills', 'a') as f: f.write(when + ' ' + what + chr(10))
        os.kill(os.getpid(), signal.SIGKILL)
    def write(*args, **more):
        facts = args[3] if len(args) > 3 and isinstance(args[3], dict) else {}
        what = ' '.join([method.__name__, *args[1:2], facts.get('step', '')]) if facts else method.__name__
        seen.append(what)
        if (when, len(seen)) == ('before', number): die(what)
        found = method(*args, **more)
        if (when, len(seen)) == ('after', number): die(what)
        return found
    return write

seen = []
if os.environ.get('KILL_AT'):
    when, number = os.environ['KILL_AT'].split()
    for name in ('append', 'begin_attempt'): setattr(Ledger, name, dies_at(when, int(number), getattr(Ledger, name)))

def jumping(plain):
    def run(connection, sql, **values):
        path = Path(os.environ['CLOCK'])
        jump = float(path.read_text()) if path.exists() else 0
        return plain(connection, sql.replace('CLOCK', f'(CLOCK + {jump})'), **values)
    return run

if os.environ.get('CLOCK'): executors._run = jumping(executors._run)
if os.environ.get('CODE_VERSION'): controller.code_version = lambda: os.environ['CODE_VERSION']
if os.environ.get('HOST'): executors._host = lambda: os.environ['HOST']
controller.run_controller('.', poll_interval_seconds=float(os.environ.get('POLL_SECONDS', '0.2')))
"""


def git(root, *args):
    who = ["-c", "user.name=ana", "-c", "user.email=ana@example.org"]
    return subprocess.run(["git", *who, *args], cwd=root, check=True, capture_output=True, text=True).stdout


def repository(root, endpoint="churn"):
    "A project as far as a run's identity looks at it."
    root.mkdir(exist_ok=True)
    for name in ("dvc.yaml", "params.yaml", "data.dvc", "features.py"): (root / name).write_text(f"# {name}\n")
    (root / "settings.ini").write_text(f"[release]\nendpoint = {endpoint}\n")
    write_empty_record(plan_path(root, read_settings(root)))
    (root / ".gitignore").write_text("/.mlops/\n/reports/\n/begun\n/ended\n/log*\n/kills\n/clock\n/fail*\n/hold*\n")
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "project"]): git(root, *args)
    return root


def start_controller(root, **env):
    """Begin a controller. `KILL_AT` (`before 3`, `after 3`) says at which of its entries in the ledger it is killed;
    `CLOCK` names a file with the seconds by which the clock of leases has jumped, and `HOST` another machine's name."""
    with open(root / "log.txt", "ab") as log:
        process = subprocess.Popen([sys.executable, "-c", STAND_IN], cwd=root, env=ENV | {**os.environ} | env,
                                   stdout=log, stderr=subprocess.STDOUT)
    process.log = root / "log.txt"
    return process


def end(process, how=signal.SIGKILL):
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.send_signal(how)
    return process.wait(60)


def _is_free(uri):
    "Could somebody write into this database now? PostgreSQL ends a session that holds others up by itself."
    if not uri.startswith("sqlite:///"): return True
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=1, isolation_level=None)) as db:
        try: db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError: return False
        return True


def suspend(process, *uris):
    "SIGSTOP, but not in the middle of a write into a file of SQLite: nobody could go on beside it."
    while True:
        process.send_signal(signal.SIGSTOP)
        if all(map(_is_free, uris)): return
        process.send_signal(signal.SIGCONT)
        time.sleep(.05)


def until(condition, seconds=180):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)
    return found


def lines(path): return path.read_text().splitlines() if path.exists() else []
