"The live overview: what has changed reaches everybody who watches, and a part that is away takes nothing else with it."
import asyncio
import sqlite3

import msgspec
import pytest
from console.conftest import facts

from mlops_nb.console import live_overview
from mlops_nb.console.live_overview import LiveOverview, change_mark
from mlops_nb.console.overview import OverviewReader
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import queue_run
from mlops_nb.serve.http_messages import HTTPException


def shows(run): return lambda event: event[0] == "overview" and run in str(event[1]["runs"])


def test_what_happens_reaches_everybody_who_watches(console, events):
    first, second = events(), events()
    for watcher in (first, second): watcher.until(lambda e: e[0] == "overview")
    queue_run(console.ledger, "rlive", facts(), by="ana")
    for watcher in (first, second): watcher.until(shows("rlive"))


def test_nobody_who_watches_asks_the_database_himself(tmp_path, monkeypatch):
    "Fifty watch, one looks."
    reads = []
    class Counted(OverviewReader):
        def read(self):
            reads.append(1)
            return super().read()
    async def watch():
        live = LiveOverview(Counted(tmp_path))
        streams = [live.events() for _ in range(50)]
        for s in streams: await anext(s)
        queue_run(open_ledger(tmp_path), "r1", facts(), by="ana")
        await live.look()
        found = [await asyncio.wait_for(anext(s), 60) for s in streams]
        for s in streams: await s.aclose()
        return found, live.clients
    found, left = asyncio.run(watch())
    assert len(set(found)) == 1 and '"r1"' in found[0] and left == 0
    assert len(reads) <= 3


def test_while_nothing_happens_there_are_signs_of_life(tmp_path, monkeypatch):
    monkeypatch.setattr(live_overview, "BEAT_SECONDS", 0.01)
    async def watch():
        stream = LiveOverview(OverviewReader(tmp_path)).events()
        found = [await anext(stream) for _ in range(3)]
        await stream.aclose()
        return [e.split("event: ")[1].split("\n")[0] for e in found]
    assert asyncio.run(watch()) == ["overview", "beat", "beat"]


def test_there_is_room_for_a_limited_number(tmp_path, monkeypatch):
    monkeypatch.setattr(live_overview, "MAX_EVENT_CLIENTS", 2)
    async def watch():
        live = LiveOverview(OverviewReader(tmp_path))
        streams = [live.events() for _ in range(3)]
        for s in streams[:2]: await anext(s)
        with pytest.raises(HTTPException, match="2 clients watch already"): await anext(streams[2])
        await streams[0].aclose()
        await anext(live.events()) # there is room again
    asyncio.run(watch())


def test_while_nothing_changes_nothing_is_read(tmp_path, monkeypatch):
    async def look():
        live = LiveOverview(OverviewReader(tmp_path))
        await live.look()
        monkeypatch.setattr(live.reader, "read", lambda: pytest.fail("it was read"))
        await live.look()
        monkeypatch.setattr(live_overview, "REFRESH_SECONDS", 0)
        with pytest.raises(pytest.fail.Exception): await live.look() # what has no sign is read after a while
    asyncio.run(look())


def test_a_ledger_that_is_away_is_named_and_comes_back(tmp_path):
    ledger, reader = open_ledger(tmp_path), OverviewReader(tmp_path)
    queue_run(ledger, "r1", facts(), by="ana")
    assert reader.read().problems == {}
    path = tmp_path / ".mlops/ledger.db"
    kept = path.read_bytes()
    for p in path.parent.glob("ledger.db*"): p.unlink()
    path.write_bytes(b"no database" * 100)
    away = reader.read()
    assert "cannot be used" in away.problems["runs"] and [r.id for r in away.runs.runs] == ["r1"] # the last known state
    path.write_bytes(kept)
    sqlite3.connect(path).execute("PRAGMA wal_checkpoint").close()
    assert reader.read().problems == {}


def test_settings_that_cannot_be_read_are_named(tmp_path):
    reader = OverviewReader(tmp_path)
    (tmp_path / "settings.ini").write_text("[consol]\n")
    assert "consol" in reader.read().problems["settings"]
    (tmp_path / "settings.ini").write_text("[console]\nport = 1\n")
    assert reader.read().problems == {}


def test_an_event_is_one_line_of_data(tmp_path):
    queue_run(open_ledger(tmp_path), "r1", facts(reason="two\nlines\r\nand \u2028 more"), by="ana")
    overview = OverviewReader(tmp_path).read()
    event = live_overview.format_event("overview", msgspec.json.encode(overview), 7)
    assert event.count("\n") == 4 and event.startswith("id: 7\nevent: overview\ndata: {") and "\r" not in event


def test_a_change_of_a_file_is_noticed(tmp_path):
    before = change_mark(tmp_path)
    (tmp_path / "triggers.yaml").write_text("")
    assert change_mark(tmp_path) != before
