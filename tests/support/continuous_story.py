"""A project that runs by itself, and the world around it: months that arrive, customers who ask, and what goes wrong.
Nobody types a command after `mlops-nb up`; the world only delivers data, commits code, asks the server, and kills."""
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars.selectors as cs

from mlops_nb.config.params import read_params
from mlops_nb.config.settings import read_settings
from mlops_nb.data.ingest import dvc_add_data, ingest
from mlops_nb.examples.simulator import simulate_snapshots
from mlops_nb.ledger.ledger import LedgerUnavailable, open_ledger
from mlops_nb.ledger.runs import RUN_ENDS, list_runs, read_run
from mlops_nb.release.release_plan import plan_path, read_plan

COMMAND = [sys.executable, "-c", "from mlops_nb.cli import main; main()"]
WHO = ["-c", "user.name=ana", "-c", "user.email=ana@example.org"]


def git(root, *args): return subprocess.run(["git", *WHO, *args], cwd=root, check=True, capture_output=True, text=True)


def months(n, n_subscribers, **switches):
    "Name and rows of each simulated month; the same for each `n`, as far as it goes."
    params = read_params(Path(__file__).resolve().parents[2] / "params.yaml").simulate
    for name, value in dict(n_months=n, n_subscribers=n_subscribers, **switches).items(): setattr(params, name, value)
    return [(name, rows) for name, rows, _ in simulate_snapshots(params)]


def commit(root, message):
    git(root, "add", "-A")
    git(root, "commit", "-qm", message)


class World:
    "What happens around a project at `root`: `env` are the settings of all its processes."
    def __init__(self, root, env, patience_seconds=600):
        self.root, self.env, self.patience = Path(root), {**os.environ, **env}, patience_seconds
        self.processes, self.log = [], self.root / ".mlops" / "up.log"

    def __enter__(self): return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired): process.wait(60)
            process.kill()

    def start(self, *arguments):
        "A command of the project that runs until the end."
        self.log.parent.mkdir(exist_ok=True)
        with open(self.log, "ab") as log:
            process = subprocess.Popen([*COMMAND, *arguments], cwd=self.root, env=self.env, stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self.processes.append(process)
        return process

    def until(self, condition, what):
        limit = time.monotonic() + self.patience
        while True:
            with contextlib.suppress(LedgerUnavailable):
                if found := condition(): return found
            alive = [p for p in self.processes if p.poll() is None]
            assert alive and time.monotonic() < limit, f"{what}: it did not happen:\n{self.log.read_text()[-3000:]}"
            time.sleep(.1)

    @property
    def ledger(self): return open_ledger(self.root)

    @property
    def runs(self): return [*reversed(list_runs(self.ledger, 50))] # the oldest first

    @property
    def champion(self): return read_plan(plan_path(self.root, read_settings(self.root))).variants[0].bundle

    def ended_run(self, number):
        "The run that was asked for as the `number`-th, when it has ended."
        def ended():
            runs = self.runs
            return runs[number - 1] if len(runs) >= number and runs[number - 1].status in RUN_ENDS else None
        return read_run(self.ledger, self.until(ended, f"run {number} ends").id)

    def executor_of(self, number, step):
        "The id of the process that works on a step of the `number`-th run; None before it has begun."
        runs = self.runs
        steps = read_run(self.ledger, runs[number - 1].id).steps if len(runs) >= number else []
        return next((s.executor for s in steps if s.name == step), None)

    def deliver(self, name, rows, replace=False, time_column="snapshot"):
        "An upstream job brings a file of rows."
        folder = self.root / ".mlops" / "inbox"
        folder.mkdir(exist_ok=True)
        rows.write_parquet(folder / name)
        ingest(folder / name, self.root, time_column=time_column, replace=replace)
        dvc_add_data(self.root)
        (folder / name).unlink()

    def kill_controller(self, executor):
        "SIGKILL to the process that works on a run."
        row = self.ledger.query("SELECT pid FROM executors WHERE id = :id", id=executor)[0]
        os.kill(row["pid"], signal.SIGKILL)


class Customers:
    "Ask the server five times a second; `refused` has what got no answer after the first one, or is wrong."
    def __init__(self, port, endpoint, rows):
        self.port, self.path, self.rows = port, f"/v1/endpoints/{endpoint}:predict", rows
        self.answered, self.refused, self.bundles, self.stop = 0, [], [], threading.Event()
        self.thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join(30)

    def _once(self, row):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", self.path, json.dumps(dict(instances=[row])),
                               {"content-type": "application/json"})
            reply = connection.getresponse()
            body = reply.read()
        return reply.status, body

    def _ask(self):
        for i in range(10**9):
            if self.stop.wait(.2): return
            try: status, body = self._once(self.rows[i % len(self.rows)])
            except OSError as e: status, body = 0, str(e)
            if status == 200: self.answered += 1
            elif self.answered or status == 400: self.refused.append((status, body))



def instances(rows, n=50):
    return rows.head(n).with_columns(cs.temporal().dt.to_string("iso")).drop("churned", "_chance").to_dicts()


def effects(ledger):
    "Each effect and each end of a run that is written down: none of them may be there twice."
    return [e.key.partition("/ended/")[0] for e in ledger.entries(kinds=("effect.done", "run.ended"))]
