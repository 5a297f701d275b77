"The port of probes and metrics, from outside: the answers of the main port, whatever happens to the main port."
import contextlib
import http.client
import json
import os
import signal
import socket
import time

import pytest
from support import server as serving
from support.services import free_port

from mlops_nb.config.api_keys import create_api_key
from mlops_nb.serve.admin_listener import WorkerReport, WorkerReports, send_report
from mlops_nb.serve.auth import read_key_use

READY, MODEL_READY = "/v2/health/ready", f"/v2/models/{serving.ENDPOINT}/ready"


def ask(port, path, method="GET", **headers):
    "(status, body) of the admin listener."
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as c:
        c.request(method, path, headers=headers)
        reply = c.getresponse()
        return reply.status, reply.read()


@pytest.fixture
def project(bundle, tmp_path): return serving.project(tmp_path, made=bundle)


@contextlib.contextmanager
def server(project, **environ):
    port = free_port()
    with serving.Server(project, MLOPS_NB_SERVE_ADMIN_PORT=port, **environ) as s:
        s.until(lambda: ask(port, READY)[0] == 200, "ready", 60)
        yield s, port


def test_no_load_on_the_main_port_keeps_probes_waiting(project):
    "All places are taken by unfinished requests; and then the only worker is stopped."
    limits = dict(MLOPS_NB_SERVE_MAX_CONNECTIONS=8, MLOPS_NB_SERVE_MAX_CONNECTIONS_PER_CLIENT=1000,
                  MLOPS_NB_SERVE_READ_TIMEOUT_SECONDS=600)
    with server(project, **limits) as (s, port), contextlib.ExitStack() as stack:
        assert s.post(serving.PREDICT, serving.instances(3))[0] == 200
        for path in ("/health", "/v2/health/live", READY, MODEL_READY):
            assert (s.request("GET", path)[0], json.dumps(s.get(path)[2])) == (
                200, json.dumps(json.loads(ask(port, path)[1])))
            assert ask(port, path, "HEAD") == (200, b"")
        for _ in range(20):
            held = stack.enter_context(socket.create_connection(("127.0.0.1", s.port), timeout=60))
            held.sendall(b"GET / HT")
        with pytest.raises(OSError): s.request("GET", "/health", None, None, s.connect(timeout=1))
        assert [ask(port, path)[0] for path in ("/health", READY, MODEL_READY)] == [200] * 3
        assert b"mlops_nb_answered_rows_total 3.0" in ask(port, "/metrics")[1]
        for path, status in (("/docs", 404), ("/v2/models/none/ready", 404)): assert ask(port, path)[0] == status
        assert ask(port, "/health", "POST")[0] == 405 and ask(port, "/health", host="evil.example")[0] == 421
        [worker] = [p for p in s.workers if serves(p, s.port)]
        os.kill(worker, signal.SIGSTOP) # a worker that hangs is not ready
        s.until(lambda: ask(port, READY)[0] == 503, "not ready", 60)
        assert ask(port, MODEL_READY)[0] == 404 and ask(port, "/metrics")[0] == 200
        os.kill(worker, signal.SIGCONT)
        s.until(lambda: ask(port, READY)[0] == 200, "ready again", 60)
        assert "Traceback" not in s.output


def test_it_outlives_its_process_and_says_that_the_server_stops(project):
    with server(project, MLOPS_NB_SERVE_WORKERS=2, MLOPS_NB_SERVE_DRAIN_SECONDS=600) as (s, port):
        [admin] = [p for p in s.workers if not serves(p, s.port)]
        os.kill(admin, signal.SIGKILL)
        s.until(lambda: admin not in s.workers and ask(port, READY)[0] == 200, "answering again", 60)
        s.process.send_signal(signal.SIGTERM)
        s.until(lambda: ask(port, READY)[0] == 503 and ask(port, MODEL_READY)[0] == 503, "draining", 60)
        assert ask(port, "/health")[0] == 200
        s.process.send_signal(signal.SIGTERM)
        assert s.process.wait(30) == 0
        end = time.monotonic() + 60
        while not refused(port) and time.monotonic() < end: time.sleep(.05)
        assert refused(port) and "Traceback" not in s.output


def refused(port):
    try: socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError: return True
    return False


def serves(pid, port):
    "Does a process listen at the port?"
    listening = {line.split()[9] for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}").readlines()[1:]
                 if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError): # closed in this moment
            if os.readlink(f"/proc/{pid}/fd/{fd}") in {f"socket:[{i}]" for i in listening}: return True
    return False


def test_keys_are_asked_for_as_at_the_main_port_and_what_is_no_probe_is_closed(project):
    key = create_api_key(project / ".mlops/keys.json", "prometheus", ["read"])
    with server(project, MLOPS_NB_SERVE_AUTH="api_key") as (s, port):
        assert ask(port, "/health")[0] == 200
        for path in ("/metrics", MODEL_READY):
            assert ask(port, path)[0] == s.get(path)[0] == 401
            assert ask(port, path, authorization=f"Bearer {key}")[0] == 200
        for sent in (b"\x16\x03\x01\r\n\r\n", b"GET /health\r\n\r\n", b"GET /" + b"a" * 20_000):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as c, contextlib.suppress(OSError):
                c.sendall(sent)
                assert c.recv(100) == b""
        lines = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(60)] # more than it holds
        s.until(lambda: answers(port), "answering when the others were closed", 60)
        for line in lines: line.close()
        assert "Traceback" not in s.output
        taken = serving.Server(project, ready=False, MLOPS_NB_SERVE_ADMIN_PORT=port)
        with taken: assert taken.process.wait(30) == 1
        assert f"127.0.0.1:{port} cannot be listened on" in taken.output
    assert [*read_key_use(project / "predictions")] == [key.split(".")[0]] # a key used here alone is used


def answers(port):
    try: return ask(port, "/health")[0] == 200
    except (OSError, http.client.HTTPException): return False


def test_reports_are_never_waited_for():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        for _ in range(5000): send_report(theirs, True, {"rows": True})
    reports = WorkerReports()
    reports.add(WorkerReport(os.getpid(), True, {"rows": True}, 0.))
    gone = 2**22 + 1 # no process has this number
    reports.add(WorkerReport(gone, False, {"rows": False}, 0.))
    assert reports.is_ready(1.) and reports.endpoints(1.) == {"rows": True}
    assert [(reports.is_ready(t), reports.is_live(t)) for t in (4., 6., 11.)] == [(True, True), (False, True),
                                                                                 (False, False)]
