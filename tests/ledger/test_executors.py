"Executors: leases on the database's clock, lost when over or gone, on both databases."
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from mlops_nb.ledger.executors import (
    find_lost_executors,
    list_executors,
    process_start,
    register_executor,
    renew_lease,
    set_executor_state,
)
from mlops_nb.ledger.ledger import Ledger


@pytest.fixture
def ledger(uri): return Ledger(uri)


def test_ids_differ_within_a_process_and_projects_are_apart(ledger):
    a, b = (register_executor(ledger, "one", "v1") for _ in range(2))
    c = register_executor(ledger, "two", "v1")
    assert len({a.id, b.id, c.id}) == 3 and [e.id for e in list_executors(ledger, "one")] == [a.id, b.id]
    assert a.pid == os.getpid() and 29 < a.lease_until - a.started_at < 31


def test_only_who_was_not_declared_lost_renews(ledger):
    held, over = register_executor(ledger, "p", "v1"), register_executor(ledger, "p", "v1", lease_seconds=-5)
    assert renew_lease(ledger, over.id, -5), "nobody has noticed: it may go on"
    assert [e.id for e in find_lost_executors(ledger, "p")] == [over.id]
    assert find_lost_executors(ledger, "other") == []
    assert renew_lease(ledger, held.id) and not renew_lease(ledger, over.id)
    assert [e.id for e in find_lost_executors(ledger, "p")] == [over.id], "until nothing of it is left"
    set_executor_state(ledger, over.id, "ended")
    assert find_lost_executors(ledger, "p") == [] and not renew_lease(ledger, over.id)


def test_a_process_of_this_machine_that_is_no_more_is_lost_at_once(uri):
    code = ("import sys; from mlops_nb.ledger.ledger import Ledger; "
            "from mlops_nb.ledger.executors import register_executor as r; print(r(Ledger(sys.argv[1]), 'p', 'v1').id)")
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True, timeout=120, check=True)
    mine = register_executor(Ledger(uri), "p", "v1")
    assert [e.id for e in find_lost_executors(Ledger(uri), "p")] == [done.stdout.strip()]
    assert [e.id for e in list_executors(Ledger(uri), "p")] == [mine.id]


def test_one_of_another_machine_is_left_its_lease(ledger, monkeypatch):
    with monkeypatch.context() as m:
        m.setattr("mlops_nb.ledger.executors._host", lambda: "elsewhere/1/2")
        m.setattr("mlops_nb.ledger.executors.process_start", lambda pid: "1")
        there = register_executor(ledger, "p", "v1")
    assert find_lost_executors(ledger, "p") == [] and list_executors(ledger, "p")[0].id == there.id


def test_one_declares_it_lost_and_all_see_it(uri):
    over = register_executor(Ledger(uri), "p", "v1", lease_seconds=-1)
    with ThreadPoolExecutor(4) as pool: found = [*pool.map(lambda _: find_lost_executors(Ledger(uri), "p"), range(4))]
    assert [[e.id for e in f] for f in found] == [[over.id]] * 4


def test_the_start_of_a_process():
    assert process_start(os.getpid()) == process_start(os.getpid()) != process_start(1)
    assert process_start(2**30) == ""
