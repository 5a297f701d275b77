"Scoring of files: each row once, in bounded memory, the same bytes however often it is killed; lookup tables."
import os
import signal
import subprocess
import sys
import time

import msgspec
import polars as pl
import pytest
from support import server as serving
from support import trained_project as modelling
from support.memory import peak_mib

from mlops_nb.batch.batch_scoring import (
    quarantine_path,
    read_row_batches,
    score_files,
    score_lookup_table,
    scoring_schema,
)
from mlops_nb.config.schema import Schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import write_manifest
from mlops_nb.core.typed_yaml import read_json, write_json
from mlops_nb.data.sources import ReadOptions, find_sources
from mlops_nb.model.predictor import Predictor


@pytest.fixture(scope="module", params=list(modelling.CLASSES))
def predictor(request, tmp_path_factory):
    return Predictor.open(serving.bundle(tmp_path_factory.mktemp(request.param), request.param, n=300))


@pytest.fixture(scope="module")
def made(tmp_path_factory): return serving.bundle(tmp_path_factory.mktemp("one"), n=300)


@pytest.fixture
def binary(made): return Predictor.open(made)


def left(folder): return sorted(p.name for p in folder.iterdir() if p.name.startswith("."))


# --- what comes out

def test_a_file_gives_what_the_frame_gives(predictor, tmp_path):
    frame = modelling.rows(1003, seed=9, task=predictor.schema.task)
    frame.write_parquet(tmp_path / "in.parquet", row_group_size=100)
    for size in (64, 100, 5000):
        done = score_files(predictor, tmp_path / "in.parquet", tmp_path / f"{size}.parquet", size)
        assert pl.read_parquet(tmp_path / f"{size}.parquet").equals(predictor.score_frame(frame))
        assert (done.n_rows, done.n_quarantined) == (1003, 0)
    assert not left(tmp_path) and not quarantine_path(tmp_path / "64.parquet").exists()


def test_text_is_scored_as_the_schema_says_that_it_is_written(made, tmp_path):
    predictor, frame = Predictor.open(made), modelling.rows(200, seed=3)
    kinds = {n: c.type for n, c in predictor.schema.columns.items()}
    numbers = [n for n in frame.columns if kinds.get(n) in ("integer", "number")]
    columns = {n: msgspec.structs.replace(c, format="1.234,5") if n in numbers else c for n,
               c in predictor.schema.columns.items()}
    text = frame.with_columns(pl.col(numbers).cast(pl.String).str.replace(".", ",", literal=True))
    text.write_parquet(tmp_path / "in.parquet")
    want = predictor.score_frame(frame)
    predictor.schema = msgspec.structs.replace(predictor.schema, columns=columns)
    assert score_files(predictor, tmp_path / "in.parquet", tmp_path / "out.parquet").n_quarantined == 0
    assert numbers and pl.read_parquet(tmp_path / "out.parquet").equals(want)


def test_text_is_scored_as_parquet_is(binary, tmp_path):
    wrong = pl.when(pl.int_range(300) % 100 == 7).then(1000).otherwise("count")
    frame = modelling.rows(300, seed=3).with_columns(count=wrong)
    frame.write_parquet(tmp_path / "in.parquet")
    frame.write_csv(tmp_path / "in.csv", separator=";")
    frame.write_ndjson(tmp_path / "in.jsonl")
    done = score_files(binary, tmp_path / "in.parquet", tmp_path / "out.parquet", 64)
    want = pl.read_parquet(tmp_path / "out.parquet")
    refused = pl.read_parquet(quarantine_path(tmp_path / "out.parquet"))
    for name in ("in.csv", "in.jsonl"):
        assert score_files(binary, tmp_path / name, tmp_path / f"{name}.parquet", 64) == done
        assert pl.read_parquet(tmp_path / f"{name}.parquet").equals(want)
        found = pl.read_parquet(quarantine_path(tmp_path / f"{name}.parquet"))
        assert found.select("_row", "_reasons").equals(refused.select("_row", "_reasons"))
        assert set(found["_source"]) == {name}
    assert score_files(binary, tmp_path / "in.csv", tmp_path / "out.csv", 64) == done
    read = pl.read_csv(tmp_path / "out.csv", schema=want.schema)
    assert read.equals(want) and quarantine_path(tmp_path / "out.csv").name == "out.csv.quarantined.parquet"


def test_a_folder_of_several_formats(made, binary, tmp_path):
    frame = modelling.rows(90, seed=3)
    for name in ("a.parquet", "b.csv", "b.jsonl", "known=true/c.csv", "known=true/d.parquet"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        part = frame.drop("known") if "=" in name else frame
        getattr(part, f"write_{name.split('.')[-1].replace('jsonl', 'ndjson')}")(tmp_path / "in" / name)
    for _ in range(2): assert score_files(binary, tmp_path / "in", tmp_path / "out", 40).n_rows == 450
    want = binary.score_frame(frame)
    for name in ("a.parquet", "b.csv.parquet", "b.jsonl.parquet"):
        assert pl.read_parquet(tmp_path / "out" / name).equals(want)
    known = binary.score_frame(frame.with_columns(known=True))
    for name in ("c.csv.parquet", "d.parquet"):
        assert pl.read_parquet(tmp_path / "out/known=true" / name, glob=False, hive_partitioning=False).equals(known)


def test_a_text_file_is_gone_on_with_at_the_same_rows(binary, tmp_path):
    modelling.rows(400).write_csv(tmp_path / "in.csv")
    score_files(binary, tmp_path / "in.csv", tmp_path / "whole.parquet", 100)
    ask, asked = binary.score_frame, []
    def breaks(frame):
        asked.append(frame["_row"][0])
        if fails and frame["_row"][0] == 200: raise OSError("the disk is gone")
        return ask(frame)
    binary.score_frame, fails = breaks, True
    with pytest.raises(OSError): score_files(binary, tmp_path / "in.csv", tmp_path / "out.parquet", 100)
    fails = False
    assert score_files(binary, tmp_path / "in.csv", tmp_path / "out.parquet", 100).n_resumed_chunks == 2
    assert asked == [0, 100, 200, 200, 300]
    assert (tmp_path / "out.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_after_the_last_chunk_there_is_nothing_to_read(binary, tmp_path):
    modelling.rows(200).write_csv(tmp_path / "in.csv")
    source, = find_sources(tmp_path / "in.csv")
    schema = scoring_schema(binary)
    assert [len(b) for b in read_row_batches(source, schema, 100)] == [100, 100]
    assert not list(read_row_batches(source, schema, 100, skip_rows=200))


def test_what_text_a_file_is_can_be_said_and_what_is_no_table_is_refused(binary, tmp_path):
    frame = modelling.rows(60)
    text = "Export of June\nfor the shop\n" + frame.write_csv(separator="|")
    (tmp_path / "in.txt").write_text(text)
    how = ReadOptions(separator="|", skip=2)
    score_files(binary, tmp_path / "in.txt", tmp_path / "out.parquet", options=how)
    assert pl.read_parquet(tmp_path / "out.parquet").equals(binary.score_frame(frame))
    (tmp_path / "in.txt").write_text(text.replace("|", "|'", 1)[:-5])
    with pytest.raises(UserError, match="fields where the header has"):
        score_files(binary, tmp_path / "in.txt", tmp_path / "out.parquet", options=how)
    frame.write_csv(tmp_path / "in.csv")
    for name in ("out.xlsx", "out.jsonl", "out.csv.gz"):
        with pytest.raises(UserError, match="would be written as Parquet"):
            score_files(binary, tmp_path / "in.csv", tmp_path / name)


def test_threads_do_not_change_a_byte(made, tmp_path):
    modelling.rows(3000, seed=10).write_parquet(tmp_path / "in.parquet", row_group_size=500)
    for threads in (1, 3):
        score_files(Predictor.open(made, threads), tmp_path / "in.parquet", tmp_path / str(threads), 256)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "3").read_bytes()


def test_files_without_rows(predictor, tmp_path):
    (tmp_path / "in").mkdir()
    empty = modelling.rows(5, task=predictor.schema.task).clear()
    for name in ("a", "b"): empty.write_parquet(tmp_path / f"in/{name}.parquet")
    assert score_files(predictor, tmp_path / "in/a.parquet", tmp_path / "out.parquet").n_rows == 0
    assert pl.read_parquet(tmp_path / "out.parquet").schema == predictor.output_schema()
    assert score_files(predictor, tmp_path / "in", tmp_path / "out").n_rows == 0


def test_a_folder_gives_a_folder(binary, tmp_path):
    frames = {f"{d}/m={i} [1].parquet": modelling.rows(50 + i, seed=i) for i, d in enumerate(["a", "b/c"])}
    for name, frame in frames.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        frame.write_parquet(tmp_path / "in" / name)
    (tmp_path / "in/.hidden").mkdir()
    (tmp_path / "in/.hidden/x.parquet").write_bytes(b"none")
    assert score_files(binary, tmp_path / "in", tmp_path / "out", 20).n_rows == 101
    for name, frame in frames.items():
        assert pl.read_parquet(tmp_path / "out" / name, glob=False).equals(binary.score_frame(frame))
    assert len([p for p in (tmp_path / "out").rglob("*") if p.is_file()]) == 2
    modelling.rows(7).write_parquet(tmp_path / "in/a/new.parquet")
    assert score_files(binary, tmp_path / "in", tmp_path / "out", 20).n_rows == 108  # the older is replaced as a whole
    (tmp_path / "out/notes.txt").write_text("mine")
    (tmp_path / "in/a/new.parquet").unlink()
    with pytest.raises(UserError, match="holds notes.txt"): score_files(binary, tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/notes.txt").exists()


def test_rows_that_break_the_contract_are_refused_with_their_reasons(binary, tmp_path):
    wrong = pl.when(pl.int_range(300) % 100 == 7).then(1000).otherwise("count")
    frame = modelling.rows(300, seed=3).with_columns(count=wrong)
    said = pl.when(pl.int_range(300) == 207).then(pl.lit("perhaps")).otherwise(pl.col("known").cast(pl.String))
    frame = frame.with_columns(known=said)
    frame.write_parquet(tmp_path / "in.parquet")
    done = score_files(binary, tmp_path / "in.parquet", tmp_path / "out.parquet", 64)
    out = pl.read_parquet(tmp_path / "out.parquet")
    bad = pl.Series([i % 100 == 7 for i in range(300)])
    assert (done.n_rows, done.n_quarantined) == (300, 3)
    assert out["score"].is_null().to_list() == out["decision"].is_null().to_list() == bad.to_list()
    assert out.filter(~bad).equals(binary.score_frame(modelling.rows(300, seed=3).filter(~bad)))
    refused = pl.read_parquet(quarantine_path(tmp_path / "out.parquet"))
    assert refused["_row"].to_list() == [7, 107, 207] and set(refused["_source"]) == {"in.parquet"}
    assert refused["count"].to_list() == ["1000"] * 3
    assert refused["_reasons"].to_list()[2] == ["count: 1000 is above 50.0", "known: perhaps is not true or false"]
    again = score_files(binary, tmp_path / "in.parquet", tmp_path / "out.parquet", 64)
    assert again.n_quarantined == 3  # found, not scored
    modelling.rows(300).write_parquet(tmp_path / "in.parquet")
    assert score_files(binary, tmp_path / "in.parquet", tmp_path / "out.parquet").n_quarantined == 0
    assert not quarantine_path(tmp_path / "out.parquet").exists()


def other_policy(made, folder, **policies):
    "The same bundle, with other words of the contract for a column."
    subprocess.run(["cp", "-r", made, folder], check=True)
    (folder / "manifest.json").unlink()
    schema = read_json(folder / "schema.json", Schema)
    for name, policy in policies.items(): schema.columns[name] = msgspec.structs.replace(schema.columns[name], **policy)
    write_json(folder / "schema.json", schema)
    write_manifest(folder)
    return Predictor.open(folder)


def test_the_other_policies_of_the_contract(made, binary, tmp_path):
    frame = modelling.rows(200, seed=4).with_columns(x=pl.when(pl.int_range(200) == 150).then(99.0).otherwise("x"))
    frame.write_parquet(tmp_path / "in.parquet")
    nulled = other_policy(made, tmp_path / "null", x=dict(on_violation="null"))
    assert score_files(nulled, tmp_path / "in.parquet", tmp_path / "out.parquet", 64).n_quarantined == 0
    without = frame.with_columns(x=pl.when(pl.int_range(200) != 150).then("x"))
    assert pl.read_parquet(tmp_path / "out.parquet").equals(binary.score_frame(without))
    stop = other_policy(made, tmp_path / "stop", x=dict(on_violation="stop"))
    with pytest.raises(UserError, match="in.parquet, data row 151: x: 99.0 is above 10"):
        score_files(stop, tmp_path / "in.parquet", tmp_path / "s.parquet", 64)
    assert not (tmp_path / "s.parquet").exists()
    without.write_parquet(tmp_path / "in.parquet")
    done = score_files(stop, tmp_path / "in.parquet", tmp_path / "s.parquet", 64)
    assert done.n_resumed_chunks == 0  # another file: no chunk of the first is taken
    assert not left(tmp_path)


def test_the_rules_of_the_policy_hold_in_files(made, tmp_path):
    subprocess.run(["cp", "-r", made, tmp_path / "ruled"], check=True)
    (tmp_path / "ruled/manifest.json").unlink()
    policy = read_json(tmp_path / "ruled/policy.json", dict)
    rules = [{"when": {"note": "vip"}, "decision": "no"}, {"when": {"known": True}, "max_score": .25}]
    write_json(tmp_path / "ruled/policy.json", policy | {"rules": rules, "reject_region": [.3, .5]})
    write_manifest(tmp_path / "ruled")
    ruled, plain = Predictor.open(tmp_path / "ruled"), Predictor.open(made).predict(modelling.rows(400, seed=2))
    note = pl.when(pl.int_range(400) % 9 == 0).then(pl.lit("vip")).otherwise("note")
    frame = modelling.rows(400, seed=2).with_columns(note=note)
    frame.write_parquet(tmp_path / "in.parquet")
    score_files(ruled, tmp_path / "in.parquet", tmp_path / "out.parquet", 64)
    out = pl.read_parquet(tmp_path / "out.parquet")
    assert out.equals(ruled.score_frame(frame)) and out.columns == ["score", "decision", "needs_review"]
    assert out["score"].to_list() == [min(p, .25) if k else p for p, k in zip(plain, frame["known"], strict=True)]
    assert set(out.filter(frame["note"] == "vip")["decision"]) == {"no"}
    reviewed = out.filter("needs_review")
    assert reviewed.height > 0 and reviewed["decision"].is_null().all() and reviewed["score"].is_between(.3, .5).all()
    frame.drop("note").write_parquet(tmp_path / "in.parquet")
    with pytest.raises(UserError, match="'note' .text. is missing"):
        score_files(ruled, tmp_path / "in.parquet", tmp_path / "out.parquet", 64)


def test_what_is_wrong_with_a_file_is_said_and_nothing_is_left(binary, tmp_path):
    target, frame = tmp_path / "out" / "scores.parquet", modelling.rows(500)
    frame.write_parquet(tmp_path / "good.parquet")
    data = (tmp_path / "good.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:len(data) // 2])
    (tmp_path / "empty.parquet").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    frame.drop("x").write_parquet(tmp_path / "lacks.parquet")
    frame.with_columns(when=pl.lit(1)).write_parquet(tmp_path / "retyped.parquet")
    for name, said in {"none.parquet": "does not exist", "cut.parquet": "as Parquet",
                       "empty.parquet": "is empty; send it again",
                       "folder": "holds no file to read", "lacks.parquet": r"'x' \(number\) is missing",
                       "retyped.parquet": "'when' .timestamp. is retyped to Int32"}.items():
        with pytest.raises(UserError, match=said) as e: score_files(binary, tmp_path / name, target, 50)
        assert "\n" not in str(e.value) and not (target.parent.exists() and list(target.parent.iterdir()))
    score_files(binary, tmp_path / "good.parquet", target)
    before = target.read_bytes()
    with pytest.raises(UserError): score_files(binary, tmp_path / "cut.parquet", target, 50)
    assert target.read_bytes() == before
    for wrong in (target.parent / "." / target.name, target.parent, tmp_path):
        with pytest.raises(UserError, match="give another target"): score_files(binary, target, wrong)
    with pytest.raises(UserError, match="give another target"): score_files(binary, tmp_path, tmp_path / "x")


def test_a_file_that_changes_meanwhile_is_noticed(binary, tmp_path):
    modelling.rows(200).write_parquet(tmp_path / "in.parquet")
    ask = binary.score_frame
    def score_slowly(frame):
        os.utime(tmp_path / "in.parquet", ns=(1, 1))
        return ask(frame)
    binary.score_frame = score_slowly
    with pytest.raises(UserError, match="changed while it was scored"):
        score_files(binary, tmp_path / "in.parquet", tmp_path / "out.parquet", 64)
    assert not (tmp_path / "out.parquet").exists()


def test_finished_parts_are_not_scored_again(binary, tmp_path):
    modelling.rows(1000).write_parquet(tmp_path / "in.parquet")
    ask, asked = binary.score_frame, []
    def fails_at(n):
        def f(frame):
            asked.append(len(frame))
            if len(asked) == n: raise OSError("the disk is gone")
            return ask(frame)
        return f
    for n, finished in ((4, 3), (3, 5)):
        asked.clear()
        binary.score_frame = fails_at(n)
        with pytest.raises(OSError): score_files(binary, tmp_path / "in.parquet", tmp_path / "out.parquet", 100)
        assert len(asked) == n and len(list(tmp_path.glob(".out.parquet.parts/*/scores-*"))) == finished
    asked.clear()
    binary.score_frame = fails_at(0)
    done = score_files(binary, tmp_path / "in.parquet", tmp_path / "out.parquet", 100)
    assert done.n_resumed_chunks == 5 and len(asked) == 5 and not left(tmp_path)
    again = score_files(binary, tmp_path / "in.parquet", tmp_path / "out.parquet", 100)
    assert again.n_rows == 1000 and len(asked) == 5


# --- killed

SCORE = """
import sys
from mlops_nb.model.predictor import Predictor
from mlops_nb.batch.batch_scoring import score_files
predictor = Predictor.open(sys.argv[1], 2)
print('ready', flush=True)
score_files(predictor, sys.argv[2], sys.argv[3], int(sys.argv[4]))
"""


def test_killed_again_and_again_it_ends_in_the_same_bytes(made, binary, tmp_path):
    (tmp_path / "in").mkdir()
    wrong = pl.when(pl.int_range(20_000) % 1000 == 1).then(-1).otherwise("count")
    bad = modelling.rows(20_000, seed=1).with_columns(count=wrong)
    for name in ("a", "b"): bad.write_parquet(tmp_path / f"in/{name}.parquet", row_group_size=3000)
    score_files(binary, tmp_path / "in", tmp_path / "whole", 500)
    def chunks(): return len(list(tmp_path.glob(".out.parts/*/scores-*")))
    command, codes = [sys.executable, "-c", SCORE, made, tmp_path / "in", tmp_path / "out", "500"], []
    for enough in (18, 36, 54, 72, 80):  # of 80 chunks; after the last one the results are joined
        deadline = time.monotonic() + 60
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as run:
            try:
                assert run.stdout.readline() == "ready\n"
                while run.poll() is None and chunks() < enough:
                    assert time.monotonic() < deadline
                    time.sleep(.002)
                time.sleep([0, .003, .011][len(codes) % 3])  # and a moment after
            finally: run.send_signal(signal.SIGKILL)
        codes.append(run.returncode)
        assert codes[-1] in (0, -signal.SIGKILL) and (chunks() == 0 or not (tmp_path / "out").exists())
    assert codes.count(-signal.SIGKILL) >= 4
    score_files(binary, tmp_path / "in", tmp_path / "out", 500)
    for name in ("out/a.parquet", "out/b.parquet", "out.quarantined.parquet"):
        assert (tmp_path / name).read_bytes() == (tmp_path / name.replace("out", "whole")).read_bytes()
    assert pl.read_parquet(tmp_path / "out.quarantined.parquet").height == 40 and not left(tmp_path)


def test_two_at_once_do_not_mix(binary, tmp_path):
    modelling.rows(1000).write_parquet(tmp_path / "in.parquet")
    ask, said, source, target = binary.score_frame, [], tmp_path / "in.parquet", tmp_path / "out.parquet"
    def meanwhile(frame):
        if not said:
            other = Predictor.__new__(Predictor)
            other.__dict__ = binary.__dict__ | {"score": ask}
            with pytest.raises(UserError, match="written by another process") as e:
                score_files(other, source, target, 100)
            said.append(str(e.value))
        return ask(frame)
    binary.score_frame = meanwhile
    assert score_files(binary, source, target, 100).n_rows == 1000 and said


def test_memory_does_not_grow_with_the_file(made, tmp_path):
    part, peaks = modelling.rows(50_000).drop("note").with_columns(pl.col("x").fill_null(0.0)), []
    for times in (8, 32):
        pl.concat([part.lazy()] * times).sink_parquet(tmp_path / "in.parquet", row_group_size=50_000)
        paths = tmp_path / "in.parquet", tmp_path / f"{times}.parquet"
        peaks.append(peak_mib(sys.executable, "-c", SCORE, made, *paths, 32768))
    assert peaks[1] < peaks[0] + 150, f"{peaks} MiB for 0.4 and 1.6 million rows"


# --- tables

def test_a_table_has_the_newest_score_of_each_entity(made, binary, tmp_path):
    timed = other_policy(made, tmp_path / "timed")
    timed.schema.event_time = "when"
    frame = modelling.rows(400, seed=6).with_columns(id=pl.concat_str(pl.lit("c"), pl.int_range(400) % 150))
    frame = frame.with_columns(count=pl.when(pl.int_range(400) == 399).then(-1).otherwise("count"),
                               when=pl.when(pl.int_range(400) == 399).then(pl.datetime(2027, 1, 1)).otherwise("when"))
    frame.unique(["id", "when"], keep="first", maintain_order=True).write_parquet(tmp_path / "in.parquet")
    n = score_lookup_table(timed, tmp_path / "in.parquet", tmp_path / "t.parquet", 64)
    assert n == 149  # the newest row of c99 was quarantined
    assert (tmp_path / "t.parquet").stat().st_mode & 0o037 == 0  # for owner and group: it says who gets which score
    table = pl.read_parquet(tmp_path / "t.parquet")
    ordered = pl.read_parquet(tmp_path / "in.parquet").sort("when", nulls_last=False, maintain_order=True)
    newest = ordered.unique("id", keep="last", maintain_order=True).filter(pl.col("id") != "c99")
    want = newest.select("id").hstack(binary.score_frame(newest)).sort("id")
    assert table.equals(want) and table.columns == ["id", *binary.output_schema()] and not left(tmp_path)


def test_what_a_table_cannot_decide_a_person_must(binary, tmp_path):
    frame = modelling.rows(100, seed=7)
    frame.write_parquet(tmp_path / "in.parquet")
    assert score_lookup_table(binary, tmp_path / "in.parquet", tmp_path / "t.parquet") == 100
    frame.with_columns(id=pl.lit("one")).write_parquet(tmp_path / "in.parquet")
    with pytest.raises(UserError, match="1 entities, such as 'one', have several rows"):
        score_lookup_table(binary, tmp_path / "in.parquet", tmp_path / "u.parquet")
    assert not (tmp_path / "u.parquet").exists()
    pl.concat([frame, frame]).write_parquet(tmp_path / "in.parquet")  # the same row twice is one
    assert score_lookup_table(binary, tmp_path / "in.parquet", tmp_path / "t.parquet") == 100
    frame.drop("id").write_parquet(tmp_path / "in.parquet")
    with pytest.raises(UserError, match=r"'id' \(text\) is missing"):
        score_lookup_table(binary, tmp_path / "in.parquet", tmp_path / "t.parquet")
    binary.schema = msgspec.structs.replace(binary.schema, entity=None)
    with pytest.raises(UserError, match="names no entity"):
        score_lookup_table(binary, tmp_path / "in.parquet", tmp_path / "t.parquet")


def test_the_command(made, tmp_path):
    root = serving.project(tmp_path, made=made)
    modelling.rows(50, seed=8).write_parquet(root / "in.parquet")
    def nb(*args):
        command = [sys.executable, "-c", "from mlops_nb.cli import main; main()", "score", *args]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    bundle_id = Predictor.open(made).id
    assert f"tables/{bundle_id}.parquet: 50 entities scored" in nb("in.parquet", "--lookup-table").stdout
    assert pl.read_parquet(root / f"tables/{bundle_id}.parquet").height == 50
    assert "out.parquet: 50 rows scored by" in nb("in.parquet", "out.parquet").stdout
    for args in (["in.parquet"], ["in.parquet", "out.parquet", "--lookup-table"]):
        assert "a target, or --lookup-table" in nb(*args).stderr
