"Whoever receives alerts: a mail server and a webhook on the loopback, each as broken as a test wants it."
import socketserver
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Smtp(socketserver.StreamRequestHandler):
    def say(self, text): self.wfile.write(f"{text}\r\n".encode())

    def handle(self):
        s = self.server
        if s.hangs:
            s.ended.wait(30)
            return
        self.say("220 here")
        while line := self.rfile.readline().decode().strip():
            verb = line.split()[0].upper().split(":")[0]
            if verb == "DATA":
                self.say("354 go on")
                lines = []
                while (part := self.rfile.readline()) not in (b".\r\n", b""): lines.append(part.removeprefix(b"."))
                s.mails.append(b"".join(lines))
            self.say(s.answers.get(verb, "250 fine"))
            if verb == "QUIT": return


@contextmanager
def mail_server(hangs=False, **answers):
    "A server that speaks SMTP; `answers` has what it says to a verb, such as RCPT='550 unknown'."
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Smtp) as server:
        server.daemon_threads, server.hangs, server.answers, server.mails = True, hangs, answers, []
        server.ended = threading.Event()
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
        try: yield server
        finally:
            server.ended.set()
            server.shutdown()


class _Hook(BaseHTTPRequestHandler):
    def log_message(self, *_): pass

    def do_POST(self):
        s = self.server
        s.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        code = s.codes[min(len(s.bodies), len(s.codes)) - 1]
        if code == "drips":  # a letter now and then, without an end
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not s.ended.is_set():
                self.wfile.write(b".")
                time.sleep(.05)
            return
        self.send_response(code)
        if code in (301, 302, 307): self.send_header("Location", s.redirect)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def webhook(*codes, redirect=""):
    "A server that answers with these codes in turn, the last one from then on."
    with ThreadingHTTPServer(("127.0.0.1", 0), _Hook) as server:
        server.daemon_threads, server.codes, server.bodies, server.redirect = True, codes, [], redirect
        server.ended, server.url = threading.Event(), f"http://127.0.0.1:{server.server_port}/hooks/s3cret-token"
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.02), daemon=True).start()
        try: yield server
        finally:
            server.ended.set()
            server.shutdown()
