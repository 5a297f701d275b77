"gRPC serving beside MLServer's gRPC, and beside a bare grpc.aio server."
import json
import subprocess
import sys
from statistics import median

from common import ENV, HERE, quick, report, row, workplace
from serving import COLUMNS, OURS, ROUNDS, TREES, made, peer, serving, tensor, v2

from mlops_nb.serve.grpc_messages import GRPC_MESSAGES
from mlops_nb.serve.inference_protocol import encode_binary

GRPC_PORT, STREAMS = 18082, (1, 16, 64)
PATH = "/v2/models/model/infer"


def message(x, raw=True):
    "One row as one tensor."
    m = GRPC_MESSAGES["ModelInferRequest"](model_name="model")
    t = m.inputs.add(name="input", datatype="FP64", shape=[1, len(x)])
    if raw: m.raw_input_contents.append(encode_binary("FP64", x))
    else: t.contents.fp64_contents.extend(x)
    return m.SerializeToString()


def load(body, streams, each):
    "What `grpc_load.py` prints; its first part is not counted."
    for duration in (max(1, each // 4), each):
        done = subprocess.run([sys.executable, HERE / "grpc_load.py", str(GRPC_PORT), body, str(streams),
                               str(duration)], env=ENV, capture_output=True, text=True)
        if done.returncode: raise SystemExit(f"the load ended with {done.returncode}: {done.stderr[-800:]}")
    found = json.loads(done.stdout)
    if found["failed"]: raise SystemExit(f"{found['failed']} requests failed")
    return found


def first_answer(body):
    "The bytes of one answer."
    import grpc
    with grpc.insecure_channel(f"127.0.0.1:{GRPC_PORT}") as channel:
        return channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(body.read_bytes(), timeout=60)


def servers(tmp, root, x, with_peers):
    "By name: folder, command, environment, and the message that it is asked with."
    raw, typed = tmp / "raw.bin", tmp / "typed.bin"
    raw.write_bytes(message(x))
    typed.write_bytes(message(x, raw=False))
    ours = {"MLOPS_NB_SERVE_GRPC_PORT": str(GRPC_PORT)}
    with serving(OURS, root, PATH, v2(tensor(x)), ours): (tmp / "answer.bin").write_bytes(first_answer(raw))
    yield "ours", (root, OURS, ours, raw)
    yield "ours, typed contents", (root, OURS, ours, typed)
    yield "bare grpc.aio echo", (tmp, [sys.executable, HERE / "peers/grpc_echo/server.py"],
                                 {"ECHO_ANSWER": str(tmp / "answer.bin")}, raw)
    if not with_peers: return
    name, (folder, command, env, *_) = peer("mlserver", tmp / "mlserver", root / "artifacts/bundle/model.txt", [x])
    yield f"{name}, raw contents", (folder, command, env, raw)
    yield f"{name}, typed contents", (folder, command, env, typed)


def measured(folder, command, env, body, x, each, streams):
    "Figures by the number of streams."
    with serving(command, folder, PATH, v2(tensor(x)), env): return {n: load(body, n, each) for n in streams}


def said(f): return f"{f['rate']:,.0f}/s, p50 {f['p50']:.2f} ms, p99 {f['p99']:.2f} ms"


def rows(found):
    "A block for each number of streams: beside the best of MLServer, then the echo and what else there is."
    for n in STREAMS:
        ours, echo = found["ours"][n], found["bare grpc.aio echo"][n]
        others = {name: f[n] for name, f in found.items() if name.startswith("MLServer")}
        if others:
            best = max(others, key=lambda name: others[name]["rate"])
            times = ours["rate"] / others[best]["rate"]
            yield row(f"gRPC, one row, {n} streams", said(ours), best, said(others[best]), f"{times:.1f}×",
                      "≥ 3×" if n == 16 else "", times >= 3 if n == 16 else None)
        else: yield row(f"gRPC, one row, {n} streams", said(ours))
        yield row("… beside a bare grpc.aio server of the same bytes", said(ours), "echo", said(echo),
                  f"{ours['rate'] / echo['rate']:.2f}×")
        yield row("… typed contents", said(found["ours, typed contents"][n]))
        yield row("… the client's share of a processor in that run", f"{ours['busy']:.0%}")
        yield from (row("…", "", name, said(f)) for name, f in others.items() if name != best)


def main(short=None, with_peers=None):
    short = quick() if short is None else short
    each, trees, rounds = (1, 30, 1) if short else (3, TREES, ROUNDS)
    with workplace() as tmp:
        root, x = made(tmp, trees)
        asked = dict(servers(tmp, root, x, not short if with_peers is None else with_peers))
        runs = {name: [] for name in asked}
        for _ in range(rounds):
            for name, how in asked.items(): runs[name].append(measured(*how, x, each, STREAMS))
    found = {name: {n: {k: median(r[n][k] for r in rs) for k in rs[0][n]} for n in STREAMS}
             for name, rs in runs.items()}
    report([*rows(found)],
           [f"gRPC: `ModelInfer` with a LightGBM model of {trees} trees on {COLUMNS} columns, one row a request, one "
            "worker, one channel. The client is Python (`grpc.aio` on uvloop) on the other core, the same for all; "
            "where its share of a processor is near 100 %, it is what limits the rate. In each of "
            f"{rounds} rounds every server is started, warmed up and loaded for {each} s with each number of streams; "
            "a figure is the median of the rounds. Ours validates, routes between two variants, logs every answer "
            "before it is sent, and counts. MLServer predicts in its own process (`parallel_workers = 0`).",
            "The bare server is `grpc.aio` alone: it reads no message and gives the same bytes to all. So fast could "
            "this server be if all that it does beside gRPC cost nothing."])


if __name__ == "__main__": main()
