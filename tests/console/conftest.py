"What the tests of the operations page and its API share: a served project with runs, alerts and an open release."
import http.client
import json
import shutil
import subprocess
import sys
import threading
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from support.controlled_project import ENV, git, until
from support.release_project import project

from mlops_nb.config.api_keys import create_api_key
from mlops_nb.ledger.ledger import open_ledger
from mlops_nb.ledger.runs import end_run, queue_run, record_step
from mlops_nb.monitor.alerts import AlertChanges, AlertState, write_changes
from mlops_nb.monitor.findings import Finding
from mlops_nb.release.releases import start_release

NASTY = "</script><script>window.attacked = 1</script><img src=x onerror='window.attacked = 1'>"
SETTINGS = """environment = production
[production]
approve = 25: 1 of owners
[people]
owners = ana, bo
[console]
port = 0
[schedule.daily]
action = compact
cron = 30 6 * * *
"""
SERVE = """
import sys, time
from mlops_nb.console.server import start_console
print(start_console('.'), flush=True)
sys.stdin.read()
"""
FACTS = dict(trigger="retrain", reason=NASTY, commit="", data="9f3c", params="77ab")
DVC = """stages:
  validate: {deps: [data], outs: [artifacts/accepted]}
  train: {matrix: {learner: [gbdt, net]}, deps: [artifacts/accepted], outs: ['artifacts/models/${item.learner}']}
  gate: {deps: [artifacts/models], outs: [artifacts/gate.json]}
"""


def facts(**more): return FACTS | more


def alert(subject, **more):
    return Finding(rule="drift", subject=subject, summary=f"{subject} {NASTY} has moved.", endpoint="churn",
                   started_at=datetime.now(UTC), **more)


def fill(root):
    "Runs, alerts, triggers and a runbook, as a controller and monitoring leave them."
    for name, text in (("dvc.yaml", DVC), ("data.dvc", "outs: []\n"), (".gitignore", "/.mlops/\n/packed/\n"),
                       ("triggers.yaml", "retrain: {when: {any: [age: 60d]}}\nyearly: {when: {any: [age: 365d]}}\n")):
        (root / name).write_text(text)
    (root / "docs/runbooks").mkdir(parents=True)
    (root / "docs/runbooks/drift.md").write_text(f"# Drift {NASTY}\n\nLook at the data first.\n")
    for args in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "project"]): git(root, *args)
    ledger, commit = open_ledger(root), git(root, "rev-parse", "HEAD").strip()
    queue_run(ledger, "r00failed", facts(), by="ana")
    ledger.begin_attempt("r00failed", "host-a/1")
    end_run(ledger, "r00failed", 1, "failed", f"Step train failed: {NASTY}")
    queue_run(ledger, "r01running", facts(commit=commit, reason="new tariffs"), by="controller")
    ledger.begin_attempt("r01running", "host-a/1")
    for name in ("step validate", "validate", "train gbdt"):
        with record_step(ledger, "r01running", 1, name): pass
    ledger.append("step.started", "r01running", dict(step="train net", attempt=1, executor="host-a/1"), attempt=1)
    write_changes(ledger, AlertState(), AlertChanges(opened=[
        alert("tenure", runbook="drift"), alert("charge", severity="page")]), datetime.now(UTC))
    ledger.append("trigger.evaluated", "retrain", dict(outcome="suppressed", clause="running", run="",
                                                       tree=["any of", f"  yes age: {NASTY}"]), by="controller")


class Console:
    "A served project: its folder, the keys of people by name, and a way to ask."
    def __init__(self, root, template):
        self.root, self.keys, self.ids = root, {}, template.ids
        shutil.copytree(template.root, root)
        self.ledger = open_ledger(root)
        self.release = start_release(root, self.ids["better"], by="carl")
        for name, scopes in (("ana", ["read", "operate"]), ("bo", ["read", "operate"]), ("eve", ["read"])):
            self.keys[name] = create_api_key(root / ".mlops/keys.json", name, scopes)

    def __enter__(self):
        self.process = subprocess.Popen([sys.executable, "-c", SERVE], cwd=self.root, env=ENV, text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.url = self.process.stdout.readline().strip()
        assert self.url, "the server did not start"
        self.address = self.url.removeprefix("http://")
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    def send(self, method, path, body=None, key="", **headers):
        "The status, the headers and the bytes of an answer."
        connection = http.client.HTTPConnection(self.address, timeout=120)
        sent = {"content-type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        if key: sent["authorization"] = f"Bearer {self.keys.get(key, key)}"
        connection.request(method, path, body if isinstance(body, bytes | None) else json.dumps(body), sent)
        reply = connection.getresponse()
        found = reply.status, reply.headers, reply.read()
        connection.close()
        return found

    def ask(self, method, path, body=None, key="", **headers):
        "The status and the JSON of an answer."
        status, _, text = self.send(method, path, body, key, **headers)
        return status, json.loads(text)

    def by(self, subject, kind): return [e.by for e in self.ledger.entries(subject, (kind,))]


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    "A project to copy: `.root`, and `.ids` of its bundles."
    root = tmp_path_factory.mktemp("template") / "project"
    ids = project(root, settings=SETTINGS, strategy="canary", steps=[5, 25, 100], min_units=10**6)
    fill(root)
    return SimpleNamespace(root=root, ids=ids)


@pytest.fixture(scope="session")
def console(tmp_path_factory, template):
    "A served project that the tests of the API share."
    with Console(tmp_path_factory.mktemp("console") / "project", template) as served: yield served


@pytest.fixture
def events(console):
    "A function that begins to listen; gives what has come so far, as (event, data)."
    connections = []
    def listen(key=""):
        connection = http.client.HTTPConnection(console.address, timeout=120)
        connections.append(connection)
        headers = {"authorization": f"Bearer {console.keys[key]}"} if key else {}
        connection.request("GET", "/v1/events", headers=headers)
        reply, found = connection.getresponse(), []
        assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream")
        def read():
            name = ""
            try:
                for line in reply:
                    field, _, value = line.decode().rstrip("\n").partition(": ")
                    if field == "event": name = value
                    if field == "data": found.append((name, json.loads(value)))
            except (OSError, ValueError, AttributeError): pass # the test is over
        threading.Thread(target=read, daemon=True).start()
        return SimpleNamespace(found=found, until=lambda f: until(lambda: next(filter(f, [*found]), None)))
    yield listen
    for c in connections:
        if c.sock: c.sock.close()
