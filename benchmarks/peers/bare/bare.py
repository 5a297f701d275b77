"A bare Granian RSGI application that decodes a row and calls the trees: no schema, routing, prediction log, metrics."
import os
from pathlib import Path

import msgspec

from mlops_nb.model.booster import Booster


class Tensor(msgspec.Struct):
    data: list[float]


class Request(msgspec.Struct):
    inputs: list[Tensor]


READERS = {"matrix": (Request, lambda r: r.inputs[0].data),
           "columns": (Request, lambda r: [t.data[0] for t in r.inputs]),
           "objects": (list[dict[str, float]], lambda r: [*r[0].values()])}
kind, read = READERS[os.environ.get("FORM", "matrix")]
decode, encode = msgspec.json.Decoder(kind).decode, msgspec.json.Encoder().encode
model = Booster(Path("model.txt").read_text())
several = model.n_classes > 1


async def app(scope, protocol):
    score = model.predict_one(read(decode(await protocol())))
    data = score.tolist() if several else [score]
    answer = dict(outputs=[dict(name="score", datatype="FP64", shape=[1], data=data)])
    protocol.response_bytes(200, [("content-type", "application/json")], encode(answer))
