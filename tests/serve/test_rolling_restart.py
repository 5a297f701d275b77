"""Two servers behind HAProxy, restarted in turn while clients with kept connections ask: no request fails.

    MLOPS_NB_TEST_MANY=1 python -m pytest tests/serve/test_rolling_restart.py    # 100,000 requests
"""
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from support import server as serving
from support.services import free_port

REQUESTS = 100_000 if os.environ.get("MLOPS_NB_TEST_MANY") else 0

# Probes ask for one model, and only an answer counts against a server, not its slowness. A request is sent again only
# if no connection was made, when nothing of it was sent.
CONFIGURATION = """
global
    stats socket {folder}/stats level admin
defaults
    mode http
    timeout connect 20s
    timeout client 60s
    timeout server 60s
    timeout check 60s
    retries 3
    option redispatch
frontend models
    bind 127.0.0.1:{port}
    default_backend servers
backend servers
    option httpchk GET /v2/models/rows/ready
    http-check send hdr host localhost
    http-check expect status 200
    default-server check inter 1s fall 1 rise 1
    server one 127.0.0.1:{one}
    server two 127.0.0.1:{two}
"""


class Balancer:
    "HAProxy in front of two servers; `state(name)` is what it says of one of them, such as `UP` or `DOWN`."
    def __init__(self, folder, one, two):
        self.folder, self.port = folder, free_port()
        (folder / "haproxy.cfg").write_text(CONFIGURATION.format(folder=folder, port=self.port, one=one, two=two))

    def __enter__(self):
        command = [shutil.which("haproxy"), "-db", "-f", "haproxy.cfg"]
        self.process = subprocess.Popen(command, cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try: until(lambda: self.state("one") == self.state("two") == "UP", "both are up")
        except BaseException: self.__exit__(); raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)

    def state(self, name): return self.row(name).get("status", "").split(" ")[0]

    def row(self, name):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as s:
            s.connect(str(self.folder / "stats"))
            s.sendall(b"show stat\n")
            head, *rows = s.makefile().read().lstrip("# ").splitlines()
            found = [dict(zip(head.split(","), r.split(","), strict=False)) for r in rows]
            return next(r for r in found if (r.get("pxname"), r.get("svname")) == ("servers", name))
        return {}


def until(true, what, wait=60):
    end = time.monotonic() + wait
    while not true():
        assert time.monotonic() < end, f"not: {what}"
        time.sleep(.01)


def started(stack, root, port):
    "It drains until it is told a second time, so that nothing here depends on how fast HAProxy notices."
    return stack.enter_context(serving.Server(root, port=port, wait=60, MLOPS_NB_SERVE_DRAIN_SECONDS=600))


def answered(clients): return sum(len(c.answered) for c in clients)


@pytest.mark.skipif(not shutil.which("haproxy"), reason="haproxy is not installed")
def test_a_rolling_restart_behind_a_proxy_fails_no_request(bundle, tmp_path):
    roots = {name: tmp_path / name for name in ("one", "two")}
    for root in roots.values(): root.mkdir(); serving.project(root, made=bundle)
    with contextlib.ExitStack() as stack:
        servers = {name: started(stack, root, free_port()) for name, root in roots.items()}
        balancer = stack.enter_context(Balancer(tmp_path, *(s.port for s in servers.values())))
        with serving.load(SimpleNamespace(port=balancer.port), 4 if REQUESTS else 2) as clients:
            while True:
                for name, s in servers.items():
                    before = answered(clients)
                    s.process.send_signal(signal.SIGTERM)
                    until(lambda name=name: balancer.state(name) == "DOWN", f"{name} takes nothing more")
                    until(lambda name=name: balancer.row(name)["scur"] == "0", f"{name} has answered all it was sent")
                    assert s.stop() == 0
                    servers[name] = started(stack, roots[name], s.port)
                    until(lambda name=name: balancer.state(name) == "UP", f"{name} is back")
                    until(lambda n=before: answered(clients) > n + REQUESTS / 20 + 100, "more answers", 600)
                if answered(clients) >= REQUESTS: break
    assert not sum(c.broken for c in clients) and not [r for c in clients for r in c.refused][:3]
    ids = [a[0] for c in clients for a in c.answered]
    logged = Counter(id for root in roots.values() for id in serving.logged(root))
    assert len(ids) >= REQUESTS and {logged[i] for i in ids} == {1}, "each answer is on record once"
    assert all(len(serving.logged(root)) > 100 for root in roots.values()), "both have answered"
