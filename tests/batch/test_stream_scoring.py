"Rows from a stream: each is answered once, whoever is killed meanwhile."
import asyncio
import collections
import json
import os
import random
import signal
import subprocess
import sys
import time

import msgspec
import pytest
from support import server as serving
from support.services import NatsService, RedisService, free_port

from mlops_nb.batch.stream_scoring import StreamWorker, create_broker, result_subject
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.settings import StreamSettings, read_settings
from mlops_nb.core.errors import UserError
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.audit import audit_log
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.prediction_log.writer import LogWriteError
from mlops_nb.release.release_plan import plan_path, promote_bundle

SERVICES = {"redis": RedisService, "nats": NatsService}

# A process of the group with an answerer that says what the model would: it doubles numbers, and some rows are bad for it.
CONSUMER = """
import asyncio, logging, os, signal, sys
import msgspec
from mlops_nb.core.errors import UserError
from mlops_nb.release.release_plan import plan_path, release
from mlops_nb.model.predictor import Predictor
from mlops_nb.prediction_log.audit import audit_log
from mlops_nb.prediction_log.reader import read_log
from mlops_nb.prediction_log.writer import LogWriteError
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
        self.settings = StreamSettings(url=service.url, **{"ack_timeout_seconds": 1, "batch_size": 20, **settings}, **names)

    def begin(self, pause=.001):
        process = subprocess.Popen([sys.executable, "-c", CONSUMER, msgspec.json.encode(self.settings).decode(), str(pause)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.running.append(process)
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        return process

    def put(self, rows): self.service.put(self.names, [(id, json.dumps(row)) for id, row in rows])

    @property
    def results(self): return list(map(json.loads, self.service.results(self.names)))

    @property
    def refused(self): return dict(self.service.refused(self.names))

    def wait(self, true, seconds=60, meanwhile=lambda: None):
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, (len(self.results), self.refused)
            meanwhile()
            time.sleep(.1)

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


@pytest.fixture(scope="module", params=list(SERVICES))
def service(request):
    with SERVICES[request.param]() as s: yield s


@pytest.fixture
def group(service):
    made = []
    def make(**settings):
        made.append(Group(service, **settings))
        return made[-1]
    yield make
    for g in made: g.end()


def once(group, rows):
    "Every id has one result, and it is that of its row."
    found = group.results
    assert {r["id"]: r["twice"] for r in found} == {id: 2 * row for id, row in rows} and len(found) == len(dict(rows))


def test_two_share_the_work_and_end_when_told_to(group):
    g = group()
    rows = [(f"r{i}", i) for i in range(1000)]
    a, b = g.begin(pause=.05), g.begin(pause=.05)  # so slow that the one has not done it all before the other is connected
    g.put(rows)
    g.wait(lambda: g.service.left(g.names) == 0)
    once(g, rows)
    shares = collections.Counter(r["by"] for r in g.results)
    assert len(shares) == 2 and min(shares.values()) > 100
    counts = 0
    for p in (a, b):
        p.send_signal(signal.SIGTERM)
        out, err = p.communicate(timeout=20)
        assert p.returncode == 0, err
        counts += int(out.split("answered=")[1].split(",")[0])
    assert counts == 1000


def test_killed_in_the_middle_of_batches(group):
    g = group()
    rows = [(f"Nr. {i} <ä>", i) for i in range(600)]
    g.put(rows[:300])
    for k in range(6):
        victim = g.begin(pause=.05)
        if k == 2: g.put(rows[300:])
        before = len(g.results)
        g.wait(lambda n=before: len(g.results) > n)
        time.sleep(random.random() * .1)
        victim.kill()
    g.begin(), g.begin()
    g.wait(lambda: g.service.left(g.names) == 0)
    once(g, rows)
    assert len({r["by"] for r in g.results}) >= 5 and not g.refused


def test_poison_ends_aside_with_its_reason_and_takes_nobody_with_it(group):
    g = group(max_deliveries=2)
    rows = [(f"r{i}", i) for i in range(100)]
    bad = [("killer", "kill"), ("failing", "fail"), ("wrong", "refuse")]
    g.put(rows[:30] + bad + rows[30:])
    g.begin()
    g.wait(lambda: g.service.left(g.names) == 0, meanwhile=g.keep_alive)
    once(g, rows)
    assert g.refused == {"killer": "The process ended each of the 2 times it was tried alone.", "wrong": "row 1 breaks the contract",
                         "failing": "It failed 2 times alone; the last time with RuntimeError: no way"}
    g.put([("wrong", 7)])  # mended, under the same id
    g.wait(lambda: len(g.results) == 101)


def test_the_same_id_twice_is_answered_once(group):
    g = group()
    g.put([("same", 1), ("other", 2)])
    g.begin()
    g.wait(lambda: len(g.results) == 2)
    time.sleep(.3)  # longer than the source itself would notice
    g.put([("same", 1), ("third", 3), ("third", 3)])
    g.wait(lambda: g.service.left(g.names) == 0)
    once(g, [("same", 1), ("other", 2), ("third", 3)])


def test_without_an_id_each_message_is_one(group):
    g = group()
    g.put([(None, 1)] * 3)
    g.begin()
    g.wait(lambda: g.service.left(g.names) == 0)
    assert [r["twice"] for r in g.results] == [2, 2, 2] and len({r["id"] for r in g.results}) == 3


def test_a_full_target_holds_the_source_back(group):
    g = group(max_backlog=50, batch_size=10)
    g.put([(f"r{i}", i) for i in range(200)])
    g.begin(), g.begin()
    g.wait(lambda: len(g.results) >= 50)
    time.sleep(1.2)
    assert 50 <= len(g.results) <= 60 + 10 and g.service.left(g.names) >= 130
    seen = set()
    while len(seen) < 200:
        g.wait(lambda: g.results)
        seen |= {json.loads(r)["id"] for r in g.service.take(g.names)}
    assert seen == {f"r{i}" for i in range(200)}


def test_the_broker_is_killed_and_comes_back(group):
    g = group()
    rows = [(f"r{i}", i) for i in range(300)]
    g.put(rows[:200])
    p = g.begin(pause=.1)
    g.wait(lambda: g.results)
    g.service.kill()
    time.sleep(.5)
    g.service.start()
    g.put(rows[200:])
    g.wait(lambda: g.service.left(g.names) == 0)
    once(g, rows)
    p.send_signal(signal.SIGTERM)
    _, err = p.communicate(timeout=20)
    assert p.returncode == 0 and "trying again in 0.1 s" in err and "going on" in err


def run_until(g, answer, done):
    "One worker in this process, until something is true of the group."
    async def go():
        worker, stop = StreamWorker(create_broker(g.settings), answer, g.settings), asyncio.Event()
        running = asyncio.create_task(worker.run(stop))
        await asyncio.to_thread(g.wait, done, 30)
        stop.set()
        return await running
    return asyncio.run(go())


def test_a_log_that_cannot_be_written_refuses_nobody(group):
    g, rows, failures = group(max_deliveries=1, batch_size=5), [(f"r{i}", i) for i in range(12)], iter(range(5))
    async def answer(id, body):
        if id in ("r3", "r7") and next(failures, None) is not None: raise LogWriteError("The prediction log cannot be written")
        return msgspec.json.encode(dict(id=id, twice=2 * int(body)))
    g.put(rows)
    assert run_until(g, answer, lambda: len(g.results) == 12).dead_lettered == 0
    once(g, rows)
    assert next(failures, None) is None and not g.refused


def test_a_target_that_cannot_be_written_refuses_nobody(group):
    g, rows = group(max_deliveries=1), [("a", 1), ("b", 2)]
    if g.service.scheme != "redis": pytest.skip("NATS has streams only")
    g.put(rows)
    async def answer(id, body): return msgspec.json.encode(dict(id=id, twice=2 * int(body)))
    with g.service.client() as c:
        c.xadd(g.names["target"], {"last": 1}, id=f"{2**64 - 1}-{2**64 - 1}")  # no id is larger, so nothing can be added
        mend = iter([lambda: c.delete(g.names["target"])])
        start = time.monotonic()
        def mended():
            if time.monotonic() - start > 4: next(mend, lambda: None)()
            return time.monotonic() - start > 4 and g.service.left(g.names) == 0
        assert run_until(g, answer, mended).dead_lettered == 0
    once(g, rows)
    assert not g.refused


@pytest.mark.parametrize("kind", list(SERVICES))
def test_an_address_without_a_server_is_a_sentence_without_the_password(kind):
    url = f"{kind}://someone:secret@127.0.0.1:{free_port()}"
    settings = StreamSettings(url=url)
    async def start(): await StreamWorker(create_broker(settings), None, settings).run(asyncio.Event())
    with pytest.raises(UserError, match=r"cannot be used.*MLOPS_NB_STREAM_URL") as e: asyncio.run(start())
    assert "secret" not in str(e.value) and "\n" not in str(e.value)


def test_what_is_no_stream_is_a_sentence(service):
    if service.scheme != "redis": pytest.skip("NATS has streams only")
    with service.client() as c: c.set("text", "x")
    settings = StreamSettings(url=service.url, source="text")
    async def start(): await StreamWorker(create_broker(settings), None, settings).run(asyncio.Event())
    with pytest.raises(UserError, match="wrong kind of value"): asyncio.run(start())


def test_ids_never_share_a_subject():
    ids = ["a", "A", "a.b", "a b", "~", "~YQ", "YQ", "", "ä", "*", ">", "x" * 300, "a-b", "a_b"]
    subjects = [result_subject("t", i) for i in ids]
    assert len(set(subjects)) == len(ids)
    for s in subjects: assert s.count(".") == 1 and not set(s[2:]) & set(" *>.") and s != "t."




# --- the command

@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    place = tmp_path_factory.mktemp("bundles")
    return serving.bundle(place / "a", n=300), serving.bundle(place / "b", n=400)


def command(root, g):
    environ = {f"MLOPS_NB_STREAM_{n.upper()}": str(v) for n, v in msgspec.to_builtins(g.settings).items() if v != ""}
    return subprocess.Popen([sys.executable, "-c", "from mlops_nb.cli import main; main()", "stream"], cwd=root, text=True,
                            env={**os.environ, **environ}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_the_command_answers_as_the_bundle_and_follows_the_release(group, bundles, tmp_path):
    root, g = serving.project(tmp_path, made=bundles[0]), group()
    old, new = map(Predictor.open, bundles)
    rows = serving.instances(60, seed=3)
    g.put([(f"r{i}", row) for i, row in enumerate(rows[:30])] + [("bad", rows[0] | {"count": 10**6}), ("two", {"instances": rows[:2]})])
    for k in range(2):
        run = command(root, g)
        g.running.append(run)
        if k == 0:
            g.wait(lambda: g.results)
            run.kill()
    g.wait(lambda: g.service.left(g.names) == 0)
    assert "count" in g.refused["bad"] and len(g.refused) == 1
    place = store_bundle(bundles[1], root / "bundles")
    promote_bundle(plan_path(root, read_settings(root, {})), serving.ENDPOINT, place.name)
    probes = iter(range(30, 60))
    def probe(): g.put([(f"r{(i := next(probes))}", rows[i])])
    g.wait(lambda: any(r["bundle"] == new.id for r in g.results), meanwhile=probe)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=20)
    assert run.returncode == 0 and "messages answered, " in out, err
    found = {r["id"]: r for r in g.results}
    assert len(found) == len(g.results) and found["two"]["predictions"][1]["score"] == old.predict_one(rows[1])
    for i in range(30): assert found[f"r{i}"]["predictions"][0]["score"] == old.predict_one(rows[i])
    for id, r in found.items():
        if r["bundle"] == new.id: assert r["predictions"][0]["score"] == new.predict_one(rows[int(id[1:])])
    log = read_log(root / "predictions").select("id", "row", "bundle").collect()
    assert set(found) == set(log["id"]) and audit_log(root / "predictions").problems == []


def test_nothing_is_deployed(tmp_path, group):
    run = command(tmp_path, group())
    _, err = run.communicate(timeout=20)
    assert run.returncode == 1 and "No model is deployed" in err and "Traceback" not in err
