"Run the benchmarks, each in a process of its own, and write docs/benchmarks.md. `run.py NAME…` or `--quick` only print."
import argparse
import compileall
import json
import os
import platform
import subprocess
import sys
import sysconfig
import time
from datetime import date
from importlib.metadata import version

import psutil
from common import ENV, HERE, ROOT, THREADS

SUBJECTS = {"default_pipeline": 1200, "taxi_ingest": 600, "overhead": 2400, "scoring": 900, "shapley": 900, # seconds until it is stopped
            "learning": 3600, "nets": 1800, "serving": 2400}
PACKAGES = ["polars", "lightgbm", "numpy", "pyarrow", "pandera", "dvc", "mlflow", "scikit-learn", "shap", "papermill"]
HEAD = ("what", "figure", "peer, same run", "its figure", "ratio", "bound", "met")


def measure(name, quick):
    "The rows and notes of one subject; one that fails is a row that is not met."
    command = [sys.executable, HERE / f"{name}.py", *(["--quick"] if quick else [])]
    try: done = subprocess.run(command, env=ENV, stdout=subprocess.PIPE, text=True, timeout=SUBJECTS[name])
    except subprocess.TimeoutExpired: why = f"stopped after {SUBJECTS[name]} s"
    else:
        if done.returncode == 0: return json.loads(done.stdout.splitlines()[-1])
        why = f"ended with {done.returncode}"
    return dict(rows=[dict(what=name, figure=why, peer="", peer_figure="", ratio="", bound="", met=False)], notes=[])


def table(rows):
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    for r in rows:
        met = {True: "yes", False: "**no**", None: ""}[r["met"]]
        lines.append("| " + " | ".join([r["what"], r["figure"], r["peer"], r["peer_figure"], r["ratio"], r["bound"], met]) + " |")
    return "\n".join(lines)


def git(*args): return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def machine(load):
    "What the figures depend on; no names and no paths."
    changed = git("status", "--porcelain", "--untracked-files=no")
    commit = (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if changed else "")
    return [f"{THREADS} cores ({platform.machine()}, {platform.system()}), {psutil.virtual_memory().total / 2**30:.0f} GiB of memory; "
            f"the load average was {load:.1f} at the start.",
            f"Python {platform.python_version()}; " + ", ".join(f"{p} {version(p)}" for p in PACKAGES) + ".",
            f"Commit {commit}, {date.today()}, by `make bench`. Installed packages are compiled to bytecode, as pip leaves them."]


PAGE = """# Benchmarks

What the pipeline costs, beside a named peer measured in the same run. Ratios travel between machines; seconds do not.
This page is written by `make bench`.

{machine}

{table}

## How it was measured

{notes}
"""


def listed(lines): return "\n".join(f"- {line}" for line in lines)


def page(results, load):
    rows, notes = [r for x in results for r in x["rows"]], [n for x in results for n in x["notes"]]
    return PAGE.format(machine=listed(machine(load)), table=table(rows), notes=listed(notes))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="little data: does it run at all?")
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in SUBJECTS]
    if unknown: parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    load = os.getloadavg()[0]
    for folder in (sysconfig.get_path("purelib"), str(ROOT / "mlops_nb")): compileall.compile_dir(folder, quiet=2) # not all installers do
    results = []
    for name in args.names or SUBJECTS:
        clock = time.perf_counter()
        results.append(measure(name, args.quick))
        print(f"{name}: {time.perf_counter() - clock:.0f} s\n{table(results[-1]['rows'])}\n", flush=True)
    if not (args.names or args.quick):
        sys.path.insert(0, str(ROOT))
        from mlops_nb.files import atomic_file
        with atomic_file(ROOT / "docs" / "benchmarks.md") as tmp: tmp.write_text(page(results, load), encoding="utf-8")
        print("written to docs/benchmarks.md")
    return int(any(r["met"] is False for x in results for r in x["rows"]))


if __name__ == "__main__": sys.exit(main())
