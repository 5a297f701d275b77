"A PostgreSQL server on the loopback, which can be stopped and started again."
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace


def postgres_programs():
    "The folder of PostgreSQL's programs, or None; Debian keeps initdb off the PATH."
    found = shutil.which("initdb")
    if found: return Path(found).parent
    return next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)


@contextmanager
def postgres_server(programs):
    "Yields `.url` (without password), `.password`, `.stop()` and `.start()`."
    home = Path(tempfile.mkdtemp(prefix="mlops-nb-postgres-"))
    as_user = {}
    if os.getuid() == 0: # initdb refuses to run as root
        as_user = dict(user="postgres", group="postgres", extra_groups=[])
        shutil.chown(home, "postgres", "postgres")
    def run(program, *args):
        done = subprocess.run([programs / program, "-D", home / "db", *args], cwd=home, stdout=subprocess.DEVNULL,
                              stderr=subprocess.PIPE,
                              text=True, timeout=60, **as_user)
        assert done.returncode == 0, f"{program}: {done.stderr}"
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    password = secrets.token_hex(8)
    (home / "password").write_text(password)
    (home / "password").chmod(0o644)
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
    def start(): run("pg_ctl", "-w", "-l", home / "log", "-o", options, "start")
    def stop(): run("pg_ctl", "-m", "immediate", "stop")
    try:
        run("initdb", "-U", "tester", f"--pwfile={home / 'password'}", "-A", "scram-sha-256", "--no-sync", "--locale=C",
            "-E", "UTF8")
        start()
        try: yield SimpleNamespace(url=f"postgresql://tester@127.0.0.1:{port}/postgres", password=password, start=start,
                                   stop=stop)
        finally: stop()
    finally: shutil.rmtree(home, ignore_errors=True)


def new_database(server, name):
    "The URL of a database of its own; PGPASSWORD is in the environment."
    import psycopg
    with psycopg.connect(server.url, autocommit=True) as db: db.execute(f"CREATE DATABASE {name}")
    return f"{server.url.rpartition('/')[0]}/{name}"
