"HTTP serving against five servers, and fifteen models against two of them."
import http.client
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import psutil
from common import ENV, HERE, ROOT, alternating, quick, report, row, run, seconds, workplace

PORT, COLUMNS, TREES, CONNECTIONS, ROUNDS = 18081, 28, 300, (1, 16, 64), 3
TABLE_CONNECTIONS, TABLE_BODIES, TABLE_PEERS = (16, 64), 64, ("mlserver", "litserve")
ENVIRONMENTS = ROOT / ".mlops" / "peers"
LUA = """
local requests, i = {}, 0
function init(args)
  for line in io.lines(os.getenv("BODIES")) do
    local headers = {["Content-Type"] = "application/json", ["traceparent"] = os.getenv("TRACEPARENT")}
    requests[#requests + 1] = wrk.format("POST", nil, headers, line)
  end
end
function request()
  i = i % #requests + 1
  return requests[i]
end
function done(summary, latency, requests)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  print(string.format('{"requests": %d, "microseconds": %d, "failed": %d, "p50": %d, "p99": %d}',
    summary.requests, summary.duration,
    failed, latency:percentile(50), latency:percentile(99)))
end
"""


def environment(name, *packages):
    "The Python of an environment that holds one peer, made the first time."
    home = ENVIRONMENTS / name
    if not (home / "ready").exists():
        run(sys.executable, "-m", "venv", "--clear", home, cwd=ROOT)
        run(home / "bin/pip", "install", "--quiet", "--disable-pip-version-check", *packages, cwd=ROOT)
        (home / "ready").touch()
    return home / "bin"


def version_of(bin, package):
    return subprocess.run([bin / "python", "-c",
                           f"from importlib.metadata import version; print(version('{package}'))"],
                          capture_output=True, text=True, check=True).stdout.strip()


def answer(path, body, headers=()):
    "Status and body of one request."
    c = http.client.HTTPConnection("127.0.0.1", PORT, timeout=10)
    try:
        c.request("POST" if body else "GET", path, body, {"Content-Type": "application/json", **dict(headers)})
        r = c.getresponse()
        return r.status, r.read()
    finally: c.close()


GUARD = """
import os, signal, sys
sys.stdin.read()
os.killpg(int(sys.argv[1]), signal.SIGKILL)
"""


@contextmanager
def ended_with_us(p):
    "The process group of `p` ends with this process, even where that is killed: a child waits for our end of its pipe."
    guard = subprocess.Popen([sys.executable, "-c", GUARD, str(p.pid)], stdin=subprocess.PIPE, start_new_session=True)
    try: yield
    finally:
        guard.kill() # all is ended properly: the number of the group may be another's by now
        guard.wait()
        guard.stdin.close()


@contextmanager
def ending(p):
    "Stops a server with all its children at the end, and waits for its port."
    try: yield
    finally:
        family = psutil.Process(p.pid).children(recursive=True) if p.poll() is None else []
        for stop in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError): os.killpg(p.pid, stop)
            psutil.wait_procs(family, timeout=8 if stop == signal.SIGTERM else 2)
            for child in family:
                with suppress(psutil.NoSuchProcess): child.send_signal(stop)
        p.wait(10)
        for _ in range(200):
            with suppress(OSError), socket.socket() as s:
                s.bind(("127.0.0.1", PORT))
                break
            time.sleep(0.05)


@contextmanager
def serving(command, folder, path, body, env=(), within=120):
    "Yields the process and the seconds until it answered; stopped with all its children at the end."
    with (folder / "server.log").open("wb") as log:
        clock = time.perf_counter()
        p = subprocess.Popen(list(map(str, command)), cwd=folder, env={**ENV, **dict(env)}, stdout=log, stderr=log,
                             start_new_session=True)
        with ended_with_us(p), ending(p):
            while True:
                with suppress(OSError, http.client.HTTPException):
                    if answer(path, body.partition(b"\n")[0])[0] == 200: break
                if p.poll() is not None or time.perf_counter() - clock > within:
                    raise SystemExit(f"{command[0]} did not answer: {(folder / 'server.log').read_text()[-1500:]}")
                time.sleep(0.02)
            yield p, time.perf_counter() - clock


def load(folder, path, body, connections, each, trace="", on_warm=lambda: None):
    "Requests a second, latencies in ms, requests; by wrk on one thread, each line of `body` in turn, after a warm-up."
    (folder / "load.lua").write_text(LUA)
    (folder / "bodies.jsonl").write_bytes(body)
    env = {**ENV, "BODIES": str(folder / "bodies.jsonl"), **({"TRACEPARENT": trace} if trace else {})}
    for i, duration in enumerate((max(1, each // 4), each)):
        if i: on_warm()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "10s", "-s", folder / "load.lua",
                   f"http://127.0.0.1:{PORT}{path}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode: raise SystemExit(f"wrk ended with {done.returncode}: {done.stderr[-500:]}")
    r = json.loads(done.stdout.splitlines()[-1])
    if r["failed"]: raise SystemExit(f"{r['failed']} of {r['requests']} requests to {path} failed")
    return dict(rate=r["requests"] / r["microseconds"] * 1e6, p50=r["p50"] / 1e3, p99=r["p99"] / 1e3, n=r["requests"])


def made(tmp, trees):
    "A project with a model of 300 trees on 28 columns, released; and a row."
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, COLUMNS)).round(4)
    y = (X[:, :5].sum(1) + X[:, 5] * X[:, 6] + rng.normal(size=len(X)) > 0)
    names = [f"c{i:03}" for i in range(COLUMNS)]
    pl.DataFrame({**dict(zip(names, X.T, strict=True)),
                  "event": np.where(y, "yes", "no")}).write_parquet(tmp / "rows.parquet")
    root = tmp / "model" # the endpoint takes its name
    run("mlops-nb", "init", root, "--data", tmp / "rows.parquet", "--target", "event", cwd=tmp)
    from mlops_nb.config.params import read_params, write_params
    p = read_params(root / "params.yaml")
    p.train.gbdt.n_estimators, p.train.gbdt.early_stopping_rounds, p.train.gbdt.learning_rate = trees, 10 * trees, 0.01
    write_params(p, root / "params.yaml")
    for stage in ("validate", "prepare", "baseline", "tune", "train gbdt", "evaluate", "explain", "bundle"):
        run("mlops-nb", "stage", *stage.split(), cwd=root)
    path = root / "settings.ini"
    path.write_text(path.read_text().replace("\nworkers = 0", "\nworkers = 1"))
    released(root)
    return root, X[0].tolist()


def released(root):
    "Two variants of the bundle in `artifacts` behind the endpoint, so that each request is routed."
    from mlops_nb.bundle.store import store_bundle
    from mlops_nb.config.settings import read_settings
    from mlops_nb.core.typed_yaml import write_json
    from mlops_nb.release.release_plan import ReleasePlan, Variant, plan_path
    settings = read_settings(root)
    bundle = store_bundle(root / "artifacts/bundle", root / settings.release.store).name
    path = plan_path(root, settings)
    path.parent.mkdir(exist_ok=True)
    write_json(path, ReleasePlan(settings.release.endpoint, 1,
                                 [Variant("champion", bundle, 0.9), Variant("challenger", bundle, 0.1)]))


def tensor(x, name="input", shape=None): return dict(name=name, shape=shape or [1, len(x)], datatype="FP64", data=x)


def v2(*tensors): return json.dumps(dict(inputs=tensors)).encode()


def listed_rows(x): return json.dumps(dict(data=[x])).encode()


PEERS = { # name, packages, path, a row as its body, command, environment
    "mlserver": ("MLServer", ["mlserver", "mlserver-lightgbm", "lightgbm"], "/v2/models/model/infer",
                 lambda x: v2(tensor(x)), ["mlserver", "start", "."], {}),
    "bentoml": ("BentoML", ["bentoml", "lightgbm"], "/predict", listed_rows,
                ["bentoml", "serve", "service:Model", "--port", PORT, "--host", "127.0.0.1"],
                {"BENTOML_DO_NOT_TRACK": "1"}),
    "litserve": ("LitServe", ["litserve", "lightgbm"], "/predict", listed_rows, ["python", "server.py"], {}),
    "ray": ("Ray Serve", ["ray[serve]", "lightgbm"], "/", listed_rows, ["python", "server.py"],
            {"RAY_USAGE_STATS_ENABLED": "0"}),
    "mlflow": ("MLflow", ["mlflow", "lightgbm"], "/invocations", lambda x: json.dumps(dict(inputs=[x])).encode(),
               ["mlflow", "models", "serve", "-m", "saved", "--env-manager", "local", "-p", PORT, "-w", 1], {})}


def peer(name, folder, model_file, rows):
    "Name and version; then folder, command, environment, path and bodies, a line for each row."
    package, packages, path, body, command, env = PEERS[name]
    bin = environment(name, *packages)
    shutil.copytree(HERE / "peers" / name, folder)
    shutil.copy(model_file, folder / "model.txt")
    if (folder / "save.py").exists(): run(bin / "python", "save.py", cwd=folder)
    env = {"PATH": f"{bin}{os.pathsep}{ENV['PATH']}", **env}
    version = version_of(bin, packages[0].partition("[")[0])
    return f"{package} {version}", (folder, [bin / command[0], *command[1:]], env, path, b"\n".join(map(body, rows)))


def bare(folder, model_file, rows, form="matrix"):
    "Folder, command, environment, path and bodies of the application that decodes and calls the trees, and no more."
    shutil.copytree(HERE / "peers" / "bare", folder)
    shutil.copy(model_file, folder / "model.txt")
    return folder, [*GRANIAN, "bare:app"], {"FORM": form}, *request_of(form, rows)


def request_of(form, rows):
    "The path of our server for rows in a form, and the bodies, a line for each."
    def columns(x): return {f"c{i:03}": v for i, v in enumerate(x)}
    bodies = {"matrix": lambda x: v2(tensor(x)),
              "columns": lambda x: v2(*(tensor([v], n, [1]) for n, v in columns(x).items())),
              "objects": lambda x: json.dumps([columns(x)]).encode()}
    path = "/v1/endpoints/model:predict" if form == "objects" else "/v2/models/model/infer"
    return path, b"\n".join(map(bodies[form], rows))


BIN = Path(sys.executable).parent
OURS = [BIN / "mlops-nb", "serve", "--port", PORT]
GRANIAN = [BIN / "granian", "--interface", "rsgi", "--host", "127.0.0.1", "--port", PORT, "--workers", 1, "--no-ws"]


def resident(p):
    "MiB of a process and all below it; what they share counts once."
    p = psutil.Process(p.pid)
    return sum(c.memory_full_info().pss for c in [p, *p.children(recursive=True)]) / 2**20


def measured(folder, command, env, path, body, each, connections=CONNECTIONS):
    "Figures by number of connections, seconds until it was ready, its memory after the load, and an answer."
    with serving(command, folder, path, body, env) as (p, ready):
        first = answer(path, body.partition(b"\n")[0])[1]
        return {c: load(folder, path, body, c, each) for c in connections}, ready, resident(p), first


def in_turns(servers, each, rounds):
    "What `measured` gives for each server: the median of the rounds. A machine that is slow is slow for all of them."
    found = {name: [] for name in servers}
    for _ in range(rounds):
        for name, how in servers.items(): found[name].append(measured(*how, each))
    return {name: middle(runs) for name, runs in found.items()}


def middle(runs):
    "The medians of several runs, figure by figure; and an answer."
    loads, readies, memories, answers = zip(*runs, strict=True)
    rates = {c: {k: median(r[c][k] for r in loads) for k in loads[0][c]} for c in loads[0]}
    return rates, median(readies), median(memories), answers[0]


def said(f): return f"{f['rate']:,.0f}/s, p50 {f['p50']:.2f} ms, p99 {f['p99']:.2f} ms"


def one_row(root, n=2000):
    "Microseconds of one row: the trees alone, with the row's encoding, and with calibration and decision."
    from mlops_nb.model.predictor import Predictor
    predictor = Predictor.open(root / "artifacts/bundle")
    frame = pl.read_parquet(root / "artifacts/prepared/test.parquet", columns=predictor.inputs).head(n)
    rows, X = [{c: [v] for c, v in r.items()} for r in frame.to_dicts()], predictor.encode_frame(frame)
    def trees():
        for x in X: predictor.model.predict_one(x)
    def predict():
        for r in rows: predictor.model.predict_one(predictor.encode_columns(r)[0])
    def answer():
        for r in rows: predictor.predict_and_decide(r, predictor.encode_columns(r))
    return [s / len(rows) * 1e6 for s in alternating(5, *(lambda f=f: seconds(f) for f in (trees, predict, answer)))]


class Sink(http.server.BaseHTTPRequestHandler):
    "A collector that takes every trace and keeps none."
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_): pass


def processor_seconds(p):
    "Of a process and all below it."
    p = psutil.Process(p.pid)
    return sum(t.user + t.system for t in (c.cpu_times() for c in [p, *p.children(recursive=True)]))


def request_time(root, env, path, body, each, trace):
    "Microseconds of processor time of a request, of all processes of the server together."
    with serving(OURS, root, path, body, env) as (p, _):
        before = []
        n = load(root, path, body, 16, each, trace, lambda: before.append(processor_seconds(p)))["n"]
        return (processor_seconds(p) - before[0]) / n * 1e6


def watching(root, path, body, each, rounds):
    "What it costs to be watched: the processor time of a request, beside the same without."
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink) as sink:
        threading.Thread(target=sink.serve_forever, daemon=True).start()
        otlp = {"MLOPS_NB_SERVE_OTLP_ENDPOINT": f"http://127.0.0.1:{sink.server_port}"}
        cases = {"": ({}, ""), "the admin listener": ({"MLOPS_NB_SERVE_ADMIN_PORT": str(PORT + 1)}, ""),
                 "a trace of the client's for each request": ({}, f"00-{'1a' * 16}-{'2b' * 8}-00"),
                 "a trace begun and exported for 1 % of the requests": (
                     {**otlp, "MLOPS_NB_SERVE_TRACE_SAMPLE_RATE": "0.01"}, "")}
        times = alternating(rounds, *(lambda env=env, trace=trace: request_time(root, env, path, body, each, trace)
                                      for env, trace in cases.values()))
        sink.shutdown()
    plain, *others = times
    yield row("processor time of a request, 16 connections", f"{plain:.0f} µs")
    for what, t in zip([*cases][1:], others, strict=True):
        yield row(f"… with {what}", f"{t:.0f} µs", "without", f"{plain:.0f} µs", f"{t / plain:.3f}×", "≤ 1.03×",
                  t <= 1.03 * plain)


def rates(root, each):
    "The curve of one worker: a row for each rate that was offered."
    from mlops_nb.serve.capacity_planning import measure_capacity
    for s in measure_capacity(root, each):
        figure = f"{s.achieved_rps:,.0f}/s, p50 {s.p50_ms:.2f} ms, p99 {s.p99_ms:.2f} ms, p99.9 {s.p999_ms:.2f} ms"
        yield row(f"… offered {s.offered_rps:,.0f}/s, steadily", figure)


def beside(c, mine, others):
    "Rows that hold our figures for so many connections against the best of the others."
    best = max(others, key=lambda n: others[n][c]["rate"])
    swift = min(others, key=lambda n: others[n][c]["p99"])
    times, share = mine["rate"] / others[best][c]["rate"], mine["p99"] / others[swift][c]["p99"]
    yield row(f"HTTP, one row, {c} connections", said(mine), best, said(others[best][c]), f"{times:.1f}×", "≥ 10×",
              times >= 10)
    yield row("… its p99", f"{mine['p99']:.2f} ms", swift, f"{others[swift][c]['p99']:.2f} ms", f"{share:.2f}×",
              "≤ 0.20×", share <= 0.2)
    yield from (row("…", "", n, said(found[c])) for n, found in others.items() if n != best)


def reach(c, mine, echo, bare, others):
    "Rows that hold our figures for so many connections against a bare echo, and against decoding and the trees alone."
    share = mine["rate"] / echo["rate"]
    yield row(f"… {c} connections, beside a bare Granian echo of the same bytes", said(mine), "echo", said(echo),
              f"{share:.2f}×",
              "≥ 0.50×", share >= 0.5)
    yield row("… beside decoding and the trees alone", said(mine), "decode, predict", said(bare),
              f"{mine['rate'] / bare['rate']:.2f}×")
    if not others: return
    best = max(others, key=lambda n: others[n][c]["rate"])
    for name, found in (("decoding and the trees alone", bare), ("the echo alone", echo)):
        yield row(f"… {name}", said(found), best, said(others[best][c]),
                  f"{found['rate'] / others[best][c]['rate']:.1f}×")


def case_project(tmp, settings_file, trained, case):
    "A folder that serves the bundle of a case."
    from served_models import pack
    root = tmp / "model"
    (root / "artifacts").mkdir(parents=True)
    text = settings_file.read_text()
    if case.cache: text = text.replace("\ncache_entries = 0", "\ncache_entries = 1000")
    (root / "settings.ini").write_text(text)
    pack(root / "artifacts/bundle", trained, case)
    released(root)
    return root


def case_rows(tmp, settings_file, cases, each, peer_names):
    "The rows of some cases of one model, which is trained, served by us and by the others, and forgotten."
    from served_models import train
    trained = train(cases[0].model)
    rows = trained.frame.drop("event").head(TABLE_BODIES).rows()
    (tmp / "model.txt").write_text(trained.text)
    others = dict(peer(n, tmp / n, tmp / "model.txt", rows) for n in peer_names)
    def rate(where): return measured(*where, each, TABLE_CONNECTIONS)[0]
    theirs = {name: rate(where) for name, where in others.items()}
    alone = {form: rate(bare(tmp / f"bare {form}", tmp / "model.txt", rows, form)) for form in {c.form for c in cases}}
    for i, case in enumerate(cases):
        root = case_project(tmp / str(i), settings_file, trained, case)
        mine = rate((root, OURS, {}, *request_of(case.form, rows)))
        for c in TABLE_CONNECTIONS:
            yield from case_line(case, c, mine[c], alone[case.form][c], {n: found[c] for n, found in theirs.items()})


def case_line(case, connections, mine, alone, theirs):
    "Two rows: ours beside decoding and the trees alone, and beside the best of the others."
    share = mine["rate"] / alone["rate"]
    yield row(f"{case}; {connections} connections", said(mine), "decode, predict", said(alone), f"{share:.2f}×",
              "≥ 0.70×", share >= 0.7)
    if not theirs: return
    best = max(theirs, key=lambda n: theirs[n]["rate"])
    times, most = mine["rate"] / theirs[best]["rate"], alone["rate"] / theirs[best]["rate"]
    within_reach = 0.7 * most >= 10 # else LightGBM's own call and the decoding take too much of the time
    yield row("…", "", best, said(theirs[best]), f"{times:.1f}×",
              "≥ 10×" if within_reach else f"decode, predict: {most:.1f}×", times >= 10 if within_reach else None)


def case_table(tmp, settings_file, each, short):
    "The rows of all cases, model by model; `short` for a smoke test: two models, and no peers."
    from served_models import CASES, Case, Trees
    cases = CASES if not short else [Case(Trees(trees=20), "isotonic", True, form="columns"),
                                     Case(Trees(trees=20), cache=True, form="objects"),
                                     Case(Trees("five classes", 20, 10))]
    for i, model in enumerate(dict.fromkeys(c.model for c in cases)):
        folder = tmp / f"case {i}"
        folder.mkdir()
        yield from case_rows(folder, settings_file, [c for c in cases if c.model == model], each,
                             () if short else TABLE_PEERS)
        shutil.rmtree(folder, ignore_errors=True)


def main():
    if not shutil.which("wrk"): raise SystemExit("the load comes from wrk; install it (Debian: apt-get install wrk).")
    each, trees, rounds = (1, 30, 1) if quick() else (2, TREES, ROUNDS)
    with workplace() as tmp:
        root, x = made(tmp, trees)
        model_file, (path, body) = root / "artifacts/bundle/model.txt", request_of("matrix", [x])
        with serving(OURS, root, path, body): reply = answer(path, body)[1].decode()
        shutil.copytree(HERE / "peers" / "echo", tmp / "echo")
        others = dict(peer(n, tmp / n, model_file, [x]) for n in (() if quick() else PEERS))
        found = in_turns({"ours": (root, OURS, {}, path, body), **others,
                          "echo": (tmp / "echo", [*GRANIAN, "echo:app"], {"ECHO_ANSWER": reply}, path, body),
                          "bare": bare(tmp / "bare", model_file, [x])}, each, rounds)
        mine, ready, memory, _ = found["ours"]
        others, echo, alone = {name: found[name][0] for name in others}, found["echo"][0], found["bare"][0]
        curve, (trees_alone, encoded, whole) = [*rates(root, each)], one_row(root)
        watched = [*watching(root, path, body, 2 * each, 2 * rounds)]
        cases = [*case_table(tmp, root / "settings.ini", each, quick())]
    rows = [r for c in CONNECTIONS for r in (beside(c, mine[c], others) if others
                                             else [row(f"HTTP, {c} connections", said(mine[c]))])]
    rows += [r for c in CONNECTIONS for r in reach(c, mine[c], echo[c], alone[c], others)]
    rows += [*curve,
             row("encode and predict one row, changing rows", f"{encoded:.1f} µs", bound="≤ 10 µs", met=encoded <= 10),
             row("… LightGBM's call alone", f"{trees_alone:.1f} µs"),
             row("encode, predict, calibrate and decide one row", f"{whole:.1f} µs", "LightGBM's call",
                 f"{trees_alone:.1f} µs", f"{whole / trees_alone:.2f}×", "≤ 1.20×", whole <= 1.2 * trees_alone),
             *watched,
             row("server, from the command to the first answer", f"{ready:.2f} s", bound="≤ 1.5 s", met=ready <= 1.5),
             row("server, memory of its processes after the load, shared pages counted once", f"{memory:.0f} MiB",
                 bound="≤ 120 MiB",
                 met=memory <= 120),
             *cases]
    report(rows,
           [f"HTTP: a LightGBM model of {trees} trees on {COLUMNS} columns, one row a request, one worker; wrk on one "
            "thread "
                  f"beside it on the same cores. In each of {rounds} rounds every server is started, warmed up and "
                  f"loaded for {each} s "
                  "with each number of connections; a figure is the median of the rounds. Ours validates, routes "
                  "between two variants, "
                  "logs every answer before it is sent, and counts. Each peer is installed into an environment of its "
                  "own and written as "
                  "its documentation shows; all predict with one thread.",
                  "Decoding and the trees alone: a Granian application of ten lines that checks, routes, records and "
                  "counts nothing. "
                  "So fast could this server be if all that it does beside that cost nothing.",
                  "The rows that name their trees: models of 31 leaves a tree, served the same way, each in one round "
                  f"beside MLServer and LitServe; {TABLE_BODIES} different rows take turns. The first is the base, and "
                  "each other row changes one thing of it. The peers get the same trees in their own form of "
                  "request, without calibration, rules or cache, as they have none; decoding and the trees alone gets "
                  "the form of request that the row has. Where LightGBM's own call and the decoding leave less than "
                  "10 / 0.70 times the best peer, the row says how much they leave.",
                  "Processor time of a request: of all processes of the server, while wrk asks at 16 connections; the "
                  f"medians of {2 * rounds} rounds in turn. The limits of requests, bodies and connections cannot be "
                  "switched off, so they are in every figure of this page.",
                  "Offered steadily: `mlops-nb capacity` with JSON objects. Its client is Python, keeps one of the "
                  "cores busy, and counts "
                  "latency from the moment at which a request was due; the curve ends where the server no longer "
                  "follows."])


if __name__ == "__main__": main()
