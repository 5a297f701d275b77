"The controller beside Prefect, Dagster and DBOS alone."
import json
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta

import psutil
from common import HERE, ROOT, quick, report, row, workplace
from serving import ended_with_us, environment, version_of

sys.path.insert(0, str(ROOT / "tests"))
from support.controlled_project import ENV, STAND_IN, end, repository, start_controller, until
from support.controller_kills import ended, new_run
from support.postgres_server import new_database, postgres_programs, postgres_server

N_TRIGGERS, N_RUNS, LEASE_SECONDS = 1000, 100_000, 30.0
QUIET = dict(DO_NOT_TRACK="1", PREFECT_SERVER_ANALYTICS_ENABLED="false", PREFECT_LOGGING_LEVEL="WARNING")


# ---------------------------------------------------------------- orchestrators that wait


class Waiting:
    "Processes of an orchestrator that wait for a trigger."
    def __init__(self, name, folder):
        self.name, self.folder, self.processes, self.guards = name, folder, [], ExitStack()

    def start(self, command, **env):
        notes = {"STARTED": str(self.folder / "started"), "ENDED": str(self.folder / "ended")}
        env = {**os.environ, **QUIET, **notes, **env}
        with open(self.folder / "log", "ab") as log:
            self.processes.append(subprocess.Popen(list(map(str, command)), cwd=self.folder, env=env, stdout=log,
                                                   stderr=subprocess.STDOUT, start_new_session=True))
        self.guards.enter_context(ended_with_us(self.processes[-1]))

    def all(self):
        found = []
        for p in self.processes:
            with suppress(psutil.NoSuchProcess):
                top = psutil.Process(p.pid)
                found += [top, *top.children(recursive=True)]
        return found

    def cpu_seconds(self):
        total = 0.0
        for p in self.all():
            with suppress(psutil.NoSuchProcess): total += sum(p.cpu_times()[:2])
        return total

    def memory_mib(self):
        total = 0.0
        for p in self.all():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied): total += p.memory_info().rss
        return total / 2**20

    def stop(self):
        self.guards.close()
        for p in self.all():
            with suppress(psutil.NoSuchProcess): p.kill()
        for p in self.processes: p.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer: return json.loads(answer.read() or "null")


def answers(url, body=None):
    with suppress(OSError, ValueError): return ask(url, body) or True


def wait_for(condition, seconds=120, every=0.005):
    limit = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > limit: raise SystemExit("it did not happen in time")
        time.sleep(every)
    return found


def lines_of(path): return path.read_text().splitlines() if path.exists() else []


def count(path): return len(lines_of(path))


def ours(folder):
    "A controller as `mlops-nb control` starts it, with a project whose steps are tiny; how to trigger a run of it."
    found = Waiting("ours", repository(folder))
    (folder / "settings.ini").write_text(f"[release]\nendpoint = churn\n[control]\nlease_seconds = {LEASE_SECONDS}\n")
    clock = time.perf_counter()
    found.start([sys.executable, "-c", STAND_IN], POLL_SECONDS="5", STEP_SECONDS="0", **ENV)
    wait_for(lambda: "works:" in (folder / "log").read_text())
    return found, time.perf_counter() - clock, lambda i: new_run(folder, f"bench {i}")


def prefect(folder):
    bin, port = environment("prefect", "prefect"), free_port()
    shutil.copytree(HERE / "peers" / "prefect", folder)
    found = Waiting(f"Prefect {version_of(bin, 'prefect')}", folder)
    api, env = f"http://127.0.0.1:{port}/api", dict(PREFECT_HOME=str(folder / "home"))
    clock = time.perf_counter()
    found.start([bin / "prefect", "server", "start", "--host", "127.0.0.1", "--port", port], **env)
    wait_for(lambda: answers(f"{api}/health"))
    found.start([bin / "python", "flow.py"], **env, PREFECT_API_URL=api)
    wait_for(lambda: answers(f"{api}/deployments/filter", {}) not in (None, True))
    ready, deployment = time.perf_counter() - clock, ask(f"{api}/deployments/filter", {})[0]["id"]
    run = f"{api}/deployments/{deployment}/create_flow_run"
    return found, ready, lambda i: wait_for(lambda: answers(run, {})) # it may be busy: 503


LAUNCH = """mutation { launchRun(executionParams: {mode: "default", selector: {repositoryName: "__repository__",
  repositoryLocationName: "flow.py", jobName: "three_steps"}}) { __typename } }"""


def dagster(folder):
    bin, port = environment("dagster", "dagster", "dagster-webserver"), free_port()
    shutil.copytree(HERE / "peers" / "dagster", folder)
    (folder / "home").mkdir()
    (folder / "home" / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
    found, url = Waiting(f"Dagster {version_of(bin, 'dagster')}", folder), f"http://127.0.0.1:{port}"
    clock = time.perf_counter()
    found.start([bin / "dagster", "dev", "-f", "flow.py", "-h", "127.0.0.1", "-p", port],
                DAGSTER_HOME=str(folder / "home"), PATH=f"{bin}{os.pathsep}{os.environ['PATH']}")
    wait_for(lambda: answers(f"{url}/server_info"))
    ready = time.perf_counter() - clock
    def launch(i):
        said = ask(f"{url}/graphql", dict(query=LAUNCH))
        if said["data"]["launchRun"]["__typename"] != "LaunchRunSuccess": raise SystemExit(f"Dagster: {said}")
    return found, ready, launch


def times_to_first_step(waiting, trigger, n):
    "Seconds from asking for a run to the first line of its first step; each run ends before the next is asked for."
    own = waiting.name == OURS
    started, over = (waiting.folder / name for name in (("begun", "ended") if own else ("started", "ended")))
    took = []
    for i in range(n):
        before, ends = count(started), count(over)
        asked = time.time()
        run = trigger(i)
        wait_for(lambda before=before: count(started) > before)
        took.append(time.time() - asked)
        if own: wait_for(lambda run=run: ended(waiting.folder, run), every=0.1)
        else: wait_for(lambda ends=ends: count(over) > ends, every=0.05)
        time.sleep(0.37 * (i % 3)) # not always at the same moment of somebody's interval
    return took


def beside_peers(tmp, n, idle_seconds):
    "Rows on waiting and on the time to the first step; all wait at the same time and run one after the other."
    begun = {}
    with ExitStack() as stack:
        for make in (ours, prefect, dagster):
            found, ready, trigger = make(tmp / make.__name__)
            stack.callback(found.stop)
            begun[found.name] = found, ready, trigger
        time.sleep(5) # the start is over
        before = {name: found.cpu_seconds() for name, (found, *_) in begun.items()}
        clock = time.perf_counter()
        time.sleep(idle_seconds)
        hours = (time.perf_counter() - clock) / 3600
        idle = {name: (found.cpu_seconds() - before[name]) / hours for name, (found, *_) in begun.items()}
        memory = {name: found.memory_mib() for name, (found, *_) in begun.items()}
        first = {name: times_to_first_step(found, trigger, n) for name, (found, _, trigger) in begun.items()}
    ready = {name: seconds for name, (_, seconds, _) in begun.items()}
    middle, most = ({name: f(took) for name, took in first.items()} for f in (statistics.median, max))
    return [*compared("p50, from a trigger to the first step of its run", "s", middle),
            *compared("p99 of the same", "s", most),
            *compared("processor time of an idle hour", "s", idle, digits=0),
            *compared("resident memory, all processes", "MiB", memory, 150.0, digits=0),
            *compared("until it is ready", "s", ready, 2.0)]


OURS = "ours"


def compared(what, unit, found, most=None, digits=2):
    "A row for each peer."
    own = found[OURS]
    bound, met = (f"≤ {most:g} {unit}", own <= most) if most else ("", None)
    for name, figure in found.items():
        if name == OURS: continue
        figures = (f"{f:.{digits}f} {unit}" for f in (own, figure))
        yield row(what, next(figures), name, next(figures), f"{own / figure:.2f} ×", bound, met)


# ---------------------------------------------------------------- steps a second


STEPS = """
import sys, time
from dbos import DBOS
from mlops_nb.control.scheduler import json_serializer
from mlops_nb.ledger.ledger import Ledger
from mlops_nb.ledger.runs import queue_run, record_step
control, uri, n, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
DBOS(config=dict(name="bench", system_database_url=control, serializer=json_serializer(), log_level="ERROR",
                 run_admin_server=False))
ledger = Ledger(uri)

@DBOS.step()
def plain(): pass

@DBOS.step()
def recorded():
    with record_step(ledger, "r1", attempt, "step"): pass

@DBOS.workflow()
def flow(kind):
    for _ in range(n): (plain if kind == "DBOS" else recorded)()

queue_run(ledger, "r1", {})
attempt = ledger.begin_attempt("r1", "bench")
DBOS.launch()
clock = time.perf_counter()
flow(kind)
print(n / (time.perf_counter() - clock), flush=True)
import os
os._exit(0)
"""


def steps_a_second(control, ledger, n, kind):
    done = subprocess.run([sys.executable, "-c", STEPS, control, ledger, str(n), kind], env={**os.environ, **ENV},
                          capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stderr[-2000:])
    return float(done.stdout)


def step_rows(tmp, server, n):
    places = {"SQLite": (f"sqlite:///{tmp}/steps-control.db", f"sqlite:///{tmp}/steps-ledger.db")}
    if server: places["PostgreSQL"] = (new_database(server, "steps"),) * 2
    for name, (control, ledger) in places.items():
        alone, own = (statistics.median(steps_a_second(control, ledger, n, kind) for _ in range(3))
                      for kind in ("DBOS", "ours"))
        yield row(f"durable steps a second, {name}, each with its two entries in the ledger", f"{own:.0f}",
                  "DBOS alone", f"{alone:.0f}", f"{own / alone:.2f} ×")


# ---------------------------------------------------------------- from a kill to the end by another


def kill_seconds(root, **victim):
    "Seconds from the SIGKILL of a controller in the middle of a run to the end of the run by another."
    (root / "hold gate").touch()
    controllers = [start_controller(root, POLL_SECONDS="5", **victim)]
    try:
        run = new_run(root, f"kill {victim}")
        until(lambda: any(line.startswith("gate ") for line in lines_of(root / "begun")))
        controllers.append(start_controller(root, POLL_SECONDS="5"))
        until(lambda: (root / "log.txt").read_text().count("works:") == 2)
        (root / "hold gate").unlink()
        clock = time.perf_counter()
        end(controllers[0])
        until(lambda: ended(root, run))
        return time.perf_counter() - clock
    finally:
        for c in controllers: end(c)


def kill_rows(tmp, server):
    for where, victim in (("of the same machine", {}), ("of another machine", dict(HOST="elsewhere/1/2"))):
        name = "PostgreSQL" if server and victim else "SQLite"
        if name == "PostgreSQL":
            url = new_database(server, "kills")
            os.environ |= dict(MLOPS_NB_LEDGER_URI=url, MLOPS_NB_CONTROL_DATABASE=url)
        took = kill_seconds(repository(tmp / f"kill-{len(victim)}"), **victim)
        for variable in ("MLOPS_NB_LEDGER_URI", "MLOPS_NB_CONTROL_DATABASE"): os.environ.pop(variable, None)
        yield row(f"from SIGKILL of a controller {where} to the end of its run by another, {name}", f"{took:.1f} s",
                  bound=f"≤ {LEASE_SECONDS + 10:g} s (lease + 10 s)", met=took <= LEASE_SECONDS + 10)


# ---------------------------------------------------------------- triggers, and a large ledger


CLAUSES = ["- age: {days}d", "- new_data: {{min_rows: {rows}}}", "- schedule: {{cron: '{minute} 3 1 * *'}}",
           "- degraded: {{metric: roc_auc, by: 0.0{digit}}}"]


def trigger_rows(root, n):
    from mlops_nb.control.trigger_evaluation import evaluate_triggers
    text = []
    for i in range(n):
        values = dict(days=30 + i, rows=1000 + i, minute=i % 60, digit=1 + i % 9)
        text += [f"t{i:04}:", "  when:", "    any:", *(f"    {c.format(**values)}" for c in CLAUSES), "  cooldown: 24h"]
    (root / "triggers.yaml").write_text("\n".join(text) + "\n")
    took = []
    for i in range(4): # the first writes what each came to
        clock = time.perf_counter()
        evaluate_triggers(root, datetime.now(UTC) + timedelta(seconds=i))
        took.append(time.perf_counter() - clock)
    seconds = statistics.median(took[1:])
    yield row(f"{n:,} triggers of four clauses, evaluated", f"{seconds:.2f} s", bound="≤ 1 s", met=seconds <= 1)


def fill(path, n):
    "Runs as a year of retraining would leave them; the ledger is there, and its own triggers keep what it keeps."
    start, rows = datetime(2025, 1, 1, tzinfo=UTC), []
    for i in range(n):
        id, at = f"r{i:016x}", (start + timedelta(minutes=5 * i)).isoformat(timespec="milliseconds")
        status = ("succeeded", "succeeded", "rejected", "failed")[i % 4]
        asked = dict(status="queued", trigger=f"t{i % 7}", reason="new data", commit=f"{i:040x}", data=f"{i:064x}",
                     params=f"{i % 9:040x}", data_files=[])
        end = dict(status=status, message="Released.", attempt=1, bundle=f"{i:064x}", metrics=dict(roc_auc=0.8))
        rows += [(at, "bench", "run.queued", id, f"run/{id}/queued", json.dumps(asked)),
                 (at, "bench", "run.attempt", id, None, json.dumps(dict(attempt=1, executor="e", status="running"))),
                 (at, "bench", "run.ended", id, f"run/{id}/ended/1", json.dumps(end))]
    with sqlite3.connect(path) as db:
        db.executemany("INSERT INTO ledger (at, \"by\", kind, subject, key, data) VALUES (?, ?, ?, ?, ?, ?)", rows)


PAGES = ("/", "/v1/overview", "/v1/runs", "/v1/runs?status=failed", "/v1/runs?trigger=t3", "/v1/runs/{run}",
         "/v1/triggers", "/v1/schedules", "/v1/alerts", "/v1/ledger?subject={run}")


def page_rows(root, n):
    from mlops_nb.console.server import start_console
    from mlops_nb.ledger.ledger import open_ledger
    ledger = open_ledger(root)
    ledger.append("ledger.began", "bench")
    fill(ledger.uri.removeprefix("sqlite:///"), n)
    (root / "triggers.yaml").unlink(missing_ok=True)
    with open(root / "settings.ini", "a") as f: f.write(f"[console]\nauth = none\nport = {free_port()}\n")
    address, slowest = start_console(root), ("", 0.0)
    for page in PAGES:
        url = address.rstrip("/") + page.format(run=f"r{n // 2:016x}")
        try: took = statistics.median(read_seconds(url) for _ in range(5))
        except urllib.error.HTTPError as e: raise SystemExit(f"{page}: {e}") from None
        print(f"{page}: {1000 * took:.0f} ms", file=sys.stderr)
        slowest = max(slowest, (page, took), key=lambda p: p[1])
    yield row(f"the slowest page of the console with {n:,} runs in the ledger ({slowest[0]}; of {len(PAGES)})",
              f"{1000 * slowest[1]:.0f} ms", bound="≤ 200 ms", met=slowest[1] <= 0.2)


def read_seconds(url):
    clock = time.perf_counter()
    with urllib.request.urlopen(url, timeout=60) as answer: answer.read()
    return time.perf_counter() - clock


def main():
    n, idle, steps, triggers, runs = (2, 5, 50, 100, 2000) if quick() else (8, 45, 300, N_TRIGGERS, N_RUNS)
    rows, programs = [], postgres_programs()
    with ExitStack() as stack:
        tmp = stack.enter_context(workplace())
        server = stack.enter_context(postgres_server(programs)) if programs else None
        if server: os.environ["PGPASSWORD"] = server.password
        rows += beside_peers(tmp, n, idle)
        rows += step_rows(tmp, server, steps)
        rows += kill_rows(tmp, server)
        rows += trigger_rows(repository(tmp / "triggers"), triggers)
        rows += page_rows(repository(tmp / "pages"), runs)
    report(rows, [
        f"The same flow of three steps for all; ours has five commands in place of DVC's. {n} runs each, one after the "
        "other; each waits as it is started by default, on SQLite, and p99 is the slowest of them.",
        f"Idle: {idle} seconds of all processes, a server with one deployment each, while the others wait beside it.",
        "A controller of the same machine is missed at once, by its process number; of another machine when its lease "
        f"of {LEASE_SECONDS:g} seconds is over."])
    sys.stdout.flush()
    os._exit(0) # the console is a thread


if __name__ == "__main__": main()
