"""Run the cells of every notebook that exports or teaches, each notebook in a process of its own.

The processes are forked from one that has imported what takes long to import and has done nothing else. LightGBM's and
polars' threads do not survive a fork, which is how `nbdev-test` would run several notebooks at once: LightGBM starts
its threads when it first works, polars when it is imported, so it is not imported before the fork.
"""
import atexit
import gc
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKERS = 2
LIMIT = 180  # seconds for one notebook
IMPORTED = ["nbdev.test", "lightgbm", "torch", "matplotlib.pyplot", "nbformat"]
ENVIRON = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1",
           "OMP_WAIT_POLICY": "passive"}  # LightGBM's threads would wait awake for those of the other notebook


def run_cells(nb, log):
    "Run the notebook's cells in this process, which ends with 0 when none failed; `log` gets all that is printed."
    gc.freeze()  # what was imported before the fork: to go through it would copy all its pages
    with open(log, "w") as f:
        for fd in (1, 2): os.dup2(f.fileno(), fd)
    from nbdev.test import nbdev_test
    try: nbdev_test(str(nb), n_workers=0)
    finally: atexit._run_exitfuncs()  # a process of multiprocessing leaves them out


def lesson(nb):
    "Run one notebook; its name, seconds, and what it printed when it failed."
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        process = get_context("forkserver").Process(target=run_cells, args=(nb, log))
        process.start()
        process.join(LIMIT)
        if process.is_alive():
            process.kill()
            process.join()
            failed = f"took longer than {LIMIT} s"
        else: failed = process.exitcode and (log.read_text() or f"ended with {process.exitcode}")
    return nb.relative_to(ROOT), time.perf_counter() - start, failed


def main():
    os.chdir(ROOT)
    os.environ.update(ENVIRON)
    get_context("forkserver").set_forkserver_preload(IMPORTED)
    notebooks = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb"))
                 if ".ipynb_checkpoints" not in p.parts and not (p.parent / ".notest").exists()]
    with ThreadPoolExecutor(WORKERS) as pool: results = list(pool.map(lesson, notebooks))
    for nb, seconds, failed in results:
        if failed: print(f"\n{nb} failed after {seconds:.1f} s:\n{failed}")
    bad = sum(bool(failed) for *_, failed in results)
    print(f"lessons: {len(results) - bad} passed, {bad} failed; the slowest: "
          + ", ".join(f"{nb} {s:.0f} s" for nb, s, _ in sorted(results, key=lambda r: -r[1])[:3]))
    sys.exit(bool(bad))


if __name__ == "__main__": main()
