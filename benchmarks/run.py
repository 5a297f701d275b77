"Run the benchmarks, a process each, and write their pages into docs/benchmarks/; with `--quick` they are only printed."
import argparse
import ast
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

# seconds until it is stopped
SUBJECTS = {"default_pipeline": 1200, "taxi_ingest": 600, "overhead": 2400, "scoring": 900, "shapley": 900,
            "learning": 3600, "nets": 1800, "serving": 2400, "grpc_serving": 1800, "estimators": 2400,
            "evidence": 1800, "wide": 1200, "csv_ingest": 1200, "attacks": 900, "judge": 1200, "monitoring": 3600,
            "monitoring_speed": 1800, "performance_estimates": 1800, "monitored_year": 5400,
            "control": 900, "control_kills": 3600, "controlled_day": 3600,
            "portfolio": 3600, "quality": 36000, "public_tables": 7200}
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


def table(found):
    lines = ["| " + " | ".join(found.get("head") or HEAD) + " |", "|" + "---|" * len(HEAD)]
    for r in found["rows"]:
        met = {True: "yes", False: "**no**", None: ""}[r["met"]]
        lines.append("| " + " | ".join([r["what"], r["figure"], r["peer"], r["peer_figure"], r["ratio"], r["bound"],
                                        met]) + " |")
    return "\n".join(lines)


def git(*args): return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True).stdout.strip()


def machine(name, load):
    "What the figures depend on; no names and no paths."
    changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!docs/benchmarks")
    commit = (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if changed else "")
    return [f"{THREADS} cores ({platform.machine()}, {platform.system()}), {psutil.virtual_memory().total / 2**30:.0f} "
            "GiB of memory; "
            f"the load average was {load:.1f} at the start.",
            f"Python {platform.python_version()}; " + ", ".join(f"{p} {version(p)}" for p in PACKAGES) + ".",
            f"Commit {commit}, {date.today()}, by `benchmarks/run.py {name}`. Installed packages are compiled to "
            "bytecode, as pip "
            "leaves them."]


PAGE = """# {title}

{table}

{notes}

{machine}
"""


def listed(lines): return "\n".join(f"- {line}" for line in lines)


def title(name):
    said = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text()))
    return " ".join(said.split()).rstrip(".").replace("`", "")


def write_page(name, found, load):
    from mlops_nb.core.files import atomic_file
    text = PAGE.format(title=title(name), table=table(found), notes=listed(found["notes"]),
                       machine=listed(machine(name, load)))
    with atomic_file(ROOT / "docs" / "benchmarks" / f"{name}.md") as tmp: tmp.write_text(text, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--quick", action="store_true", help="little data: does it run at all?")
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in SUBJECTS]
    if unknown: parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    # not all installers do
    for folder in (sysconfig.get_path("purelib"), str(ROOT / "mlops_nb")): compileall.compile_dir(folder, quiet=2)
    sys.path.insert(0, str(ROOT))
    missed = False
    for name in args.names or SUBJECTS:
        clock, load = time.perf_counter(), os.getloadavg()[0]
        found = measure(name, args.quick)
        print(f"{name}: {time.perf_counter() - clock:.0f} s\n{table(found)}\n", flush=True)
        if not args.quick: write_page(name, found, load)
        missed |= any(r["met"] is False for r in found["rows"])
    return int(missed)


if __name__ == "__main__": sys.exit(main())
