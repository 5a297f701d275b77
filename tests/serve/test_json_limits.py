"What a JSON body may cost before anybody knows what it is: values are counted, rows come in pieces, memory is bounded."
import json
import sys
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.test_request_validation import asked, decoder_of
from support import server as serving

from mlops_nb.config.schema import Column
from mlops_nb.core.errors import UserError
from mlops_nb.serve import json_limits
from mlops_nb.serve.handlers import _decode_infer_rows
from mlops_nb.serve.json_limits import MAX_ROW_BYTES, MAX_VALUES_AT_ONCE, count_json, split_rows
from mlops_nb.serve.rest_protocol import decode_labels

texts = st.text('a,[]{}":\\ \nü', max_size=9)
values = st.recursive(st.none() | st.booleans() | st.integers(-9, 9) | texts,
                      lambda v: st.lists(v, max_size=4) | st.dictionaries(texts, v, max_size=4), max_leaves=20)
COLUMNS = {"x": Column("number", range=(0, None)), "n": Column("integer", nullable=True, on_violation="null"),
           "place": Column("category", domain=["a", "b,{}"], nullable=True)}


def size(v):
    "(values, lists, objects) of a decoded JSON value; the members of an object count as one each."
    inner = v if isinstance(v, list) else v.values() if isinstance(v, dict) else ()
    found = [(1, isinstance(v, list), isinstance(v, dict)), *map(size, inner)]
    return tuple(map(sum, zip(*found, strict=True)))


@settings(max_examples=40)
@given(values, st.sampled_from([None, 2]))
def test_no_text_holds_more_values_than_are_counted(value, indent):
    counts = count_json(json.dumps(value, ensure_ascii=False, indent=indent).encode())
    n, lists, objects = size(value)
    assert (counts.lists, counts.objects) == (lists, objects) and n <= counts.values <= n + lists + objects


@given(st.binary(max_size=40) | st.text('"\\[,a', max_size=40).map(str.encode), st.integers(0, 5))
def test_counting_ends_whatever_the_bytes_are(body, most):
    assert count_json(body).values <= len(body) + 1
    stopped = count_json(b"[1," * 100_000 + body, most)
    assert most < stopped.values < 100_000, "it stops soon after the limit"


@pytest.mark.parametrize("text", ["a" * 300_000, '\\"' * 100_000, "\\\\" * 100_000, ",[" * 100_000])
def test_long_texts_are_one_value(text):
    assert count_json(b'["%s", 1]' % text.encode()).values == 3


rows = st.lists(st.fixed_dictionaries(
    {"x": st.integers(-1, 3) | st.floats(0, 9) | texts},
    optional={"n": values, "place": st.sampled_from(["a", "b,{}", " a", "c", None]) | texts,
              "other": st.integers(0, 2)},
), min_size=1, max_size=9)


@settings(max_examples=40)
@given(rows, st.booleans(), st.sampled_from([None, 1]), st.integers(1, 3))
def test_pieces_give_the_answer_of_the_whole(rows, envelope, indent, n):
    "The same rows, or the same violations, however few are decoded at a time."
    decoder = decoder_of(COLUMNS)
    body = json.dumps({"id": "r", "instances": rows, "parameters": {"a": [1]}} if envelope else rows, indent=indent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_limits, "_PIECE_ROWS", n)
        try: list(split_rows(body.encode(), body.index("[") + 1))
        except UserError: return # nested deeper than rows are cut
        assert repr(asked(decoder._from_large_json, body.encode())) == repr(asked(decoder.from_json, body.encode()))


GOOD = b'{"x": 1, "n": 2}'


@pytest.mark.parametrize("body, said", [
    (b'[%s, {"x": NaN}]', "not JSON within the rows from 1 on"), (b"[%s] 3", "not JSON"),
    (b"[%s, ]", "row 1 of the request is no object"),
    (b'{"instances": [%s], "ids": 3}', "no field 'ids'"),
    (b'{"instances": [%s], "id": 3}', "'id' of the request is 3"),
    (b'{"parameters": {"instances": [%s]}, "instances": [%s]}', "two lists of rows"),
    (b'{"instances": [%s], "parameters": {"a": "' + b"a" * 40_000 + b'"}}', "more than 32 KiB beside its rows"),
    (b'{"x": %s}', "no list of rows"), (b"[%s, []]", "row 1 of the request is no object"),
    (b'[%s, {"place": "' + b"a" * MAX_ROW_BYTES + b'"}]', "row 1 of the request is no object"),
    (b"[" + GOOD + b", " + b", ".join([b"%s"] * 3) + b"]", "more than 3 rows")])
def test_what_is_wrong_with_a_large_body_is_said(body, said, monkeypatch):
    monkeypatch.setattr(json_limits, "_PIECE_ROWS", 1)
    decoder = decoder_of(COLUMNS)
    decoder.max_rows = 3
    assert said in asked(decoder._from_large_json, body.replace(b"%s", GOOD))[0]


ITEMS = [b"[]", b"{}", b"1", b'"a"', b"[[1]]", b'{"x":[]}', b'{"x":1,"a":2}', GOOD]
PREDICT = [b"[%s]", b'{"instances":[%s]}', b'{"parameters":{"a":[%s]},"instances":[{"x":1}]}', b'[{"x":[%s]}]', b"[%s",
           b'{"instances":[{"x":1}],"id":[%s]}']
TENSOR = b'{"name":"m","shape":[1,3],"datatype":"FP64","data":[1,2,3]}'
INFER = [b'{"inputs":[%s]}', b'{"inputs":[' + TENSOR + b'],"parameters":{"a":[%s]}}',
         b'{"inputs":[' + TENSOR + b'],"outputs":[%s]}', b'{"inputs":[' + TENSOR + b'],"other":[%s]}',
         *(b'{"inputs":[' + TENSOR.replace(b"[1,2,3]", b"[%s]").replace(b"FP64", kind) + b"]}"
           for kind in (b"FP64", b"BOOL", b"BYTES"))]
LABELS = [b'{"labels":[%s]}', b"[%s]"]


@pytest.fixture(scope="module")
def decoder(): return decoder_of(COLUMNS)


@settings(max_examples=12, derandomize=True, deadline=None)
@given(data=st.data())
def test_no_body_costs_more_than_its_size(decoder, data):
    """What is made of half a MiB takes at most four times as much, what one call decodes is bounded, and when the
    answer is there, all memory is back."""
    read, forms = data.draw(st.sampled_from([(decoder.from_json, PREDICT),
        (lambda body: _decode_infer_rows(body, None, decoder), INFER),
        (lambda body: decode_labels(body, decoder.predictor.schema, 10_000), LABELS)]))
    form, items = data.draw(st.sampled_from(forms)), data.draw(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=3))
    body = form.replace(b"%s", b",".join(items * ((1 << 19) // len(b",".join(items)))))
    largest, decode = [0], msgspec.json.decode

    def spy(text, **how):
        largest.append(count_json(text).values)
        return decode(text, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(msgspec.json, "decode", spy)
        tracemalloc.start()
        try:
            asked(read, body)
            left, peak = tracemalloc.get_traced_memory()
        finally: tracemalloc.stop()
    assert peak < 4 * len(body) and left < len(body) / 8, f"{peak / len(body):.1f} times, {left} bytes left"
    assert max(largest) <= MAX_VALUES_AT_ONCE


def memory(pid, what):
    "MiB of a process: VmRSS now, VmHWM at the most."
    with open(f"/proc/{pid}/status") as f: lines = f.readlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_server_takes_no_more_memory_than_large_bodies_allow_and_gives_it_back(bundle, tmp_path):
    "Each of these took hundreds of MiB and kept a worker from answering for seconds."
    size, names = 8 << 20, b",".join(b'"a%d":1' % i for i in range(700_000))
    bodies = [(serving.PREDICT, b"[" + b"[]," * (size // 3) + b"[]]"), (serving.PREDICT, b"{" + names + b"}"),
              (serving.PREDICT, b"[{" + names + b"}]"),
              (serving.FEEDBACK, b'{"labels": [' + b"{}," * (size // 3) + b"{}]}"),
              (serving.INFER, INFER[4].replace(b"%s", b"[]," * (size // 3) + b"[]")),
              (serving.INFER, INFER[1].replace(b"%s", b"[]," * (size // 3) + b"[]"))]
    with serving.Server(serving.project(tmp_path, made=bundle)) as s:
        assert s.post(serving.PREDICT, serving.instances(200))[0] == 200
        [worker] = s.workers
        before = memory(worker, "VmRSS")
        for path, body in bodies: assert s.post(path, body)[0] == 400
        assert memory(worker, "VmHWM") - before < 4 * size / 2**20
        first = memory(worker, "VmRSS")
        for path, body in bodies: assert s.post(path, body)[0] == 400
        s.until(lambda: memory(worker, "VmRSS") - first < size / 2**20, "given back")
        assert s.post(serving.PREDICT, serving.instances(200))[0] == 200
