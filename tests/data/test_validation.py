"Accepted plus quarantined is received, the reasons are right, and another shape stops the run."
import datetime as dt
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.config.params import Params, ValidateParams, write_params
from mlops_nb.config.schema import Column, Schema, read_schema, to_pandera, write_schema
from mlops_nb.config.schema_inference import infer_schema
from mlops_nb.config.values import POLARS_TYPES
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data import validation
from mlops_nb.data.column_checks import check_with_pandera, validate_batch
from mlops_nb.data.ingest import ingest, read_data_manifest, scan_data
from mlops_nb.data.validation import (
    PartFileWriter,
    SchemaSkewError,
    ValidationReport,
    compare_with_schema,
    run_validate,
)
from mlops_nb.stats.drift_test import fit_baseline


def contract(missing=(), **columns):
    return Schema("t", "regression", "y", dict(columns, y=Column("number")), missing_values=list(missing))


def with_origin(frame, source="a.csv"):
    return frame.with_columns(pl.lit(source).alias("_source"), pl.int_range(pl.len(), dtype=pl.Int64).alias("_row"))


def split(schema, **columns):
    n = len(next(iter(columns.values())))
    return validate_batch(with_origin(pl.DataFrame(columns | dict(y=[1.0] * n), strict=False)), schema)


def reasons(s): return s.quarantined["_reasons"].to_list()


# --- one column at a time

@pytest.mark.parametrize("column, values, accepted, rule", [
    (Column("integer"), [1, None, 3], [1, 3], "x:missing"),
    (Column("integer", nullable=True), [1, None, 3], [1, None, 3], None),
    (Column("integer"), ["1", "x", " 3 "], [1, 3], "x:type"),
    (Column("integer"), [1.0, 2.5, 3.0], [1, 3], "x:type"),
    (Column("integer"), ["9223372036854775807", "9223372036854775808"], [2**63 - 1], "x:type"),
    (Column("number"), [1.0, float("nan"), 3.0], [1.0, 3.0], "x:missing"),
    (Column("number", nullable=True), [1.0, float("nan"), 3.0], [1.0, None, 3.0], None),
    (Column("number", nullable=True), [1.0, float("inf"), -float("inf")], [1.0], "x:range"),
    (Column("number"), ["1", "inf", "-Infinity"], [1.0], "x:range"),
    (Column("integer"), [1.0, float("inf")], [1], "x:range"),
    (Column("number", range=(0, 10)), [0, 10, 11, -1], [0.0, 10.0], "x:range"),
    (Column("number", range=(None, 10)), [-1e9, 11], [-1e9], "x:range"),
    (Column("boolean"), ["Yes", "f", "maybe"], [True, False], "x:type"),
    (Column("boolean"), [1, 0, 2], [True, False], "x:type"),
    (Column("category", domain=["a", "b"]), ["a ", "b", "c"], ["a", "b", "c"], "x:new_category"),
    (Column("category", domain=["a", "b"], on_new_category="quarantine"), ["a", "b", "c"], ["a", "b"], "x:domain"),
    (Column("category", domain=["1", "2"], on_new_category="quarantine"), [1.0, 2.0, 3.0], ["1", "2"], "x:domain"),
    (Column("category", nullable=True), ["a", "", "?"], ["a", None, None], None),
    (Column("integer", nullable=True), ["1", "?", ""], [1, None, None], None),
    (Column("text"), ["a", "", "b"], ["a", "b"], "x:missing"),
])
def test_rules(column, values, accepted, rule):
    s = split(contract(["?"], x=column), x=values)
    assert s.accepted["x"].to_list() == accepted and s.accepted.schema["x"] == POLARS_TYPES[column.type]
    assert s.accepted.height + s.quarantined.height == len(values)
    assert set(s.violations) == ({rule} if rule else set())
    assert all(len(r) == 1 for r in reasons(s))


def test_dates_out_of_range_and_unreadable():
    column = Column("timestamp", range=("2020-01-01", "2024-12-31"), time_zone="UTC")
    s = split(contract(x=column),
              x=["2021-05-01", "0001-01-01", "9999-12-31", "2021-02-30", "2024-12-31T23:00:00+02:00"])
    assert s.accepted["x"].cast(pl.String).to_list() == ["2021-05-01 00:00:00.000000"]
    assert s.violations == {"x:range": 3, "x:type": 1}
    assert reasons(s)[0] == ["x: 0001-01-01 is below 2020-01-01"]
    with pytest.raises(UserError, match="'soon'.*no date"):
        split(contract(x=Column("timestamp", range=("soon", None))), x=["2021-05-01"])


def test_every_reason_is_given_and_values_stay_as_delivered():
    s = split(contract(x=Column("integer", range=(0, 5)), z=Column("category")), x=["7", " q ", "1"],
              z=["", "ok", "ok"])
    assert reasons(s) == [["x: 7 is above 5", "z: missing"], ["x: q is not an integer"]]
    assert s.quarantined["x"].to_list() == ["7", " q "] and s.quarantined["_row"].to_list() == [0, 1]


def test_null_removes_the_value_and_keeps_the_row():
    c = Column("number", range=(0, 5), on_violation="null")
    s = split(contract(x=c), x=["1", "9", "q", "", "inf"])
    assert s.accepted["x"].to_list() == [1.0, None, None, None, None]
    assert s.violations == {"x:missing": 1, "x:type": 1, "x:range": 2} and s.quarantined.height == 0
    check_with_pandera(s.accepted, to_pandera(contract(x=c)))


def test_stop_names_file_row_and_value():
    with pytest.raises(UserError, match=r"^a\.csv, data row 3: x: -2 is below 0; .*on_violation of column 'x'"):
        split(contract(x=Column("integer", range=(0, None), on_violation="stop")), x=[1, 2, -2, -3])


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Enum(["1", "2", "x"])])
def test_dictionary_columns_are_text(dtype):
    s = split(contract(x=Column("integer")), x=pl.Series(["1", "2", "x"], dtype=dtype))
    assert s.accepted["x"].to_list() == [1, 2] and s.violations == {"x:type": 1}


def test_odd_column_names():
    names = {"{}": Column("integer"), "a:b": Column("integer"), "n": Column("integer"),
             "name with 'quotes'": Column("integer", range=(0, 1))}
    s = split(contract(**names), **{n: [1, 2, None] for n in names})
    assert (s.accepted.height, s.quarantined.height) == (1, 2)
    assert reasons(s) == [["name with 'quotes': 2 is above 1"], [f"{n}: missing" for n in names]]


# --- all of it at once

actions = st.sampled_from(["quarantine", "null"])
cells = st.one_of(st.none(), st.integers(-5, 15),
                  st.sampled_from(["", " ", "?", "q", "1.0", "2.5", "inf", "-inf", "nan", "yes", "2021-01-01", "a",
                                   "b"]))


@st.composite
def deliveries(draw):
    kinds = dict(i=Column("integer", range=(0, 10)), f=Column("number", range=(None, 8)), b=Column("boolean"),
                 c=Column("category", domain=["a", "b"]), t=Column("timestamp", range=("2020-01-01", None)),
                 w=Column("text"))
    for c in kinds.values():
        c.nullable, c.on_violation, c.on_new_category = (draw(st.booleans()), draw(actions),
                                                         draw(st.sampled_from(["unknown", "quarantine"])))
    n = draw(st.integers(0, 12))
    values = {k: [None if v is None else str(v) for v in draw(st.lists(cells, min_size=n, max_size=n))] for k in kinds}
    return contract(["?"], **kinds), pl.DataFrame(values | dict(y=["1"] * n),
                                                  schema=dict.fromkeys([*kinds, "y"], pl.String))


@given(deliveries())
@settings(deadline=None, max_examples=60)
def test_no_row_is_lost_or_doubled_and_pandera_agrees(delivery):
    schema, frame = delivery
    s = validate_batch(with_origin(frame), schema)
    assert sorted(s.accepted["_row"].to_list() + s.quarantined["_row"].to_list()) == list(range(frame.height))
    assert s.accepted.schema == pl.Schema({n: POLARS_TYPES[c.type] for n,
                                           c in schema.columns.items()} | dict(_source=pl.String, _row=pl.Int64))
    assert all(r for r in reasons(s))
    check_with_pandera(s.accepted, to_pandera(schema))


@given(deliveries())
@settings(deadline=None, max_examples=30)
def test_a_row_is_judged_alone(delivery):
    schema, frame = delivery
    whole = validate_batch(with_origin(frame), schema)
    parts = [validate_batch(with_origin(frame)[i:i + 1], schema) for i in range(frame.height)]
    if not parts: return
    assert pl.concat(p.accepted for p in parts).equals(whole.accepted)
    assert pl.concat(p.quarantined for p in parts).equals(whole.quarantined)
    assert {k: sum(p.violations.get(k, 0) for p in parts) for k in whole.violations} == whole.violations


@given(st.lists(st.one_of(st.none(), st.integers(-3, 13)), max_size=20), st.booleans())
@settings(deadline=None, max_examples=60)
def test_pandera_refuses_exactly_what_we_refuse(values, nullable):
    import pandera.errors
    schema = Schema("t", "regression", "x", dict(x=Column("integer", nullable=nullable, range=(0, 10))))
    frame = pl.DataFrame(dict(x=values), schema=dict(x=pl.Int64))
    s = validate_batch(with_origin(frame), schema)
    try: to_pandera(schema).validate(frame)
    except pandera.errors.SchemaError: assert s.quarantined.height > 0
    else: assert s.quarantined.height == 0


# --- shape

def shape(schema, **found): return compare_with_schema("p.parquet", "a.csv", found | dict(y=pl.Float64()), schema)


def test_shape():
    schema = contract(fare_amount=Column("number"), pickup=Column("timestamp"), n=Column("integer"))
    good = dict(fare_amount=pl.Float64(), pickup=pl.Datetime("us"), n=pl.Int64())
    assert shape(schema, **good) == ([], [])
    wrong, changes = shape(schema, **good | dict(fare_amount=pl.Float32(), pickup=pl.Date(), n=pl.Null()))
    assert not wrong and [(c.column, c.from_, c.to) for c in changes] == [
        ("fare_amount", "Float32", "number"), ("pickup", "Date", "timestamp"), ("n", "Null", "integer")]
    for odd in (dict(pickup=pl.Int64()),
                dict(n=pl.Datetime("us")), dict(fare_amount=pl.List(pl.Int64)), dict(n=pl.Struct({"a": pl.Int64}))):
        wrong, _ = shape(schema, **good | odd)
        assert [m.column for m in wrong] == list(odd) and wrong[0].found.startswith("retyped")


@pytest.mark.parametrize("new, hint",
                         [({"FareAmount": pl.Float64()}, True), ({"fare": pl.Float64()}, True),
                          ({"cost": pl.Float64()}, True),
                                       ({"cost": pl.Datetime("us")}, False), ({}, False),
                                       ({"aa": pl.Int64(), "bb": pl.Int64()}, False)])
def test_a_renamed_column_is_suspected(new, hint):
    wrong, _ = shape(contract(fare_amount=Column("number")), **new)
    assert wrong[0].column == "fare_amount" and ("looks like it" in wrong[0].found) == hint
    assert len(wrong) == 1 + len(new)


def test_the_table_stays_readable():
    wrong, _ = shape(contract(**{f"c{i}": Column("number") for i in range(100)}))
    text = str(SchemaSkewError(wrong))
    assert "100 column(s) in 1 file(s)" in text and "... and 60 more" in text
    assert all(len(line) < 120 for line in text.splitlines()[1:])


# --- the stage

SCHEMA = Schema("t", "binary", "y", classes=["no", "yes"], columns=dict(
    x=Column("number", range=(-6, 6)), c=Column("category", domain=["a", "b"]),
    y=Column("category", domain=["no", "yes"], on_new_category="quarantine")))


def month(n, seed):
    r = np.random.default_rng(seed)
    return pl.DataFrame(dict(x=r.normal(size=n), c=r.choice(["a", "b"], n), y=r.choice(["no", "yes"], n)))


def outside(n, seed, bad):
    "A month of which the first `bad` rows break the range of x."
    return month(n, seed).with_columns(x=pl.when(pl.int_range(pl.len()) < bad).then(9.0).otherwise("x"))


def project(root, *frames, schema=SCHEMA, limit=0.1):
    shutil.rmtree(root / "data", ignore_errors=True)
    (root / "in").mkdir(parents=True, exist_ok=True)
    for old in (root / "in").iterdir(): old.unlink()
    write_schema(schema, root / "schema.yaml")
    write_params(Params(validate=ValidateParams(max_quarantined_share=limit)), root / "params.yaml")
    for i, frame in enumerate(frames): frame.write_parquet(root / f"in/m{i}.parquet")
    ingest(root / "in", root)
    return root


def outcome(root): return read_json(root / "artifacts/validation.json", ValidationReport)


def test_stage_writes_what_it_says(tmp_path):
    root = project(tmp_path, month(500, 0), outside(300, 1, 7))
    assert run_validate(root) == {"rows": 800}
    v = outcome(root)
    assert (v.received, v.accepted, v.quarantined, v.violations) == (800, 793, 7, {"x:range": 7})
    assert [(p.source, p.received, p.quarantined) for p in v.partitions] == [("m0.parquet", 500, 0),
                                                                             ("m1.parquet", 300, 7)]
    accepted, quarantined = pl.read_parquet(root / "artifacts/accepted"), pl.read_parquet(root / "quarantine")
    assert accepted.columns == ["x", "c", "y", "_source", "_row"] and accepted.height == 793
    assert quarantined.columns == ["x", "c", "y", "_source", "_row", "_reasons"] and quarantined.height == 7
    stats = pl.read_parquet(root / "artifacts/statistics.parquet")
    assert stats.height == 6 and stats["rows"].to_list() == [500] * 3 + [293] * 3
    assert v.value_skew == [] and v.champion_id is None


def test_the_same_input_gives_the_same_bytes_whatever_the_batches(tmp_path, monkeypatch):
    root = project(tmp_path, month(900, 0), outside(900, 1, 20))
    run_validate(root)
    first = {k: v for d in ("artifacts", "quarantine") for k, v in file_hashes(root / d).items()}
    run_validate(root)
    assert {k: v for d in ("artifacts", "quarantine") for k, v in file_hashes(root / d).items()} == first
    before = outcome(root)
    monkeypatch.setattr(validation, "read_raw_batches",
                        lambda r: ((p, f[i:i + 99]) for p, f in RAW_BATCHES(r) for i in range(0, f.height, 99)))
    run_validate(root)
    assert outcome(root) == before


RAW_BATCHES = validation.read_raw_batches


def test_many_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(validation, "PART_FILE_BYTES", 1000)
    root = project(tmp_path, month(500, 0), month(500, 1))
    run_validate(root)
    assert len(list((root / "artifacts/accepted").glob("part-*.parquet"))) == 2
    assert pl.read_parquet(root / "artifacts/accepted").height == 1000
    empty = PartFileWriter(tmp_path / "nothing")
    empty.flush()
    assert empty.written == 0


def test_too_much_quarantine_stops_but_can_be_looked_at(tmp_path):
    root = project(tmp_path, outside(500, 0, 51))
    with pytest.raises(UserError, match=r"51 of 500 rows .* allows 10.0%; .*x:range \(51\)"): run_validate(root)
    assert pl.read_parquet(root / "quarantine").height == 51
    assert not (root / "artifacts/accepted").exists() and not (root / "artifacts/validation.json").exists()
    project(root, outside(500, 0, 50))
    run_validate(root)
    assert outcome(root).quarantined == 50


def test_nothing_accepted_stops(tmp_path):
    root = project(tmp_path, month(50, 0).with_columns(x=pl.lit(9.0)), limit=1.0)
    with pytest.raises(UserError, match="50 of 50 rows violate the schema"): run_validate(root)


def test_all_null_column(tmp_path):
    gone = month(100, 0).with_columns(x=pl.lit(None))
    with pytest.raises(UserError, match=r"x:missing \(100\)"): run_validate(project(tmp_path, gone))
    nullable = Schema("t", "binary", "y", dict(SCHEMA.columns, x=Column("number", nullable=True)),
                      classes=SCHEMA.classes)
    run_validate(project(tmp_path, gone, schema=nullable))
    assert pl.read_parquet(tmp_path / "artifacts/accepted")["x"].null_count() == 100
    assert [c.column for c in outcome(tmp_path).type_conversions] == ["x"]


@pytest.mark.parametrize("share, stops", [(0.05, False), (0.6, True)])
def test_text_that_is_mostly_unreadable_is_another_column(tmp_path, share, stops):
    first = pl.int_range(pl.len()) < 200 * share
    text = month(200, 0).with_columns(x=pl.when(first).then(pl.lit("n.a.")).otherwise(pl.col("x").cast(pl.String)))
    root = project(tmp_path, month(200, 1), text)
    if stops:
        with pytest.raises(SchemaSkewError, match=r"m1\.parquet +x +number +retyped: 120 of 200"): run_validate(root)
        assert not (root / "artifacts/accepted").exists() and not (root / "quarantine").exists()
    else:
        run_validate(root)
        assert outcome(root).violations == {"x:type": 10}


def test_a_file_of_one_unreadable_row_is_quarantined_and_stops_nothing(tmp_path):
    units = month(200, 0).head(1).with_columns(x=pl.lit("[kg]"))
    root = project(tmp_path, month(200, 1), units)
    run_validate(root)
    assert outcome(root).quarantined == 1 and outcome(root).violations == {"x:type": 1}


def test_codes_instead_of_names_are_another_column(tmp_path):
    codes = month(200, 0).with_columns(c=pl.when(pl.col("c") == "a").then(0).otherwise(1))
    root = project(tmp_path, month(200, 1), codes)
    with pytest.raises(SchemaSkewError, match=r"m1\.parquet +c +category +retyped: 200 of 200"): run_validate(root)


def bundle_with_baseline(folder, baseline):
    "What validation reads of the champion's bundle."
    write_json(folder / "baseline.json", {"data": baseline})
    return folder


def test_value_skew_is_reported_for_the_newest_source(tmp_path):
    champion = bundle_with_baseline(tmp_path / "abc", fit_baseline(month(5_000, 0), SCHEMA))
    root = project(tmp_path, month(3_000, 1), month(3_000, 2).with_columns(x=pl.col("x") / 2 + 1))
    run_validate(root, champion)
    v = outcome(root)
    assert (v.compared_source, v.champion_id, [s.column for s in v.value_skew]) == ("m1.parquet", "abc", ["x"])


def test_value_skew_sees_only_rows_that_training_would_keep(tmp_path):
    kept = Schema("t", "binary", "y", SCHEMA.columns, classes=SCHEMA.classes, filter="x > 0")
    champion = bundle_with_baseline(tmp_path / "abc", fit_baseline(month(5_000, 0).filter(pl.col("x") > 0), kept))
    root = project(tmp_path, month(3_000, 1), schema=kept)
    run_validate(root, champion)
    assert outcome(root).value_skew == []


def test_a_changed_partition_is_noticed(tmp_path):
    root = project(tmp_path, month(200, 0))
    path = root / "data" / read_data_manifest(root).partitions[0].path
    pl.read_parquet(path).head(150).write_parquet(path)
    with pytest.raises(UserError, match="holds 150 rows, and data/manifest.json says 200"): run_validate(root)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UserError, match="data/.*parquet"): run_validate(root)
    path.unlink()
    with pytest.raises(UserError, match="data/.*parquet"): run_validate(root)
    assert not (root / "artifacts/accepted").exists()


def test_nothing_ingested(tmp_path):
    write_schema(SCHEMA, tmp_path / "schema.yaml")
    write_params(Params(), tmp_path / "params.yaml")
    with pytest.raises(UserError, match="manifest.json"): run_validate(tmp_path)


def test_many_distinct_categories_are_bounded(tmp_path):
    ids = month(200_000, 0).with_columns(c=pl.int_range(pl.len()).cast(pl.String))
    wide = Schema("t", "binary", "y", dict(SCHEMA.columns, c=Column("category")), classes=SCHEMA.classes)
    run_validate(project(tmp_path, ids, schema=wide))
    row = pl.read_parquet(tmp_path / "artifacts/statistics.parquet").filter(column="c").row(0, named=True)
    assert abs(row["distinct"] / 200_000 - 1) < 0.15 and len(row["top_values"]) <= 20


# --- faults

def script(root, body):
    code = ("import resource, os, signal, sys\nfrom pathlib import Path\nfrom mlops_nb.data import validation\n" +
            textwrap.dedent(body))
    return subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, timeout=120)


def test_full_disk_leaves_nothing_behind(tmp_path):
    root = project(tmp_path, month(20_000, 0))
    done = script(root, """
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
        validation.run_validate(Path(sys.argv[1]))""")
    assert done.returncode != 0 and "os error 27" in done.stderr # "file too large" is how the limit says "no space"
    assert not (root / "artifacts/accepted").exists() and not (root / "quarantine").exists()
    assert not list((root / "artifacts").iterdir())
    run_validate(root)
    assert outcome(root).accepted == 20_000


def test_a_killed_run_leaves_nothing_that_is_believed(tmp_path):
    root = project(tmp_path, month(500, 0), month(500, 1))
    run_validate(root)
    before = file_hashes(root / "artifacts")
    project(root, month(700, 2), month(700, 3))
    done = script(root, """
        split = validation.validate_batch
        def second(frame, schema):
            if frame['_source'][0] == 'm1.parquet': os.kill(os.getpid(), signal.SIGKILL)
            return split(frame, schema)
        validation.validate_batch = second
        validation.run_validate(Path(sys.argv[1]))""")
    assert done.returncode == -signal.SIGKILL
    after = file_hashes(root / "artifacts")
    assert {k: v for k, v in after.items() if ".tmp/" not in k} == before # the old result, whole
    run_validate(root)
    assert outcome(root).accepted == 1_400


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    root, mkdir = project(tmp_path, month(50, 0)), Path.mkdir

    def refuse(path, *args, **kwargs):
        if path.suffix == ".tmp": raise OSError(30, "Read-only file system", str(root / "artifacts"))
        mkdir(path, *args, **kwargs)
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(OSError, match="Read-only"): run_validate(root)
    assert not (root / "artifacts/accepted").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder(tmp_path):
    root = project(tmp_path, month(50, 0))
    root.chmod(0o555)
    try:
        with pytest.raises(PermissionError): run_validate(root)
    finally: root.chmod(0o755)
    assert not (root / "artifacts").exists()


def test_rows_that_pandera_refuses_are_a_bug(tmp_path, monkeypatch):
    root = project(tmp_path, month(50, 0).with_columns(x=pl.lit(9.0)))
    real = validation.validate_batch

    def careless(frame, schema):
        s = real(frame, schema)
        s.accepted, s.quarantined = (pl.DataFrame(s.accepted.vstack(frame.select(s.accepted.columns))),
                                     s.quarantined.clear())
        return s
    monkeypatch.setattr(validation, "validate_batch", careless)
    with pytest.raises(RuntimeError, match="pandera"): run_validate(root)


def test_a_lost_row_is_a_bug(tmp_path, monkeypatch):
    root = project(tmp_path, month(50, 0))
    real = validation.validate_batch

    def careless(frame, schema):
        s = real(frame, schema)
        s.accepted = s.accepted.head(49)
        return s
    monkeypatch.setattr(validation, "validate_batch", careless)
    with pytest.raises(RuntimeError, match="50 rows became 49"): run_validate(root)


# --- real data

def taxi_schema(path):
    kinds = {n: "timestamp" if t == pl.Datetime else "category" if t == pl.String else "integer" if t.is_integer()
             else "number"
             for n, t in pl.read_parquet_schema(path).items()}
    columns = {n: Column(k, nullable=True) for n, k in kinds.items()}
    columns["fare_amount"].range = (0, 1000)
    return Schema("taxi", "regression",
                  "(EXTRACT(EPOCH FROM lpep_dropoff_datetime) - EXTRACT(EPOCH FROM lpep_pickup_datetime)) / 60.0",
                  columns, filter="target >= 1 AND target <= 60", event_time="lpep_pickup_datetime")


@pytest.fixture
def taxi(tmp_path, real_data):
    folder = real_data("nyc_green_taxi")
    jan, feb = (pl.read_parquet(folder / f"green_tripdata_2023-{m}.parquet") for m in ("01", "02"))
    return lambda *change: project(tmp_path, jan, *(change or [feb]),
                                   schema=taxi_schema(folder / "green_tripdata_2023-02.parquet")), feb


@pytest.mark.realdata
def test_taxi_months_show_the_accepted_widening(taxi):
    make, feb = taxi
    root = make()
    run_validate(root)
    v = outcome(root)
    assert (v.received == 68_211 + 64_809 == v.accepted + v.quarantined
            and v.quarantined == v.violations["fare_amount:range"] > 0)
    one, two = (p.partition for p in v.partitions)
    changes = {(c.partition, c.column): (c.from_, c.to) for c in v.type_conversions}
    assert changes[one, "passenger_count"] == ("Float64", "integer") and changes[one, "ehail_fee"] == ("Null", "number")
    assert changes[two, "VendorID"] == ("Int32", "integer") and (two, "passenger_count") not in changes
    accepted = pl.read_parquet(root / "artifacts/accepted")
    assert accepted.schema["VendorID"] == accepted.schema["passenger_count"] == pl.Int64


@pytest.mark.realdata
def test_taxi_month_with_a_dropped_and_a_renamed_column_stops(taxi):
    make, feb = taxi
    feb = feb.drop("trip_type").rename({"fare_amount": "fare_amt"})
    root = make(feb.with_columns(pl.col("lpep_pickup_datetime").dt.epoch("s")))
    with pytest.raises(SchemaSkewError) as e: run_validate(root)
    sentence, _, *table = str(e.value).splitlines()
    assert "4 column(s) in 1 file(s)" in sentence and all(line.startswith("m1.parquet") for line in table[1:])
    found = {m.column: m.found for m in e.value.mismatches}
    assert found == {"trip_type": "missing", "fare_amount": "missing; a new column 'fare_amt' looks like it",
                     "lpep_pickup_datetime": "retyped to Int64", "fare_amt": "extra, Float64"}
    assert not Path(root, "artifacts").exists() and not Path(root, "quarantine").exists()


# --- later batches, read by the schema

def project_of(tmp_path, text, target="y", **how):
    "A project whose schema was inferred from one file."
    root = tmp_path / "p"
    (tmp_path / "first.csv").write_text(text, encoding="utf-8")
    ingest(tmp_path / "first.csv", root)
    found = infer_schema(scan_data(root), "d", target, **how)
    write_schema(found.schema, root / "schema.yaml", found.comments)
    write_params(Params(), root / "params.yaml")
    return root, found


def later(root, tmp_path, text, name="later.csv"):
    (tmp_path / name).write_text(text, encoding="utf-8")
    ingest(tmp_path / name, root, time_column=read_schema(root / "schema.yaml").event_time)
    run_validate(root)
    accepted = pl.read_parquet(root / "artifacts/accepted/*.parquet")
    return accepted.filter(pl.col("_source") == name).sort("_row")


def edit(root, old, new):
    text = (root / "schema.yaml").read_text(encoding="utf-8")
    assert old in text
    (root / "schema.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")


def rows(*lines, times=20): return "\n".join([lines[0], *lines[1:] * times]) + "\n"


@pytest.mark.parametrize("first, second, values", [
    (["256.00", "V20", "243.25"], ["256.10", "258.00"], ["256.10", "258.00"]),
    # a code column whose new values look like numbers
    (["A17", "54E3"], ["54E4", "2.10"], ["54E4", "2.10"]),
    (["True", "False", "Maybe"], ["True", "False"], ["True", "False"]),
    (["0,52", "1,5"], ["1,250", "2,500"], [1.25, 2.5]), (["1,250.5", "3"], ["1,250", "2,500"], [1250.0, 2500.0]),
    (["", ""], ["7", "seven"], ["7", "seven"]), # an empty column that is filled later
    (["007", "012"], ["7", "12"], ["7", "12"]), (["1.5", "None"], ["None", "2"], [None, 2.0])])
def test_a_later_batch_is_read_as_the_first_one(tmp_path, first, second, values):
    root, _ = project_of(tmp_path, "x;y\n" + "".join(f"{v};{k}\n" for _ in range(20) for k, v in enumerate(first)))
    got = later(root, tmp_path, "x;y\n" + "".join(f"{v};1\n" for v in second))
    assert got["x"].to_list() == values


def test_the_first_week_of_march_is_not_american(tmp_path):
    root, _ = project_of(tmp_path, rows("date,y", "31/01/2022,1", "01/02/2022,2"), time="date")
    got = later(root, tmp_path, rows("date,y", "01/03/2022,1", "07/03/2022,2", times=5))
    assert set(got["date"].dt.month()) == {3} and len(got) == 10


def test_morning_and_afternoon(tmp_path):
    root, _ = project_of(tmp_path, rows("at,y", "31/01/2022 01:00 PM,1", "01/02/2022 12:30 AM,2"), time="at")
    assert set(later(root, tmp_path, "at,y\n02/02/2022 11:00 AM,1\n")["at"].dt.hour()) == {11}


def test_a_batch_that_proves_the_other_order_stops_with_its_row(tmp_path):
    "The first batch is ambiguous, which is said; the second one is not, and contradicts the choice."
    root, found = project_of(tmp_path, rows("date,y", "01/02/2022,1", "03/04/2022,2"), time="date")
    assert "CHECK: the format: day or month first?" in found.comments["date"]
    text = rows("date,y", "01/03/2022,1", "03/25/2022,2", times=3)
    with pytest.raises(UserError, match=r"later.csv, data row 2: date: '03/25/2022' is not written as '%d/%m/%Y', as "
                                        r"schema.yaml says, but as '%m/%d/%Y', as are 3 values"):
        later(root, tmp_path, text)
    edit(root, 'format: "%d/%m/%Y"',
         'format: "%m/%d/%Y"') # as the sentence says: the raw text is still there, and all of it is read anew
    run_validate(root)
    months = pl.read_parquet(root / "artifacts/accepted/*.parquet").sort("_source", "_row")["date"].dt.month()
    assert set(months) == {1, 3}


def test_a_batch_with_another_decimal_sign_stops(tmp_path):
    root, _ = project_of(tmp_path, rows("x;y", "0,52;1", "7,25;2"))
    with pytest.raises(UserError, match="later.csv, data row 2: x: '1,250.75' is not written as '1234,5'"):
        later(root, tmp_path, "x;y\n1,250;1\n1,250.75;2\n")


def test_times_without_an_offset_beside_others_stop_until_the_zone_is_known(tmp_path):
    root, _ = project_of(tmp_path, rows("at,y", "2022-07-01T10:00:00+02:00,1", "2022-07-02T10:00:00+02:00,2"),
                         time="at")
    text = rows("at,y", "2022-07-03 10:00:00,1", times=3)
    with pytest.raises(UserError,
                       match="at: '2022-07-01T10:00:00.02:00' .first.csv, data row 1. has an offset.*set time_zone"):
        later(root, tmp_path, text)
    edit(root, "  at:", "  at:\n    time_zone: Europe/Vienna")
    run_validate(root)
    assert set(pl.read_parquet(root / "artifacts/accepted/*.parquet")["at"].dt.hour()) == {8}


@pytest.mark.parametrize("policy, got", [("map", ["Yes", "No", "Maybe so"]), ("unknown", ["yes", "NO", "maybe  so"])])
def test_a_known_category_in_another_spelling_follows_the_schema(tmp_path, capsys, policy, got):
    root, _ = project_of(tmp_path, rows("x,y", "Yes,1", "No,2", "Maybe so,3"))
    edit(root, "  x:", f"  x:\n    on_new_spelling: {policy}")
    assert later(root, tmp_path, "x,y\nyes,1\nNO,2\nmaybe  so,3\n")["x"].to_list() == got
    report = read_json(root / "artifacts/validation.json", ValidationReport)
    assert report.violations["x:new_spelling"] == 3 and report.violations.get("x:new_category",
                                                                              0) == 3 * (policy == "unknown")
    assert "later.csv, x: 3 values are spelled otherwise ('yes' for 'Yes'" in report.notes[0]
    assert report.notes[0] in capsys.readouterr().out


def test_a_spelling_may_stop_the_run(tmp_path):
    root, _ = project_of(tmp_path, rows("x,y", "Yes,1", "No,2"))
    edit(root, "  x:", "  x:\n    on_new_spelling: stop")
    with pytest.raises(UserError,
                       match="data row 1: x: yes is another spelling of Yes; fix it, or change on_new_spelling"):
        later(root, tmp_path, "x,y\nyes,1\n")


def test_code_points_are_a_spelling_too(tmp_path):
    root, _ = project_of(tmp_path, rows("x,y", "K\u00f6ln,1", "Linz,2"))
    assert later(root, tmp_path, "x,y\nKo\u0308ln,1\nＬＩＮＺ,2\n")["x"].to_list() == ["K\u00f6ln", "Linz"]


def test_labels_in_another_spelling_are_not_lost(tmp_path):
    root, _ = project_of(tmp_path, rows("x,y", "1,Yes", "2,No"))
    assert later(root, tmp_path, "x,y\n1,yes\n2,no\n")["y"].to_list() == ["Yes", "No"]


@pytest.mark.parametrize("policy", ["stop", "ignore", "report"])
def test_one_more_column_is_a_setting(tmp_path, capsys, policy):
    root, _ = project_of(tmp_path, rows("x,y", "1,1", "2,2"))
    edit(root, "on_extra_column: stop", f"on_extra_column: {policy}")
    text = "x,more,y\n1,a,1\n"
    if policy == "stop":
        with pytest.raises(SchemaSkewError): later(root, tmp_path, text)
        return
    assert later(root, tmp_path, text).columns == ["x", "y", "_source", "_row"]
    said = "later.csv: the column 'more' is not in schema.yaml and is left out (on_extra_column: report)."
    assert (said in capsys.readouterr().out) == (policy == "report")


def test_a_project_whose_data_an_earlier_version_typed_goes_on(tmp_path):
    "Numbers and dates in data/, and text in the next batch."
    root = tmp_path / "p"
    pl.DataFrame({"x": [1, 2] * 10, "day": pl.Series(["2022-01-31"] * 20).str.to_date(),
                  "y": [1.5, 2.5] * 10}).write_parquet(tmp_path / "old.parquet")
    ingest(tmp_path / "old.parquet", root)
    write_schema(Schema("d", "regression", "y", dict(x=Column("integer"), day=Column("timestamp"),
                                                     y=Column("number"))), root / "schema.yaml")
    write_params(Params(), root / "params.yaml")
    got = later(root, tmp_path, "x,day,y\n3,2022-02-01,3.5\n")
    assert got.drop("_source", "_row").row(0) == (3, dt.datetime(2022, 2, 1), 3.5)


def test_pandera_looks_at_alike_columns_together_and_misses_none():
    same = {f"x{i}": Column("number", range=(0, 10), nullable=True) for i in range(60)}
    known = {n: Column("category", domain=["u", w], on_new_category="quarantine") for n, w in (("a", "v"), ("b", "w"))}
    columns = same | known | dict(y=Column("number"), k=Column("integer", range=(0, 10)))
    schema = Schema("d", "regression", "y", columns)
    good = pl.DataFrame({n: [1.0, None] for n in same} | dict(y=[-1.0, 99.0], k=[1, 2], a=["u", "v"], b=["u", "w"],
                                                              _source=["f", "f"], _row=[0, 1]))
    check_with_pandera(good, to_pandera(schema))
    for name, values in dict(x0=[1.0, 11.0], x59=[-1.0, 2.0], y=[None, 1.0], k=[11, 1], a=["w", "u"], b=["v", "u"],
                             x7=[1, 2]).items():
        with pytest.raises(RuntimeError, match="pandera refuses"):
            check_with_pandera(good.with_columns(pl.Series(name, values)), to_pandera(schema))


def test_rows_whose_time_is_computed(tmp_path):
    when = "strptime(concat(year, '-', month, '-', day), '%Y-%m-%d')"
    first = rows("year,month,day,y", "2023,12,31,1", "2024,1,2,2")
    root, _ = project_of(tmp_path, first, time=when)
    assert later(root, tmp_path, "year,month,day,y\n2024,2,29,1\n")["event_time"].to_list() == [dt.datetime(2024, 2,
                                                                                                            29)]
    assert [p.period for p in read_data_manifest(root).partitions if p.source == "later.csv"] == ["2024"]
    assert later(root, tmp_path, "year,month,day,y\n2024,2,30,1\n2024,3,1,2\n", "worse.csv")["_row"].to_list() == [1]
