"Processes that score the messages of one consumer group, and the streams of one test."
import asyncio
import json
import random
import signal
import subprocess
import sys
import time

import msgspec

from mlops_nb.batch.stream_scoring import StreamWorker, create_broker
from mlops_nb.config.settings import StreamSettings

# A process of the group whose handler plays the model: it doubles numbers, and some rows are bad for it.
CONSUMER = """
import asyncio, logging, os, signal, sys
import msgspec
from mlops_nb.core.errors import UserError
from mlops_nb.batch.stream_scoring import StreamWorker, create_broker, _run_until_signal
from mlops_nb.config.settings import StreamSettings
logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
async def answer(id, body):
    row = msgspec.json.decode(body)
    if row == 'kill': os.kill(os.getpid(), signal.SIGKILL)
    if row == 'fail': raise RuntimeError('no way')
    if row == 'refuse': raise UserError('row 1 breaks the contract')
    await asyncio.sleep(float(sys.argv[2]))
    return msgspec.json.encode(dict(id=id, twice=2 * row, by=os.getpid()))
settings = msgspec.json.decode(sys.argv[1], type=StreamSettings)
worker = StreamWorker(create_broker(settings), answer, settings)
print('ready', flush=True)
print(asyncio.run(_run_until_signal(worker)), flush=True)
"""


class Group:
    "Consumers of one group, and the streams of one test."
    def __init__(self, service, **settings):
        names = {n: f"{n}{random.randrange(10**9)}" for n in ("source", "target", "dead_letter", "group")}
        self.service, self.names, self.running = service, names, []
        defaults = {"ack_timeout_seconds": 1, "batch_size": 20}
        self.settings = StreamSettings(url=service.url, **defaults | settings, **names)

    def begin(self, pause=.001):
        command = [sys.executable, "-c", CONSUMER, msgspec.json.encode(self.settings).decode(), str(pause)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    def put(self, rows): self.service.put(self.names, [(id, json.dumps(row)) for id, row in rows])

    @property
    def results(self): return list(map(json.loads, self.service.results(self.names)))

    @property
    def refused(self): return dict(self.service.refused(self.names))

    def wait(self, true, seconds=60, meanwhile=lambda: None):
        "Wait for something to be true; a process that has ended with an error is told at once."
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, (len(self.results), self.refused)
            for p in self.running: assert p.poll() in (None, 0, -signal.SIGKILL), p.communicate()[1]
            meanwhile()
            time.sleep(.05)

    def keep_alive(self):
        "Start another where one has ended."
        for p in [p for p in self.running if p.poll() is not None]:
            self.running.remove(p)
            p.communicate()
            self.begin()

    def end(self):
        for p in self.running:
            p.kill()
            p.communicate()


def once(group, rows):
    "Every id has one result, and it is that of its row."
    found = group.results
    assert {r["id"]: r["twice"] for r in found} == {id: 2 * row for id, row in rows}
    assert len(found) == len(dict(rows))


def run_until(g, answer, done):
    "One worker in this process, until something is true of the group."
    async def go():
        worker, stop = StreamWorker(create_broker(g.settings), answer, g.settings), asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        await asyncio.to_thread(g.wait, done, 30)
        stop.set()
        return await running
    return asyncio.run(go())
