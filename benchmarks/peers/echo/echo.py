"A bare Granian RSGI application: reads the body, answers with as many bytes as the real server does."
import os

ANSWER = os.environ["ECHO_ANSWER"].encode()


async def app(scope, protocol):
    await protocol()
    protocol.response_bytes(200, [("content-type", "application/json")], ANSWER)
