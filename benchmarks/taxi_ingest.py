"Ingestion and validation."
import shutil
import tempfile
from pathlib import Path

import polars as pl
from common import TAXI, alternating, quick, report, row, run, seconds, taxi_project, workplace

from mlops_nb.data.ingest import ingest
from mlops_nb.data.validation import run_validate


def main():
    times, months = (1, "2021-0[12]") if quick() else (5, "*")
    if not TAXI.exists(): return report([], [f"The taxi trips are not at ../shared/data/{TAXI.name}: not measured."])
    files = sorted(TAXI.glob(f"green_tripdata_{months}.parquet"))
    rows = sum(pl.scan_parquet(f).select(pl.len()).collect().item() for f in files)
    with workplace() as tmp:
        taxi_project(tmp / "taxi", months)

        def empty():
            "A project with the schema, and no data yet."
            new = Path(tempfile.mkdtemp(dir=tmp))
            for name in ("schema.yaml", "params.yaml", "settings.ini"): shutil.copyfile(tmp / "taxi" / name, new / name)
            return new

        def both(root):
            ingest(f"{TAXI}/green_tripdata_{months}.parquet", root, time_column="lpep_pickup_datetime")
            run_validate(root)

        def copy(to):
            for f in files: pl.scan_parquet(f).sink_parquet(to / f.name, compression="zstd")

        def commands(root):
            took = run("mlops-nb", "ingest", f"{TAXI}/green_tripdata_{months}.parquet", cwd=root)
            return took + run("mlops-nb", "stage", "validate", cwd=root)

        both(empty()) # libraries are loaded and files are in the page cache from here on
        warm, plain, cold = alternating(times, lambda: seconds(both, empty()), lambda: seconds(copy, empty()),
                                        lambda: commands(empty()))
    report([
        row("taxi months ingested and validated, in a warm process", f"{rows / warm:,.0f} rows/s",
            "polars: scan each file, sink it as zstd", f"{rows / plain:,.0f} rows/s", f"{plain / warm:.2f}×",
            "≥ 300,000 rows/s", rows / warm >= 300_000),
        row("… as the commands `mlops-nb ingest` and `mlops-nb stage validate`", f"{rows / cold:,.0f} rows/s",
            "the same",
            f"{rows / plain:,.0f} rows/s", f"{plain / cold:.2f}×"),
    ],
    [f"Taxi: {len(files)} files, {rows:,} rows; median of {times}, in turns. The bound is on the warm process, which "
     "is what a longer "
        f"delivery comes to: the two commands take {cold - warm:.1f} s more, for starting Python twice and loading "
        "polars and "
        "pandera. The peer only copies; it hashes, checks, counts and describes nothing."])


if __name__ == "__main__": main()
