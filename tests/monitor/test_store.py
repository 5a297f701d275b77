"The store of monitoring in DuckDB and in PostgreSQL: all of a transaction or nothing, one writer at a time."
import subprocess
import sys
import threading
from datetime import datetime

import polars as pl
import pytest

from mlops_nb.core.errors import UserError
from mlops_nb.monitor.store import TABLES, VIEWS, MonitorStore, open_monitor_store

NOON = datetime(2026, 11, 2, 12)


def counts(cells, n=1, hour=NOON): return pl.DataFrame(dict(series_id=7, hour=hour, cell=cells, n=n))


def test_what_is_written_is_read(store):
    with store.transaction() as t:
        t.append("counts", counts([0, 1, 1], [3, 2**40, 2**40]))
        t.set_state("a", {"x": [1, "ü%s?", None]})
        t.append("counts", counts([]))
    found = store.query("SELECT cell, sum(n) AS n, min(hour) AS hour FROM counts WHERE n > ? GROUP BY cell "
                        "ORDER BY cell", (2,))
    assert found.rows() == [(0, 3, NOON), (1, 2**41, NOON)]
    assert found.schema["n"] == pl.Int64 and found.schema["hour"] == pl.Datetime("us")
    with store.transaction() as t:
        assert t.state("a") == {"x": [1, "ü%s?", None]} and t.state("b") is None
        t.set_state("a", [])
    with store.transaction() as t: assert t.state("a") == []
    assert store.query("SELECT avg(n) AS n FROM counts WHERE cell = 0")["n"].to_list() == [3.0]


def test_every_table_and_view_is_there_and_empty(store):
    for name in [*TABLES, *VIEWS]: assert store.query(f"SELECT * FROM {name}").height == 0, name


def test_a_transaction_that_fails_leaves_nothing(store):
    with pytest.raises(ZeroDivisionError), store.transaction() as t:
        t.append("counts", counts([1]))
        t.set_state("a", [1])
        raise ZeroDivisionError
    with pytest.raises(UserError, match="does not understand the statement: .*nowhere"), store.transaction() as t:
        t.append("counts", counts([1]))
        t.execute("SELECT nothing FROM nowhere")
    assert store.query("SELECT count(*) AS n FROM counts")["n"][0] == 0
    with store.transaction() as t: assert t.state("a") is None


def test_writers_take_turns(store):
    with store.transaction(): pass
    def add():
        mine = MonitorStore(store.uri)
        for _ in range(5):
            with mine.transaction() as t:
                n = (t.state("n") or [0])[0]
                t.append("counts", counts([1]))
                t.set_state("n", [n + 1])
    threads = [threading.Thread(target=add) for _ in range(3)]
    for t in threads: t.start()
    for t in threads: t.join(60)
    with store.transaction() as t: assert t.state("n") == [15]
    assert store.query("SELECT count(*) AS n FROM counts")["n"][0] == 15


def test_a_newer_store_is_left_alone(store):
    with store.transaction() as t: t.execute("UPDATE store_version SET version = 99")
    with pytest.raises(UserError, match="newer version"), MonitorStore(store.uri).transaction(): pass


def test_what_cannot_be_opened_is_one_sentence(tmp_path):
    (tmp_path / "broken.duckdb").write_bytes(b"no database" * 1000)
    for uri in (f"duckdb:///{tmp_path}/broken.duckdb", "postgresql://tester:secret@127.0.0.1:1/monitor"):
        with pytest.raises(UserError, match="cannot be used") as e: MonitorStore(uri, 2).query("SELECT 1 AS n")
        assert "secret" not in str(e.value)


def test_a_store_that_another_process_holds_is_waited_for_and_then_named(tmp_path):
    path = tmp_path / "monitor.duckdb"
    with MonitorStore(f"duckdb:///{path}").transaction() as t: t.append("counts", counts([1]))
    holds = f"import duckdb, sys; c = duckdb.connect({str(path)!r}); print('holds', flush=True); sys.stdin.read()"
    other = subprocess.Popen([sys.executable, "-c", holds], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "holds\n"
        with pytest.raises(UserError, match="cannot be used .*lock"):
            MonitorStore(f"duckdb:///{path}", .1).query("SELECT 1")
        threading.Timer(.2, other.stdin.close).start()
        assert MonitorStore(f"duckdb:///{path}").query("SELECT cell FROM counts")["cell"].to_list() == [1]
    finally:
        other.kill()
        other.wait()


def test_the_store_is_the_one_that_the_settings_name(tmp_path):
    (tmp_path / "settings.ini").write_text("[monitor]\nstore = duckdb:///deep/numbers.duckdb\n")
    assert open_monitor_store(tmp_path).query("SELECT 1 AS n")["n"].to_list() == [1]
    assert (tmp_path / "deep/numbers.duckdb").exists()


def test_a_held_store_has_the_same_transactions(store):
    with store.hold():
        with store.transaction() as t: t.append("counts", counts([1]))
        with store.hold(), pytest.raises(ZeroDivisionError), store.transaction() as t:
            t.append("counts", counts([2]))
            raise ZeroDivisionError
        with pytest.raises(UserError, match="does not understand"): store.query("SELECT nothing FROM nowhere")
        assert store.query("SELECT cell FROM counts")["cell"].to_list() == [1]
        with store.transaction() as t: t.set_state("a", [1])
    assert MonitorStore(store.uri).query("SELECT cell FROM counts")["cell"].to_list() == [1]


def test_who_holds_a_store_for_long_lets_others_in(store, monkeypatch):
    monkeypatch.setattr("mlops_nb.monitor.store._HELD_SECONDS", .05)
    with store.transaction(): pass
    in_turn, over = threading.Event(), threading.Event()
    def other():
        with MonitorStore(store.uri).transaction() as t: t.set_state("other", [1])
        in_turn.set()
    def held():
        with store.hold():
            while not over.is_set():
                with store.transaction() as t: t.set_state("n", [1])
    threads = [threading.Thread(target=f) for f in (held, other)]
    for t in threads: t.start()
    try: assert in_turn.wait(60), "a store that is held lets nobody in"
    finally: over.set()
    for t in threads: t.join(60)


def test_a_process_that_is_killed_while_it_holds_a_store_leaves_what_was_committed(tmp_path):
    uri = f"duckdb:///{tmp_path}/monitor.duckdb"
    code = ("import sys\nfrom mlops_nb.monitor.store import MonitorStore\ns = MonitorStore(sys.argv[1])\n"
            "with s.hold():\n"
            "    with s.transaction() as t: t.set_state('a', [1])\n"
            "    with s.transaction() as t:\n"
            "        t.set_state('a', [2])\n        print('half', flush=True)\n        sys.stdin.read()\n")
    child = subprocess.Popen([sys.executable, "-c", code, uri], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout.readline() == b"half\n"
    child.kill()
    child.wait()
    with MonitorStore(uri).transaction() as t: assert t.state("a") == [1]
