"Connections that hold a server up, seen from outside: unfinished headers, too many of one client, too few open files."
import contextlib
import resource
import socket
import subprocess
import sys

import pytest
from support import server as serving

from mlops_nb.core.errors import UserError
from mlops_nb.serve.connection_limits import ConnectionLimits, fit_to_open_files

linux = pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell when data came and went")


@pytest.fixture
def project(bundle, tmp_path): return serving.project(tmp_path, made=bundle)


def closed(s, reason): return s.metric("mlops_nb_closed_connections_total", reason=reason)


def is_open(connection):
    connection.setblocking(False)
    try: return connection.recv(1) != b""
    except BlockingIOError: return True
    except OSError: return False


class IdleHTTP2:
    "A client of HTTP/2 without a request, which answers pings as every client does."
    def __init__(self, port):
        self.socket, self.read, self.pings = socket.create_connection(("127.0.0.1", port)), b"", 0
        self.socket.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + self.frame(4, 0))
        self.socket.setblocking(False)

    def frame(self, kind, flags, content=b""):
        return len(content).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 0]) + content

    def is_open(self):
        try:
            while more := self.socket.recv(4096): self.read += more
            return False
        except BlockingIOError: pass
        except OSError: return False
        while len(self.read) >= 9 and len(self.read) >= 9 + (n := int.from_bytes(self.read[:3], "big")):
            kind, flags, content, self.read = self.read[3], self.read[4], self.read[9:9 + n], self.read[9 + n:]
            if kind == 4 and not flags: self.socket.sendall(self.frame(4, 1))
            if kind == 6 and not flags: self.socket.sendall(self.frame(6, 1, content)); self.pings += 1
        return True


@linux
def test_unfinished_headers_end_and_idle_connections_stay(project):
    "Whoever sends nothing, a part, or a byte now and then is closed; who had an answer may wait; so may a slow answer."
    with serving.Server(project, MLOPS_NB_SERVE_READ_TIMEOUT_SECONDS=2) as s, contextlib.ExitStack() as stack:
        kept, idle = s.connect(), IdleHTTP2(s.port)
        stack.enter_context(idle.socket)
        assert s.post(serving.PREDICT, serving.instances(1), {}, kept)[0] == 200
        silent, partial, drip = (stack.enter_context(socket.create_connection(("127.0.0.1", s.port)))
                                 for _ in range(3))
        partial.sendall(b"POST /health HTTP/1.1\r\nhost: localhost\r\n")
        after_answer = s.connect() # it had an answer before it began the request that it does not end
        assert s.request("GET", "/health", None, None, after_answer)[0] == 200
        slow = [silent, partial, drip, after_answer.sock]

        def all_ended():
            for line in (drip, after_answer.sock):
                with contextlib.suppress(OSError): line.sendall(b"G")
            return idle.is_open() and not any(map(is_open, slow))
        s.until(all_ended, "closed")
        assert closed(s, "headers") == 4
        s.until(lambda: idle.is_open() and idle.pings > 6, "longer idle than headers may take") # 3 pings in that time
        assert s.post(serving.PREDICT, serving.instances(1), {}, kept)[0] == 200, "on the same connection"
        assert s.metric("mlops_nb_requests_total", route="predict", status="200") == 2
        assert "Traceback" not in s.output


@linux
def test_one_client_with_many_unfinished_headers_stops_nobody(project):
    "All places of the server are taken by one client; another is answered, and so is the first on a connection in use."
    with (serving.Server(project, MLOPS_NB_SERVE_MAX_CONNECTIONS=40, MLOPS_NB_SERVE_READ_TIMEOUT_SECONDS=600) as s,
          contextlib.ExitStack() as stack):
        kept = s.connect()
        assert s.post(serving.PREDICT, serving.instances(1), {}, kept)[0] == 200
        for _ in range(120):
            with contextlib.suppress(OSError):
                held = stack.enter_context(socket.create_connection(("127.0.0.1", s.port), timeout=60))
                held.sendall(b"GET / HT")
        other = socket.create_connection(("127.0.0.1", s.port), timeout=60, source_address=("127.0.0.2", 0))
        stack.enter_context(other).sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert serving.receive(other)[0] == 200
        assert closed(s, "client") >= 120 - 40 and closed(s, "headers") == 0
        assert s.output.count("127.0.0.1 has more than 20 connections to one process") == 1
        assert "Traceback" not in s.output


def test_few_open_files_are_few_connections(project):
    "A hundred clients where a process may have 64 files: the server says so, and answers them one after the other."
    few = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))"
    with serving.Server(project, first=few, MLOPS_NB_SERVE_BEHIND_PROXY="true") as s:
        assert s.output.count("may have 64 files open (ulimit -n), so each worker takes 15 connections at once") == 1
        lines = [socket.create_connection(("127.0.0.1", s.port), timeout=60) for _ in range(100)]
        for line in lines: line.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        assert {serving.receive(line)[0] for line in lines} == {200}
        for line in lines: line.close()
        assert s.post(serving.PREDICT, serving.instances(1))[0] == 200
        assert closed(s, "client") == 0, "a proxy may have all"
        assert "Traceback" not in s.output and len(s.lines) < 10, s.output


def test_the_limit_of_open_files_is_raised_as_far_as_it_goes():
    code = ("import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 500))\n"
            "from mlops_nb.serve.connection_limits import fit_to_open_files\n"
            "print(fit_to_open_files(100, 1), resource.getrlimit(resource.RLIMIT_NOFILE))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "100 (500, 500)\n" and not done.stderr
    for workers, most in (1, 49), (4, 64):
        with pytest.raises(UserError, match="raise the limit"): fit_to_open_files(1024, workers, most)
    assert fit_to_open_files(1024, 4, resource.RLIM_INFINITY) == 1024


@linux
def test_a_busy_connection_is_never_closed_and_other_ports_are_not_looked_at():
    with contextlib.ExitStack() as stack:
        listener, elsewhere = (stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2))
        client, other = (stack.enter_context(socket.create_connection(x.getsockname())) for x in (listener, elsewhere))
        served, _ = listener.accept(), elsewhere.accept()
        stack.enter_context(served[0])
        limits = ConnectionLimits(listener.getsockname()[1], 10, 1)
        busy = {client.getsockname()[1]}
        assert [limits.check(busy, now=t) for t in (0., 99.)] == [{"headers": 0, "client": 0}] * 2
        assert len(limits.connections) == 1
        assert limits.check(set(), now=100.)["headers"] == 1 and not is_open(client) and is_open(other)
        other.close()
