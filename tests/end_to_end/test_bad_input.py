"""What goes wrong through no fault of ours ends in one sentence and an exit code, or is handled and counted; and the
next run is as if
nothing had happened. Everything here goes through the command line; what is interrupted, or finds its disk full, is a
process of its own."""
import gzip
import os
import shutil
import signal
import subprocess
import sys
import time

import polars as pl
import pytest
from support.memory import peak_mib
from support.project_checks import stub_pages
from support.shop_project import ENV, HEADER, edit, finished, leftovers, nb, nb_inside, results, run, sentence, shop

from mlops_nb.config.settings import read_settings
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.data.ingest import read_data_manifest
from mlops_nb.release.release_plan import plan_path, write_empty_record

TEXT = shop(400)
ROWS = TEXT.splitlines()
DAY, TARGET = ("--time", "day"), ("--target", "bought")
UNTIL = 20 # seconds to wait for a process to get somewhere


@pytest.fixture(scope="module")
def good(tmp_path_factory): return finished(tmp_path_factory)


def copy(good, folder):
    """A copy of the finished project, to be maltreated. It has an empty release record and no plan, as the first run
    had: with a champion, validation and evaluation compare with it, and a bundle names it as its parent."""
    root = shutil.copytree(good, folder / "corner", symlinks=True, ignore=shutil.ignore_patterns("releases", "cache"))
    write_empty_record(plan_path(root, read_settings(root)))
    return root


@pytest.fixture
def project(good, tmp_path): return copy(good, tmp_path)


@pytest.fixture(scope="module")
def shared(good, tmp_path_factory):
    "A copy for tests that damage one file, see a sentence, and put it back."
    return copy(good, tmp_path_factory.mktemp("shared"))


DISK = "64m"


def fill(disk, free):
    "Leave `free` bytes."
    (disk / "filler").unlink(missing_ok=True)
    size = os.statvfs(disk)
    with open(disk / "filler", "wb") as f: f.write(bytes(max(0, size.f_bavail * size.f_frsize - free)))


def rows(change): return "\n".join([HEADER, *map(change, ROWS[1:])]) + "\n"


def parquet(tmp_path):
    pl.read_csv(TEXT.encode()).write_parquet(tmp_path / "whole.parquet")
    return (tmp_path / "whole.parquet").read_bytes()


# deliveries that cannot be read

DELIVERIES = { # name: (file, content, options, fragments of the sentence)
    "empty": ("in.csv", lambda t: "", (), ["in.csv is empty", "send it again"]),
    "blank lines": ("in.csv", lambda t: "\n\n  \n", (), ["in.csv holds only blank lines"]),
    "header only": ("in.csv", lambda t: HEADER + "\n", (), ["in.csv holds no rows"]),
    "no header": ("in.csv", lambda t: "1,2\n3,4\n5,6\n", (), ["in.csv has no header", "add one"]),
    "cut in a row": ("in.csv", lambda t: TEXT[:-9], (),
                     ["in.csv, line 401: 4 fields where the header has 7", "if it was cut"]),
    "cut in a quotation": ("in.csv", lambda t: TEXT[:9000].rsplit("\n", 1)[0] + '\n2024-12-28,"Pa', (),
                           ["in.csv, line", "fix the line"]),
    "cut gzip": ("in.csv.gz", lambda t: gzip.compress(TEXT.encode())[:3000], (),
                 ["in.csv.gz is a damaged gzip file", "copy it again"]),
    "cut parquet": ("in.parquet", lambda t: parquet(t)[:4000], (),
                    ["in.parquet is a damaged Parquet file", "copy it again"]),
    "empty parquet": ("in.parquet", lambda t: "", (), ["in.parquet is empty"]),
    "wrong encoding": ("in.csv", lambda t: TEXT.encode("latin-1"), ("--encoding", "utf-8"),
                       ["in.csv is not utf-8: byte", "--encoding"]),
    "unknown encoding": ("in.csv", lambda t: TEXT, ("--encoding", "utf8x"), ["encoding 'utf8x' is unknown"]),
    "no text": ("in.csv", lambda t: b"\x01\x02\0\x9f" * 999, (), ["in.csv is not text: byte 2 is zero"]),
    "a column twice": ("in.csv", lambda t: TEXT.replace("visits", "age", 1), (),
                       ["in.csv names the column 'age' 2 times", "rename"]),
    "one class": ("in.csv", lambda t: rows(lambda r: r[:-1] + "1"), (),
                  ["'bought' has the same value in all 400 rows"]),
    "no target value": ("in.csv", lambda t: rows(lambda r: r[:-1]), (), ["'bought' has no value"]),
    "no such target": ("in.csv", lambda t: TEXT, ("--target", "boght"), ["no column 'boght'; did you mean 'bought'?"]),
    "no such time": ("in.csv", lambda t: TEXT, ("--time", "dya"),
                     ["in.csv has no time column 'dya'; did you mean 'day'?"]),
    "no such group": ("in.csv", lambda t: TEXT, ("--group", "citty"),
                      ["--group: there is no column 'citty'; did you mean 'city'?"]),
    "no such part": ("in.csv", lambda t: TEXT, ("--split-column", "part"),
                     ["--split-column: there is no column 'part'"]),
    "no such test file": ("in.csv", lambda t: TEXT, ("--test-files", "im.csv"),
                          ["--test-files: no source file is called 'im.csv'"]),
    "no such task": ("in.csv", lambda t: TEXT, ("--task", "binry"),
                     ["there is no task 'binry'; did you mean 'binary'?"]),
    "wrong separator": ("in.csv", lambda t: TEXT, ("--separator", ";"), ["in.csv has no time column 'day'"]),
    "no SQL": ("in.csv", lambda t: TEXT, ("--filter", "age >"), ["'age >' is neither a column nor a SQL expression"]),
}


@pytest.mark.parametrize("name", DELIVERIES)
def test_a_delivery_that_cannot_be_used_ends_in_a_sentence_and_leaves_nothing(tmp_path, name):
    file, content, options, fragments = DELIVERIES[name]
    content = content(tmp_path)
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    before = sorted(p.name for p in tmp_path.iterdir())
    given = [o for o in (*DAY, *TARGET, *options)] # the last one counts
    said = sentence(nb_inside("init", "new", "--data", file, *given, cwd=tmp_path))
    for fragment in fragments: assert fragment in said
    assert sorted(p.name for p in tmp_path.iterdir()) == before


# handled and counted

def test_what_a_row_may_do_wrong_is_counted_and_the_rest_goes_on(tmp_path):
    bad = {3: "2024-13-41", 40: "9999-02-30", 77: "yesterday"} # no such days
    lines = [r.split(",") for r in ROWS[1:]]
    for i, day in bad.items(): lines[i][0] = day
    for i, much in {5: "inf", 6: "-Infinity", 7: "1e999"}.items(): lines[i][3] = much
    text = "\n".join([HEADER.replace("bought", "gone,bought"), *(",".join([*c[:-1], "", c[-1]]) for c in lines)]) + "\n"
    (tmp_path / "in.csv").write_bytes(text.encode("cp1252")) # and neither UTF-8 nor said to be anything else
    made = nb("init", "new", "--data", "in.csv", *TARGET, *DAY, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    root = tmp_path / "new"
    assert ("gone:  # 100.0% missing" in (root / "schema.yaml").read_text()
            and "Köln" in (root / "schema.yaml").read_text(encoding="utf-8"))
    assert nb_inside("stage", "validate", cwd=root).returncode == 0
    found = read_json(root / "artifacts/validation.json", dict)
    assert (found["received"], found["accepted"], found["quarantined"]) == (400, 394, 6)
    assert found["violations"] == {"day:type": 3, "spent:range": 3}
    reasons = pl.read_parquet(root / "quarantine/*.parquet").sort("_row")["_reasons"].list.first().to_list()
    assert reasons[:2] == ["day: 2024-13-41 is not a date or time", "spent: inf is infinite"]
    edit(root / "schema.yaml", "day:", "day:\n    range: ['2024-01-01', '2025-12-31']")
    late = [f"{year}-03-04,Rome,30,1.5,3,yes,,1" for year in (1024, 2024, 2025, 2204)]
    (tmp_path / "late.csv").write_text("\n".join([text.splitlines()[0], *late]))
    assert nb_inside("ingest", tmp_path / "late.csv", cwd=root).returncode == 0
    assert nb_inside("stage", "validate", cwd=root).returncode == 0
    assert read_json(root / "artifacts/validation.json", dict)["violations"] == {"day:range": 2, "day:type": 3,
                                                                                 "spent:range": 3}


MANY = 1_000_000 # by hand: 10,000,000 as CSV took 603 MiB in init and 603 MiB in validate

WRITE = """
import sys
import polars as pl
n = int(sys.argv[1])
i = pl.int_range(n, eager=True)
rows = {'who': 'user-' + i.cast(pl.String), 'x': i * 7919 % 1000, 'y': (i * 104729 % 997 < 300).cast(pl.Int8)}
pl.DataFrame(rows).write_csv(sys.argv[2])
"""


def test_millions_of_distinct_categories_fit_into_bounded_memory(tmp_path):
    subprocess.run([sys.executable, "-c", WRITE, str(MANY), tmp_path / "in.csv"], check=True)
    assert peak_mib("mlops-nb", "init", "new", "--data", "in.csv", "--target", "y", cwd=tmp_path, env=ENV) < 650
    edit(tmp_path / "new/schema.yaml", "type: text", "type: category")
    edit(tmp_path / "new/schema.yaml", "feature: false", "feature: true") # somebody insists
    assert peak_mib("mlops-nb", "stage", "validate", cwd=tmp_path / "new", env=ENV) < 650
    assert read_json(tmp_path / "new/artifacts/validation.json", dict)["accepted"] == MANY
    shutil.rmtree(tmp_path / "new")


# what people write

FILES = { # name: (file, old, new, command, fragments)
    "key": ("params.yaml", "\n    learning_rate:", "\n    learnig_rate:", "stage train gbdt",
            ["params.yaml, section 'train.gbdt': there is no key 'learnig_rate'; did you mean 'learning_rate'?"]),
    "type": ("params.yaml", "max_quarantined_share: 0.1", "max_quarantined_share: lots", "stage validate",
             ["params.yaml, section 'validate': max_quarantined_share is 'lots', but a number is expected."]),
    "bound": ("params.yaml", "num_leaves: 31", "num_leaves: -3", "stage train gbdt",
              ["'train.gbdt': num_leaves is -3"]),
    "no YAML": ("params.yaml", "max_quarantined_share: 0.1", "max_quarantined_share: [", "stage validate",
                ["params.yaml, line", "is not YAML"]),
    "setting": ("settings.ini", "\nthreads =", "\nthraeds =", "stage train gbdt",
                ["settings.ini, section 'run': there is no key 'thraeds'; did you mean 'threads'?"]),
    "section": ("settings.ini", "\n[run]", "\n[rnu]", "stage train gbdt",
                ["settings.ini: there is no section [rnu]; did you mean 'run'?"]),
    "setting's type": ("settings.ini", "timeout_seconds = 600", "timeout_seconds = soon", "stage train gbdt",
                       ["settings.ini, section 'report': timeout_seconds is 'soon', but an integer is expected."]),
    "column": ("schema.yaml", "\n  city:", "\n  citty:", "stage validate",
               ["schema.yaml", "'city'", "did you mean 'citty'?"]),
    "target": ("schema.yaml", "target: bought", "target: boughtt", "schema check",
               ["target names the column 'boughtt'", "'bought'"]),
    "column's type": ("schema.yaml", "type: integer", "type: integr", "schema check",
                      ["section 'columns.age': type is 'integr'"]),
    "classes": ("schema.yaml", "classes: [", "classes: [\"1\"] # [", "schema check",
                ["schema.yaml", "classes", "at least two"]),
    "features": ("params.yaml", "00_features.ipynb", "0_features.ipynb", "stage features",
                 ["nbs/0_features.ipynb does not exist"]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_file_is_named_with_its_place(shared, good, name):
    file, old, new, command, fragments = FILES[name]
    content = (shared / file).read_bytes()
    edit(shared / file, old, new)
    try: said = sentence(nb_inside(*command.split(), cwd=shared))
    finally: (shared / file).write_bytes(content)
    for fragment in fragments: assert fragment in said
    assert results(shared) == results(good)


@pytest.mark.parametrize("variable, value, says", [
    ("MLOPS_NB_RUN_THRAEDS", "4",
     "MLOPS_NB_RUN_THRAEDS: there is no such setting; did you mean 'MLOPS_NB_RUN_THREADS'?"),
    ("MLOPS_NB_RUN_THREADS", "four", "MLOPS_NB_RUN_THREADS: the content is 'four', but an integer is expected.")])
def test_a_mistake_in_the_environment_is_named(shared, monkeypatch, variable, value, says):
    monkeypatch.setenv(variable, value)
    assert says in sentence(nb_inside("stage", "train", "gbdt", cwd=shared))


def test_a_missing_column_stops_the_run_with_a_table_and_keeps_what_was_there(project, good):
    (project / "short.csv").write_text("\n".join(",".join(r.split(",")[:4] + r.split(",")[5:]) for r in ROWS),
                                       encoding="utf-8")
    assert nb_inside("ingest", "short.csv", cwd=project).returncode == 0
    done = nb_inside("stage", "validate", cwd=project)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    said, _, table = done.stderr.partition("\n\n")
    assert said.startswith("error: The data does not have the shape that schema.yaml describes (1 column(s) in 1 "
                           "file(s) differ); ")
    assert table.splitlines()[1].split() == ["short.csv", "visits", "integer", "missing"]
    assert results(project) == results(good)


def test_dvc_repro_shows_the_sentence_and_goes_on_when_it_is_mended(project, good):
    edit(project / "params.yaml", "\n    learning_rate: 0.05", "\n    learnig_rate: 0.05")
    done = run("dvc", "repro", "train", cwd=project)
    assert done.returncode != 0 and "Traceback" not in done.stdout + done.stderr
    assert done.stderr.splitlines()[0].endswith("there is no key 'learnig_rate'; did you mean 'learning_rate'?")
    edit(project / "params.yaml", "\n    learnig_rate: 0.05", "\n    learning_rate: 0.05")
    assert run("dvc", "repro", "train", cwd=project).returncode == 0
    assert results(project) == results(good)


# files cut on the way

TORN = {
    "data/*/*.parquet": ("validate", "cannot be read"),
    "data/manifest.json": ("validate", "restore data/ with `dvc checkout data.dvc`"),
    "artifacts/accepted/*.parquet": ("prepare", "is damaged"),
    "artifacts/prepared/train.parquet": ("train gbdt", "is damaged"),
    "artifacts/prepared/test.parquet": ("evaluate", "is damaged"),
    "artifacts/models/gbdt/model.txt": ("evaluate", "is damaged"),
    "artifacts/models/gbdt/encoder.json": ("evaluate", "cannot be read"),
    "artifacts/metrics.json": ("bundle", "cannot be read"),
    "artifacts/bundle/model.txt": ("gate", "was changed after the bundle was made"),
    "artifacts/gate.json": ("deploy", "cannot be read")}


@pytest.mark.parametrize("pattern", TORN)
def test_a_file_cut_in_the_middle_is_not_believed(shared, good, pattern):
    stage, says = TORN[pattern]
    path = next(shared.glob(pattern))
    content = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(content[:len(content) // 2])
    try: assert says in sentence(nb_inside("stage", *stage.split(), cwd=shared))
    finally: path.write_bytes(content)
    assert results(shared) == results(good)


# a disk that is full, or may only be read

def again(project, good, *stage):
    "The same stage without the fault gives what an undisturbed run gave."
    done = nb_inside("stage", *stage, cwd=project)
    assert done.returncode == 0, done.stderr
    assert results(project) == results(good) and leftovers(project) == []


@pytest.mark.parametrize("stage, frees", [("validate", (0, 12_000)), ("prepare", (0, 12_000)),
                                          ("train gbdt", (12_000, 40_000)),
                                          ("bundle", (12_000, 150_000)), ("deploy", (0,)), ("report", (150_000,))])
def test_a_full_disk_ends_a_stage_in_a_sentence_and_changes_nothing(small_disk, good, stage, frees):
    project = copy(good, small_disk)
    shutil.rmtree(project / "bundles") # deploy has it to make again
    for free in frees:
        fill(small_disk, free)
        said = sentence(nb("stage", *stage.split(), cwd=project))
        where = said.split(":")[0].split("/")[0]
        assert where in ("artifacts", "quarantine", "reports", ".mlops", "mlflow.db", "bundles"), said
        assert "the disk is full; free some space" in said
        assert results(project) == results(good) and leftovers(project) == []
        (small_disk / "filler").unlink()
    if stage != "report": again(project, good, *stage.split()) # the report is made again after Ctrl-C, below


def test_a_checkpoint_that_finds_the_disk_full_does_not_spoil_the_training(small_disk, good):
    project = copy(good, small_disk)
    for free in (4_096, 60_000):
        fill(small_disk, free)
        said = sentence(nb("stage", "train", "gbdt", cwd=project))
        assert said.startswith(".mlops/checkpoints/") and "the disk is full" in said
        (small_disk / "filler").unlink()
    again(project, good, "train", "gbdt")


def test_a_full_disk_ends_ingest_and_init_in_a_sentence(small_disk, good, tmp_path):
    project = copy(good, small_disk)
    (tmp_path / "more.csv").write_text(shop(3000, seed=5), encoding="utf-8")
    before, files = read_data_manifest(project), {p.name for p in (project / "data").rglob("*")}
    fill(small_disk, 16_000)
    for command in (("ingest", tmp_path / "more.csv"),
                    ("init", small_disk / "new", "--data", tmp_path / "more.csv", *TARGET)):
        assert "the disk is full; free some space" in sentence(nb(*command, cwd=project))
    assert read_data_manifest(project) == before and {p.name for p in (project / "data").rglob("*")} == files
    assert sorted(p.name for p in small_disk.iterdir()) == ["corner", "filler"]
    (small_disk / "filler").unlink()
    assert nb("ingest", tmp_path / "more.csv",
              cwd=project).stdout == "Data batches: 1 new with 3,000 rows, 0 known already.\n"


READ_ONLY = ("stage validate", "stage train gbdt", "stage bundle", "stage report", "ingest more.csv", "report run data",
             "init new --data more.csv --target bought",
             "score artifacts/prepared/test.parquet scores.parquet --bundle artifacts/bundle")


def test_a_read_only_folder_ends_every_verb_in_a_sentence(small_disk, good):
    project = copy(good, small_disk)
    (project / "more.csv").write_text(shop(300, seed=5), encoding="utf-8")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    for command in READ_ONLY:
        said = sentence(nb_inside(*command.split(), cwd=project))
        assert "the file system is read-only; use another folder." in said, command
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    assert results(project) == results(good) and leftovers(project) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write wherever it likes; the read-only disk above is for root")
def test_a_folder_without_permission_ends_in_a_sentence(project):
    (project / "artifacts").chmod(0o555)
    try: assert "permission was denied" in sentence(nb("stage", "validate", cwd=project))
    finally: (project / "artifacts").chmod(0o755)


# Ctrl-C and worse

def disturb(command, cwd, sign, how, attempts=5):
    "Start a command, wait until `sign()` says that it is at work, and signal its process group; how it ended."
    for _ in range(attempts):
        process = subprocess.Popen(["mlops-nb", *command], cwd=cwd, env=ENV, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True,
                                   start_new_session=True)
        deadline = time.monotonic() + UNTIL
        while process.poll() is None and not sign() and time.monotonic() < deadline: time.sleep(0.0005)
        if process.poll() is None:
            os.killpg(process.pid, how)
            out, err = process.communicate(timeout=60)
            if process.returncode: return subprocess.CompletedProcess(command, process.returncode, out, err)
        else: process.communicate()
        shutil.rmtree(cwd / "new", ignore_errors=True) # what an `init` that was not interrupted made
    pytest.fail(f"{command} was over {attempts} times before it could be interrupted")


def was_interrupted(done):
    "Did it end in a sentence? Where Ctrl-C comes within Polars, that says so first, in words of its own."
    return done.returncode == 130 and done.stderr.splitlines()[-1].startswith("error: interrupted; ")


STAGES = {"validate": "artifacts/.accepted.*.tmp", "train gbdt": ".mlops/checkpoints/*/*/state.json",
          "report": "reports/pipeline/.*.tmp"}


@pytest.mark.parametrize("stage", STAGES)
def test_ctrl_c_ends_a_stage_in_a_sentence_and_the_next_run_gives_the_same(project, good, stage):
    done = disturb(["stage", *stage.split()], project, lambda: any(project.glob(STAGES[stage])), signal.SIGINT)
    assert was_interrupted(done), done.stderr
    assert results(project) == results(good) and leftovers(project) == []
    stub_pages(project, "data", "evaluation", "explanation") # of the second run
    again(project, good, *stage.split())


def test_ctrl_c_and_sigkill_in_init_leave_nothing_that_the_next_init_believes(tmp_path):
    (tmp_path / "in.csv").write_text(TEXT, encoding="utf-8")
    command = ["init", "new", "--data", "in.csv", *TARGET, *DAY]
    taken_in = lambda: any(tmp_path.glob(".new.*.tmp/data/manifest.json")) # long before the folder gets its name
    done = disturb(command, tmp_path, taken_in, signal.SIGINT)
    assert was_interrupted(done), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["in.csv"]
    disturb(command, tmp_path, taken_in, signal.SIGKILL)
    assert len(leftovers(tmp_path)) == 1 and not (tmp_path / "new").exists()
    assert nb(*command, cwd=tmp_path).returncode == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.csv", "new"]


@pytest.mark.parametrize("stage, sign", [("validate", "artifacts/.accepted.*.tmp/*"),
                                         ("prepare", "artifacts/.prepared.*.tmp"),
                                         ("bundle", "artifacts/.bundle.*.tmp/*")])
def test_what_sigkill_leaves_is_swept_by_the_next_run(project, good, stage, sign):
    disturb(["stage", stage], project, lambda: any(project.glob(sign)), signal.SIGKILL)
    assert leftovers(project) and results(project).items() >= results(good).items()
    again(project, good, stage)


def test_an_interrupted_dvc_repro_goes_on_from_the_last_finished_stage(project, good):
    for out in ("artifacts/accepted", "artifacts/prepared", "artifacts/models"): shutil.rmtree(project / out)
    process = subprocess.Popen(["dvc", "repro", "baseline", "train"], cwd=project, env=ENV, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE,
                               text=True, start_new_session=True)
    while process.poll() is None and not any(project.glob("artifacts/.prepared.*.tmp")): time.sleep(0.001)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "Traceback" not in err
    done = run("dvc", "repro", "baseline", "train", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "Stage 'validate' didn't change, skipping" in done.stdout
    assert results(project) == results(good) and leftovers(project) == []
