"HTTP serving against five servers."
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median

import numpy as np
import polars as pl
import psutil
from common import ENV, HERE, ROOT, alternating, quick, report, row, run, seconds, workplace

PORT, COLUMNS, TREES, CONNECTIONS, ROUNDS = 18081, 28, 300, (1, 16, 64), 5
ENVIRONMENTS = ROOT / ".mlops" / "peers"
LUA = """
wrk.method = "POST"
local file = io.open(os.getenv("BODY"), "rb")
wrk.body = file:read("*a")
wrk.headers["Content-Type"] = "application/json"
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


@contextmanager
def serving(command, folder, path, body, env=(), within=120):
    "Yields the process and the seconds until it answered; stopped with all its children at the end."
    with (folder / "server.log").open("wb") as log:
        clock = time.perf_counter()
        p = subprocess.Popen(list(map(str, command)), cwd=folder, env={**ENV, **dict(env)}, stdout=log, stderr=log,
                             start_new_session=True)
        try:
            while True:
                with suppress(OSError, http.client.HTTPException):
                    if answer(path, body)[0] == 200: break
                if p.poll() is not None or time.perf_counter() - clock > within:
                    raise SystemExit(f"{command[0]} did not answer: {(folder / 'server.log').read_text()[-1500:]}")
                time.sleep(0.02)
            yield p, time.perf_counter() - clock
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


def load(folder, path, body, connections, each):
    "Requests a second and latencies in ms, by wrk on one thread; the first part is not counted."
    (folder / "load.lua").write_text(LUA)
    (folder / "body.json").write_bytes(body)
    env = {**ENV, "BODY": str(folder / "body.json")}
    for duration in (max(1, each // 4), each):
        command = ["wrk", "-t1", f"-c{connections}", f"-d{duration}s", "--timeout", "10s", "-s", folder / "load.lua",
                   f"http://127.0.0.1:{PORT}{path}"]
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode: raise SystemExit(f"wrk ended with {done.returncode}: {done.stderr[-500:]}")
    r = json.loads(done.stdout.splitlines()[-1])
    if r["failed"]: raise SystemExit(f"{r['failed']} of {r['requests']} requests to {path} failed")
    return dict(rate=r["requests"] / r["microseconds"] * 1e6, p50=r["p50"] / 1e3, p99=r["p99"] / 1e3)


def made(tmp, trees):
    "A project with a model of 300 trees on 28 columns, released; and a row."
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20_000, COLUMNS)).round(4)
    y = (X[:, :5].sum(1) + X[:, 5] * X[:, 6] + rng.normal(size=len(X)) > 0)
    names = [f"c{i:02}" for i in range(COLUMNS)]
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
    return root, names, X[0].tolist()


def released(root):
    "Two variants behind the endpoint, so that each request is routed."
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


def peers(tmp, root, x):
    "Name and version, folder, command, environment, path and body of each; the model file is in the folder."
    def peer(name, package, packages, path, body, *command, env=()):
        bin, folder = environment(name, *packages), tmp / name
        shutil.copytree(HERE / "peers" / name, folder)
        shutil.copy(root / "artifacts/bundle/model.txt", folder / "model.txt")
        if (folder / "save.py").exists(): run(bin / "python", "save.py", cwd=folder)
        whole = {"PATH": f"{bin}{os.pathsep}{ENV['PATH']}", **dict(env)}
        return f"{package} {version_of(bin, packages[0].partition('[')[0])}", folder, [bin / command[0],
                                                                                       *command[1:]], whole, path, body
    rows = json.dumps(dict(data=[x])).encode()
    yield peer("mlserver", "MLServer", ["mlserver", "mlserver-lightgbm", "lightgbm"], "/v2/models/model/infer",
               v2(tensor(x)),
               "mlserver", "start", ".")
    yield peer("bentoml", "BentoML", ["bentoml", "lightgbm"], "/predict", rows,
               "bentoml", "serve", "service:Model", "--port", PORT, "--host", "127.0.0.1",
               env={"BENTOML_DO_NOT_TRACK": "1"})
    yield peer("litserve", "LitServe", ["litserve", "lightgbm"], "/predict", rows, "python", "server.py")
    yield peer("ray", "Ray Serve", ["ray[serve]", "lightgbm"], "/", rows, "python", "server.py",
               env={"RAY_USAGE_STATS_ENABLED": "0"})
    yield peer("mlflow", "MLflow", ["mlflow", "lightgbm"], "/invocations", json.dumps(dict(inputs=[x])).encode(),
               "mlflow", "models", "serve", "-m", "saved", "--env-manager", "local", "-p", PORT, "-w", 1)


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
        first = answer(path, body)[1]
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
    "Microseconds of one row: the trees alone, with the row's encoding, and with the policy's calibration."
    from mlops_nb.model.predictor import Predictor
    predictor = Predictor.open(root / "artifacts/bundle")
    frame = pl.read_parquet(root / "artifacts/prepared/test.parquet", columns=predictor.inputs).head(n)
    rows, X = [{c: [v] for c, v in r.items()} for r in frame.to_dicts()], predictor.encode_frame(frame)
    def trees():
        for x in X: predictor.model.predict_one(x)
    def predict():
        for r in rows: predictor.model.predict_one(predictor.encode_columns(r)[0])
    def answer():
        for r in rows: predictor.predict_encoded(predictor.encode_columns(r))
    return [s / len(rows) * 1e6 for s in alternating(5, *(lambda f=f: seconds(f) for f in (trees, predict, answer)))]


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


def main():
    if not shutil.which("wrk"): raise SystemExit("the load comes from wrk; install it (Debian: apt-get install wrk).")
    each, trees, rounds = (1, 30, 1) if quick() else (3, TREES, ROUNDS)
    with workplace() as tmp:
        root, names, x = made(tmp, trees)
        path, body = "/v2/models/model/infer", v2(tensor(x))
        with serving(OURS, root, path, body): reply = answer(path, body)[1].decode()
        for name in ("echo", "bare"): shutil.copytree(HERE / "peers" / name, tmp / name)
        shutil.copy(root / "artifacts/bundle/model.txt", tmp / "bare")
        others = {name: where for name, *where in (() if quick() else peers(tmp, root, x))}
        found = in_turns({"ours": (root, OURS, {}, path, body), **others,
                          "echo": (tmp / "echo", [*GRANIAN, "echo:app"], {"ECHO_ANSWER": reply}, path, body),
                          "bare": (tmp / "bare", [*GRANIAN, "bare:app"], {}, path, body)}, each, rounds)
        mine, ready, memory, _ = found["ours"]
        others, echo, bare = {name: found[name][0] for name in others}, found["echo"][0], found["bare"][0]
        def us(path, body):
            return median(measured(root, OURS, {}, path, body, each, (16,))[0][16]["rate"] for _ in range(rounds))
        by_column = us(path, v2(*(tensor([v], n, [1]) for n, v in zip(names, x, strict=True))))
        plain = us("/v1/endpoints/model:predict", json.dumps([dict(zip(names, x, strict=True))]).encode())
        curve, (trees_alone, encoded, whole) = [*rates(root, each)], one_row(root)
    rows = [r for c in CONNECTIONS for r in (beside(c, mine[c], others) if others
                                             else [row(f"HTTP, {c} connections", said(mine[c]))])]
    rows += [r for c in CONNECTIONS for r in reach(c, mine[c], echo[c], bare[c], others)]
    rows += [row("… one tensor a column, 16 connections", f"{by_column:,.0f}/s"),
             row("… JSON objects, 16 connections", f"{plain:,.0f}/s"),
             *curve,
             row("encode and predict one row, changing rows", f"{encoded:.1f} µs", bound="≤ 10 µs", met=encoded <= 10),
             row("… LightGBM's call alone", f"{trees_alone:.1f} µs"),
             row("… and its calibration", f"{whole:.1f} µs"),
             row("server, from the command to the first answer", f"{ready:.2f} s", bound="≤ 1.5 s", met=ready <= 1.5),
             row("server, memory of its processes after the load, shared pages counted once", f"{memory:.0f} MiB",
                 bound="≤ 120 MiB",
                 met=memory <= 120)]
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
                  "Offered steadily: `mlops-nb capacity` with JSON objects. Its client is Python, keeps one of the "
                  "cores busy, and counts "
                  "latency from the moment at which a request was due; the curve ends where the server no longer "
                  "follows."])


if __name__ == "__main__": main()
