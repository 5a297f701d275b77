"""Redis, NATS, Prometheus and Alertmanager as the tests need them: on the loopback, on a free port, in a folder of
their own, killed and started again."""
import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Service:
    "A server program; what it has written survives `kill` and `start`."
    program, scheme = "", ""

    def __init__(self):
        self.path = shutil.which(self.program, path=os.environ["PATH"] + ":/usr/sbin")
        if not self.path: pytest.skip(f"{self.program} is not installed (Debian: apt-get install {self.program})")
        self.home, self.port, self.process = tempfile.mkdtemp(prefix=f"mlops-nb-{self.program}-"), free_port(), None
        self.url = f"{self.scheme}://127.0.0.1:{self.port}"

    def start(self):
        self.process = subprocess.Popen([self.path, *self.options()], stdout=subprocess.DEVNULL,
                                        stderr=subprocess.DEVNULL)
        for _ in range(400):
            assert self.process.poll() is None, f"{self.program} ended with {self.process.returncode}"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as s:
                s.settimeout(5)
                if self.greets(s): return self
            time.sleep(.05)
        raise AssertionError(f"{self.program} does not answer")

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def __enter__(self): return self.start()

    def __exit__(self, *_):
        self.kill()
        shutil.rmtree(self.home, ignore_errors=True)


class RedisService(Service):
    program, scheme = "redis-server", "redis"

    def options(self):
        return ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.home, "--save", "", "--appendonly",
                "yes",
                "--appendfsync", "no"]  # a kill takes nothing that was written, only a loss of power would

    def greets(self, s):
        s.sendall(b"PING\r\n")
        return s.recv(64) == b"+PONG\r\n"

    def client(self):
        import redis
        return redis.Redis(port=self.port)

    def put(self, names, messages):
        with self.client() as c:
            pipe = c.pipeline()
            for id, body in messages: pipe.xadd(names["source"], {"id": id, "data": body} if id else {"data": body})
            pipe.execute()

    def _all(self, stream):
        with self.client() as c: return [fields for _, fields in c.xrange(stream)]

    def results(self, names): return [f[b"data"] for f in self._all(names["target"])]

    def refused(self, names): return [(f[b"id"].decode(),
                                       f[b"reason"].decode()) for f in self._all(names["dead_letter"])]

    def take(self, names):
        "The results that are there now; those, and none that come meanwhile, are there no more."
        with self.client() as c:
            entries = c.xrange(names["target"])
            if entries: c.xdel(names["target"], *(entry for entry, _ in entries))
        return [f[b"data"] for _, f in entries]

    def left(self, names):
        "Messages that nobody has answered."
        with self.client() as c:
            groups = c.xinfo_groups(names["source"])
            if not groups: return float("inf")  # nobody has begun
            return groups[0]["pending"] + len(c.xrange(names["source"], b"(" + groups[0]["last-delivered-id"]))


class NatsService(Service):
    program, scheme = "nats-server", "nats"

    def options(self): return ["-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", self.home]

    def greets(self, s): return s.recv(4096).startswith(b"INFO")

    def _do(self, what):
        async def go():
            import nats
            client = await nats.connect(self.url)
            try: return await what(client.jetstream(timeout=20))
            finally: await client.close()
        return asyncio.run(asyncio.wait_for(go(), 60))

    def put(self, names, messages):
        async def put(js):
            from nats.js.errors import NotFoundError
            try: await js.stream_info(names["source"])
            except NotFoundError:
                await js.add_stream(name=names["source"], subjects=[names["source"]], duplicate_window=0.2)
            for i in range(0, len(messages), 200):
                await asyncio.gather(*(js.publish(names["source"], body if isinstance(body, bytes) else body.encode(),
                                                  headers={"Nats-Msg-Id": id} if id else None) for id,
                                                  body in messages[i:i + 200]))
        self._do(put)

    def _all(self, stream, take=False):
        async def read(js):
            from nats.js.errors import NotFoundError
            try: state = (await js.stream_info(stream)).state
            except NotFoundError: return []
            if not state.messages: return []
            taker, found = await js.pull_subscribe(f"{stream}.>", stream=stream), {}
            while len(found) < state.messages: # on a busy machine some are delivered again, since nobody acknowledges
                some = await taker.fetch(min(500, state.messages - len(found)), timeout=10)
                found |= {m.metadata.sequence.stream: m.data for m in some}
            if take: await js.purge_stream(stream, seq=max(found) + 1)  # what came later stays
            return [*found.values()]
        return self._do(read)

    def results(self, names): return self._all(names["target"])

    def take(self, names): return self._all(names["target"], take=True)

    def refused(self, names):
        import json
        return [(m["id"], m["reason"]) for m in map(json.loads, self._all(names["dead_letter"]))]

    def left(self, names):
        async def count(js):
            from nats.js.errors import NotFoundError
            try: info = await js.consumer_info(names["source"], names["group"])
            except NotFoundError: return float("inf")  # nobody has begun
            return info.num_pending + info.num_ack_pending
        return self._do(count)


class HttpService(Service):
    "A service that says by HTTP when it is ready."
    scheme = "http"

    def greets(self, s):
        s.sendall(b"GET /-/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
        return b" 200 " in s.recv(64)

    def get(self, path, body=None):
        "The JSON of an answer; a body is posted as JSON."
        data, headers = None if body is None else json.dumps(body).encode(), {"content-type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        with urllib.request.urlopen(request, timeout=10) as reply:
            text = reply.read()
        return json.loads(text) if text else None


class PrometheusService(HttpService):
    """Prometheus that scrapes `targets` ({job: port}) again and again, with the rules of some files; `alertmanager` is
    the port of one."""
    program = "prometheus"

    def __init__(self, targets, rules=(), every="200ms", alertmanager=None):
        super().__init__()
        jobs = [{"job_name": job, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                for job, port in targets.items()]
        config = {"global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
                  "rule_files": [str(r) for r in rules], "scrape_configs": jobs}
        if alertmanager:
            managers = [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager}"]}]}]
            config["alerting"] = {"alertmanagers": managers}
        Path(self.home, "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML

    def options(self):
        return [f"--config.file={self.home}/prometheus.yml", f"--storage.tsdb.path={self.home}/data",
                f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=error"]

    def query(self, promql, **at):
        "{labels: value} of an instant query, at `time` or now; labels as a frozenset of pairs."
        found = self.get("/api/v1/query?" + urllib.parse.urlencode({"query": promql, **at}))["data"]["result"]
        return {frozenset(r["metric"].items()): float(r["value"][1]) for r in found}

    def alerts(self):
        "The labels of the alerts that fire."
        return [a["labels"] for a in self.get("/api/v1/alerts")["data"]["alerts"] if a["state"] == "firing"]


class AlertmanagerService(HttpService):
    "Alertmanager that groups by SLO and sends to `webhook`, where that is an address."
    program = "prometheus-alertmanager"

    def __init__(self, webhook=""):
        super().__init__()
        receiver = {"name": "all"} | ({"webhook_configs": [{"url": webhook}]} if webhook else {})
        route = {"receiver": "all", "group_by": ["sloth_service", "severity"], "group_wait": "0s",
                 "group_interval": "1s", "repeat_interval": "1h"}
        Path(self.home, "alertmanager.yml").write_text(json.dumps({"route": route, "receivers": [receiver]}))

    def options(self):
        return [f"--config.file={self.home}/alertmanager.yml", f"--storage.path={self.home}/data",
                f"--web.listen-address=127.0.0.1:{self.port}", "--cluster.listen-address=", "--log.level=error"]
