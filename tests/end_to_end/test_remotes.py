"DVC remotes over S3 and SSH: push, clone and pull, against real servers on this machine; `make test-remotes` runs it."
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from support.services import free_port
from support.shop_project import ENV, nb, run, shop

from mlops_nb.core.manifest import file_hashes

OUTER = Path(sys.prefix)
REMOTES = OUTER / "remotes"  # an environment of its own: the extras of remotes are no part of this one
pytestmark = pytest.mark.skipif("TEST_REMOTES" not in os.environ,
                                reason="`make test-remotes` runs it, in an environment with the extras of remotes")
KEYS = {"AWS_ACCESS_KEY_ID": "tester", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
SSH_SERVER = """
import asyncio, asyncssh, sys

class Server(asyncssh.SSHServer):
    def begin_auth(self, user): return True
    def password_auth_supported(self): return True
    def validate_password(self, user, password): return (user, password) == ("tester", "secret")

async def serve():
    key = asyncssh.generate_private_key("ssh-ed25519")
    server = await asyncssh.create_server(Server, "127.0.0.1", 0, server_host_keys=[key], sftp_factory=True)
    print(server.get_port(), flush=True)
    await asyncio.Event().wait()

asyncio.run(serve())
"""


def inside(*words, cwd, **env):
    "A command of Python in the environment of remotes, to its end; gives what it printed."
    ended = run(REMOTES / "bin/python", *words, cwd=cwd, env=env)
    assert ended.returncode == 0, (words, ended.stdout, ended.stderr)
    return ended.stdout


@contextlib.contextmanager
def running(*command, **kw):
    "A server, until the block ends."
    process = subprocess.Popen([str(c) for c in command], env=ENV, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                               text=True, **kw)
    try: yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)
        process.stdout.close()


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A new project: its data is in DVC's cache, and no remote has it."
    root = tmp_path_factory.mktemp("remotes") / "corner"
    (root.parent / "shop.csv").write_text(shop(200), encoding="utf-8")
    made = nb("init", root, "--data", root.parent / "shop.csv", "--target", "bought", cwd=root.parent)
    assert made.returncode == 0 and "Nothing was committed" not in made.stderr, made.stderr
    return root


def pushed_and_pulled(project, place, settings, local=(), **env):
    "Whether a clone gets the data that was pushed; a clone has what is committed, and secrets are not."
    def dvc(*words, cwd): return inside("-m", "dvc", *words, cwd=cwd, **env)
    author, clone = place / "author", place / "clone"
    for source, copy in ((project, author), (author, clone)):
        assert run("git", "clone", "-q", source, copy, cwd=place).returncode == 0
        if copy == author:
            dvc("cache", "dir", "-q", "--local", project / ".dvc/cache", cwd=author)
            for name, value in settings.items(): dvc(*name.split(), value, cwd=author)
            assert run("git", "commit", "-qam", "a remote", cwd=author).returncode == 0
        for name, value in dict(local).items(): dvc("remote", "modify", "--local", "storage", name, value, cwd=copy)
        dvc("push" if copy == author else "pull", "data", cwd=copy)
    committed = b"".join((clone / name).read_bytes() for name in (".dvc/config", "data.dvc"))
    assert b"secret" not in committed
    return file_hashes(clone / "data") == file_hashes(project / "data")


def wait_for_s3(process, url, cwd):
    "Make a bucket as soon as the server takes it."
    make = ("import botocore.session, sys; "
            "s3 = botocore.session.get_session().create_client('s3', endpoint_url=sys.argv[1]); "
            "s3.create_bucket(Bucket='models')")
    for _ in range(60):
        assert process.poll() is None, process.stdout.read()
        if not (ended := run(REMOTES / "bin/python", "-c", make, url, cwd=cwd, env=KEYS)).returncode: return
        time.sleep(.5)
    raise AssertionError(ended.stderr)


def test_push_clone_and_pull_over_s3(project, tmp_path):
    names = ["s3.port", "s3.port.grpc", "filer.port", "filer.port.grpc", "master.port", "master.port.grpc",
             "volume.port", "volume.port.grpc"]
    ports = {name: free_port() for name in names} | {"s3.port.iceberg": 0, "s3.port.lance": 0}
    keys = [dict(accessKey=KEYS["AWS_ACCESS_KEY_ID"], secretKey=KEYS["AWS_SECRET_ACCESS_KEY"])]
    identity = dict(name="tester", credentials=keys, actions=["Admin"])
    (tmp_path / "s3.json").write_text(json.dumps(dict(identities=[identity])))
    with tempfile.TemporaryDirectory(prefix="mlops-nb-s3-") as home, running(
            REMOTES / "bin/weed", "server", f"-dir={home}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", "-filer",
            f"-s3.config={tmp_path / 's3.json'}", *(f"-{k}={v}" for k, v in ports.items())) as server:
        url = f"http://127.0.0.1:{ports['s3.port']}"
        wait_for_s3(server, url, tmp_path)
        settings = {"remote add --default storage": "s3://models/corner", "remote modify storage endpointurl": url}
        assert pushed_and_pulled(project, tmp_path, settings, **KEYS)
        shutil.rmtree(tmp_path / "clone/.dvc/cache")
        shutil.rmtree(tmp_path / "clone/data")
        wrong = run(REMOTES / "bin/python", "-m", "dvc", "pull", "data", cwd=tmp_path / "clone",
                    env=KEYS | {"AWS_SECRET_ACCESS_KEY": "another"})
        assert wrong.returncode and "Forbidden" in wrong.stderr


def test_push_clone_and_pull_over_ssh(project, tmp_path):
    (tmp_path / "storage").mkdir()
    with running(sys.executable, "-c", SSH_SERVER) as server:
        url = f"ssh://tester@127.0.0.1:{int(server.stdout.readline())}{tmp_path / 'storage'}"
        settings = {"remote add --default storage": url}
        assert pushed_and_pulled(project, tmp_path, settings, {"password": "secret"})
        assert any((tmp_path / "storage").rglob("*.dir"))


def test_the_extras_fit_beside_the_pins():
    "Nothing that the outer environment holds was replaced, and nothing is broken."
    own = {p.name.split("-")[0].lower() for p in REMOTES.glob("lib/python*/site-packages/*.dist-info")}
    outer = {p.name.split("-")[0].lower() for p in OUTER.glob("lib/python*/site-packages/*.dist-info")}
    assert {"dvc_s3", "dvc_ssh", "botocore"} <= own and not own & outer
    inside("-m", "pip", "check", cwd=REMOTES)
