"Calls in threads of their own: results, errors, calls that end too late or never, and very many of those."
import asyncio
import threading
import time

import pytest

from mlops_nb.serve import time_limit
from mlops_nb.serve.time_limit import DeadlineExceeded, ProcessingTimeout, call_with_timeout


def run(*args): return asyncio.run(call_with_timeout(*args))


def endless():
    while True: pass


def stubborn():
    "Catches what it can."
    while True:
        try: time.sleep(.001)
        except Exception: pass


async def all_ended():
    while time_limit._overdue: await asyncio.sleep(.005)


def test_what_a_call_returns_and_raises_comes_through():
    assert run(30, None, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError): run(30, None, divmod, 7, 0)
    def own(): raise TimeoutError("mine")
    with pytest.raises(TimeoutError, match="mine"): run(30, None, own)
    assert not time_limit._overdue


@pytest.mark.parametrize("f", [endless, stubborn])
def test_a_call_that_never_ends_is_left_and_its_thread_ends(f):
    async def main():
        with pytest.raises(ProcessingTimeout, match=r"longer than 0.05 s"): await call_with_timeout(.05, None, f)
        await asyncio.wait_for(all_ended(), 30)
    asyncio.run(main())


def test_the_deadline_of_a_request_comes_first_or_has_passed():
    with pytest.raises(DeadlineExceeded): run(30, time.monotonic() + .05, endless)
    begun = []
    with pytest.raises(DeadlineExceeded): run(30, time.monotonic() - 1, begun.append, 1)
    assert not begun


def test_who_goes_away_leaves_no_call_behind():
    async def main():
        task = asyncio.ensure_future(call_with_timeout(30, None, endless))
        await asyncio.sleep(.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError): await task
        await asyncio.wait_for(all_ended(), 30)
    asyncio.run(main())


def test_calls_that_cannot_be_ended_are_not_piled_up(monkeypatch):
    monkeypatch.setattr(time_limit, "MAX_OVERDUE_CALLS", 2)
    free = threading.Event() # waiting for it is not interrupted

    async def main():
        for _ in range(2):
            with pytest.raises(ProcessingTimeout, match="longer"): await call_with_timeout(.02, None, free.wait)
        with pytest.raises(ProcessingTimeout, match="2 earlier requests"): await call_with_timeout(.02, None, max, 1, 2)
        assert await call_with_timeout(30, None, max, 1, 2, owner="another endpoint") == 2
        free.set()
        await asyncio.wait_for(all_ended(), 30)
        assert await call_with_timeout(30, None, max, 1, 2) == 2
    asyncio.run(main())
