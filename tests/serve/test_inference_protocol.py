"The open inference protocol: every datatype, JSON and binary alike, torn and lying requests."
import contextlib
import json
import math
import struct

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_nb.core.errors import UserError
from mlops_nb.serve import inference_protocol as v2
from mlops_nb.serve.inference_protocol import (
    DATATYPES,
    InferRequest,
    RequestedOutput,
    build_infer_outputs,
    decode_infer_request,
    encode_infer_response,
    error_body,
)

NUMBERS = [d for d in DATATYPES if d not in ("BYTES", "BF16")]


def value(datatype):
    "What JSON may hold for a datatype."
    if datatype == "BYTES": return st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    if datatype == "BOOL": return st.booleans()
    if datatype[0] in "FB":
        return st.floats(allow_nan=False, allow_infinity=False, width={"FP16": 16, "FP64": 64}.get(datatype, 32))
    info = np.iinfo(DATATYPES[datatype])
    return st.integers(int(info.min), int(info.max))


def nest(values, shape):
    "Flat values as lists in lists of the shape."
    if len(shape) < 2: return values
    step = math.prod(shape[1:])
    return [nest(values[i * step:(i + 1) * step], shape[1:]) for i in range(shape[0])]


def raw(datatype, values):
    if datatype == "BYTES": return b"".join(struct.pack("<I", len(v.encode())) + v.encode() for v in values)
    if datatype == "BF16": return (np.array(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.array(values, DATATYPES[datatype]).tobytes()


def asked(*inputs, **rest): return json.dumps({"inputs": [*inputs], **rest}).encode()


def with_tail(*pairs, **rest):
    "A body whose inputs are binary, and the length of its JSON part."
    head = asked(*({**t, "parameters": {"binary_data_size": len(b)}} for t, b in pairs), **rest)
    return head + b"".join(b for _, b in pairs), len(head)


@st.composite
def tensors(draw):
    datatype = draw(st.sampled_from(list(DATATYPES)))
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    n = math.prod(shape)
    return {"name": draw(st.text(max_size=5)), "datatype": datatype, "shape": shape,
            "data": draw(st.lists(value(datatype), min_size=n, max_size=n))}


@given(tensors(), st.data())
@settings(max_examples=300, deadline=None)
def test_flat_nested_and_binary_say_the_same(t, data):
    if t["datatype"] == "BF16": # what a brain float can hold
        if max(map(abs, t["data"])) > 3.38e38: return # too large once it is rounded
        t["data"] = decode_infer_request(asked(t)).inputs[0].data
    flat = decode_infer_request(asked(t)).inputs[0]
    assert (flat.name, flat.datatype, flat.shape) == (t["name"], t["datatype"], t["shape"])
    assert flat.data == t["data"]
    assert decode_infer_request(asked({**t, "data": nest(t["data"], t["shape"])})).inputs[0].data == t["data"]
    head = {k: v for k, v in t.items() if k != "data"}
    binary = decode_infer_request(*with_tail((head, raw(t["datatype"], t["data"])))).inputs[0].data
    assert (binary if t["datatype"] == "BYTES" else binary.tolist()) == t["data"]
    missing = data.draw(st.integers(0, len(t["data"]) - 1))
    holes = [None if i == missing else v for i, v in enumerate(t["data"])]
    assert decode_infer_request(asked({**t, "data": holes})).inputs[0].data == holes


@pytest.mark.parametrize("datatype", [d for d in NUMBERS if d not in ("BOOL", "FP16", "FP32", "FP64")])
def test_the_range_of_whole_numbers(datatype):
    info = np.iinfo(DATATYPES[datatype])
    def read(v, shape=(1,), data=None):
        return decode_infer_request(asked({"name": "a", "datatype": datatype, "shape": [*shape],
        "data": data or [v]}))
    for v in (int(info.min), int(info.max)): assert read(v).inputs[0].data == [v]
    assert read(7.0).inputs[0].data == [7] == read(7.0, (1, 1), [[7.0]]).inputs[0].data  # to JSON it is the same number
    for v in (int(info.min) - 1, int(info.max) + 1, 1.5, "1", True, 10**30):
        with pytest.raises(UserError, match="'a' is .*element"): read(v)
        with pytest.raises(UserError, match="'a' is .*element"): read(v, (1, 1), [[v]])


@pytest.mark.parametrize("datatype, bad", [("FP64", "1"), ("FP32", 1e39), ("FP16", 7e4), ("BF16", 1e39), ("BOOL", 2),
                                           ("BOOL", .5),
    ("BYTES", 1),
    ("BYTES", ["a"])])
def test_values_of_another_type(datatype, bad):
    with pytest.raises(UserError, match="'a'"):
        decode_infer_request(asked({"name": "a", "datatype": datatype, "shape": [1], "data": [bad]}))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False, width=32), min_size=1, max_size=5),
    st.sampled_from(["FP32", "FP16", "BF16"]))
@settings(deadline=None)
def test_precision_is_that_of_the_datatype(values, datatype):
    "A JSON number is rounded to the nearest of its datatype: sending it again changes nothing, and none is nearer."
    body = {"name": "a", "datatype": datatype, "shape": [len(values)]}
    try: once = decode_infer_request(asked({**body, "data": values})).inputs[0].data
    except UserError as e:
        assert "too large" in str(e) or "'a'" in str(e)
        return
    assert decode_infer_request(asked({**body, "data": once})).inputs[0].data == once
    bits = {"FP32": 24, "FP16": 11, "BF16": 8}[datatype]
    smallest = {"FP16": 2.0**-24}.get(datatype, 2.0**-149 if datatype == "FP32" else 2.0**-133)
    for v, x in zip(values, once, strict=True): assert abs(v - x) <= max(abs(v) * 2.0**-bits, smallest / 2)


GOOD = {"name": "a", "datatype": "INT64", "shape": [2], "data": [1, 2]}


@pytest.mark.parametrize("body, says", [
    (b"", "not JSON"), (b"{", "not JSON"), (b"[]", "protocol"), (b"null", "protocol"), (b"\xff\xfe", "not JSON"),
    (b'{"id": "\xff", "inputs": []}', "UTF-8"),
    (b"{}", "inputs"), (b'{"inputs": []}', "no inputs"), (b'{"inputs": {}}', "protocol"),
    (b'{"inputs": [1]}', "protocol"),
    (asked({**GOOD, "data": "ab"}), "not a list"), (asked({**GOOD, "data": None}), "not a list"),
    (asked({**GOOD, "data": {"a": 1}}), "not a list"),
    (asked({**GOOD, "shape": [-2]}), "protocol"), (asked({**GOOD, "shape": 2}), "protocol"),
    (asked({**GOOD, "shape": [10**40]}), "protocol"),
    (asked({**GOOD, "shape": [2**64, 2**64]}), "shape"), (asked({**GOOD, "shape": []}), "shape"),
    (asked({**GOOD, "shape": [0]}), "shape"),
    (asked({**GOOD, "data": [[1], [2]]}), "lists deep"),
    (asked({**GOOD, "data": [[[[[[[[[1]]]]]]]]], "shape": [1] * 8}), "lists deep"),
    (asked({**GOOD, "data": [[1, 2], [3]], "shape": [2, 2]}), "nested in another"),
    (asked({**GOOD, "data": [[1], 2], "shape": [2, 1]}), "element"),
    (asked({**GOOD, "datatype": "STRING"}), "datatype"), (asked({**GOOD, "datatype": 3}), "protocol"),
    (asked({**GOOD, "datatype": "x" * 10**6}), "datatype"),
    (asked({k: v for k, v in GOOD.items() if k != "data"}), "no data"),
    (asked({k: v for k, v in GOOD.items() if k != "name"}), "name"),
    (asked({**GOOD, "parameters": {"binary_data_size": 16}}), "both"), (asked(GOOD, id=5), "protocol"),
    (asked(GOOD, outputs={"name": "score"}), "protocol"), (asked(GOOD, outputs=["score"]), "protocol"),
    (asked(GOOD, parameters=[1]), "protocol"),
    (b'{"more": ' + b"[" * 100_000, "deep"),
    (b'{"parameters": {"a": ' + b"[" * 10**5 + b"]" * 10**5 + b'}, "inputs": []}', "deep"),
    (b'{"inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "data": [1e999]}]}', "element"),
    (b'{"inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "data": [NaN]}]}', "NaN"),
    (b'{"inputs": [{"name": "\\ud800", "datatype": "FP64", "shape": [1], "data": [1]}]}', "JSON"),
    (b'{"inputs": [{"name": "a", "datatype": "FP64", "shape": [1], "data": ' + b"[" * 10**5 + b"]" * 10**5 + b"}]}",
     "deep"),
    (asked(GOOD) + b"{}", "not JSON")])
def test_what_is_no_request_is_a_sentence(body, says):
    with pytest.raises(UserError, match=says) as e: decode_infer_request(body)
    assert len(str(e.value)) < 600 and "\n" not in str(e.value)
    json.loads(error_body(e.value))


def test_a_shape_of_many_dimensions_costs_nothing():
    "Its product would have millions of digits."
    with pytest.raises(UserError, match="length <= 8"):
        decode_infer_request(asked({**GOOD, "shape": [2**62] * 200_000}))


def test_unknown_members_are_left_alone():
    "The protocol grows, and clients send more than it names."
    assert decode_infer_request(asked({**GOOD, "more": [1]}, model_name="m", more={"a": [1]})).inputs[0].data == [1, 2]
    assert decode_infer_request(asked({**GOOD, "parameters": None}, id=None, parameters=None, outputs=None)).id is None


BINARY = with_tail(({"name": "a", "datatype": "INT64", "shape": [2]}, raw("INT64", [1, 2])),
    ({"name": "b", "datatype": "BYTES", "shape": [2]},
                                                                                             raw("BYTES", ["", "é"])))


@pytest.mark.parametrize("length", ["", "-1", "+5", "1e3", "0x10", " 5", "1_0", "٣", "9" * 5000,
                                    str(len(BINARY[0]) + 1), "None"])
def test_a_header_length_that_is_none(length):
    with pytest.raises(UserError, match="Inference-Header-Content-Length"): decode_infer_request(BINARY[0], length)


def test_torn_anywhere_is_an_error_never_other_values():
    body, length = BINARY
    good = decode_infer_request(body, str(length))
    assert good.inputs[0].data.tolist() == [1, 2] and good.inputs[1].data == ["", "é"]
    for cut in range(len(body)):
        with pytest.raises(UserError): decode_infer_request(body[:cut], length)
        if cut == length: continue
        with pytest.raises(UserError): decode_infer_request(body, cut)
    with pytest.raises(UserError, match="belong to no input"): decode_infer_request(body + b"\0", length)
    with pytest.raises(UserError): decode_infer_request(body)  # the header forgotten


@pytest.mark.parametrize("datatype, shape, data, size", [
    ("INT64", [3], raw("INT64", [1, 2]), None), ("INT64", [2**62, 4], b"", None),
    ("INT64", [2], raw("INT64", [1, 2]), -16),
    ("INT64", [2], raw("INT64", [1, 2]), 2**70), ("INT64", [2], raw("INT64", [1, 2]), True),
    ("INT64", [2], raw("INT64", [1, 2]), "16"),
    ("INT64", [2], raw("INT64", [1, 2]), 16.0), ("BYTES", [2**40], raw("BYTES", ["a"]), None),
    ("BYTES", [1], b"\xff\xff\xff\xff", None),
    ("BYTES", [1], b"\x01\0\0\0\xff", None), ("BYTES", [1], b"\x01\0\0", None),
    ("BYTES", [1], raw("BYTES", ["a", "b"]), None),
    ("BOOL", [1], b"\x02", None)])
def test_binary_tensors_that_lie(datatype, shape, data, size):
    head = asked({"name": "a", "datatype": datatype, "shape": shape,
        "parameters": {"binary_data_size": len(data) if size is None else size}})
    with pytest.raises(UserError, match="'a'"): decode_infer_request(head + data, len(head))


def test_binary_and_json_inputs_side_by_side():
    head = asked({**GOOD, "name": "first"}, {"name": "second", "datatype": "FP32", "shape": [1],
                                             "parameters": {"binary_data_size": 4}},
        GOOD)
    assert [list(t.data) for t in decode_infer_request(head + raw("FP32", [.5]), len(head)).inputs] == [[1, 2], [.5],
                                                                                                        [1, 2]]


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(0, 250)))
@settings(max_examples=400, deadline=None)
def test_any_bytes_are_a_request_or_a_sentence(body, length):
    with contextlib.suppress(UserError): decode_infer_request(body, length)


@given(st.integers(0, len(BINARY[0]) - 1), st.integers(0, 255))
@settings(max_examples=400, deadline=None)
def test_a_changed_byte_is_a_request_or_a_sentence(at, byte):
    body, length = bytearray(BINARY[0]), BINARY[1]
    body[at] = byte
    try: assert isinstance(decode_infer_request(bytes(body), length), InferRequest)
    except UserError as e: msgspec.json.decode(error_body(e))


OUTPUT = {"score_a": pl.Float64(), "score_b": pl.Float64(), "decision": pl.String()}
SCORES = build_infer_outputs(OUTPUT, [[.25, .75], [1.0, 0.0]], ["b", None])
VALUES = {o.name: o.data for o in SCORES}


def answered(outputs=None, parameters=None, id="é\n"):
    return encode_infer_response(InferRequest([], id, parameters, outputs), "m", "v1", SCORES, {"variant": "x"})


def test_an_answer_in_json():
    body, length = answered()
    assert length is None
    assert json.loads(body) == {"model_name": "m", "model_version": "v1", "id": "é\n", "parameters": {"variant": "x"},
                                "outputs": [
        {"name": "score_a", "datatype": "FP64", "shape": [2], "data": [.25, 1]},
        {"name": "score_b", "datatype": "FP64", "shape": [2], "data": [.75, 0]},
        {"name": "decision", "datatype": "BYTES", "shape": [2], "data": ["b", ""]}]}
    assert "id" not in json.loads(answered(id=None)[0])


@pytest.mark.parametrize("outputs, parameters, binary", [
    (None, {"binary_data_output": True}, {"score_a", "score_b", "decision"}),
    (None, {"binary_data_output": False}, set()),
    (None, {"other": 1}, set()),
    ([RequestedOutput("decision"), RequestedOutput("score_a", {"binary_data": True})], None, {"score_a"}),
    ([RequestedOutput("score_b", {"binary_data": False})], {"binary_data_output": True}, set()),
    ([RequestedOutput("score_b"), RequestedOutput("decision", {"binary_data": False})], {"binary_data_output": True},
     {"score_b"}), ([], None, set())])
def test_an_answer_in_binary(outputs, parameters, binary):
    "As the client of another server reads it."
    client = pytest.importorskip("tritonclient.http")
    body, length = answered(outputs, parameters)
    head = json.loads(body[:length])
    assert {o["name"] for o in head["outputs"] if "binary_data_size" in o.get("parameters",
        {})} == binary and (length is None) == (not binary)
    assert [o["name"] for o in head["outputs"]] == [o.name for o in outputs or ()] or not outputs
    result = client.InferResult.from_response_body(body, header_length=length)
    for o in head["outputs"]:
        values = result.as_numpy(o["name"]).tolist()
        assert [v.decode() if isinstance(v, bytes) else v for v in values] == [*VALUES[o["name"]]]


def test_where_nobody_is_referred_the_output_says_so():
    output = {"score": pl.Float64(), "decision": pl.String(), "needs_review": pl.Boolean()}
    assert [o.data for o in build_infer_outputs(output, [.5, .6], ["a", "b"])] == [[.5, .6], ["a", "b"], [False, False]]
    assert [o.data for o in build_infer_outputs(output, [.5], [None], [True])] == [[.5], [""], [True]]


@given(st.sampled_from([1, 3]), st.lists(st.floats(allow_nan=True), min_size=3, max_size=3), st.none() | st.text(),
       st.none() | st.text(), st.sampled_from([None, [True], [False]]), st.booleans(), st.booleans(), st.text())
@settings(max_examples=200, deadline=None)
def test_one_row_is_encoded_as_many_are(n, scores, id, decision, review, decides, reviews, name):
    schema = {f"score_{name}{i}": pl.Float64() for i in range(n)}
    if decides: schema["decision"] = pl.String()
    if reviews: schema["needs_review"] = pl.Boolean()
    row = [scores if n > 1 else scores[0]], [decision] if decides else None, review
    for version in ("v%1", None):
        want, _ = encode_infer_response(InferRequest([], id), name, version, build_infer_outputs(schema, *row))
        assert v2.RowResponseEncoder(schema, name, version)(id, *row) == want


def test_scores_come_back_to_the_last_bit():
    scores = np.random.default_rng(0).random(500)
    body, length = encode_infer_response(decode_infer_request(asked(GOOD)), "m", None,
                                         build_infer_outputs({"score": pl.Float64()}, scores.tolist()))
    assert json.loads(body)["outputs"][0]["data"] == scores.tolist() and "model_version" not in json.loads(body)


def test_what_the_server_says_of_itself():
    assert "binary_tensor_data" in v2.build_server_metadata()["extensions"]
    assert json.loads(v2.ready_body(False)) == {"live": True,
                                                "ready": False} and json.loads(v2.ready_body(True, "")) == {"name": "",
        "ready": True}
