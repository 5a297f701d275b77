"""Run the cells of every notebook that exports or teaches, each notebook in a process of its own.

LightGBM's and polars' threads do not survive a fork, which is how `nbdev-test` would run several at once.
"""
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[2]
WORKERS = 2
LIMIT = 180  # seconds for one notebook


def lesson(nb):
    "Run one notebook; its name, seconds, and what it printed when it failed."
    start = time.perf_counter()
    try:
        done = subprocess.run(["nbdev-test", str(nb), "--n-workers", "0"], cwd=ROOT, capture_output=True, text=True,
                              timeout=LIMIT,
                              env={**os.environ, "OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1",
                                   # LightGBM's threads would wait awake for those of the other notebook
                                   "OMP_WAIT_POLICY": "passive"})
        failed = done.returncode and done.stdout + done.stderr
    except subprocess.TimeoutExpired: failed = f"took longer than {LIMIT} s"
    return nb.relative_to(ROOT), time.perf_counter() - start, failed


def main():
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
