"""One table, written as programs and countries write it, and read back: what comes back is what was written, or a
sentence says otherwise. So for the first file, by which the schema is inferred, and for later ones."""
import csv
import datetime as dt
import io
import random
from itertools import product

import polars as pl
import pytest

from mlops_nb.config.schema import write_schema
from mlops_nb.config.schema_inference import infer_schema
from mlops_nb.core.errors import UserError
from mlops_nb.data.column_checks import validate_batch
from mlops_nb.data.ingest import ingest, read_raw_batches, scan_data
from mlops_nb.data.readers import ReadOptions
from mlops_nb.data.validation import run_validate

START = dt.datetime(2023, 1, 2, 3, 4, 5)


def table(rows, seed, start=START):
    "Values of all kinds; every batch shows its kinds, and the first one what is otherwise ambiguous."
    r = random.Random(seed)
    return [dict(
        code=r.choice(["007", "250.10", "54E4", "V20", "2.10"]), city=r.choice(["Köln", "Linz", "a b", "x,y;z"]),
        amount=round(r.uniform(-2_000_000, 2_000_000), 2), count=r.choice([3, 40, 1_234, 1_234_567, 12_345]),
        share=round(r.uniform(0, 100), 1), at=start + dt.timedelta(hours=5 * i, seconds=r.randrange(60)),
        member=r.random() < .5, gap=None if r.random() < .2 else r.randrange(100), y=r.choice(["ja", "nein"]),
    ) for i in range(rows)]


def number(value, decimal, thousands, places=None):
    text = f"{value:,.{places}f}" if places is not None else f"{value:,}"
    return text.replace(",", "\0").replace(".", decimal).replace("\0", thousands)


def write(rows, path, *, separator=",", encoding="utf-8", decimal=".", thousands="", date="%Y-%m-%d %H:%M:%S", null="",
          words=("true", "false"), quoting=csv.QUOTE_MINIMAL, end="\n", money="{}", negative="-", percent="{}"):
    def cell(name, value):
        if value is None: return null
        if name == "at" and date == "ms": return str(int((value - dt.datetime(1970, 1, 1)).total_seconds()) * 1000)
        if name == "at": return value.strftime(date)
        if name == "member": return words[not value]
        if name == "amount":
            size = money.format(number(abs(value), decimal, thousands, 2))
            return size if value >= 0 else {"-": f"-{size}", "()": f"({size})", "5-": f"{size}-"}[negative]
        if name == "count": return number(value, decimal, thousands)
        if name == "share": return percent.format(number(value, decimal, thousands, 1))
        return str(value)
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, quoting=quoting, lineterminator=end)
    writer.writerow(rows[0])
    for row in rows: writer.writerow([cell(n, v) for n, v in row.items()])
    path.write_bytes(out.getvalue().encode(encoding))


DATES = ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%d.%m.%Y %H:%M:%S", "%d/%m/%Y %H:%M:%S", "%m/%d/%Y %I:%M:%S %p",
         "%d-%m-%Y %H:%M:%S",
         "%d-%b-%Y %H:%M:%S", "%d.%m.%y %H:%M:%S", "%Y/%m/%d %H:%M:%S", "ms", "%Y-%m-%d %H:%M:%S UTC",
         "%Y-%m-%dT%H:%M:%S+00:00"]
NUMBERS = [dict(decimal=".", thousands=""), dict(decimal=".", thousands=","), dict(decimal=",", thousands="."),
           dict(decimal=",", thousands="\u00a0"), dict(decimal=",", thousands="\u202f"),
           dict(decimal=".", thousands="'"),
           dict(decimal=",", thousands=""), dict(decimal=".", thousands=" ")]
NULLS = ["", "NULL", "\\N", "NA", "<NA>", "None", "-", "N.A.", "#N/A", "NaN", "(null)", "?", "#DIV/0!"]
MONEY = [dict(), dict(money="$ {}"), dict(money="{} €"), dict(money="EUR {}"), dict(negative="()"), dict(negative="5-"),
         dict(money="({})".replace("(", "").replace(")", ""), negative="()")]
FILES = [dict(separator=s, encoding=e, end=n, quoting=q) for s, e, n, q in product(
    [",", ";", "\t", "|"], ["utf-8", "utf-8-sig", "cp1252", "utf-16"], ["\n", "\r\n"],
    [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])]


def dialects(n):
    "A seeded choice that goes through each list evenly."
    r = random.Random(7)
    lists = [[x for _ in range(-(-n // len(options))) for x in r.sample(options, len(options))]
             for options in (DATES, NUMBERS, NULLS, MONEY, FILES,
                             [dict(), dict(percent="{} %"), dict(words=("True", "False"))])]
    for date, numbers, null, money, file, more in zip(*(k[:n] for k in lists), strict=True):
        if numbers["thousands"] == "\u202f" and file["encoding"] == "cp1252": file = file | dict(encoding="utf-8")
        yield dict(date=date, null=null) | numbers | money | file | more


def expected(rows): return pl.DataFrame(rows, schema_overrides={"amount": pl.Float64, "share": pl.Float64})


def accepted_rows(root, schema, whole_stage):
    "By the stage, with its files, or by the function it calls for each batch, in a fraction of the time."
    if not whole_stage: return pl.concat([validate_batch(rows, schema).accepted for _, rows in read_raw_batches(root)])
    run_validate(root)
    return pl.read_parquet(root / "artifacts/accepted/*.parquet")


def of_batch(accepted, name):
    return accepted.filter(pl.col("_source") == name).sort("_row").drop("_source", "_row")


def same(got, rows):
    want = expected(rows)
    for name in want.columns:
        if name in ("amount", "share"): assert (got[name] - want[name]).abs().max() < 1e-6, name
        else: assert got[name].to_list() == want[name].to_list(), name


@pytest.mark.parametrize("part", range(8))
def test_a_table_in_128_dialects_comes_back_the_same_and_so_do_later_batches(tmp_path, part):
    for i, dialect in enumerate(list(dialects(128))[part::8]):
        root, folder = tmp_path / f"p{i}", tmp_path / f"in{i}"
        folder.mkdir()
        first = table(80, seed=i)
        write(first, folder / "b00.csv", **dialect)
        how = ReadOptions(encoding=dialect["encoding"]) if dialect["encoding"] == "cp1252" else ReadOptions()
        ingest(folder / "b00.csv", root, options=how)
        found = infer_schema(scan_data(root), "d", "y", time="at")
        schema = found.schema
        for c in schema.columns.values(): c.range = None
        write_schema(schema, root / "schema.yaml", found.comments)
        (root / "params.yaml").write_text("{}\n") # all by default
        batches = {"b00.csv": first}
        (folder / "later").mkdir()
        for k in (1, 2, 9): # a short one of early March, where days look like months; then others
            batches[f"b{k:02}.csv"] = table(8, seed=1000 * k + i, start=dt.datetime(2023, 3, k, 1, 2, 3))
            write(batches[f"b{k:02}.csv"], folder / "later" / f"b{k:02}.csv", **dialect)
        ingest(folder / "later", root, options=how, time_column="at")
        try: accepted = accepted_rows(root, schema, whole_stage=part == 0)
        except UserError as e: pytest.fail(f"{dialect}: {e}")
        for name, rows in batches.items():
            try: same(of_batch(accepted, name), rows)
            except AssertionError as e: raise AssertionError(f"{name} of {dialect}, {schema.columns}") from e
