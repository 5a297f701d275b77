"What is new in a folder, a bucket or a table is ingested once, whatever is interrupted."
import os
import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import UserError
from mlops_nb.data import incremental_ingest
from mlops_nb.data.incremental_ingest import (
    ingest_new,
    ingest_new_objects,
    ingest_table,
    is_object_url,
    list_objects,
    new_objects,
    read_source_state,
    read_watermark,
    set_waiting,
)
from mlops_nb.data.ingest import read_data_manifest
from mlops_nb.data.sources import ReadOptions


@pytest.fixture
def exports(tmp_path):
    folder = tmp_path / "exports"
    folder.mkdir()
    return folder


def rows(root): return {f.name: f.rows for f in read_data_manifest(root).files}


def csv(path, *values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("id\n" + "".join(f"{v}\n" for v in values))


@pytest.mark.parametrize("url, is_one", [
    ("s3://b/x/", True), ("gs://b", True), ("az://a/b", True), ("file:///mnt/x", True), ("/mnt/x", False),
    ("postgresql://db/x", False), ("s3", False), ("exports/", False)])
def test_what_is_a_prefix(url, is_one): assert is_object_url(url) == is_one


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_only_data_files_count(exports, form):
    for name in ("a.csv", "y=1/b.parquet", "README.md", "_log/c.csv", ".hidden.csv", "~$x.xlsx", "d.csv.gz"):
        csv(exports / name, 1)
    assert list(list_objects(form.format(exports))) == ["a.csv", "d.csv.gz", "y=1/b.parquet"]


def test_an_empty_folder_is_none_and_a_missing_one_is_said(exports):
    assert list_objects(str(exports)) == {}
    with pytest.raises(UserError, match="is no folder; check the path"): list_objects(str(exports / "gone"))


def test_new_changed_and_shrunk_objects(tmp_path, exports):
    root, url = tmp_path / "project", str(exports)
    csv(exports / "y=1/a.csv", 1, 2, 3)
    assert ingest_new_objects(root, url).rows == 3 and rows(root) == {"y=1/a.csv": 3}
    assert ingest_new_objects(root, url) is None and new_objects(root, url) == []
    csv(exports / "y=1/b.csv", 4)
    assert new_objects(root, url) == ["y=1/b.csv"]
    ingest_new_objects(root, url)
    csv(exports / "y=1/a.csv", 1)  # a partition that shrinks takes the place of the larger one
    assert new_objects(root, url) == ["y=1/a.csv"]
    ingest_new_objects(root, url)
    assert rows(root) == {"y=1/a.csv": 1, "y=1/b.csv": 1}
    (exports / "y=1/b.csv").unlink()  # what is gone there stays here
    assert new_objects(root, url) == [] and ingest_new_objects(root, url) is None
    assert not list((root / ".mlops" / "downloads").iterdir())


def test_what_was_killed_half_way_is_read_again(tmp_path, exports, monkeypatch):
    root, url = tmp_path / "project", str(exports)
    csv(exports / "a.csv", 1, 2)
    def killed(*args): raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(incremental_ingest, "write_json", killed)
        with pytest.raises(KeyboardInterrupt): ingest_new_objects(root, url)
    assert new_objects(root, url) == ["a.csv"], "it is in data/, and nobody knows"
    done = ingest_new_objects(root, url)
    assert rows(root) == {"a.csv": 2} and read_source_state(root, url).waiting and done.partitions <= 1


def test_one_bad_object_leaves_all_of_them_new(tmp_path, exports):
    root, url = tmp_path / "project", str(exports)
    csv(exports / "a.csv", 1)
    (exports / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError): ingest_new_objects(root, url)
    assert len(new_objects(root, url)) == 2 and not (root / "data" / "manifest.json").exists()


def test_an_object_store_needs_its_client_and_a_password_is_refused(monkeypatch):
    with pytest.raises(UserError, match="password"): list_objects("s3://key:secret@bucket/x")
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(UserError, match=r"install mlops-nb\[objects\]"): list_objects("s3://bucket/x")


def test_a_store_that_is_away_is_one_sentence(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"): monkeypatch.setenv(f"AWS_{name}", "x")
    with pytest.raises(UserError, match="s3://bucket/x cannot be read") as error: list_objects("s3://bucket/x", 2)
    assert "\n" not in str(error.value)


def table(path, *values):
    with sqlite3.connect(path) as c:
        c.execute("CREATE TABLE IF NOT EXISTS orders (id INTEGER, at TEXT)")
        c.executemany("INSERT INTO orders VALUES (?, ?)", values)


def test_a_watermark_that_moves_reads_the_table_anew(tmp_path):
    root, url = tmp_path / "project", f"sqlite:///{tmp_path}/shop.db"
    table(tmp_path / "shop.db")
    assert read_watermark(url, "orders", "at") == "" and ingest_table(root, url, "orders", "at") is None
    table(tmp_path / "shop.db", (1, "2026-11-01"), (2, "2026-11-02"))
    assert ingest_table(root, url, "orders", "at").rows == 2
    assert ingest_table(root, url, "orders", "at") is None
    with sqlite3.connect(tmp_path / "shop.db") as c:  # updated, and late: both below the new watermark
        c.execute("UPDATE orders SET id = 7 WHERE id = 1")
    table(tmp_path / "shop.db", (3, "2026-10-01"), (4, "2026-11-03"))
    assert ingest_table(root, url, "orders", "at").rows == 4 and rows(root) == {"shop.orders": 4}
    assert read_source_state(root, url, "orders").versions == {"at": "2026-11-03"}


@pytest.mark.parametrize("name, column", [("ordres", "at"), ("orders", "att"), ('o"; DROP TABLE orders; --', "at")])
def test_a_watermark_that_cannot_be_read(tmp_path, name, column):
    table(tmp_path / "shop.db", (1, "2026-11-01"))
    with pytest.raises(UserError): read_watermark(f"sqlite:///{tmp_path}/shop.db", name, column)
    with sqlite3.connect(tmp_path / "shop.db") as c: assert c.execute("SELECT count(*) FROM orders").fetchone() == (1,)


def test_the_command_takes_all_of_them(tmp_path, exports):
    root = tmp_path / "project"
    csv(exports / "a.csv", 1)
    assert ingest_new(f"file://{exports}", root).rows == 1 and ingest_new(f"file://{exports}", root) is None
    assert ingest_new(str(exports / "a.csv"), root).skipped == ["a.csv"]
    with pytest.raises(UserError, match="--table"): ingest_new("sqlite:///x.db", root, "at")
    table(tmp_path / "shop.db", (1, "2026-11-01"))
    assert ingest_new(f"sqlite:///{tmp_path}/shop.db", root, "at", options=ReadOptions(table="orders")).rows == 1


def test_waiting_is_kept_until_a_run_has_it(tmp_path, exports):
    csv(exports / "a.csv", 1)
    ingest_new_objects(tmp_path, str(exports))
    set_waiting(tmp_path, str(exports), waiting=True)
    assert read_source_state(tmp_path, str(exports)).waiting
    set_waiting(tmp_path, str(exports))
    state = read_source_state(tmp_path, str(exports))
    assert not state.waiting and list(state.versions) == ["a.csv"]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=8))
def test_what_is_new_is_what_differs(tmp_path_factory, changes):
    "Objects appear and change in any order: after each ingestion all of them are known, and before it, what changed."
    folder, n = tmp_path_factory.mktemp("store"), 0
    exports, known = folder / "exports", {}
    exports.mkdir()
    for name, value, looks in changes:
        n += 1
        csv(exports / f"{name}.csv", value)
        os.utime(exports / f"{name}.csv", ns=(n * 10**9, n * 10**9))
        if not looks: continue
        found = set(new_objects(folder, str(exports)))
        versions = list_objects(str(exports))
        assert found == {k for k, v in versions.items() if known.get(k) != v}
        incremental_ingest.write_json(incremental_ingest._state_path(folder, str(exports), ""),
                                      incremental_ingest.SourceState(url=str(exports), versions=versions))
        known = versions
