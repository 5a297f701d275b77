"A bare grpc.aio server that gives the same bytes to every request."
import asyncio
import os
from pathlib import Path

import grpc
import uvloop

ANSWER = Path(os.environ["ECHO_ANSWER"]).read_bytes()


async def echo(_, context): return ANSWER


async def main():
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(
        "inference.GRPCInferenceService", {"ModelInfer": grpc.unary_unary_rpc_method_handler(echo)})])
    server.add_insecure_port("127.0.0.1:18082")
    await server.start()
    http = await asyncio.start_server(ready, "127.0.0.1", 18081)
    async with http: await server.wait_for_termination()


async def ready(reader, writer):
    "Any request over HTTP: the benchmark waits for it."
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


if __name__ == "__main__": uvloop.run(main())
