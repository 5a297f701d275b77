"Attacks on a server of two workers while 2,000 good requests a second come in."
import asyncio
import gzip
import json
import multiprocessing
import os
import socket
import sys
import time
from collections import Counter
from contextlib import suppress

import numpy as np
import psutil
from common import HERE, quick, report, row, workplace
from serving import OURS, PORT, TREES, made, serving, tensor, v2

PATH, STREAMS, RATE, MIB = "/v2/models/model/infer", 40, 2000, 2**20
QUIET_SECONDS, AFTER_SECONDS, MOST_GROWTH_MIB = 10, 60, 64


def message(path, body, method="POST", **headers):
    "The bytes of a request."
    head = {"Host": f"127.0.0.1:{PORT}", "Content-Type": "application/json", "Content-Length": len(body), **headers}
    lines = [f"{method} {path} HTTP/1.1", *(f"{k.replace('_', '-')}: {v}" for k, v in head.items() if v is not None)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def answer(reader):
    "The status of an answer; its body is read and forgotten."
    head = await reader.readuntil(b"\r\n\r\n")
    sizes = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    await reader.readexactly(sizes[0] if sizes else 0)
    return int(head[9:12])


# good traffic: its own process, paced, so that what disturbs it is the server

async def one_stream(n, body, over, seen):
    "A kept connection that asks every few milliseconds; appends (id, when it was to be sent, seconds, status)."
    start, every, i, writer = time.monotonic() + n / RATE, STREAMS / RATE, 0, None
    while not over.is_set():
        due, id, i = start + i * every, f"good-{n}-{i}", i + 1
        if (wait := due - time.monotonic()) > 0: await asyncio.sleep(wait)
        try:
            if writer is None: reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
            writer.write(message(PATH, b'{"id":"' + id.encode() + b'",' + body[1:]))
            async with asyncio.timeout(30): status = await answer(reader)
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            status, writer = 0, None
        seen.append((id, due, time.monotonic() - due, status))


def good_traffic(body, over, out):
    "Ask until `over`; then put what was seen into the queue `out`."
    async def ask():
        seen = []
        await asyncio.gather(*(one_stream(n, body, over, seen) for n in range(STREAMS)))
        return seen
    out.put(asyncio.run(ask()))


# attacks: each yields what the server said, or 0 where it closed the connection

def send(data, source="127.0.0.2", seconds=60):
    "Send bytes from another address than the good clients have; the status of the answer, 0 for none."
    with suppress(OSError), socket.create_connection(("127.0.0.1", PORT), seconds, (source, 0)) as s:
        with suppress(OSError): s.sendall(data) # a refused body is not read to its end
        return int(s.recv(4096)[9:12] or 0)
    return 0


def paths(n):
    "Paths that nobody has asked for before."
    for i in range(n): yield send(message(f"/v2/models/{i}/{'x' * 4000}", b"", "GET"))


def chunks(n):
    "Chunked bodies above the limit."
    body = b"400000\r\n" + b"x" * 0x400000 + b"\r\n"
    for _ in range(n): yield send(message(PATH, b"", Content_Length=None, Transfer_Encoding="chunked") + body * 5)


def lists(n):
    "Bodies of as many empty lists as fit."
    for _ in range(n): yield send(message(PATH, b'{"inputs":[' + b"[]," * (5 * MIB) + b"[]]}"))


def columns(n):
    "Rows with a million columns that nobody knows."
    body = json.dumps(dict(instances=[{f"unknown{i}": 1 for i in range(700_000)}])).encode()
    for _ in range(n): yield send(message("/v1/endpoints/model:predict", body))


def nesting(n):
    "Lists in lists, a million deep."
    for _ in range(n): yield send(message(PATH, b"[" * MIB))


def bombs(n):
    "Compressed bodies of a gibibyte."
    bomb = gzip.compress(bytes(2**28), 9) * 4
    for _ in range(n): yield send(message(PATH, bomb, Content_Encoding="gzip"))


def headers(n):
    "Connections whose headers never end."
    held = []
    for _ in range(n):
        with suppress(OSError):
            held.append(socket.create_connection(("127.0.0.1", PORT), 5, ("127.0.0.3", 0)))
            held[-1].sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
    time.sleep(15) # until the server has closed them, or the limit of the settings is over
    closed = 0
    for s in held:
        s.setblocking(False)
        try: closed += s.recv(1) == b""
        except BlockingIOError: pass
        except OSError: closed += 1
        s.close()
    yield from [0] * closed + [200] * (len(held) - closed) # 200: it is still open


def labels(n):
    "Labels for rows and answers that never were."
    for i in range(n):
        label = dict(id=f"never-{i}", row=2**70 if i % 2 else 0, label="yes")
        yield send(message("/v1/endpoints/model:feedback", json.dumps(dict(labels=[label])).encode()))


def browsers(n):
    "Requests as a page of another site would send them, and with another host's name."
    for i in range(n):
        strange = dict(Origin="http://example.org") if i % 2 else dict(Host="example.org")
        yield send(message(PATH, b"{}", Content_Type="text/plain", **strange))


ATTACKS = {paths: 4000, chunks: 130, lists: 20, columns: 10, nesting: 50, bombs: 20, headers: 2200, labels: 2000,
           browsers: 2000}


def memory(server):
    "MiB of the largest worker."
    return max(p.memory_info().rss for p in psutil.Process(server.pid).children(recursive=True)) / MIB


def percentiles(seen, start, end):
    "Milliseconds of the good requests that were due in a span of time: median, 99th percentile and longest."
    took = [1e3 * s for _, due, s, _ in seen if start <= due < end]
    return [float(x) for x in np.percentile(took, [50, 99, 100])] if took else [float("nan")] * 3


def attack(server, share):
    "Run one attack after the other; yields its name, when it ran, what was answered, and the memory after it."
    for run, n in ATTACKS.items():
        start = time.monotonic()
        found = Counter(run(max(4, int(n * share))))
        yield run.__doc__, start, time.monotonic(), found, memory(server)


def on_record(root, ids):
    "How often each of these requests is in the prediction log."
    import polars as pl

    from mlops_nb.prediction_log.reader import read_log
    found = read_log(root / "predictions").select("id").filter(pl.col("id").str.starts_with("good-")).collect()
    times = Counter(found["id"].to_list())
    return Counter(times[i] for i in ids)


def main():
    share, quiet, after = (0.02, 2, 2) if quick() else (1, QUIET_SECONDS, AFTER_SECONDS)
    context = multiprocessing.get_context("spawn")
    over, out = context.Event(), context.Queue()
    with workplace() as tmp:
        root, x = made(tmp, 30 if quick() else TREES)
        body = v2(tensor(x))
        with serving(OURS, root, PATH, body, {"MLOPS_NB_SERVE_WORKERS": "2"}) as (server, _):
            clients = context.Process(target=good_traffic, args=(body, over, out), daemon=True)
            clients.start()
            time.sleep(quiet)
            begun, before = time.monotonic(), memory(server)
            attacks = [*attack(server, share)]
            ended = time.monotonic()
            time.sleep(after)
            finally_, _ = memory(server), over.set()
            seen = out.get()
            clients.join()
        answered = [id for id, *_, status in seen if status == 200]
        records = on_record(root, answered)
    statuses, n = Counter(status for *_, status in seen), len(seen)
    calm, during = percentiles(seen, 0, begun), percentiles(seen, begun, ended)

    def times(p): return f"p50 {p[0]:.1f} ms, p99 {p[1]:.1f} ms, longest {p[2]:.0f} ms"

    rows = [row("good requests answered", f"{len(answered):,} of {n:,}", bound="all", met=len(answered) == n),
            row("… refused with 503", f"{statuses[503]:,}"), row("… without an answer", f"{statuses[0]:,}"),
            row("answers on record once", f"{records[1]:,} of {len(answered):,}", bound="all",
                met=records[1] == len(answered)),
            row("good requests before the attacks", times(calm)), row("good requests during them", times(during)),
            row("memory of the larger worker before, after the attacks, and a minute later",
                f"{before:.0f}, {attacks[-1][-1]:.0f}, {finally_:.0f} MiB", bound=f"+ {MOST_GROWTH_MIB} MiB",
                met=finally_ <= before + MOST_GROWTH_MIB)]
    for what, start, end, found, after_it in attacks:
        said = ", ".join(f"{k or 'closed'} × {v:,}" for k, v in sorted(found.items()))
        rows.append(row(f"attack: {what[0].lower()}{what[1:].rstrip('.')}",
                        f"{said}; good requests: {times(percentiles(seen, start, end))}; then {after_it:.0f} MiB"))
    report(rows, [f"{RATE:,} requests a second over {STREAMS} kept connections, paced: a request that waits for "
                  "the one before it counts its wait; two workers, no keys. The attacks come one after another from "
                  "other addresses than the good requests, with the settings as `init` writes them. Attackers, good "
                  f"clients and workers share {os.cpu_count()} cores."])


if __name__ == "__main__":
    sys.path.insert(0, str(HERE)) # for the process of the good clients
    main()
