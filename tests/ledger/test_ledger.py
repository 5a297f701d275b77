"The ledger: append-only, each key once, in SQLite and in a real PostgreSQL; what cannot be used is one sentence."
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.imports import ROOT

from mlops_nb.core.errors import UserError
from mlops_nb.ledger import ledger as module
from mlops_nb.ledger.ledger import Ledger, LedgerUnavailable, open_ledger

CHANGES = ["UPDATE ledger SET data = '{}'", "DELETE FROM ledger"]


def change(uri, statement):
    "What a person with a client of the database does."
    if uri.startswith("sqlite"):
        with sqlite3.connect(uri.removeprefix("sqlite:///")) as db: return db.execute(statement)
    import psycopg
    with psycopg.connect(uri) as db: return db.execute(statement)


def test_entries_come_back_in_order_and_by_subject_kind_and_place(uri):
    ledger = Ledger(uri)
    assert ledger.entries() == []
    written = [ledger.append(f"kind.{i % 2}", f"subject {i % 3}", {"i": i, "text": "é\n\"'"}, by="ana")
               for i in range(6)]
    assert Ledger(uri).entries() == written and [e.seq for e in written] == sorted(e.seq for e in written)
    assert [e.data["i"] for e in ledger.entries("subject 1")] == [1, 4]
    assert [e.data["i"] for e in ledger.entries(kinds=("kind.0",))] == [0, 2, 4]
    assert [e.data["i"] for e in ledger.entries("subject 1", ("kind.0",), after=written[1].seq)] == [4]
    assert written[0].data == {"i": 0, "text": "é\n\"'"}


def test_a_key_is_there_once_whoever_gives_it(uri):
    first = Ledger(uri).append("step", "churn-1", {"share": 0.01}, by="ana", key="churn-1:0")
    assert Ledger(uri).append("step", "churn-1", {"share": 0.5}, by="bo", key="churn-1:0") == first
    assert [e.key for e in Ledger(uri).entries()] == ["churn-1:0"]
    for _ in range(2): Ledger(uri).append("verdict", "churn-1")
    assert [e.key for e in Ledger(uri).entries(kinds=("verdict",))] == ["", ""]


REPLACE = "INSERT OR REPLACE INTO ledger VALUES (1, 'at', 'eve', 'kind', 'subject', NULL, '{}', NULL)"


@pytest.mark.parametrize("place, statement", [
    *(("in_sqlite", s) for s in (*CHANGES, REPLACE)), *(("in_postgres", s) for s in (*CHANGES, "TRUNCATE ledger"))])
def test_no_client_of_the_database_changes_an_entry(request, place, statement):
    uri = request.getfixturevalue(place)
    ledger = Ledger(uri)
    before = [ledger.append("kind", "subject", {"a": 1})]
    with pytest.raises(Exception, match="append-only"): change(uri, statement)
    assert ledger.entries() == before


def test_writers_at_once_agree_on_the_first(uri):
    "Four connections open a ledger that is not there, each with transactions of its own, and append the same keys."
    def write(name): return [Ledger(uri).append("turn", str(i), {"by": name}, key=f"turn {i}") for i in range(8)]
    with ThreadPoolExecutor(4) as pool: said = [*pool.map(write, "abcd")]
    assert said == [said[0]] * 4 and Ledger(uri).entries() == sorted(said[0], key=lambda e: e.seq)


KILLED = """
import os, signal, sys
from sqlalchemy import insert
from mlops_nb.ledger.ledger import Ledger, _ledger_table
ledger = Ledger(sys.argv[1])
ledger.append("kept", "a")
with ledger._write() as db:
    db.execute(insert(_ledger_table()).values(at="", by="", kind="lost", subject="b", data="{}"))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_writer_that_is_killed_leaves_whole_entries(uri):
    run = subprocess.run([sys.executable, "-c", KILLED, uri], cwd=ROOT, timeout=120)
    assert run.returncode == -signal.SIGKILL
    ledger = Ledger(uri)
    assert [e.kind for e in ledger.entries()] == ["kept"] and ledger.append("next", "c").kind == "next"


def test_a_locked_ledger_is_one_sentence(uri):
    ledger = Ledger(uri, timeout_seconds=.2)
    before = ledger.append("kind", "subject")
    with Ledger(uri)._write(), pytest.raises(UserError) as error: ledger.append("kind", "subject")
    assert "cannot be used" in str(error.value) and "lock" in str(error.value) and "\n" not in str(error.value)
    assert ledger.entries() == [before]


def test_a_reader_does_not_wait_for_a_writer(in_sqlite):
    ledger = Ledger(in_sqlite, timeout_seconds=.2)
    before = ledger.append("kind", "subject")
    with Ledger(in_sqlite)._write():
        assert ledger.entries() == Ledger(in_sqlite, timeout_seconds=.2).entries() == [before]


def test_an_older_ledger_is_brought_up_to_date_and_a_newer_one_refused(uri, monkeypatch):
    before = Ledger(uri).append("kind", "subject", by="ana")
    def add_place(db): db.exec_driver_sql("CREATE TABLE place (name TEXT)")
    with monkeypatch.context() as m:
        m.setattr(module, "_MIGRATIONS", [*module._MIGRATIONS, add_place])
        for _ in range(2): assert Ledger(uri).entries() == [before]
        change(uri, "SELECT name FROM place")
    with pytest.raises(UserError, match="was written by a newer version of mlops-nb; update the package"):
        Ledger(uri).append("kind", "subject")


@pytest.mark.parametrize("uri, sentence", [
    ("postgresql://ana:hunter2@127.0.0.1:1/db", "ledger postgresql://ana:\\*\\*\\*@127.0.0.1:1/db cannot be used"),
    ("oracle://ana@host/db", "a ledger is in sqlite:/// or postgresql://"),
    ("ledger.db", r"\[ledger\] uri is no address")])
def test_a_database_that_is_none_is_one_sentence(uri, sentence):
    for use in (lambda: Ledger(uri).append("kind", "subject"), lambda: Ledger(uri).entries()):
        with pytest.raises(UserError, match=sentence) as error: use()
        assert "\n" not in str(error.value) and "hunter2" not in str(error.value)


def test_a_folder_that_cannot_be_made_and_a_damaged_file_are_one_sentence(tmp_path):
    (tmp_path / "file").write_text("no database" * 100)
    for path in ("file/ledger.db", "file"):
        with pytest.raises(UserError, match="cannot be used"): Ledger(f"sqlite:///{tmp_path}/{path}").append("a", "b")


def test_an_experiment_writes_into_the_ledger_of_its_checkout(tmp_path, monkeypatch):
    copy = tmp_path / ".dvc" / "tmp" / "exps" / "temporary"
    copy.mkdir(parents=True)
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "a1b2")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    open_ledger(copy).append("kind", "subject")
    monkeypatch.delenv("DVC_EXP_BASELINE_REV")
    assert [e.kind for e in open_ledger(tmp_path).entries()] == ["kind"] and not list(copy.iterdir())


def test_reading_makes_no_file(in_sqlite, tmp_path):
    assert Ledger(in_sqlite).entries() == [] and not list(tmp_path.iterdir())


def test_importing_it_loads_no_sqlalchemy():
    code = "import sys, mlops_nb.ledger.ledger; print('sqlalchemy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.stdout.strip() == "False", run.stderr


def test_a_writer_that_sleeps_holds_nobody_up(in_postgres, monkeypatch):
    monkeypatch.setattr("mlops_nb.ledger.ledger._IDLE_SECONDS", 1)
    slow, other = Ledger(in_postgres), Ledger(in_postgres)
    other.append("note", "before")
    with pytest.raises(LedgerUnavailable), slow._write(): other.append("note", "meanwhile")
    assert [e.subject for e in other.entries()] == ["before", "meanwhile"]
