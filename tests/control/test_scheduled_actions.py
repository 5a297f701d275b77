"Scheduled actions: files scored once whatever is killed, stores measured, drills that are noticed or not."
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import msgspec
import polars as pl
import pytest
from support.controlled_project import until
from support.release_project import project

from mlops_nb.config.settings import ScheduleSettings
from mlops_nb.control import game_day, scheduled_scoring
from mlops_nb.control.game_day import drills, run_game_day
from mlops_nb.control.quota import measure_stores, record_stores
from mlops_nb.control.scheduled_actions import do_action
from mlops_nb.control.scheduled_scoring import find_new_partitions, score_new_partitions
from mlops_nb.control.scheduler import ScheduledAction
from mlops_nb.core.errors import UserError
from mlops_nb.examples.subscribers import subscribers
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.monitor.schedule_checks import check_schedules, update_schedule_alerts
from mlops_nb.report.runbooks import RUNBOOK_FOLDER, list_runbooks

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory):
    root = tmp_path_factory.mktemp("deployed") / "p"
    project(root, ("champion", "better"))
    return root


@pytest.fixture
def root(deployed, tmp_path): return Path(shutil.copytree(deployed, tmp_path / "p"))


def deliver(root, name, n=40, seed=1):
    path = root / "incoming" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    frame = subscribers(n, seed=seed).drop("left")
    frame.write_parquet(path) if name.endswith(".parquet") else frame.write_csv(path)


def score(**more):
    return ScheduleSettings(**dict(cron="@daily", action="score", source="incoming", target="scores") | more)


def scored(root): return [e.data["partition"] for e in open_ledger(root).entries(kinds=("partition.scored",))]


# --- scoring into a folder


def test_each_file_is_scored_once_and_again_when_its_content_changes(root):
    for name in ("a.parquet", "day=2/b.parquet"): deliver(root, name)
    assert "2 new files with 80 rows" in score_new_partitions(root, "nightly", score())
    first = (root / "scores/a.parquet").read_bytes()
    assert "nothing new" in score_new_partitions(root, "nightly", score())
    deliver(root, "a.parquet", n=30, seed=2)
    deliver(root, "c.csv", n=10)
    assert "2 new files with 40 rows" in score_new_partitions(root, "nightly", score())
    assert (root / "scores/a.parquet").read_bytes() != first
    assert pl.read_parquet(root / "scores/c.csv.parquet").height == 10
    assert scored(root) == ["a.parquet", "day=2/b.parquet", "a.parquet", "c.csv"]


def test_a_file_that_cannot_be_read_stops_no_other(root):
    deliver(root, "b.parquet")
    (root / "incoming/a.parquet").write_bytes(b"no parquet")
    with pytest.raises(UserError, match="1 of 2 files were not scored. a.parquet: "):
        score_new_partitions(root, "nightly", score())
    assert scored(root) == ["b.parquet"]


@pytest.mark.parametrize("change, why", [
    (lambda root: shutil.rmtree(root / "incoming"), "incoming is no folder"),
    (lambda root: shutil.rmtree(root / "releases"), "dvc repro|no model|deploy")])
def test_what_is_missing_is_a_sentence(root, change, why):
    deliver(root, "a.parquet")
    change(root)
    with pytest.raises(UserError, match=why): score_new_partitions(root, "nightly", score())


WORK = """
import sys
import msgspec, time
from mlops_nb.control import scheduled_scoring as s
from mlops_nb.config.settings import ScheduleSettings
settings = msgspec.json.decode(sys.argv[1], type=ScheduleSettings)
step = sys.argv[2]
def held(*args, **kwargs):
    open('reached', 'w').close()
    time.sleep(600)
plain = s._replace_rows
def half(connection, table, partition, frames):
    plain(connection, table, partition, frames)
    held()
if step == 'within the transaction': s._replace_rows = half
plain_into = s._score_into_folder
def done(*args):
    plain_into(*args)
    held()
if step == 'before the entry': s._score_into_folder = done
plain_table = s._score_into_table
def done_table(*args):
    plain_table(*args)
    held()
if step == 'after the transaction': s._score_into_table = done_table
s.score_new_partitions('.', 'nightly', settings)
"""


def kill_at(root, settings, step):
    command = [sys.executable, "-c", WORK, msgspec.json.encode(settings).decode(), step]
    process = subprocess.Popen(command, cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"})
    until((root / "reached").exists, 120)
    process.send_signal(signal.SIGKILL)
    process.wait(60)


def test_killed_after_the_file_it_is_neither_half_nor_twice(root):
    deliver(root, "a.parquet")
    kill_at(root, score(), "before the entry")
    before = (root / "scores/a.parquet").stat().st_mtime_ns
    assert scored(root) == []
    score_new_partitions(root, "nightly", score())
    assert (root / "scores/a.parquet").stat().st_mtime_ns == before, "complete scores were written again"
    assert scored(root) == ["a.parquet"]


# --- scoring into a table


def table_of(root, name="scores"):
    with sqlite3.connect(root / "out.db") as c: return c.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()


@pytest.mark.parametrize("step, rows", [("within the transaction", 0), ("after the transaction", 40)])
def test_killed_in_a_transaction_all_rows_are_there_once(root, step, rows):
    deliver(root, "a.parquet")
    settings = score(target="sqlite:///out.db", table="scores")
    kill_at(root, settings, step)
    with sqlite3.connect(root / "out.db") as c:
        known = c.execute("SELECT name FROM sqlite_master WHERE name = 'scores'").fetchall()
    assert len(table_of(root)) == rows if known else rows == 0
    score_new_partitions(root, "nightly", settings)
    assert len(table_of(root)) == len(set(table_of(root))) == 40 and scored(root) == ["a.parquet"]


def test_rows_of_a_changed_partition_are_replaced_in_a_table(uri, root):
    if uri.startswith("sqlite"): Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    settings = score(target=uri, table="nightly_scores")
    deliver(root, "a.parquet")
    deliver(root, "b.parquet", n=5)
    score_new_partitions(root, "nightly", settings)
    deliver(root, "a.parquet", n=7, seed=3)
    score_new_partitions(root, "nightly", settings)
    with scheduled_scoring._transaction(uri) as connection:
        found = connection.exec_driver_sql("SELECT partition, count(*), min(row_number), max(row_number) FROM "
                                           "nightly_scores GROUP BY partition ORDER BY partition").all()
    assert [tuple(row) for row in found] == [("a.parquet", 7, 0, 6), ("b.parquet", 5, 0, 4)]


def test_two_targets_are_two_pieces_of_work(root):
    deliver(root, "a.parquet")
    score_new_partitions(root, "one", score())
    assert find_new_partitions(root, score(target="elsewhere"))


def test_an_address_that_takes_no_scores(root):
    deliver(root, "a.parquet")
    with pytest.raises(UserError, match="scores go into sqlite:/// or postgresql://"):
        score_new_partitions(root, "nightly", score(target="mysql://host/db", table="t"))


# --- quota


def test_stores_over_their_limits_are_alerts_until_they_are_not(root):
    (root / "settings.ini").write_text((root / "settings.ini").read_text() + "[quota]\nreports_mib = 1\nfree_mib = 0\n")
    (root / "reports").mkdir()
    (root / "reports/a.html").write_bytes(bytes(2**21))
    assert "The store reports takes 2 MiB of 1." in record_stores(root)
    update_schedule_alerts(root)
    assert [f.subject for f in check_schedules(root, None, None)] == ["reports"]
    (root / "reports/a.html").unlink()
    record_stores(root)
    assert check_schedules(root, None, None) == []


def test_a_file_counts_once_and_links_lead_nowhere(root):
    (root / "reports").mkdir()
    (root / "reports/a").write_bytes(bytes(2**20))
    os.link(root / "reports/a", root / "reports/b")
    (root / "reports/loop").symlink_to(root)
    (root / "reports/gone").symlink_to(root / "nowhere")
    sizes = {s.name: s for s in measure_stores(root)}
    assert sizes["reports"].mib == 1 and sizes["bundles"].mib > 0 and sizes["ledger"].mib == 0


def test_stores_on_servers_are_left_out(root, monkeypatch):
    monkeypatch.setenv("MLOPS_NB_LEDGER_URI", "postgresql://me@127.0.0.1/x")
    monkeypatch.setenv("MLOPS_NB_TRACKING_URI", "https://mlflow.example")
    assert "ledger" not in {s.name for s in measure_stores(root)}


# --- actions


def test_compaction_as_an_action(root):
    said = do_action(root, ScheduledAction("tidy", ScheduleSettings(cron="@daily", action="compact")))
    assert "tidy: 0 segments" in said


# --- game day


def test_a_game_day_says_who_noticed_and_a_drill_that_fails_is_an_alert(root, monkeypatch):
    shutil.copytree(ROOT / RUNBOOK_FOLDER, root / RUNBOOK_FOLDER, ignore=shutil.ignore_patterns("__pycache__"))
    schedule = ScheduleSettings(cron="@monthly", action="game-day")
    assert drills(root) == ["broken-log"]
    said = run_game_day(root, "drills", schedule)
    entry, = open_ledger(root).entries(kinds=("drill.ended",))
    assert entry.data["passed"] and entry.data["alert"] == "log_damaged" and entry.data["noticed_seconds"] >= 0, said
    assert {r.name: r.passed for r in list_runbooks(root)}["broken-log"] and not check_schedules(root, None, None)
    failed = game_day.Drill(name="broken-log", passed=False, message="broken-log: no alert noticed the fault.")
    monkeypatch.setattr(game_day, "_drill_apart", lambda root, name: failed)
    run_game_day(root, "drills", schedule)
    finding, = check_schedules(root, None, None)
    assert (finding.rule, finding.runbook) == ("drill_failed", "broken-log")


def test_a_drill_that_cannot_begin_has_failed(tmp_path):
    (tmp_path / "settings.ini").touch()
    drill = game_day._drill_apart(tmp_path, "broken-log")
    assert not drill.passed and "could not be run" in drill.message
