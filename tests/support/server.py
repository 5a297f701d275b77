"""A small model behind the real server: a bundle, a project that has deployed it, and the server as a process of its
own.

    @pytest.fixture(scope="module")
    def server(tmp_path_factory):
        with serving.Server(serving.project(tmp_path_factory.mktemp("served"))) as s: yield s

    status, headers, body = server.post("/v1/endpoints/rows:predict", {"instances": serving.instances(3)})
"""
import contextlib
import http.client
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import polars as pl

from mlops_nb.bundle.stage import pack_bundle
from mlops_nb.bundle.store import store_bundle
from mlops_nb.config.settings import read_settings
from mlops_nb.release.release_plan import plan_path, promote_bundle
from support import trained_project as modelling
from support.services import free_port

ENDPOINT = "rows"


def bundle(root, task="binary", n=500, **how):
    "The folder of a bundle; `root` is a new project that is trained for it."
    return pack_bundle(modelling.judged(modelling.trained(root, task, n=n, **how), task))


def project(root, task="binary", made=None, settings="", **how):
    """A folder as a deployment leaves it: settings, store and plan of the endpoint `rows`; `made` is a bundle that is
    there already."""
    made = made or bundle(root / "training", task, **how)
    (root / "settings.ini").write_text(f"[release]\nendpoint = {ENDPOINT}\n{settings}")
    place = store_bundle(made, root / "bundles")
    promote_bundle(plan_path(root, read_settings(root, {})), ENDPOINT, place.name)
    return root


def instances(n=1, seed=5, task="binary"):
    "Rows as a client sends them: JSON values by column, those of the model only."
    frame = modelling.rows(n, seed=seed, task=task).select("x", "count", "place", "known", "when")
    return frame.with_columns(pl.col("when").dt.strftime("%Y-%m-%dT%H:%M:%S"),
                              pl.col("place").replace({"?": None})).to_dicts()


PREDICT, EXPLAIN, FEEDBACK = (f"/v1/endpoints/{ENDPOINT}:{verb}" for verb in ("predict", "explain", "feedback"))
INFER = f"/v2/models/{ENDPOINT}/infer"


def tensors(rows):
    "The same rows as inputs of the Open Inference Protocol."
    kinds = {"x": "FP64", "count": "INT64", "known": "BOOL", "place": "BYTES", "when": "BYTES"}
    return [{"name": c, "datatype": kinds[c], "shape": [len(rows)], "data": [r[c] for r in rows]} for c in rows[0]]


class Server:
    """`mlops-nb serve` in `root`, on a free port of the loopback, until the `with` ends; environment variables as
    keywords."""
    def __init__(self, root, *options, wait=30, ready=True, first="", port=None, **environ):
        self.root, self.options, self.wait, self.ready, self.first = Path(root), options, wait, ready, first
        self.port = free_port() if port is None else port
        self.environ = {**os.environ, "MLOPS_NB_SERVE_WORKERS": "1", **{k: str(v) for k, v in environ.items()}}
        self.lines = []

    def __enter__(self):
        command = [sys.executable, "-c", f"{self.first}\nfrom mlops_nb.cli import main; main()", "serve", "--port",
                   str(self.port),
                   *map(str, self.options)]
        self.process = subprocess.Popen(command, cwd=self.root, env=self.environ, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT,
                                        text=True, start_new_session=True)
        self.reader = threading.Thread(target=lambda: self.lines.extend(iter(self.process.stdout.readline, "")),
                                       daemon=True)
        self.reader.start()
        try:
            if self.ready: self.until(lambda: any("http" in line for line in self.lines), "ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process.poll() is None: self.stop(signal.SIGTERM, wait=10, check=False)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # workers that are left
        self.process.wait(10)
        self.reader.join(10)

    def until(self, true, what, wait=None):
        "Wait, no longer than `wait` seconds, for something to be true."
        end = time.monotonic() + (wait or self.wait)
        while not true():
            assert self.process.poll() is None and time.monotonic() < end, f"not {what}:\n{self.output}"
            time.sleep(.02)

    @property
    def output(self): return "".join(self.lines)

    @property
    def workers(self):
        "The ids of the processes that answer."
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return [int(p) for c in children for p in c.read_text().split()]

    def stop(self, signal_=signal.SIGTERM, wait=20, check=True):
        "Stop it; gives the exit code."
        self.process.send_signal(signal_)
        try: self.process.wait(wait)
        except subprocess.TimeoutExpired:
            if check: raise
            self.process.kill()
        return self.process.wait(10)

    def connect(self, timeout=20): return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(self, method, path, body=None, headers=None, connection=None):
        "(status, headers in lower case, body); JSON is decoded, other bytes are given as they are."
        own = connection is None
        connection = connection or self.connect()
        try:
            connection.request(method, path, json.dumps(body) if isinstance(body, dict | list) else body, headers or {})
            reply = connection.getresponse()
            found, raw = {k.lower(): v for k, v in reply.getheaders()}, reply.read()
        finally:
            if own: connection.close()
        return reply.status, found, json.loads(raw) if found.get("content-type",
                                                                 "").startswith("application/json") else raw

    def post(self, path, body, headers=None, connection=None): return self.request("POST", path, body, headers,
                                                                                   connection)

    def get(self, path, headers=None): return self.request("GET", path, None, headers)

    def metric(self, name, **labels):
        "The sum of the samples of a metric that carry these labels."
        total = 0.0
        for line in self.get("/metrics")[2].decode().splitlines():
            m = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line)
            if not m or m[1] != name: continue
            if labels.items() <= dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', m[2] or "")).items():
                total += float(m[3])
        return total


class Load(threading.Thread):
    "A client that asks without a pause, one row at a time, on a connection that it makes anew when it breaks."
    def __init__(self, server, rows=None, path=f"/v1/endpoints/{ENDPOINT}:predict", n=None):
        super().__init__(daemon=True)
        self.server, self.path, self.most, self.halt = server, path, n, threading.Event()
        self.body = json.dumps({"instances": rows or instances(1)}).encode()
        self.answered, self.refused, self.broken = [], [], 0  # (id, sent, received, body), (status, body), connections

    def run(self):
        prefix, connection, n = secrets.token_hex(6), None, 0
        while not self.halt.is_set() and (self.most is None or len(self.answered) < self.most):
            try:
                connection = connection or socket.create_connection(("127.0.0.1", self.server.port), timeout=20)
                id, sent, n = f"{prefix}-{n}", time.time(), n + 1
                connection.sendall(b"POST %s HTTP/1.1\r\nhost: localhost\r\nx-request-id: %s\r\ncontent-length: "
                                   b"%d\r\n\r\n%s" % (
                    self.path.encode(), id.encode(), len(self.body), self.body))
                status, body = receive(connection)
                if status == 200: self.answered.append((id, sent, time.time(), body))
                else: self.refused.append((status, body))
            except OSError:
                self.broken += 1
                if connection: connection.close()
                connection = None
                time.sleep(.01)
        if connection: connection.close()


def receive(connection):
    "The status and the body of one reply; `OSError` if the connection ends before."
    found = b""
    while b"\r\n\r\n" not in found:
        if not (more := connection.recv(65536)): raise ConnectionResetError
        found += more
    head, body = found.split(b"\r\n\r\n", 1)
    size = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
    while len(body) < size:
        if not (more := connection.recv(65536)): raise ConnectionResetError
        body += more
    return int(head.split()[1]), body


@contextlib.contextmanager
def load(server, clients=4, **how):
    "Clients that ask all the time; a list of them, which can be read when the `with` has ended."
    found = [Load(server, **how) for _ in range(clients)]
    for c in found: c.start()
    try: yield found
    finally:
        for c in found: c.halt.set()
        for c in found: c.join(30)


def logged(root):
    "The ids of all records in the segments of the prediction log, each as often as it is there."
    lines = [line for p in sorted((Path(root) / "predictions/segments").glob("*.jsonl"))
             for line in p.read_bytes().split(b"\n")[:-1]]
    return [r["id"] for r in map(json.loads, lines) if r["kind"] == "record"]
