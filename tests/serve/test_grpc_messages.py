"The messages of gRPC: the published contract, the same requests as in JSON, and bytes that are none."
import ast
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import UserError
from mlops_nb.serve.grpc_messages import GRPC_MESSAGES, decode_infer_message, parse_infer_message, single_row
from mlops_nb.serve.inference_protocol import DATATYPES, decode_infer_request, encode_binary

REQUEST = GRPC_MESSAGES["ModelInferRequest"]
VALUES = {"BOOL": [True, False], "BYTES": ["a | b", ""], "FP32": [.1, -2.], "FP64": [.1, 1e300], "FP16": [.1, -2.],
          "BF16": [.1, -2.]}
FIELDS = {"BOOL": "bool_contents", "BYTES": "bytes_contents", "FP32": "fp32_contents", "FP64": "fp64_contents",
          "INT64": "int64_contents", "UINT64": "uint64_contents"}


def published(path):
    "The descriptor in a module that protobuf's compiler made, by the names of messages; the module is not run."
    file = FileDescriptorProto()
    [file.MergeFromString(n.args[0].value) for n in ast.walk(ast.parse(path.read_text()))
     if isinstance(n, ast.Call) and getattr(n.func, "attr", "") == "AddSerializedFile"]
    return {m.name: m for m in file.message_type}


def fields(message):
    "Number, name, type and the rest of the contract of each field, also of the messages inside."
    found = {(message.name, f.number, f.name, f.type, f.label, f.type_name, f.HasField("oneof_index"))
             for f in message.field}
    for m in message.nested_type: found |= {(message.name, m.options.map_entry, *f) for f in fields(m)}
    return found


def test_the_messages_are_those_that_triton_publishes():
    spec = importlib.util.find_spec("tritonclient") or pytest.skip("tritonclient is not installed")
    theirs = published(Path(spec.origin).parent / "grpc/service_pb2.py")
    partly = {"ModelStatistics", "InferStatistics"}  # what is not counted is left out
    kserves = {"RepositoryModelLoadResponse", "RepositoryModelUnloadResponse"}
    for name, kind in GRPC_MESSAGES.items():
        ours = type(theirs[name])()
        kind.DESCRIPTOR.CopyToProto(ours)
        if name in partly: assert fields(ours) <= fields(theirs[name]), name
        elif name not in kserves: assert fields(ours) == fields(theirs[name]), name


def as_message(datatype, values, raw, shape=(2,)):
    m = REQUEST(model_name="rows", id="r", parameters={"a": {"double_param": .5}, "b": {"bool_param": True}})
    tensor = m.inputs.add(name="x", datatype=datatype, shape=shape)
    sent = [v.encode() for v in values] if datatype == "BYTES" else values
    if raw == "BF16": m.raw_input_contents.append(np.array(values, "<f4").view("<u4").__rshift__(16).astype("<u2")
                                                  .tobytes())
    elif raw: m.raw_input_contents.append(encode_binary(datatype, values))
    else: getattr(tensor.contents, FIELDS.get(datatype, "uint_contents" if datatype[0] == "U"
                                              else "int_contents")).extend(sent)
    return m


@pytest.mark.parametrize("datatype", DATATYPES)
def test_a_message_is_the_same_request_as_its_json(datatype):
    values = VALUES.get(datatype, [0, 100])
    body = {"id": "r", "parameters": {"a": .5, "b": True},
            "inputs": [{"name": "x", "datatype": datatype, "shape": [2], "data": values}]}
    expected = decode_infer_request(json.dumps(body).encode())
    ways = [True] if datatype == "FP16" else ["BF16"] if datatype == "BF16" else [False, True]
    for raw in ways:
        found = decode_infer_message(as_message(datatype, values, raw))
        assert [*found.inputs[0].data] == pytest.approx([*expected.inputs[0].data], abs=0 if raw != "BF16" else 1e-2)
        found.inputs[0].data = expected.inputs[0].data
        assert found == expected


@pytest.mark.parametrize("change, said", [
    (lambda m: m.inputs[0].shape.append(3), "2 values in int64_contents"),
    (lambda m: m.inputs[0].shape.__setitem__(0, -2), "none negative"),
    (lambda m: m.inputs[0].shape.extend([1] * 9), "at most 8 dimensions"),
    (lambda m: setattr(m.inputs[0], "datatype", "INT46"), "did you mean 'INT64'"),
    (lambda m: setattr(m.inputs[0], "datatype", "FP16"), "send raw_input_contents"),
    (lambda m: setattr(m.inputs[0], "datatype", "FP64"), "0 values in fp64_contents"),
    (lambda m: m.raw_input_contents.append(b""), "has contents, and there are raw_input_contents too"),
    (lambda m: m.raw_input_contents.extend([b"", b""]), "1 inputs and 2 raw_input_contents"),
    (lambda m: m.inputs.pop(), "has no inputs"),
    (lambda m: m.inputs[0].parameters["shared_memory_region"].__setattr__("string_param", "a"), "shared memory")])
def test_what_is_wrong_is_said(change, said):
    message = as_message("INT64", [1, 2], raw=False)
    change(message)
    with pytest.raises(UserError, match=said): decode_infer_message(message)


def test_many_tensors_and_texts_are_refused_by_their_number():
    texts, many = REQUEST(raw_input_contents=[bytes(4 * 50_000)]), REQUEST()
    texts.inputs.add(name="x", datatype="BYTES", shape=[1, 50_000])
    many.inputs.extend([REQUEST.InferInputTensor()] * 10_001)
    for message, said in ((texts, "50000 texts in 1 rows"), (many, "10001 inputs")):
        with pytest.raises(UserError, match=said): decode_infer_message(message, max_rows=100)


@pytest.mark.parametrize("raw", [False, True])
def test_a_row_of_plain_numbers_is_recognised(raw):
    m = as_message("FP64", [.1, float("nan")], raw, shape=(1, 2))
    assert single_row(m) is None, "parameters are left to the protocol"
    m.ClearField("parameters")
    assert repr([*single_row(m)[1]]) == "[0.1, nan]"
    for change in (lambda m: m.inputs[0].shape.__setitem__(1, 3), lambda m: m.inputs[0].shape.__setitem__(0, 2),
                   lambda m: m.inputs[0].shape.append(1), lambda m: m.inputs.add(), lambda m: m.outputs.add(),
                   lambda m: m.inputs[0].parameters["a"], lambda m: setattr(m.inputs[0], "datatype", "INT64"),
                   lambda m: m.raw_input_contents.extend([b"12"] * 2), lambda m: m.inputs.pop()):
        other = REQUEST()
        other.CopyFrom(m)
        change(other)
        assert single_row(other) is None


def field(number, body):
    "A field of bytes on the wire."
    size = b""
    left = len(body)
    while left > 127: size, left = size + bytes([left & 127 | 128]), left >> 7
    return bytes([number << 3 | 2]) + size + bytes([left]) + body


@pytest.mark.parametrize("body", [
    field(5, b"") * 50_000, field(5, field(3, b"\x01" * 50_000)), field(5, field(5, field(8, b"") * 50_000)),
    field(5, field(5, field(7, bytes(8 * 50_000)))), field(4, b"") * 50_000, field(7, b"") * 50_000],
    ids=["tensors", "shape", "texts", "numbers", "parameters", "raw contents"])
def test_a_message_of_very_many_parts_is_refused_before_it_is_parsed(body):
    REQUEST.FromString(body)  # it is a message
    with pytest.raises(UserError, match="more than 10000 values"): parse_infer_message(body, 10_000)


@given(st.binary(max_size=200), st.integers(0, 2**31))
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_a_message_or_a_sentence(noise, at):
    whole = as_message("BYTES", ["a", "b"], raw=False).SerializeToString()
    at %= len(whole)
    for body in (noise, whole[:at], whole[:at] + noise, whole[:at] + noise[:3] + whole[at + 3:]):
        for limit in (None, 50):
            try: decode_infer_message(parse_infer_message(body, limit), max_rows=10)
            except UserError: pass


def test_a_number_that_never_ends_is_refused_at_once():
    with pytest.raises(UserError, match="is no ModelInferRequest"): parse_infer_message(b"\x2a" + b"\xff" * 10**6, 10)
