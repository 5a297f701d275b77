"The load of `grpc_serving.py`: streams of one client that ask without a pause; prints requests a second and latencies."
import asyncio
import json
import sys
import time
from pathlib import Path
from statistics import quantiles

import grpc
import uvloop


async def main(port, body, streams, duration):
    took, failed, end = [], 0, time.perf_counter() + duration

    async def ask(call):
        nonlocal failed
        while (sent := time.perf_counter()) < end:
            try: await call(body)
            except grpc.aio.AioRpcError: failed += 1
            else: took.append(time.perf_counter() - sent)

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        start, used = time.perf_counter(), time.process_time()
        await asyncio.gather(*(ask(call) for _ in range(streams)))
        seconds = time.perf_counter() - start
    cuts = quantiles(took, n=100) if len(took) > 1 else [0] * 99
    return dict(rate=len(took) / seconds, p50=cuts[49] * 1e3, p99=cuts[98] * 1e3, failed=failed,
                busy=(time.process_time() - used) / seconds)


if __name__ == "__main__":
    port, path, streams, duration = sys.argv[1:]
    print(json.dumps(uvloop.run(main(port, Path(path).read_bytes(), int(streams), float(duration)))))
