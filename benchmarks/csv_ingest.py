"A long CSV file: ingestion and validation."
import numpy as np
import polars as pl
from common import memory_of_children, quick, report, row, run, workplace

AT_ONCE = 500_000 # rows made at a time


def rows(start, n):
    "Thirty columns: a number of the row, a time, measurements, counts, categories, flags, a few gaps, and the target."
    r, number = np.random.default_rng(start), np.arange(start, start + n)
    x = {f"x{i}": np.round(r.normal(size=n) * 10 ** (i % 4), 4) for i in range(12)}
    k = {f"k{i}": r.integers(0, 10 ** (i % 5 + 1), n) for i in range(8)}
    c = {f"c{i}": pl.Series([f"kind {j}" for j in range(5 + 10 * i)])[r.integers(0, 5 + 10 * i, n)] for i in range(5)}
    frame = pl.DataFrame(dict(id=number, at=pl.Series(1.6e9 + 10 * number).cast(pl.Int64), **x, **k, **c,
                              a=r.random(n) < .3, b=r.random(n) < .5, y=x["x0"] + r.normal(size=n) > 0))
    gaps = pl.Series(r.random(n) < .05)
    with_gaps = [pl.when(~gaps).then(pl.col(c)).alias(c) for c in ("x1", "k2", "c1")]
    return frame.with_columns(pl.from_epoch("at"), *with_gaps)


def write_csv(path, n):
    with path.open("wb") as f:
        for start in range(0, n, AT_ONCE): rows(start, min(AT_ONCE, n - start)).write_csv(f, include_header=not start)


def measured(*command, cwd):
    "Seconds of a command, and the most memory it had, in MiB."
    with memory_of_children() as peak: took = run(*command, cwd=cwd)
    return took, peak[0]


def main():
    n = 20_000 if quick() else 10_000_000
    with workplace() as tmp:
        write_csv(tmp / "sample.csv", min(n // 2, 100_000))
        write_csv(tmp / "long.csv", n)
        run("mlops-nb", "init", "project", "--data", "sample.csv", "--target", "y", cwd=tmp)
        project = tmp / "project"
        steps = dict(ingest=["mlops-nb", "ingest", tmp / "long.csv"], validate=["mlops-nb", "stage", "validate"])
        found = {name: measured(*command, cwd=project) for name, command in steps.items()}
    both = sum(took for took, _ in found.values())
    report([row(f"`{name}`", f"{n / took:,.0f} rows/s", bound="≥ 300,000 rows/s", met=n / took >= 300_000)
            for name, (took, _) in found.items()]
           + [row("both, one after the other", f"{n / both:,.0f} rows/s"),
              row("the most memory of the two", f"{max(m for _, m in found.values()):,.0f} MiB", bound="≤ 1,024 MiB",
                  met=max(m for _, m in found.values()) <= 1024)],
           [f"{n:,} rows of 30 columns as CSV, taken into a project whose schema was inferred from "
            f"{min(n // 2, 100_000):,} like them; whole commands, with the start of Python."])


if __name__ == "__main__": main()
