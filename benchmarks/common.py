"What the benchmarks share: where things are, a clock, a project in a temporary folder, and a row of the result."
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
TAXI = ROOT.parent / "shared" / "data" / "nyc_green_taxi"
MINUTES = "(EXTRACT(EPOCH FROM lpep_dropoff_datetime) - EXTRACT(EPOCH FROM lpep_pickup_datetime)) / 60.0"
THREADS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1",
       "MLFLOW_DISABLE_TELEMETRY": "true"}
ENV.pop("PYTHONDONTWRITEBYTECODE", None)


def quick():
    "Was this script started for a smoke test?"
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args().quick


@contextmanager
def workplace():
    "A temporary folder, gone at the end."
    with tempfile.TemporaryDirectory(prefix="mlops-nb-bench-", ignore_cleanup_errors=True) as tmp: yield Path(tmp)


def run(*command, cwd):
    "Seconds that a command took; what it said when it failed becomes the error."
    clock = time.perf_counter()
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=ENV, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - clock
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}: "
                         f"{(done.stderr or done.stdout)[-2000:]}")
    return seconds


@contextmanager
def memory_of_children(every=0.2):
    "Yields a list whose one item is, at the end, the peak resident memory of all child processes together, in MiB."
    peak, over = [0.0], threading.Event()

    def watch():
        me = psutil.Process()
        while not over.wait(every):
            used = 0
            for p in me.children(recursive=True):
                with suppress(psutil.NoSuchProcess): used += p.memory_info().rss
            peak[0] = max(peak[0], used / 2**20)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try: yield peak
    finally:
        over.set()
        watcher.join()


def fresh_copy(to):
    "This repository's files as git knows them, in a repository of their own: no caches, no data, no outputs."
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True).stdout
    for name in names.decode().split("\0"):
        if not (ROOT / name).is_file(): continue
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, to / name)
    run("git", "init", "-q", cwd=to)


def fewer_subscribers(project, n):
    "For smoke tests: a smaller simulation, in which no segment is judged."
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("n_subscribers: 6000", f"n_subscribers: {n}"))


def taxi_project(to, months="*"):
    "A project on the taxi trips, as a person would make it."
    run("mlops-nb", "init", to, "--data", f"{TAXI}/green_tripdata_{months}.parquet", "--target", MINUTES, "--time",
        "lpep_pickup_datetime",
        "--filter", "target >= 1 AND target <= 60", cwd=to.parent)


def stage_records(project):
    "What each stage recorded of itself, in the order they ran."
    return sorted((json.loads(p.read_text()) for p in (project / ".mlops" / "stages").glob("*.json")),
                  key=lambda r: r["started"])


def stage_seconds(project): return {r["stage"]: r["seconds"] for r in stage_records(project)}


def seconds(f, *args):
    "Seconds that a call took."
    clock = time.perf_counter()
    f(*args)
    return time.perf_counter() - clock


def alternating(times, *calls):
    "The median seconds of each call; they take turns, so that what disturbs one disturbs all."
    took = [[call() for call in calls] for _ in range(times)]
    return [statistics.median(column) for column in zip(*took, strict=True)]


def row(what, figure, peer="", peer_figure="", ratio="", bound="", met=None):
    "One line of the table; `met` is None where nothing was promised."
    return dict(what=what, figure=figure, peer=peer, peer_figure=peer_figure, ratio=ratio, bound=bound, met=met)


def report(rows, notes=(), head=None):
    "The last line of a benchmark's output; `head` names the columns where they are not those of a comparison."
    print(json.dumps(dict(rows=rows, notes=list(notes), head=head)))
