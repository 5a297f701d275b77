"A bare Granian RSGI application that decodes a row and calls the trees: no schema, routing, prediction log, metrics."
from pathlib import Path

import msgspec

from mlops_nb.model.booster import Booster


class Tensor(msgspec.Struct):
    data: list[float]


class Request(msgspec.Struct):
    inputs: list[Tensor]


decode, encode = msgspec.json.Decoder(Request).decode, msgspec.json.Encoder().encode
model = Booster(Path("model.txt").read_text())


async def app(scope, protocol):
    score = model.predict_one(decode(await protocol()).inputs[0].data)
    answer = dict(outputs=[dict(name="score", datatype="FP64", shape=[1], data=[score])])
    protocol.response_bytes(200, [("content-type", "application/json")], encode(answer))
