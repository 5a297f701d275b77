"Rates offered to a server, and what is read from the curve."
import asyncio
import threading
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import server as serving

from mlops_nb.core.errors import UserError
from mlops_nb.serve.capacity_planning import (
    MIN_ACHIEVED_SHARE,
    TARGET_UTILIZATION,
    LoadResult,
    estimate_cores,
    load_rates,
    measure_capacity,
    read_load_curve,
    run_load_curve,
    run_load_test,
)


@contextmanager
def server(respond):
    "A server on a free port; `respond(writer, body, i)` answers the i-th request of all."
    seen, ready, ends = [], threading.Event(), []

    async def serve(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(next(x for x in head.split(b"\r\n")
                                  if x.lower().startswith(b"content-length")).split(b":")[1])
                seen.append((head, await reader.readexactly(length)))
                await respond(writer, len(seen))
        except (asyncio.IncompleteReadError, ConnectionError): writer.close()

    async def main():
        over = asyncio.Event()
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as s:
            ends.extend((s.sockets[0].getsockname()[1], asyncio.get_running_loop(), over))
            ready.set()
            await over.wait()
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert ready.wait(10)
    try: yield f"http://127.0.0.1:{ends[0]}/some/where", seen
    finally:
        ends[1].call_soon_threadsafe(ends[2].set)
        thread.join(10)


async def well(writer, i): writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine")


def test_every_request_that_was_due_is_sent_and_counted():
    with server(well) as (url, seen): step = asyncio.run(run_load_test(url, b'{"x": 1}', 200, 0.5, 4, {"X-Key": "k"}))
    assert len(seen) == 100 and step.n_failed == 0 and step.p50_ms <= step.p99_ms <= step.p999_ms
    head, body = seen[0]
    assert head.startswith(b"POST /some/where HTTP/1.1\r\n") and b"X-Key: k\r\n" in head and body == b'{"x": 1}'


def test_an_answer_may_come_in_any_pieces():
    async def in_pieces(writer, i):
        for byte in b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n\r\n\r\nab":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
    with server(in_pieces) as (url, seen): step = asyncio.run(run_load_test(url, b"", 50, 0.4, 2))
    assert (step.n_failed, len(seen)) == (0, 20)


def test_other_answers_and_lost_connections_are_failures():
    async def every_third(writer, i):
        if i % 3: await well(writer, i)
        else: writer.write(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n")
    with server(every_third) as (url, seen): assert asyncio.run(run_load_test(url, b"", 60, 0.5, 3)).n_failed == 10

    async def hang_up(writer, i): writer.close()
    with server(hang_up) as (url, seen):
        step = asyncio.run(run_load_test(url, b"", 20, 0.5, 2))
        # ten were due; two went out, and nobody was left for the others
        assert step.n_failed >= 8 and step.achieved_rps == 0


def test_time_in_the_line_counts():
    async def slow(writer, i):
        await asyncio.sleep(0.02)
        await well(writer, i)
    # one connection: 50 a second at best
    with server(slow) as (url, _): step = asyncio.run(run_load_test(url, b"", 200, 0.5, 1))
    assert step.p50_ms > 200 and step.p99_ms > 900 and step.achieved_rps < 55


def test_a_curve_ends_where_the_server_no_longer_follows():
    async def slow(writer, i):
        await asyncio.sleep(0.01)
        await well(writer, i)
    told = []
    with server(slow) as (url, _):
        steps = asyncio.run(run_load_curve(url, b"", [20, 400, 800, 1600], 0.5, 1, on_result=told.append))
    last = steps[-1] # one connection: 100 a second at best
    assert told == steps and last.offered_rps <= 400 and last.achieved_rps < MIN_ACHIEVED_SHARE * last.offered_rps


def test_nobody_there():
    with server(well) as (url, _): pass
    with pytest.raises(UserError, match="nobody listens"): asyncio.run(run_load_test(url, b"", 10, 0.1, 1))


def test_the_curve_of_a_project(tmp_path, monkeypatch):
    monkeypatch.setattr("mlops_nb.serve.capacity_planning.MAX_RATE", 200)
    root, told = serving.project(tmp_path), []
    steps = measure_capacity(root, 0.3, told.append)
    assert steps == told == read_load_curve(root) and steps[0].offered_rps == 10 and not any(s.n_failed for s in steps)
    assert not (root / "predictions").exists() # nobody asked these questions


def test_nothing_is_released(tmp_path):
    with pytest.raises(UserError, match="No model is released"): measure_capacity(tmp_path)
    with pytest.raises(UserError, match="--measure"): read_load_curve(tmp_path)


a_step = st.builds(LoadResult, st.floats(1, 1e5), st.just(1e9), st.sampled_from([0, 0, 0, 2]), st.just(1),
                   st.floats(.1, 100), st.just(1))


@given(st.lists(a_step, min_size=1, max_size=8), st.floats(1, 1e6), st.floats(.1, 100))
def test_more_to_do_needs_no_fewer_cores_and_more_time_no_more(curve, rate, p99):
    try: need = estimate_cores(curve, rate, p99)
    except UserError:
        assert not any(s.p99_ms <= p99 and not s.n_failed for s in curve)
        return
    assert (need.cores * need.rps_per_core >= rate > (need.cores - 1) * need.rps_per_core
            and need.rps_per_core == TARGET_UTILIZATION * need.max_rps)
    assert estimate_cores(curve, 2 * rate, p99).cores >= need.cores >= estimate_cores(curve, rate, 2 * p99).cores


def test_rates_rise_to_the_most():
    rates = load_rates(10_000)
    assert rates[-1] == 10_000 and rates == sorted(set(rates)) and rates[0] == 500
