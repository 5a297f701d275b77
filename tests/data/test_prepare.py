"The stage `prepare`: nothing lost, nothing leaked, the same bytes every time, and no half-written folder."
import os
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pytest

from mlops_nb.config.params import Params, PrepareParams, SplitParams, write_params
from mlops_nb.config.schema import Column, Schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes, sha256_file
from mlops_nb.data.prepare import EXCLUSION_REASONS, compute_target, read_dataset_info, read_rows_to_try, run_prepare

FEATURES = """
import numpy as np
import mlops_nb.model.features as fx
@fx.feature
def double(x): return x * 2
@fx.feature
def inverse(x): return 1 / x
@fx.feature(type='category')
def size(x): return np.where(np.isnan(x), None, np.where(x > 5, 'big', 'small'))
"""
COLUMNS = dict(who=Column("category"), at=Column("timestamp", nullable=True), x=Column("number", nullable=True),
               y=Column("category", nullable=True))
SCHEMA = Schema(dataset="d", task="binary", target="y", classes=["no", "yes"], event_time="at", entity="who",
                filter="x IS NULL OR x < 9",
                columns=COLUMNS)


def accepted_rows(n=600, seed=0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(dict(
        who=[f"p{i}" for i in rng.integers(0, 50, n)], at=[datetime(2024, 1, 1) + timedelta(hours=i) for i in range(n)],
        x=rng.integers(0, 10, n).astype(float), y=rng.choice(["no", "yes"], n), _source="a.csv",
        _row=np.arange(n))).with_columns(
        x=pl.when(pl.col("_row") % 50 == 1).then(None).otherwise("x"),
        y=pl.when(pl.col("_row") % 60 == 2).then(None).otherwise("y"),
        at=pl.when(pl.col("_row") % 70 == 3).then(None).otherwise("at"))


@pytest.fixture
def project(tmp_path):
    "A project folder with accepted rows in three files."
    def make(frame=None, schema=SCHEMA, features=FEATURES, files=3, window=None, **split):
        frame = accepted_rows() if frame is None else frame
        folder = tmp_path / "artifacts/accepted"
        folder.mkdir(parents=True, exist_ok=True)
        size = -(-len(frame) // files) or 1
        for i in range(files): frame[i * size:(i + 1) * size].write_parquet(folder / f"part-{i:03}.parquet")
        write_schema(schema, tmp_path / "schema.yaml")
        if features: (tmp_path / "f.py").write_text(features)
        params = PrepareParams(features_file="f.py" if features else None, window=window, split=SplitParams(**split))
        write_params(Params(prepare=params), tmp_path / "params.yaml")
        return tmp_path
    return make


def parts(root):
    return {p: pl.read_parquet(root / f"artifacts/prepared/{p}.parquet") for p in ("train", "valid", "test")}


def test_used_plus_left_out_is_accepted_and_every_used_row_is_in_one_part(project):
    root = project()
    assert run_prepare(root) == dict(rows=600)
    d, frames = read_dataset_info(root), parts(root)
    assert d.accepted == 600 == d.used + sum(d.excluded_rows.values()) and sum(map(len, frames.values())) == d.used
    source = accepted_rows()
    gone = source.filter(pl.col("y").is_null() | (pl.col("x").fill_null(0) >= 9) | pl.col("at").is_null())
    assert d.used == 600 - len(gone) and d.excluded_rows[EXCLUSION_REASONS[0]] == source["y"].null_count()
    assert set(d.excluded_rows) == {EXCLUSION_REASONS[i] for i in (0, 3, 4)}
    together = pl.concat(frames.values()).sort("_row")
    expected = source.join(gone, on="_row", how="anti").sort("_row")
    assert together.select(source.columns).equals(expected)
    assert together["_target"].equals((expected["y"] == "yes").cast(pl.Float64).alias("_target"))


def test_columns_features_and_types(project):
    root = project()
    run_prepare(root)
    for frame in parts(root).values():
        assert frame.columns == ["who", "at", "x", "y", "double", "inverse", "size", "_target", "_source", "_row"]
        number = {c for c, t in frame.schema.items() if t == pl.Float64}
        assert number == {"x", "double", "inverse",
                          "_target"} and frame.schema["size"] == pl.String and frame.schema["_row"] == pl.Int64
        assert frame["double"].equals((frame["x"] * 2).alias("double")) and not frame["inverse"].is_infinite().any()
        assert frame["size"].null_count() == frame["x"].null_count() == frame["double"].null_count()
        assert frame["inverse"].null_count() == frame["x"].null_count() + (frame["x"] == 0).sum()


def test_the_description_is_true(project):
    root = project()
    run_prepare(root)
    d, frames = read_dataset_info(root), parts(root)
    for name, p in d.parts.items():
        assert p.sha256 == sha256_file(root / f"artifacts/prepared/{name}.parquet") and p.rows == len(frames[name])
        assert p.target == dict(no=(frames[name]["y"] == "no").sum(), yes=(frames[name]["y"] == "yes").sum())
        assert p.time == (frames[name]["at"].min().isoformat(), frames[name]["at"].max().isoformat())
    assert d.split_check.duplicate_rows == 0 and d.split_check.in_time_order and d.sources == {"a.csv": d.used}
    assert d.features == dict(double="number", inverse="number", size="category")


def test_the_same_input_gives_the_same_bytes_on_one_thread_or_two(project):
    root = project()
    code = f"from mlops_nb.data.prepare import run_prepare; run_prepare({str(root)!r})"
    seen = []
    for threads in ("1", "2"):
        subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "POLARS_MAX_THREADS": threads})
        seen.append(file_hashes(root / "artifacts/prepared"))
    assert seen[0] == seen[1] and set(seen[0]) == {"train.parquet", "valid.parquet", "test.parquet", "dataset.json"}
    assert str(root) not in (root / "artifacts/prepared/dataset.json").read_text()


def test_batches_do_not_show(project, monkeypatch):
    import mlops_nb.data.prepare as module
    root = project(method="group")
    run_prepare(root)
    whole, real = parts(root), module.read_accepted_batches
    monkeypatch.setattr(module, "read_accepted_batches", lambda folder,
                        columns=None: real(folder, columns, batch_rows=37))
    run_prepare(root)
    assert all(whole[k].equals(v) for k, v in parts(root).items())


def test_lineage_changes_with_what_it_stands_for(project):
    root = project()
    run_prepare(root)
    before = read_dataset_info(root).lineage
    (root / "data").mkdir()
    (root / "data/manifest.json").write_text("{}")
    run_prepare(root)
    assert before.data is None and read_dataset_info(root).lineage.data == sha256_file(root / "data/manifest.json")
    project(features=FEATURES + "\n# changed\n")
    run_prepare(root)
    assert (read_dataset_info(root).lineage.features != before.features
            and read_dataset_info(root).lineage.schema == before.schema)


@pytest.mark.parametrize("change, says", [
    (dict(filter="x > 100"), "none of the 600 accepted rows can be used"),
    (dict(classes=["a", "b"]), "590 × the target is not one of the classes"),
    (dict(classes=["no", "perhaps"]), "the class 'perhaps' of 'y' is in no training row"),
    (dict(event_time=None), "name `event_time` in schema.yaml"),
    (dict(task="regression", target="at - at", classes=None), "the target"),
    (dict(filter="who + 1 > x"), "the target or the filter cannot be computed"),
])
def test_contracts_that_leave_nothing(project, change, says):
    root = project(schema=msgspec.structs.replace(SCHEMA, **change))
    with pytest.raises(UserError) as e: run_prepare(root)
    assert says in str(e.value) and not (root / "artifacts/prepared").exists() and "\n" not in str(e.value)


def test_one_class_only(project):
    root = project(accepted_rows().with_columns(y=pl.lit("no")))
    with pytest.raises(UserError, match="the class 'yes' of 'y' is in no training row"): run_prepare(root)


def test_a_feature_that_reads_the_target_or_its_neighbours(project):
    head = "import mlops_nb.model.features as fx\n@fx.feature\n"
    for body, says in (("def f(y): return y == 'yes'", "not known at prediction"),
                       ("def f(x): return x - x[::-1]", "for the same row alone"),
                       ("def f(z): return z", "not a column of schema.yaml")):
        with pytest.raises(UserError, match=says): run_prepare(project(features=head + body + "\n"))


LAG = """import numpy as np
import mlops_nb.model.features as fx
@fx.feature(allow=['who'])
def before(who, x):
    last, out = {}, []
    for w, v in zip(who, x): out.append(last.get(w, np.nan)); last[w] = v
    return np.array(out)
"""


def snapshots(n_people=300, n_months=3):
    "A row of each person in each month; nobody is there twice in a month."
    rng, n = np.random.default_rng(0), n_people * n_months
    return pl.DataFrame(dict(who=[f"p{i}" for i in range(n_people)] * n_months, _source="a.csv", _row=np.arange(n),
                             at=[datetime(2024, 1 + i // n_people, 1) for i in range(n)],
                             x=rng.normal(size=n), y=rng.choice(["no", "yes"], n)))


@pytest.mark.parametrize("files", [1, 3])
def test_a_lag_per_entity_is_refused_also_where_nobody_is_twice_in_a_file(project, files):
    root = project(snapshots(), features=LAG, files=files)
    with pytest.raises(UserError, match="f.py: feature 'before' is .* for the same row alone"): run_prepare(root)
    assert not (root / "artifacts/prepared").exists()
    with pytest.raises(UserError, match=r"reads 'who', the entity.*allow=\['who'\]"):
        run_prepare(project(snapshots(), features=LAG.replace("(allow=['who'])", "")))


def write_parts(folder, *frames):
    for i, frame in enumerate(frames): frame.write_parquet(folder / f"part-{i}.parquet")
    return folder


def test_the_rows_that_are_tried_are_used_ones_and_hold_every_row_of_those_they_are_about(tmp_path):
    frame = snapshots(2000)
    splits = np.where(frame["_row"].to_numpy() % 10 == 0, "", "train")
    folder = write_parts(tmp_path, frame[:2000], frame[2000:4000], frame[4000:])
    some = read_rows_to_try(folder, splits, ["who", "_row"], "who", max_rows=600)
    used = frame.filter(splits != "")
    assert 0 < len(some) <= 600 and set(some["_row"]) <= set(used["_row"])
    taken = used.filter(pl.col("who").is_in(some["who"].unique().implode()))
    assert len(some) == 600 or some["_row"].to_list() == taken["_row"].to_list()
    assert some["who"].n_unique() < len(some) / 2


@pytest.mark.parametrize("who", [None, "the only one"])
def test_without_entities_to_choose_from_the_first_used_rows_are_tried(tmp_path, who):
    frame = snapshots(100).with_columns(who=pl.lit(who, pl.String))
    folder = write_parts(tmp_path, frame[:150], frame[150:])
    splits = np.array([""] * 20 + ["train"] * 280)
    for entity in ("who", None):
        some = read_rows_to_try(folder, splits, ["who", "_row"], entity, max_rows=200)
        assert some["_row"].to_list() == list(range(20, 220))


def test_a_regression_target_that_is_not_finite_is_left_out():
    schema = Schema(dataset="d", task="regression", target="a / b",
                    columns=dict(a=Column("number"), b=Column("number")))
    frame = pl.DataFrame(dict(a=[1., 1., 0., None, float("nan")], b=[2., 0., 0., 1., 1.]))
    use = compute_target(frame, schema)
    assert use["_reason"].to_list() == [None, 1, 1, 0, 1] and use["_target"].to_list() == [.5, None, None, None, None]


def test_classes_of_other_types():
    for values, classes in (([0, 1, None], ["0", "1"]), ([False, True, None], ["false", "true"]),
                            ([0., 1., None], ["0", "1"])):
        schema = Schema(dataset="d", task="binary", target="y", classes=classes, columns=dict(y=Column("integer")))
        assert compute_target(pl.DataFrame(dict(y=values)), schema)["_target"].to_list() == [0, 1, None]


def test_an_expression_over_a_column_named_target_is_computed_once():
    schema = Schema("d", "regression", "target * 2", filter="target > 3", columns={"target": Column("number")})
    use = compute_target(pl.DataFrame({"target": [1.0, 2.0, 3.0]}), schema)
    # a filter's `target` is the computed one
    assert use["_target"].to_list() == [2, 4, 6] and use["_reason"].to_list() == [3, None, None]


def test_a_column_named_target_is_kept(project):
    frame = accepted_rows().rename(dict(y="target"))
    columns = {("target" if k == "y" else k): v for k, v in SCHEMA.columns.items()}
    root = project(frame, msgspec.structs.replace(SCHEMA, target="target", columns=columns))
    run_prepare(root)
    assert set(parts(root)["train"]["target"]) == {"no", "yes"}


def test_no_accepted_rows_or_a_damaged_file(project, tmp_path):
    root = project(accepted_rows()[:0], files=1)
    with pytest.raises(UserError, match="hold no rows"): run_prepare(root)
    part = root / "artifacts/accepted/part-000.parquet"
    part.unlink()
    with pytest.raises(UserError, match="run the stage `validate` first"): run_prepare(root)
    project()
    part.write_bytes(part.read_bytes()[:-50])
    with pytest.raises(UserError, match="part-000.parquet is damaged"): run_prepare(root)


def test_a_full_disk_leaves_the_last_result(project, monkeypatch):
    root = project()
    run_prepare(root)
    before = file_hashes(root / "artifacts/prepared")
    from pyarrow.parquet import ParquetWriter
    def full(self, *a, **k): raise OSError(28, "No space left on device")
    monkeypatch.setattr(ParquetWriter, "write_table", full)
    project(accepted_rows(seed=1))
    with pytest.raises(OSError, match="No space"): run_prepare(root)
    assert file_hashes(root / "artifacts/prepared") == before and [p.name for p in (root / "artifacts").iterdir()
                                                                   if p.name[0] == "."] == []


def test_killed_at_any_moment_the_folder_is_old_or_new(project):
    root = project()
    run_prepare(root)
    old = file_hashes(root / "artifacts/prepared")
    project(accepted_rows(seed=1))
    code = ("import sys, mlops_nb.data.prepare as m; real = m.read_accepted_batches\n"
            "def slow(*a):\n    for b in real(*a): print('batch', flush=True); yield b\n"
            f"m.read_accepted_batches = slow; m.run_prepare({str(root)!r})")
    for lines in (2, 5):
        p = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(lines): p.stdout.readline()
        time.sleep(.01)
        p.send_signal(signal.SIGKILL); p.wait(); p.stdout.close()
        now = file_hashes(root / "artifacts/prepared")
        described = {f"{name}.parquet": part.sha256 for name, part in read_dataset_info(root).parts.items()}
        assert now == old or now.items() >= described.items()
    run_prepare(root)
    assert file_hashes(root / "artifacts/prepared") != old and read_dataset_info(root).split_check.duplicate_rows == 0


def test_a_leak_is_described_with_the_data_and_the_reason_for_accepting_it(project):
    told = accepted_rows().with_columns(settled=pl.col("y") == "yes")
    schema = msgspec.structs.replace(SCHEMA, columns={**COLUMNS, "settled": Column("boolean", nullable=True)})
    root = project(told, schema)
    run_prepare(root)
    leak, = read_dataset_info(root).leaks
    assert (leak.column, leak.kind, leak.accepted) == ("settled", "target copy", "") and leak.strength > 0.99
    schema.columns["settled"].leak_accepted = "decided at the counter"
    project(told, schema)
    run_prepare(root)
    assert read_dataset_info(root).leaks == [msgspec.structs.replace(leak, accepted="decided at the counter")]


def a_year_of_visits(n=4000):
    "Visits of 800 people, each ill or well; a reminder is sent to the ill, if a month has gone by since."
    rng = np.random.default_rng(3)
    day, who = np.sort(rng.integers(0, 365, n)), rng.integers(0, 800, n)
    ill = (rng.random(800) < 0.3)[who]
    at = [datetime(2024, 1, 1) + timedelta(days=int(d)) for d in day]
    return pl.DataFrame(dict(
        who=[f"p{w}" for w in who], at=at, number=who * 7 % 8009, x=rng.normal(size=n),
        y=np.where(ill, "yes", "no"), reminded=ill & (day < 335) & (rng.random(n) < 0.9) | (rng.random(n) < 0.01),
        _source=["a"] * n, _row=pl.Series(range(n), dtype=pl.Int64)))


def test_all_rows_are_searched_and_what_the_split_keeps_together_gives_nothing_away(project):
    "The newest rows are in the test set, or in none; a group by which rows are split needs no other name."
    columns = {n: Column(t) for n, t in dict(who="category", at="timestamp", number="integer", x="number",
                                             y="category", reminded="boolean").items()}
    schema = Schema("d", "binary", "y", columns, classes=["no", "yes"], event_time="at")
    columns["who"].feature = False
    found = {}
    for method, column in (("time", None), ("group", "who")):
        root = project(a_year_of_visits(), schema, None, method=method, column=column)
        run_prepare(root)
        found[method] = {f.column: f.kind for f in read_dataset_info(root).leaks}
    assert found == dict(time=dict(number="entity", reminded="after the outcome"),
                         group=dict(reminded="after the outcome"))


@pytest.mark.parametrize("window, method", [("5d", "time"), ("5d", "random"), ("100h", "group"), ("99d", "time")])
def test_a_window_slides_with_the_newest_row(project, window, method):
    frame = accepted_rows()
    root = project(frame, window=window, method=method, column="who" if method == "group" else None)
    run_prepare(root)
    rows, hours = pl.concat(parts(root).values()), int(window[:-1]) * (24 if window[-1] == "d" else 1)
    first = frame["at"].max() - timedelta(hours=hours)
    info = read_dataset_info(root)
    wanted = frame.filter(pl.col("at") >= first, pl.col("y").is_not_null(), pl.col("x").fill_null(0) < 9)
    assert rows["at"].min() >= first and sorted(rows["_row"]) == sorted(wanted["_row"])
    assert info.used + sum(info.excluded_rows.values()) == len(frame)
    assert ("older than prepare.window" in info.excluded_rows) == (window != "99d")


def test_a_window_needs_times(project):
    schema = msgspec.structs.replace(SCHEMA, event_time=None)
    with pytest.raises(UserError, match="prepare.window in params.yaml needs event_time"):
        run_prepare(project(schema=schema, window="5d", method="random"))


@pytest.mark.realdata
def test_taxi_trips(real_data, tmp_path):
    source = pl.read_parquet(real_data("nyc_green_taxi") / "green_tripdata_2021-01.parquet")
    names = ["lpep_pickup_datetime", "lpep_dropoff_datetime", "trip_distance", "PULocationID"]
    schema = Schema(dataset="taxi", task="regression", event_time=names[0], filter="target BETWEEN 1 AND 60",
                    target=f"(EXTRACT(EPOCH FROM {names[1]}) - EXTRACT(EPOCH FROM {names[0]})) / 60.0",
                    columns=dict(zip(names,
                                     (Column("timestamp"), Column("timestamp"), Column("number"), Column("integer")),
                                     strict=True)))
    part = Path(tmp_path / "artifacts/accepted/part-0.parquet")
    part.parent.mkdir(parents=True)
    source.select(names).with_columns(_source=pl.lit("t"),
                                      _row=pl.int_range(pl.len(), dtype=pl.Int64)).write_parquet(part)
    write_schema(schema, tmp_path / "schema.yaml")
    write_params(Params(), tmp_path / "params.yaml")
    run_prepare(tmp_path)
    d = read_dataset_info(tmp_path)
    minutes = (source[names[1]] - source[names[0]]).dt.total_seconds() / 60
    assert d.used == minutes.is_between(1, 60).sum() and d.accepted == len(source)
    assert all(1 <= p.target["min"] <= p.target["max"] <= 60 for p in d.parts.values())


def test_labels_that_are_lost_are_said(project, capsys):
    rows = accepted_rows().with_columns(y=pl.when(pl.col("_row") < 3).then(pl.lit("perhaps")).otherwise("y"))
    run_prepare(project(rows))
    assert "12 of 600 rows have no label and are left out: 9 × the target is missing, 3 × the target is not one of " \
           "the classes, such as 'perhaps'." in capsys.readouterr().out
    run_prepare(project(accepted_rows().with_columns(y=pl.col("y").fill_null("no"))))
    assert "no label" not in capsys.readouterr().out
