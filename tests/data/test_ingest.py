"Deliveries into data/: once, whole, and the state before them if anything goes wrong."
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from mlops_nb.config.schema import Column, Schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes, sha256_file
from mlops_nb.data.ingest import (
    DataManifest,
    PartitionWriter,
    common_supertype,
    dvc_add_data,
    ingest,
    ingest_lock,
    newest_source,
    read_data_manifest,
    read_raw_batches,
    scan_data,
)
from mlops_nb.data.readers import ReadOptions, find_sources, read_source


def months(folder, *names, rows=50):
    "CSV files, one a month."
    folder.mkdir(exist_ok=True)
    for m in names:
        (folder / f"{m}.csv").write_text("id,day,x\n" + "".join(f"{i},{m}-{i % 28 + 1:02},{i / 3}\n"
                                                                for i in range(rows)))
    return folder


def rows_of(root): return pl.concat([b for _, b in read_raw_batches(root)], how="diagonal_relaxed")


def is_whole(root):
    "The manifest and the files agree, and nothing else is there."
    parts = read_data_manifest(root).partitions
    found = {p: s for p, s in file_hashes(root / "data").items() if p != "manifest.json"}
    return found == {p.path: p.sha256
                     for p in parts} and all(pq.read_metadata(root / "data" / p.path).num_rows == p.rows for p in parts)


# ---- what lies in data/

def test_a_row_keeps_its_place_and_its_values(tmp_path):
    source = months(tmp_path / "in", "2023-12", "2024-01")
    ingest(source, tmp_path / "p", time_column="day")
    frame = rows_of(tmp_path / "p").sort("_source", "_row")
    assert frame["_source"].unique(maintain_order=True).to_list() == ["2023-12.csv", "2024-01.csv"]
    assert frame["_row"].to_list() == [*range(50), *range(50)]
    for name, got in frame.partition_by("_source", as_dict=True).items():
        assert got.drop("_source", "_row").equals(pl.concat(read_source(*find_sources(source / name[0]))))
    assert is_whole(tmp_path / "p")


def test_manifest(tmp_path):
    source = months(tmp_path / "in", "2024-01")
    report = ingest(source, tmp_path / "p")
    m = read_data_manifest(tmp_path / "p")
    assert [(f.name, f.sha256, f.bytes, f.rows)
            for f in m.files] == [("2024-01.csv", sha256_file(source / "2024-01.csv"),
                                                                       (source / "2024-01.csv").stat().st_size, 50)]
    assert m.files[0].columns == {"id": "String", "day": "String", "x": "String"}
    assert [(p.period, p.source, p.rows) for p in m.partitions] == [(None, "2024-01.csv", 50)]
    assert (report.rows, report.partitions, report.bytes) == (50, 1, m.partitions[0].bytes)
    assert str(tmp_path) not in (tmp_path / "p/data/manifest.json").read_text()


def test_columns_drift_between_files(tmp_path):
    folder = months(tmp_path / "in", "2024-01")
    (folder / "2024-02.csv").write_text("id,day,extra,x\n1,2024-02-01,a,\n")
    (folder / "2024-03.csv").write_text("id,day,x\nA7,2024-03-01,2\n")
    ingest(folder, tmp_path / "p")
    assert [f.columns for f in read_data_manifest(tmp_path / "p").files] == [
        dict.fromkeys(["id", "day", "x"], "String"), dict.fromkeys(["id", "day", "extra", "x"], "String"),
        dict.fromkeys(["id", "day", "x"], "String")]
    scan = scan_data(tmp_path / "p")
    assert scan.collect_schema() == {"id": pl.String, "day": pl.String, "x": pl.String, "extra": pl.String}
    assert scan.collect().height == 52 and scan.collect()["x"].null_count() == 1


@pytest.mark.parametrize("types, common", [
    ([pl.Int32, pl.Int64], pl.Int64), ([pl.Int64, pl.Float64], pl.Float64), ([pl.Null, pl.Float32], pl.Float32),
    ([pl.String, pl.Int64], pl.String), ([pl.Boolean, pl.Int64], pl.String),
    ([pl.Date, pl.Datetime("us")], pl.Datetime("us")),
    ([pl.Date, pl.Int64], pl.String), ([pl.Boolean, pl.String], pl.String), ([pl.Datetime("us"), pl.String], pl.String),
    ([pl.Datetime("us", "UTC"), pl.Datetime("us")], pl.String), ([pl.Null, pl.Null], pl.Null)])
def test_common_type(types, common):
    types = [t() if isinstance(t, type) else t for t in types] # as a schema gives them
    assert common_supertype(types) == common == common_supertype(types[::-1])


def test_zstd_and_row_groups(tmp_path):
    pl.DataFrame({"x": range(300_000)}).write_parquet(tmp_path / "x.parquet")
    ingest(tmp_path / "x.parquet", tmp_path / "p")
    meta = pq.read_metadata(tmp_path / "p/data" / read_data_manifest(tmp_path / "p").partitions[0].path)
    assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [131_072, 131_072, 300_000 - 262_144]
    assert meta.row_group(0).column(0).compression == "ZSTD"
    assert max(len(b) for _, b in read_raw_batches(tmp_path / "p", batch_rows=10_000)) <= 10_000


def test_the_same_bytes_each_time_and_the_same_partitions_in_any_order(tmp_path):
    source = months(tmp_path / "in", "2023-12", "2024-01", "2024-02")
    ingest(source, tmp_path / "a", time_column="day")
    ingest(source, tmp_path / "again", time_column="day")
    assert file_hashes(tmp_path / "a/data") == file_hashes(tmp_path / "again/data")
    for name in ["2024-02", "2023-12", "2024-01"]: ingest(source / f"{name}.csv", tmp_path / "b", time_column="day")
    assert read_data_manifest(tmp_path / "a").partitions == read_data_manifest(tmp_path / "b").partitions


def test_the_newest_data_batch_is_the_one_that_came_last(tmp_path):
    source = months(tmp_path / "in", "delivery_8", "delivery_9", "delivery_10")
    ingest(source, tmp_path / "together")
    assert newest_source(read_data_manifest(tmp_path / "together")) == "delivery_10.csv"
    for name in ("delivery_8", "delivery_10", "delivery_9"): ingest(source / f"{name}.csv", tmp_path / "p")
    assert newest_source(read_data_manifest(tmp_path / "p")) == "delivery_9.csv"
    months(source, "delivery_8", rows=7)
    ingest(source / "delivery_8.csv", tmp_path / "p", replace=True)
    # a correction takes the place of what it replaces
    assert newest_source(read_data_manifest(tmp_path / "p")) == "delivery_9.csv"
    assert newest_source(DataManifest()) is None


# ---- twice, changed, replaced

def test_the_same_content_adds_nothing_under_any_name(tmp_path):
    source = months(tmp_path / "in", "2024-01")
    ingest(source, tmp_path / "p")
    before = file_hashes(tmp_path / "p/data")
    (source / "copy.csv").write_bytes((source / "2024-01.csv").read_bytes())
    assert ingest(source, tmp_path / "p").skipped == ["2024-01.csv", "copy.csv"]
    assert file_hashes(tmp_path / "p/data") == before


def test_replace(tmp_path):
    source = months(tmp_path / "in", "2024-01", "2024-02")
    ingest(source, tmp_path / "p", time_column="day")
    months(source, "2024-02", rows=7)
    with pytest.raises(UserError, match="2024-02.csv was taken in before with other content; add --replace"):
        ingest(source, tmp_path / "p", time_column="day")
    assert rows_of(tmp_path / "p").height == 100
    report = ingest(source / "2024-02.csv", tmp_path / "p", time_column="day", replace=True)
    assert [f.name for f in report.added] == ["2024-02.csv"]
    assert rows_of(tmp_path / "p").height == 57 and is_whole(tmp_path / "p")


def test_replace_reads_again_with_other_options(tmp_path):
    source = tmp_path / "x.csv"
    source.write_bytes("a;b\n1;é\n".encode("cp1252"))
    ingest(source, tmp_path / "p", options=ReadOptions(separator=";", encoding="cp1250"))
    ingest(source, tmp_path / "p", options=ReadOptions(encoding="cp1251"), replace=True)
    assert rows_of(tmp_path / "p")["b"].to_list() == ["й"] and is_whole(tmp_path / "p")


# ---- periods

def test_periods(tmp_path):
    (tmp_path / "x.csv").write_text("at,x\n2023-05-01 10:00:00,1\n,2\n2024-01-01 00:00:00,3\n2023-12-31 23:59:59,4\n")
    ingest(tmp_path / "x.csv", tmp_path / "p", time_column="at")
    got = {p.period: pl.read_parquet(tmp_path / "p/data" / p.path)["_row"].to_list()
           for p in read_data_manifest(tmp_path / "p").partitions}
    assert got == {"2023": [0, 3], "2024": [2], "unknown": [1]}


def test_times_that_are_no_times_are_unknown(tmp_path):
    (tmp_path / "x.csv").write_text("at,x\n2023-05-01,1\nsoon,2\n2024-13-45,3\n")
    ingest(tmp_path / "x.csv", tmp_path / "p", time_column="at")
    assert {p.period: p.rows for p in read_data_manifest(tmp_path / "p").partitions} == {"2023": 1, "unknown": 2}
    pl.DataFrame({"at": [20240101, 5]}).write_parquet(tmp_path / "n.parquet")
    ingest(tmp_path / "n.parquet", tmp_path / "n", time_column="at") # numbers, and no schema that says what they are
    assert [p.period for p in read_data_manifest(tmp_path / "n").partitions] == ["unknown"]


@pytest.mark.parametrize("texts, periods", [
    (["31.12.2023", "01.02.2024"], ["2023", "2024"]), (["12/31/2023 11:00 PM", "02/01/2024 01:00 AM"],
                                                       ["2023", "2024"]),
    (["20231231", "20240201"], ["2023", "2024"]), (["1704063600", "1706745600"], ["2023", "2024"]),
    (["31-Dec-2023", "1-Feb-2024"], ["2023", "2024"]), (["2023-12-31 23:00:00 UTC", "NaT"], ["2023", "unknown"])])
def test_periods_of_times_as_people_write_them(tmp_path, texts, periods):
    (tmp_path / "x.csv").write_text("at;x\n" + "".join(f"{t};1\n" for t in texts))
    ingest(tmp_path / "x.csv", tmp_path / "p", time_column="at")
    assert [p.period for p in read_data_manifest(tmp_path / "p").partitions] == periods
    assert scan_data(tmp_path / "p").collect()["at"].to_list() == texts # and stay as they were written


def test_periods_follow_the_schema_where_there_is_one(tmp_path):
    "The first week of March looks American; the schema knows better."
    schema = Schema("d", "regression", "x", {"at": Column("timestamp", format="%d/%m/%Y"), "x": Column("number")})
    write_schema(schema, tmp_path / "schema.yaml")
    (tmp_path / "x.csv").write_text("at,x\n01/12/2023,1\n02/01/2024,2\n")
    ingest(tmp_path / "x.csv", tmp_path, time_column="at")
    assert [p.period for p in read_data_manifest(tmp_path).partitions] == ["2023", "2024"]


def test_a_time_column_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="2024-01.csv has no time column 'dya'; did you mean 'day'"):
        ingest(months(tmp_path / "in", "2024-01"), tmp_path / "p", time_column="dya")


def test_more_periods_than_may_be_open(tmp_path):
    "Rows of the 64th period and beyond go to `unknown`: bounded files, no row lost."
    writer = PartitionWriter(tmp_path, "x", lambda rows: rows["day"], period="day", row_group_size=100)
    days = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 7, 18), eager=True)
    for _ in range(5): writer.write(pl.DataFrame({"day": days, "x": range(200)}))
    counts = writer.close()
    assert len(counts) == 64 and sum(counts.values()) == 1000 and counts["unknown"] == 5 * 137
    assert sum(len(pl.read_parquet(f)) for f in tmp_path.rglob("part.parquet")) == 1000


def test_waiting_rows_are_bounded(tmp_path):
    writer = PartitionWriter(tmp_path, "x", lambda rows: rows["day"], period="day", row_group_size=100)
    days = pl.date_range(pl.date(2024, 1, 1), pl.date(2024, 2, 29), eager=True)
    for _ in range(100):
        writer.write(pl.DataFrame({"day": days}))
        assert sum(len(f) for frames in writer.buffered.values() for f in frames) <= 800
    assert set(writer.close().values()) == {100}


# ---- accidents

def test_one_bad_file_stops_all(tmp_path):
    source = months(tmp_path / "in", "2024-01")
    ingest(source, tmp_path / "p")
    before = file_hashes(tmp_path / "p/data")
    months(source, "2024-02")
    (source / "2024-03.csv").write_text("id,day,x\n1,2024-03-01\n")
    with pytest.raises(UserError, match="2024-03.csv, line 2"): ingest(source, tmp_path / "p")
    assert file_hashes(tmp_path / "p/data") == before
    (source / "2024-03.csv").unlink()
    assert [f.name for f in ingest(source, tmp_path / "p").added] == ["2024-02.csv"]
    assert not (tmp_path / "p/.mlops/ingest").exists()


def test_leftovers_of_a_killed_ingest_are_swept(tmp_path):
    source, root = months(tmp_path / "in", "2024-01"), tmp_path / "p"
    ingest(source, root, time_column="day")
    (root / "data/1999").mkdir()
    for leftover in ["data/part-0123456789abcdef.parquet", "data/1999/part-0123456789abcdef.parquet",
                     "data/.manifest.json.xyz.tmp"]:
        (root / leftover).write_text("torn")
    (root / ".mlops/ingest/2024").mkdir(parents=True)
    assert rows_of(root).height == 50 # what the manifest does not name does not exist
    ingest(source, root, time_column="day")
    assert is_whole(root) and not (root / "data/1999").exists() and not (root / ".mlops/ingest").exists()


@pytest.mark.parametrize("name", ["mine.csv", "part-00000-f00d.snappy.parquet", "2024/notes.txt"])
def test_a_file_of_somebody_else_is_never_deleted(tmp_path, name):
    mine = tmp_path / "p/data" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="was not put there by ingest"):
        ingest(months(tmp_path / "in", "2024-01"), tmp_path / "p")
    assert mine.read_text() == "a,b\n1,2\n"


def test_missing_and_damaged_partitions(tmp_path):
    root = tmp_path / "p"
    with pytest.raises(UserError, match="manifest.json does not exist"): next(read_raw_batches(root))
    ingest(months(tmp_path / "in", "2024-01"), root)
    path = root / "data" / read_data_manifest(root).partitions[0].path
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match="missing or damaged.*dvc checkout"): list(read_raw_batches(root))
    path.unlink()
    with pytest.raises(UserError, match="missing or damaged.*dvc checkout"): list(read_raw_batches(root))
    (root / "data/manifest.json").write_text('{"files": [')
    with pytest.raises(UserError, match="manifest.json is damaged"): next(read_raw_batches(root))


def test_data_batches_with_no_rows_are_counted_and_one_row_is_needed(tmp_path):
    days = tmp_path / "days"
    for day, rows in [("2024-01-01", "1,a\n2,b\n"), ("2024-01-02", ""), ("2024-01-03", "3,c\n"), ("2024-01-04", "")]:
        (days / f"day={day}").mkdir(parents=True)
        (days / f"day={day}" / "x.csv").write_text("id,v\n" + rows)
    pl.DataFrame(schema={"id": pl.Int64, "v": pl.String}).write_parquet(days / "part-0.parquet")
    report = ingest(days, tmp_path / "p")
    assert [f.rows for f in report.added] == [2, 0, 1, 0, 0] and report.rows == 3 and report.partitions == 2
    assert report.skipped == [], "each day on which nothing happened counts"
    assert newest_source(read_data_manifest(tmp_path / "p")) == "day=2024-01-03/x.csv"
    assert rows_of(tmp_path / "p").sort("id")["day"].to_list() == ["2024-01-01", "2024-01-01", "2024-01-03"]
    again = ingest(days, tmp_path / "p")
    assert not again.added and len(again.skipped) == 5
    with pytest.raises(UserError, match="holds no rows"): ingest(days / "day=2024-01-02", tmp_path / "q")
    assert not (tmp_path / "q/data/manifest.json").exists()
    (tmp_path / "denied.csv").write_text("Access denied\n")
    with pytest.raises(UserError, match=r"none of its columns \(Access denied\) is one of the other data"):
        ingest(tmp_path / "denied.csv", tmp_path / "p")


def test_two_at_once(tmp_path):
    source = months(tmp_path / "in", "2024-01")
    with ingest_lock(tmp_path / "p"), pytest.raises(UserError, match="another ingest .* is running"):
        ingest(source, tmp_path / "p")
    assert ingest(source, tmp_path / "p").rows == 50


@pytest.mark.parametrize("error",
                         [OSError(errno.ENOSPC, "No space left"),
                          PermissionError(errno.EACCES, "Permission denied", "data")])
def test_a_full_disk_or_a_read_only_folder(tmp_path, monkeypatch, error):
    source, root = months(tmp_path / "in", "2024-01"), tmp_path / "p"
    ingest(source, root)
    before = file_hashes(root / "data")
    months(source, "2024-02")
    def fail(*_, **__): raise error
    for target in ["pyarrow.parquet.ParquetWriter.write_table", "mlops_nb.data.ingest.write_json",
                   "mlops_nb.data.ingest.os.replace"]:
        with monkeypatch.context() as m:
            m.setattr(target, fail)
            with pytest.raises(UserError, match="stopped and changed nothing"): ingest(source, root)
        assert read_data_manifest(root).files[-1].name == "2024-01.csv" and rows_of(root).height == 50
    ingest(source / "2024-01.csv", root)
    assert file_hashes(root / "data") == before


LIMITED = """
import resource, sys
from mlops_nb.data.ingest import ingest
from mlops_nb.core.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)) # no file may grow beyond this: the disk is full
try: ingest(sys.argv[1], sys.argv[2])
except UserError as e: print(e); sys.exit(1)
"""


def test_a_write_that_really_fails(tmp_path):
    source, root = months(tmp_path / "in", "2024-01"), tmp_path / "p"
    ingest(source, root)
    before = file_hashes(root / "data")
    months(source, "2024-02", rows=100_000)
    done = subprocess.run([sys.executable, "-c", LIMITED, source, root], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "stopped and changed nothing" in done.stdout, done.stderr
    assert file_hashes(root / "data") == before


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT])
def test_killed_at_any_moment(tmp_path, sig):
    "After each kill the state is the one before or the one after, and the next ingest goes through."
    source, root, rnd = tmp_path / "in", tmp_path / "p", random.Random(sig)
    ingest(months(source, "2023-01"), root, time_column="day")
    names = [f"2023-{m:02}" for m in range(2, 6)]
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import mlops_nb.data.ingest, pyarrow.parquet, pyarrow.csv"], check=True)
    startup, killed = time.monotonic() - started, 0
    for name in names:
        before = read_data_manifest(root)
        months(source, name, rows=100_000)
        code = f"from mlops_nb.data.ingest import ingest; ingest({str(source)!r}, {str(root)!r}, time_column='day')"
        child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        try: child.wait(rnd.uniform(startup * 0.5, startup * 2))
        except subprocess.TimeoutExpired: child.send_signal(sig); killed += 1
        child.wait()
        after = read_data_manifest(root)
        assert len(after.files) in (len(before.files), len(before.files) + 1)
        assert rows_of(root).height == sum(f.rows for f in after.files)
        ingest(source, root, time_column="day")
        assert len(read_data_manifest(root).files) == len(before.files) + 1 and is_whole(root)
    assert killed, "no run was slow enough to be killed"


@pytest.mark.parametrize("step", range(1, 12))
def test_killed_between_any_two_steps(tmp_path, step):
    "SIGKILL just before the n-th rename, fsync or deletion."
    source, root = months(tmp_path / "in", "2023-12", "2024-01"), tmp_path / "p"
    ingest(source, root, time_column="day")
    before = rows_of(root).height
    months(source, "2024-01", "2024-02", rows=30)
    code = f"""
import os, signal
from pathlib import Path
import mlops_nb.data.ingest as m, mlops_nb.core.files
n = [0]
def deadly(f):
    def g(*a, **k):
        n[0] += 1
        if n[0] == {step}: os.kill(os.getpid(), signal.SIGKILL)
        return f(*a, **k)
    return g
os.replace, os.fsync, Path.unlink, Path.rename = map(deadly, (os.replace, os.fsync, Path.unlink, Path.rename))
m.ingest({str(source)!r}, {str(root)!r}, time_column='day', replace=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    assert rows_of(root).height in (before, 110)
    ingest(source, root, time_column="day", replace=True)
    assert rows_of(root).height == 110 and is_whole(root)


# ---- DVC

def test_data_dvc_follows(tmp_path):
    root = tmp_path / "p"
    root.mkdir()
    source = months(tmp_path / "in", "2024-01")
    ingest(source, root)
    dvc_add_data(root)
    assert not (root / "data.dvc").exists() # no DVC project
    def dvc(*args):
        subprocess.run([sys.executable, "-m", "dvc", *args], cwd=root, check=True,
                       env={**os.environ, "DVC_NO_ANALYTICS": "1"})
    dvc("init", "--no-scm", "-q")
    dvc_add_data(root)
    first = (root / "data.dvc").read_text()
    ingest(months(source, "2024-02"), root)
    dvc_add_data(root)
    assert (root / "data.dvc").read_text() != first
    (root / "data.dvc").write_text(first)
    dvc("checkout", "-q", "data.dvc")
    assert rows_of(root).height == 50 # yesterday's data again
    (root / "data.dvc").write_text("outs: 7\n")
    with pytest.raises(UserError, match="dvc add data failed"): dvc_add_data(root)


# ---- real data

@pytest.mark.realdata
def test_taxi_months(real_data, tmp_path):
    folder = real_data("nyc_green_taxi")
    report = ingest(Path(folder) / "green_tripdata_2023-*.parquet", tmp_path, time_column="lpep_pickup_datetime")
    jan, feb = (f.columns for f in read_data_manifest(tmp_path).files)
    assert (jan["ehail_fee"], feb["ehail_fee"]) == ("Null", "Float64")
    assert (jan["passenger_count"], feb["passenger_count"]) == ("Float64", "Int64")
    assert report.rows == sum(pq.read_metadata(p).num_rows for p in Path(folder).glob("*2023*"))
    whole = pl.read_parquet(folder / "green_tripdata_2023-02.parquet")
    mine = pl.concat([b for p,
                      b in read_raw_batches(tmp_path) if p.source.endswith("02.parquet")]).sort("_row").drop("_source",
                                                                                                             "_row")
    assert mine.equals(whole, null_equal=True)
    assert scan_data(tmp_path).collect_schema()["VendorID"] == pl.Int64


@pytest.mark.realdata
def test_adult_as_a_glob(real_data, tmp_path):
    ingest(real_data("adult") / "adult.[dt]*", tmp_path)
    assert {f.name: f.rows for f in read_data_manifest(tmp_path).files} == {"adult.data": 32_561, "adult.test": 16_281}
    digest = hashlib.sha256((real_data("adult") / "adult.test").read_bytes()).hexdigest()
    assert read_data_manifest(tmp_path).files[1].sha256 == digest


# ---- rows that were there already

def test_a_file_that_was_exported_again_is_named_and_honest_months_are_not(tmp_path):
    rng = np.random.default_rng(0)
    def month(n, seed):
        return pl.DataFrame(dict(id=np.random.default_rng(seed).integers(0, 10**9, n), x=rng.normal(size=n)))
    may = month(500, 0)
    (tmp_path / "in").mkdir()
    may.write_csv(tmp_path / "in/may.csv")
    month(480, 1).write_csv(tmp_path / "in/june.csv")
    assert ingest(tmp_path / "in", tmp_path / "p").overlaps == []
    pl.concat([may, month(10, 2)]).sample(fraction=1, shuffle=True, seed=0).write_csv(tmp_path / "may_again.csv")
    (sentence,) = ingest(tmp_path / "may_again.csv", tmp_path / "p").overlaps
    assert "98% of the 510 rows of may_again.csv are in may.csv as well" in sentence
    may.write_csv(tmp_path / "other.csv", separator=";")
    together = ingest(tmp_path / "other.csv", tmp_path / "p").overlaps
    assert sorted(s.split(" are in ")[1].split()[0] for s in together) == ["may.csv", "may_again.csv"]
    shutil.rmtree(tmp_path / "p/data") # the advice, followed
    (tmp_path / "in/june.csv").unlink()
    again = ingest(tmp_path / "in", tmp_path / "p")
    assert again.overlaps == [] and [f.name for f in again.added] == ["may.csv"]
