"What a request may hold: the verdicts of a batch, the same rows from every form, and a sentence for whatever is wrong."
import datetime as dt
import json
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from mlops_nb.config.params import PolicyRule
from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.data.column_checks import validate_batch
from mlops_nb.model.encoder import EncodedColumn, Encoder
from mlops_nb.model.features import Features
from mlops_nb.model.policy import Policy
from mlops_nb.model.predictor import Predictor
from mlops_nb.serve.inference_protocol import decode_infer_request, decode_rows
from mlops_nb.serve.request_validation import MAX_LISTED_VIOLATIONS, RequestDecoder, ValidationError

KINDS = dict(integer="number", number="number", boolean="boolean", category="category")


def times(x): return x.astype("int64") / 1e6  # of a timestamp; what is missing is some number


def same(x): return x


def model_of(columns, missing=(), functions=None, policy=None, others=None):
    "A predictor that is asked nothing: its schema and inputs are real. Timestamps and texts are read by features."
    reads = {c: k.type for c, k in columns.items() if k.type in ("timestamp", "text")}
    read = {"timestamp": (times, "number"), "text": (same, "category")}
    functions = functions or {f"of {c}": (*read[t], [c]) for c, t in reads.items()}
    features = Features({n: f for n, (f, _, _) in functions.items()}, {n: t for n, (_, t, _) in functions.items()},
        {n: a for n, (_, _, a) in functions.items()})
    columns = {c: structs.replace(k, feature=k.feature and k.type != "text") for c, k in columns.items()}
    schema = Schema("t", "regression", "the target",
                    {**columns, **(others or {}), "the target": Column("number", nullable=True)},
        missing_values=list(missing))
    kinds = {c: KINDS[schema.columns[c].type] for c in schema.feature_columns} | features.types

    def codes(c):
        return {d: i for i, d in enumerate(schema.columns[c].domain or ["a", "b"],
                                           2)} if c in schema.columns else {"a": 2}
    encoder = Encoder([EncodedColumn(c, k, codes(c) if k == "category" else {}) for c, k in kinds.items()])
    return Predictor(schema, features, encoder, SimpleNamespace(feature_names=[*kinds], n_classes=1), policy)


def decoder_of(columns, missing=(), **more): return RequestDecoder(model_of(columns, missing, **more))


def one(column, missing=()): return decoder_of({"x": column}, missing)


def content(rows):
    columns = {c: [*values] for c, values in rows.columns.items()}
    return (rows.n_rows, columns, rows.X.tobytes(), rows.X.shape, rows.n_nulled, rows.n_unknown_categories,
            rows.id, rows.parameters)


def asked(f, *args):
    "What a request leads to: rows, or what is wrong with it."
    try: return content(f(*args))
    except ValidationError as e: return str(e), e.violations, e.total


# --- the verdict of a batch

BLANKS = ["", " ", "\t", "\u00a0", "\u3000", "\x1c", "\u200b"]
WORDS = ["?", "n/a", "-9", "1e3", "7.5", "inf", "nan", "1_0", " ? ", "2020-01-01", "0", "true"]
numbers = st.one_of(st.integers(-12, 12), st.integers(-2**63, 2**63 - 1), st.floats(-12, 12), st.floats(),
                    st.sampled_from([-9, -9.0, 1000, 1000.0, 7.5, 10, 10.0, -0.0, 0, 0.0, 3.0, 3.5, 2.0**53, 2**53 + 1,
                                     -2**63, 2.0**63,
                    1e300, 5e-324]))
stamps = st.one_of(st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)).map(lambda t: t.isoformat()),
                   st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1),
                   timezones=st.sampled_from([dt.UTC,
                       dt.timezone(dt.timedelta(hours=5, minutes=30))])).map(lambda t: t.isoformat()),
                   st.sampled_from(["2020-01-01", "2020-02-30", "2020-01-01T10:00", "2020-01-01 10:00:00.5",
                                    "2020-01-01T10:00:60",
                   "2020-01-01T24:00:00", "2020-01-01T10:00:00Z",
                                    "2020-01-01T10:00:00z", "2020-01-01T10:00:00+0200", "2020-01-01T10:00:00+02",
                                    "2020-01-01T10:00:00-00:00", "2020-01-01T10:00:00+24:00",
                                    "2020-01-01T10:00:00.1234567", "2020-1-1", " 2020-01-01 ", "2020-01-01T10:00Z",
                                    "20200101",
                                    "2020-W01-1", "01/02/2020", "31/12/2019", "2020",
                                    "2020-01-01T10:00:00,5", "٢٠٢٠-01-01", "2020-01-01T", "2020-01-01T10",
                                    "2020-01-01\x00",
                                    "1900-01-01T00:00:00+23:59", "10:00"]))
names = st.one_of(
    st.sampled_from(["a", "b", " a", "b ", "c", "ä", "東京", "1", "2", "1.0", "-0", "x is a new category"]),
    st.text(max_size=4))
texts = st.one_of(names, st.sampled_from(BLANKS + WORDS),
                  st.tuples(st.sampled_from(BLANKS), names, st.sampled_from(BLANKS)).map("".join))
NATURAL = {"integer": numbers, "number": numbers, "boolean": st.booleans(),
           "timestamp": stamps | st.sampled_from(BLANKS + WORDS),
    "text": texts | numbers, "category": texts | numbers}
PYTHON = {"integer": [int, float], "number": [int, float], "boolean": [bool], "timestamp": [str],
          "text": [float, int, str],
          "category": [float, int, str]}
RANGES = {"integer": [None, (0, 10), (-9, None), (None, 5), (0.5, 9.5), (3, 3), (-1e300, 1e300),
                      (float("-inf"), float("inf"))],
          "number": [None, (0, 10), (-9, None), (None, 5.5), (-0.0, 0.0), (float("-inf"), 3)],
          "timestamp": [None, ("2020-01-01", "2020-12-31"), (None, "2020-06-01T12:00:00+02:00")]}


@st.composite
def columns_of(draw, kinds=tuple(NATURAL)):
    kind = draw(st.sampled_from(kinds))
    return Column(kind, nullable=draw(st.booleans()), range=draw(st.sampled_from(RANGES.get(kind, [None]))),
                  domain=draw(st.sampled_from([None, ["a", "b"], ["1", "2", "?"], [" a", "b "]])) if kind == "category"
                  else None,
                  format=draw(st.sampled_from([None, None, "%d/%m/%Y", "%Y"])) if kind == "timestamp" else None,
                  time_zone=draw(st.sampled_from(["UTC", "Europe/Vienna"])) if kind == "timestamp" else None,
                  on_new_spelling=draw(st.sampled_from(["map", "unknown"])),
                  on_violation=draw(st.sampled_from(["quarantine", "null", "stop"])),
                  on_new_category=draw(st.sampled_from(["unknown", "quarantine"])))


# 1000 is that for a batch only where it reads floats
words = st.lists(st.sampled_from([w for w in WORDS if w != "1e3"]), unique=True, max_size=4)


def batch(schema, values, dtype):
    "What batch validation makes of a column `x`."
    frame = pl.DataFrame({"x": values}, {"x": dtype}, strict=False).with_columns(
        pl.lit(1.0).alias("the target"), pl.lit("s").alias("_source"),
        pl.int_range(pl.len(), dtype=pl.Int64).alias("_row"))
    return validate_batch(frame, schema)


def dtype_of(values):
    kinds = {type(v) for v in values} - {type(None)}
    return {bool: pl.Boolean, int: pl.Int64, float: pl.Float64,
        str: pl.String}[kinds.pop()] if len(kinds) == 1 else pl.Null if not kinds else None


@settings(deadline=None, max_examples=200)
@given(column=columns_of(), missing=words, data=st.data())
def test_the_verdict_is_that_of_a_batch(column, missing, data):
    decoder = one(column, missing)
    kind = data.draw(st.sampled_from(PYTHON[column.type]))
    values = data.draw(st.lists(st.none() | NATURAL[column.type].filter(lambda v: type(v) is kind), min_size=1,
                                max_size=5))
    schema, dtype = decoder.predictor.schema, dtype_of(values)
    for v in values: # one by one, since `stop` stops
        try: want = batch(schema, [v], dtype)
        except UserError: want = None
        got = asked(decoder.from_columns, {"x": [v]})
        # a time that Python does not have
        if want and column.type == "timestamp" and any(y is not None and not 1 <= y <= 9999
                                                       for y in want.accepted["x"].dt.year()):
            return
        if want is None or want.quarantined.height: assert len(got) == 3 and got[2] == 1, (v, got)
        else:
            assert got[0] == 1, (v, got)
            assert repr(got[1]["x"]) == repr(want.accepted["x"].to_list())
            assert got[5] == want.violations.get("x:new_category", 0)
            assert got[4] == (0 if column.on_violation != "null"
                              else sum(n for k, n in want.violations.items() if k != "x:new_category"))
    if column.on_violation == "stop": return
    want, got = batch(schema, values, dtype), asked(decoder.from_columns, {"x": values})
    if want.quarantined.height:
        assert [v.row for v in got[1]] == want.quarantined["_row"].to_list() and got[2] == want.quarantined.height
    else: assert repr(got[1]["x"]) == repr(want.accepted["x"].to_list())


@settings(deadline=None, max_examples=150)
@given(column=columns_of(("integer", "number", "text", "category")), missing=words, value=numbers | texts)
def test_the_reason_is_that_of_a_batch(column, missing, value):
    decoder = one(column, missing)
    try: want = batch(decoder.predictor.schema, [value], dtype_of([value]))
    except UserError: return
    if not want.quarantined.height: return
    got = asked(decoder.from_columns, {"x": [value]})[1][0].message
    if type(value) is float or len(got) > 45 or '"' in got or str(value) != str(value).strip(): return # shown otherwise
    assert [got] == want.quarantined["_reasons"][0].to_list()


OTHER_TYPES = [("integer", "12"), ("integer", True), ("number", "1.5"), ("number", False), ("boolean", 1),
               ("boolean", 0.0),
    ("boolean", "true"), ("timestamp", 20200101),
               ("timestamp", 1.5), ("timestamp", True), ("category", True), ("text", False),
               *((k, v) for k in NATURAL for v in ([], [1], {}, {"a": 1}))]


@pytest.mark.parametrize("kind, value", OTHER_TYPES)
def test_json_has_types_of_its_own(kind, value):
    decoder = one(Column(kind, nullable=True))
    for got in (asked(decoder.from_json, json.dumps([{"x": value}]).encode()),
                asked(decoder.from_columns, {"x": [value]}),
        asked(decoder.from_columns, {"x": [value] * 9})):
        assert "x: " in got[0] and " is not a" in got[0] or "is not true or false" in got[0], got
    dropped = one(Column(kind, on_violation="null")).from_json(json.dumps([{"x": value}]).encode())
    assert (dropped.n_nulled, dropped.columns["x"]) == (1, [None])


@pytest.mark.parametrize("word, value, gone", [
    ("-9", -9, True), ("-9", -9.0, True), ("-9", "-9", True), ("1e3", 1000.0, True), ("1e3", 1000, True),
    ("1_0", 10, False),
    ("0", 0, True), ("0", -0.0, True),
    ("?", "?", True), ("?", " ?\t", True), ("7.5", 7.5, True), (" ? ", "?", False)])
def test_words_for_missing(word, value, gone):
    kind = "text" if isinstance(value, str) else "number"
    rows = one(Column(kind, nullable=True), [word]).from_json(json.dumps({"x": value}).encode())
    assert (rows.columns["x"] == [None]) == gone


def test_only_what_is_needed_must_be_there():
    others = {"id": Column("text", feature=False), "seen": Column("timestamp", feature=False),
              "note": Column("text", feature=False,
        on_violation="stop")}
    decoder = decoder_of({"x": Column("number")}, others=others)
    assert decoder.from_json(b'{"x": 1}').columns == {"x": (1.0,)}
    assert decoder.from_json(b'{"x": 1, "id": null, "seen": ""}').columns == {"x": [1.0]}
    rows = decoder.from_json(b'[{"x": 1, "id": "a", "the target": 3}, {"x": 2}]')
    assert rows.columns == {"x": [1.0, 2.0], "id": ["a", None], "the target": [3.0, None]}
    # what is there must be right
    for body in (b'{"x": 1, "seen": "yesterday"}', b'{"x": 1, "id": true}', b'{"x": 1, "the target": "a"}'):
        with pytest.raises(ValidationError, match="is not"): decoder.from_json(body)
    with pytest.raises(ValidationError, match="x: missing"): decoder.from_json(b'{"id": "a"}')


@given(st.fixed_dictionaries({c: st.none() | st.floats(-9, 9) for c in "ab"}, optional={"id": st.none() | st.text()}))
@settings(max_examples=100, deadline=None)
def test_one_row_of_numbers_is_read_as_one_of_several(row):
    numbers = {c: Column("number", nullable=True) for c in "ab"}
    decoder = decoder_of(numbers, others={"id": Column("text", feature=False)})
    one, two = (decoder.from_json(json.dumps([row] * n).encode()) for n in (1, 2))
    assert {c: [*v] for c, v in one.columns.items()} == {c: v[:1] for c, v in two.columns.items()}
    assert one.X.tobytes() == two.X[:1].tobytes()


def test_what_rules_look_at_is_needed():
    "A rule that could not see its column would be skipped without a word."
    policy = Policy("regression", rules=[PolicyRule(when={"segment": "a"}, min_score=0.0)])
    decoder = decoder_of({"x": Column("number")}, others={"segment": Column("category", feature=False)},
                           policy=policy)
    with pytest.raises(ValidationError, match="segment: missing"): decoder.from_json(b'{"x": 1}')
    assert decoder.from_json(b'{"x": 1, "segment": "a"}').columns == {"x": [1.0], "segment": ["a"]}
    with pytest.raises(ValidationError, match="one tensor for each column"): decoder.from_matrix(np.ones((1, 1)))


# --- the fast way and the slow way

ALL = {"n": Column("number", range=(-5, 100), on_violation="null"),
       "i": Column("integer", nullable=True, range=(0, 10)),
    "b": Column("boolean"),
       "c": Column("category", domain=["a", "b", "1"], nullable=True), "d": Column("category", domain=["a", "1"],
       on_new_category="quarantine"),
       "t": Column("timestamp", nullable=True, range=("2020-01-01", None)),
       "hours-per-week": Column("number", nullable=True),
       "a b": Column("text", nullable=True)}
every = st.one_of(st.none(), numbers.filter(np.isfinite), texts, stamps, st.booleans(), st.just([]), st.just({}))
likely = {"n": st.floats(-5, 100) | st.integers(-5, 100), "i": st.integers(0, 10) | st.just(3.0), "b": st.booleans(),
    "c": st.sampled_from(["a", "b", " a", "new", 1, 1.0]),
          "d": st.sampled_from(["a", "1 ", 1]), "t": st.datetimes(dt.datetime(2020, 1, 1),
                                                                  dt.datetime(2030, 1, 1)).map(str),
          "hours-per-week": st.floats(-1e9, 1e9), "a b": texts}
likely_rows = st.fixed_dictionaries({k: likely[k] for k in ("n", "b", "d")}, optional={k: st.none() | v for k,
    v in likely.items() if k not in ("n", "b", "d")})
any_rows = st.dictionaries(st.sampled_from([*ALL, "the target", "id", "x"]), every, max_size=9)


@settings(deadline=None, max_examples=300)
@given(rows=st.lists(likely_rows, min_size=1, max_size=4) | st.lists(any_rows | likely_rows, min_size=1, max_size=4),
       missing=words,
    form=st.sampled_from(["list", "object", "instances"]))
@example(rows=[{"n": 1, "b": True, "d": "1", "t": "never"}], missing=[], form="list")
def test_the_fast_way_is_the_slow_way(rows, missing, form):
    decoder = decoder_of(ALL, missing)
    body = json.dumps(rows if form == "list" else rows[0] if form == "object" else {"instances": rows, "id": "r",
        "parameters": {"a": 1}}).encode()
    assert repr(asked(decoder.from_json, body)) == repr(asked(decoder._decode_slow, body))


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(likely_rows, min_size=1, max_size=20), missing=words, arrays=st.booleans())
def test_json_and_columns_are_the_same_rows(rows, missing, arrays):
    decoder, named = decoder_of(ALL, missing), [c for c in ALL if any(c in r for r in rows)]
    columns = {c: [r.get(c) for r in rows] for c in named}
    if arrays:
        columns["n"] = np.array(columns["n"], float)
        if all(v is not None for v in columns.get("i", [None])): columns["i"] = np.array(columns["i"], float)
    assert asked(decoder.from_columns, columns) == asked(decoder.from_json, json.dumps(rows).encode())


PLAIN = {"n": Column("number", nullable=True, range=(-5, None)), "i": Column("integer", range=(None, 10)),
    "b": Column("boolean", nullable=True), "c": Column("category", domain=["a", "b"])}


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(st.tuples(st.none() | st.floats(-5, 1e9) | st.just(-0.0), st.integers(-2**62, 10),
                               st.none() | st.booleans(),
    st.sampled_from(["a", "b"])), min_size=1, max_size=20),
       missing=words)
def test_a_matrix_is_the_same_rows(rows, missing):
    decoder = decoder_of(PLAIN, missing)
    columns = dict(zip(PLAIN, map(list, zip(*rows, strict=True)), strict=True))
    places = [columns["n"], [float(i) for i in columns["i"]], columns["b"], [["a", "b"].index(c) for c in columns["c"]]]
    columns["i"] = [int(i) for i in places[1]] # a matrix of floats holds no more
    assert asked(decoder.from_matrix, np.array(places, float).T) == asked(decoder.from_columns,
                                                                           columns) == asked(decoder.from_json,
        json.dumps([dict(zip(PLAIN, r, strict=True)) for r in zip(*columns.values(), strict=True)]).encode())


@settings(deadline=None, max_examples=150)
@given(rows=st.lists(st.lists(st.floats(width=32) | st.sampled_from([0., 1., 2., -1.]), min_size=3, max_size=3),
                     min_size=1, max_size=10),
    low=st.sampled_from([None, 0]), nullable=st.booleans())
def test_a_matrix_of_small_floats_is_the_same_rows(rows, low, nullable):
    decoder = decoder_of({c: Column("number", range=(low, None), nullable=nullable) for c in "pqr"})
    X = np.array(rows, np.float32)
    assert repr(asked(decoder.from_matrix, X)) == repr(asked(decoder.from_columns,
                                                              {c: X[:, j].tolist() for j, c in enumerate("pqr")}))


def usual(values, name="x", shape=None, **more):
    return json.dumps({"inputs": [{"name": name, "datatype": "FP64", "shape": shape or [1, len(values)],
                                   "data": values}], **more}).encode()


@settings(deadline=None, max_examples=150)
@given(row=st.lists(st.none() | st.integers(-2**70, 2**70) | st.floats() | st.sampled_from([0., -0., 1, -1.]),
                    min_size=3, max_size=3),
    low=st.sampled_from([None, 0]), nullable=st.booleans(), id=st.none() | st.text(max_size=3))
def test_the_usual_request_is_the_same_row_or_left_to_the_protocol(row, low, nullable, id):
    decoder = decoder_of({c: Column("number", range=(low, None), nullable=nullable) for c in "pqr"})
    body = usual(row, id=id)
    got = decoder.from_infer(body)
    right = all(v is not None and np.isfinite(float(v)) and (low is None or v >= low) for v in row)
    assert (got is not None) == right
    if right: assert repr(content(got)) == repr(content(decode_rows(decode_infer_request(body), decoder)))
    if None in row: return
    alone = decoder.from_row([float(v) for v in row])
    assert (alone is not None) == right
    if right: assert repr(alone.columns) == repr(got.columns) and alone.X.tobytes() == got.X.tobytes()


@pytest.mark.parametrize("body", [
    usual([1., 2.], name="p"), usual([1.]), usual([1., 2., 3.]), usual([1., 2.], shape=[2]),
    usual([1., 2.], shape=[2, 1]),
    usual([[1., 2.]]), usual(["1", "2"]), usual([True, False]), usual([1., 2.], parameters={}),
    usual([1., 2.], outputs=[{"name": "score"}]), usual([1., 2.]).replace(b"FP64", b"FP32"), usual([1., 2.])[:-1],
    usual([1., 2.]).replace(b"1.0", b"1e999"), b"", b"[" * 100_000, b"\xff"])
def test_every_other_request_is_left_to_the_protocol(body):
    assert decoder_of({c: Column("number") for c in "pq"}).from_infer(body) is None


def test_only_plain_numbers_make_a_usual_request():
    assert decoder_of({c: Column("number") for c in "pq"}).from_infer(usual([1., 2.])).columns == {"p": (1.,),
                                                                                                    "q": (2.,)}
    assert decoder_of({c: Column("number") for c in "pq"}, ["7"]).from_infer(usual([1., 2.])) is None # 7 means missing
    assert decoder_of(PLAIN).from_infer(usual([1., 1., 0., 0.])) is None
    assert decoder_of(PLAIN).from_row([1., 1., 0., 0.]) is None
    assert decoder_of({"p": Column("number")}).from_row([]) is None


# --- a tensor for each column

MIXED = {"n": Column("number", range=(-5, 10)), "i": Column("integer", nullable=True), "b": Column("boolean"),
         "c": Column("category", domain=["a", "b"]), "t": Column("timestamp"), "w": Column("text", nullable=True)}
TENSORS = {c: d for c, d in zip(MIXED, ["FP64", "INT64", "BOOL", "BYTES", "BYTES", "BYTES"], strict=True)}
VALID = dict(n=1.5, i=3, b=True, c="a", t="2026-01-02T03:04:05", w="x")


def tensors(values, **changed):
    return [dict(name=c, datatype=TENSORS[c], shape=[1], data=[v]) | changed.get(c, {}) for c, v in values.items()]


def by_column(inputs, **more): return json.dumps({"inputs": inputs, **more}).encode()


@settings(deadline=None, max_examples=150)
@given(changed=st.dictionaries(st.sampled_from([*MIXED]), numbers | st.text(max_size=3) | st.booleans() | st.none(),
                               max_size=2),
       absent=st.sets(st.sampled_from([*MIXED]), max_size=1), order=st.permutations([*MIXED]),
       id=st.none() | st.text(max_size=3), missing=words)
def test_a_tensor_a_column_is_the_same_row_or_left_to_the_protocol(changed, absent, order, id, missing):
    decoder, values = decoder_of(MIXED, missing), VALID | changed
    body = by_column(tensors({c: values[c] for c in order if c not in absent}), id=id)
    got = decoder.from_infer(body)
    assert got is not None or changed or absent - {"i", "w"} or missing
    if got is not None: assert repr(content(got)) == repr(content(decode_rows(decode_infer_request(body), decoder)))


@pytest.mark.parametrize("inputs", [
    [], tensors(VALID) + tensors(dict(n=1)), tensors(VALID, n=dict(shape=[2])), tensors(VALID, n=dict(shape=[])),
    tensors(VALID, n=dict(shape=[1, 1, 1])), tensors(VALID, n=dict(data=[1., 2.])), tensors(VALID, n=dict(data=[[1.]])),
    tensors(VALID, i=dict(datatype="INT32")), tensors(VALID, c=dict(datatype="INT64", data=[0])),
    tensors(VALID, c=dict(parameters={})), tensors(VALID, c=dict(name="d")), tensors(VALID, n=dict(data=None))])
def test_other_tensors_are_left_to_the_protocol(inputs):
    assert decoder_of(MIXED).from_infer(by_column(inputs)) is None


def test_tensors_beyond_a_bound_are_left_to_the_protocol():
    many = {f"c{i}": Column("number") for i in range(300)}
    body = by_column([dict(name=c, datatype="FP64", shape=[1], data=[1.]) for c in many])
    assert decoder_of(many).from_infer(body) is None and decoder_of(MIXED).from_infer(by_column(tensors(VALID)))
    assert decoder_of(MIXED).from_infer(by_column(tensors(VALID), id="x" * (1 << 16))) is None


@pytest.mark.parametrize("row, said", [
    ([1, 11, 0, 0], "i: 11 is above 10"), ([1, 1.5, 0, 0], "i: 1.5 is not an integer"),
    ([1, np.inf, 0, 0], "i: inf is infinite"),
    ([np.nan, np.nan, 0, 0], "i: missing"),
    ([1, -2.0**63 * 2, 0, 0], "i: -18446744073709551616 is not an integer"),
    ([-np.inf, 1, 0, 0], "n: -inf is infinite"),
    ([1, 1, 2, 0], "b: 2.0 is not true or false"),
    ([1, 1, .5, 0], "b: 0.5 is not true"), ([1, 1, 0, 2], "c: index 2 \\(of 0 to 1\\) is not a category"),
    ([1, 1, 0, -1], "c: index -1 "),
    ([1, 1, 0, .5], "c: index 0.5 "),
    ([1, 1, 0, np.inf], "c: index inf "), ([1, 1, 0, np.nan], "c: missing"), ([-6, 1, 0, 0], "n: -6.0 is below -5")])
def test_a_matrix_that_is_wrong(row, said):
    with pytest.raises(ValidationError, match=said): decoder_of(PLAIN).from_matrix(np.array([row], float))
    with pytest.raises(ValidationError, match="^row 2: .*" + said):
        decoder_of(PLAIN).from_matrix(np.array([[1, 1, 0, 0]] * 2 + [row], float))


def test_matrices_of_other_types():
    decoder = decoder_of(PLAIN)
    for kind in (np.int8, np.uint64, np.float16, np.float32, bool): assert asked(decoder.from_matrix,
        np.ones((2, 4), kind)) == asked(decoder.from_matrix, np.ones((2, 4)))
    big = np.array([[1, -2**53 - 1, 0, 1]], np.int64)
    assert decoder.from_matrix(big).columns["i"] == [-2**53 - 1]
    assert asked(decoder.from_matrix, np.asfortranarray(np.ones((9, 4)))) == asked(decoder.from_matrix,
                                                                                    np.ones((9, 4)))
    for wrong in (np.ones(4), np.ones((1, 3)), np.ones((1, 4), complex), np.array([["a"] * 4]), np.ones((1, 4, 1)),
        np.array([[1, 1, 1, None]])):
        with pytest.raises(ValidationError, match="the model needs \\[rows, 4\\] numbers: n, i, b, c"):
            decoder.from_matrix(wrong)
    with pytest.raises(ValidationError, match="no rows"): decoder.from_matrix(np.ones((0, 4)))


# --- the bodies of requests

GOOD = b'{"n": 1, "b": true, "d": "a"}'


@pytest.mark.parametrize("body, said", [
    (b"", "not JSON"), (b"   ", "not JSON"), (b"null", "no rows"), (b"3", "no rows"), (b'"text"', "no rows"),
    (b"[]", "no rows; send at least one"), (b"[[]]", "holds no rows"),
    (b"[1, 2]", "holds no rows"), (b'[{"n": 1}, null]', "holds no rows"), (b'{"instances": []}', "send at least one"),
    (b'{"instances": {"n": 1}}', "holds no rows"),
    (b'{"instances": null}', "holds no rows"), (b'{"instances": [' + GOOD + b'], "ids": 3}', "no field 'ids'"),
    (b'{"instances": [' + GOOD + b'], "id": 3}', "'id' of the request is 3; send a text"),
    (b'{"instances": [' + GOOD + b'], "parameters": []}', "'parameters' of the request is a list; send an object"),
    (b"{", "not JSON"),
    (GOOD + b"x", "not JSON"), (GOOD + GOOD, "not JSON"),
    (b'{"n": NaN}', "not JSON"), (b'{"n": Infinity}', "not JSON"), (b'{"n": -Infinity}', "not JSON"),
    (b'{"n": 1e999, "b": true, "d": "a"}', "out of range"), (b"{'n': 1}", "not JSON"),
    (b'{"n": 01}', "not JSON"), (b'{"n": 1,}', "not JSON"), (b'\xef\xbb\xbf' + GOOD, "not JSON"),
    (b'{"d": "\xff"}', "not JSON"),
    (b'{"\xff": 1}', "not JSON"), (b'{"d": "\\ud800"}', "not JSON"),
    (b'{"d": "a\nb"}', "not JSON"), (b"[" * 10_000, "too deeply"), (b'{"n":' * 5_000, "too deeply"),
    (b'{"n": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "too deeply"),
    (b'{"x": ' + b"[" * 400 + b"]" * 400 + b"}", "x: no such column"),
    (b'{"n": 1, "b": true, "d": ' + b"[" * 400 + b"]" * 400 + b"}",
    "d: a list is not a category"),
    (b'{"n": ' + b"9" * 5000 + b', "b": true, "d": "a"}', "out of range"),
    (GOOD.decode().encode("utf-16"), "not JSON")])
def test_a_body_that_is_no_request(body, said):
    with pytest.raises(ValidationError, match=said) as e: decoder_of(ALL).from_json(body)
    assert "\n" not in str(e.value) and len(str(e.value)) < 250


def test_too_many_rows():
    decoder = RequestDecoder(model_of(ALL), max_rows=3)
    assert decoder.from_json(b"[" + b",".join([GOOD] * 3) + b"]").n_rows == 3
    for refused in (lambda: decoder.from_json(b"[" + b",".join([GOOD] * 4) + b"]"),
        lambda: decoder.from_json(b"[" + b",".join([b"{}"] * 4) + b"]"),
                    lambda: decoder.from_columns({"n": [1.0] * 4}), lambda: decoder.from_columns({"n": np.ones(4)})):
        with pytest.raises(ValidationError, match="has 4 rows, and at most 3"): refused()
    with pytest.raises(ValidationError, match="has 4 rows"):
        RequestDecoder(model_of(PLAIN), 3).from_matrix(np.ones((4, 4)))


def test_what_comes_with_the_rows():
    rows = decoder_of(ALL).from_json(b' {"id": "r1", "instances": [' + GOOD + b'], "parameters": {"a": [1]}}')
    assert (rows.id, rows.parameters, rows.n_rows) == ("r1", {"a": [1]}, 1)
    rows = decoder_of(ALL).from_json(b' {"inst\\u0061nces": [' + GOOD + b']}')
    assert (rows.id, rows.parameters, rows.n_rows) == (None, None, 1)


def test_columns_with_names_of_the_envelope():
    names = {"id": Column("category", domain=["a"]), "instances": Column("number"),
             "parameters": Column("text", nullable=True)}
    decoder = decoder_of(names)
    row = {"id": "a", "instances": 3.0, "parameters": None}
    want = {"id": ["a"], "instances": [3.0], "parameters": [None]}
    for body in (row, [row], {"instances": [row]}): assert decoder.from_json(json.dumps(body).encode()).columns == want
    with pytest.raises(ValidationError, match="no such column"):
        decoder.from_json(b'{"id": "a", "instances": 3, "x": 1}')
    rows = decoder.from_json(b'{"instances": [{"id": "a", "instances": 3}], "id": "r"}')
    assert (rows.id, rows.columns) == ("r", want)
    assert decoder_of(ALL).from_json(GOOD[:-1] + b', "a b": "instances"}').columns["a b"] == ["instances"]


@pytest.mark.parametrize("name", ["hours-per-week", "a b", "class", "", "__proto__", "c0", "self", "0", "日本", 'qu"te',
                                  "back\\slash", "{}", "a.b", "new\nline", "x" * 300])
def test_columns_may_have_any_name(name):
    decoder = decoder_of({name: Column("number", range=(0, None)), "other": Column("category", domain=["a"])})
    body = json.dumps({name: 1, "other": "a"}).encode()
    assert decoder.from_json(body).columns == decoder.from_columns({name: [1],
        "other": ["a"]}).columns == {name: [1.0], "other": ["a"]}
    with pytest.raises(ValidationError, match="-1 is below 0"):
        decoder.from_json(json.dumps({name: -1, "other": "a"}).encode())


def test_the_last_of_a_repeated_column_counts():
    decoder = decoder_of({"x": Column("number", range=(0, None))})
    for first in (b"1", b"-1", b'"a"', b"null"):
        assert [*decoder.from_json(b'{"x": %s, "x": 2}' % first).columns["x"]] == [2.0]
    with pytest.raises(ValidationError, match="-1 is below"): decoder.from_json(b'{"x": 2, "x": -1}')


def test_unknown_columns_are_named():
    decoder, said = decoder_of(ALL), "hours_per_week: no such column; did you mean 'hours-per-week'"
    with pytest.raises(ValidationError, match=said): decoder.from_json(GOOD[:-1] + b', "hours_per_week": 3}')
    with pytest.raises(ValidationError, match=said):
        decoder.from_columns({"n": [1], "b": [True], "d": ["a"], "hours_per_week": [3]})
    body = json.dumps([{"n": 1, "b": True, "d": "a", **{f"{i}{'x' * 500}": 1 for i in range(300)}}] * 30).encode()
    with pytest.raises(ValidationError) as e: decoder_of(ALL).from_json(body)
    assert e.value.total == 9000 and len(e.value.violations) == MAX_LISTED_VIOLATIONS and all(len(v.column) <= 40
        and len(v.message) < 250 for v in e.value.violations)


def test_the_first_rows_are_listed_and_all_are_counted():
    rows = [{"n": 1, "b": i, "d": "zz", "i": 1.5} for i in range(100)]
    with pytest.raises(ValidationError, match=r"^row 0: i: 1.5 is not an integer \(299 more\)$") as e:
        decoder_of(ALL).from_json(json.dumps(rows).encode())
    assert e.value.total == 300 and len(e.value.violations) == MAX_LISTED_VIOLATIONS
    assert [(v.row, v.column) for v in e.value.violations] == [(i // 3, "ibd"[i % 3])
                                                               for i in range(MAX_LISTED_VIOLATIONS)]


@pytest.mark.parametrize("value", ["y" * 1000, [1] * 1000, {"a": "y" * 1000}, 10**300, 1.23456789e-300])
def test_values_are_shown_short(value):
    column = Column("integer") if not isinstance(value, float) else Column("integer", range=(0, 1))
    with pytest.raises(ValidationError) as e: one(column).from_columns({"x": [value]})
    assert len(str(e.value)) < 90 and "yyyyyyyy" * 6 not in str(e.value)


def test_a_number_of_very_many_digits_is_a_sentence():
    for kind in ("integer", "number", "category", "text"):
        with pytest.raises(ValidationError, match="x: .* is not a"): one(Column(kind)).from_columns({"x": [10**5000]})


@pytest.mark.parametrize("text, read", [
    ("2026-05-01", dt.datetime(2026, 5, 1)), ("2026-05-01T10:00", dt.datetime(2026, 5, 1, 10)),
    ("2026-05-01 10:00:00.123456789",
    dt.datetime(2026, 5, 1, 10, 0, 0, 123456)),
    ("2026-05-01T10:00:00Z", dt.datetime(2026, 5, 1, 10)), ("2026-05-01T10:00:00+02:00", dt.datetime(2026, 5, 1, 8)),
    ("2026-05-01T10:00:00+0200", dt.datetime(2026, 5, 1, 8)),
    (" 2026-05-01 ", dt.datetime(2026, 5, 1)), ("2026-05-01T10:00:60", dt.datetime(2026, 5, 1, 10, 1)),
    ("0000-01-01", None),
    ("+12026-01-01", None), ("0001-01-01T00:00:00+02:00", None),
    ("soon", None), ("2026-13-01", None), ("01.05.2026", None), (1777629600, None)])
def test_points_in_time(text, read):
    decoder = one(Column("timestamp"))
    for n in (1, 12):
        if read: assert decoder.from_columns({"x": [text] * n}).columns["x"] == [read] * n
        else:
            with pytest.raises(ValidationError, match="is not a date or time"): decoder.from_columns({"x": [text] * n})


def test_points_in_time_in_a_format_of_the_contract():
    decoder = one(Column("timestamp", format="%d.%m.%Y", range=("2020-01-01T02:00+02:00", "2026-12-31"),
                          nullable=True))
    rows = decoder.from_json(b'[{"x": "01.05.2026"}, {"x": " "}, {"x": "01.01.2020"}, {"x": "01.05.2026"}]')
    assert rows.columns["x"] == [dt.datetime(2026, 5, 1), None, dt.datetime(2020, 1, 1), dt.datetime(2026, 5, 1)]
    for body, said in ((b'{"x": "2026-05-01"}', '"2026-05-01" is not a date or time'), (b'{"x": "01.01.2027"}',
        "01.01.2027 is above 2026-12-31")):
        with pytest.raises(ValidationError, match=said): decoder.from_json(body)


def test_values_of_the_contract_are_taken_again():
    "A variant with another model reads what the first schema has read."
    decoder = decoder_of(ALL)
    rows = decoder.from_json(GOOD[:-1] + b', "t": "2026-05-01T10:00:00Z", "c": " new"}')
    assert content(decoder.from_columns(rows.columns)) == content(rows)


def test_columns_of_tensors():
    decoder = decoder_of(ALL)
    good = {"n": np.array([1, 2, 3], np.float32), "b": np.array([True, False, True]), "d": ["a"] * 3}
    for times in (1, 5):
        columns = {k: np.tile(v, times) if isinstance(v, np.ndarray) else v * times for k, v in good.items()}
        assert decoder.from_columns(columns).columns["n"] == [1.0, 2.0, 3.0] * times
        dropped = decoder.from_columns(columns | {"n": np.tile([1, np.inf, np.nan], times)}) # on_violation: null
        assert dropped.columns["n"] == [1.0, None, None] * times and dropped.n_nulled == 2 * times
        with pytest.raises(ValidationError, match="row 2: i: 2.5 is not an integer"):
            decoder.from_columns(columns | {"i": np.tile([1, np.nan,
            2.5], times)})
    with pytest.raises(ValidationError, match="have 1, 2 values; send the same number"):
        decoder.from_columns({"n": [1], "b": [True, True]})
    with pytest.raises(ValidationError, match="no rows"): decoder.from_columns({})
    with pytest.raises(ValidationError, match="d: missing"): decoder.from_columns({"n": [1.0] * 9, "b": [True] * 9})


@pytest.mark.parametrize("value, kept", [(2**63 - 1, True), (-2**63, True), (2**63, False), (2**64 - 1, False),
                                         (10**30, False),
    (1e18, True), (1e19, False), (3.0, True), (-0.0, True), (3.5, False)])
def test_whole_numbers_are_of_64_bits(value, kept):
    decoder = one(Column("integer"))
    for ask in (lambda: decoder.from_json(json.dumps({"x": value}).encode()),
                lambda: decoder.from_columns({"x": [value]}),
        lambda: decoder.from_columns({"x": np.array([value] * 9)})):
        if kept: assert ask().columns["x"][0] == int(value) and type(ask().columns["x"][0]) is int
        else:
            with pytest.raises(ValidationError, match="is not an integer"): ask()


# --- the matrix of a frame, without the frame

def share(n, c): return np.where(c == "a", n, -n) / 3


def word(c, t): return np.where(np.isnat(t), None, np.where(c == "a", "a", "late"))


def flag(b, i): return (b == 1) & (i > 2)


MIXED = {"n": Column("number", nullable=True), "i": Column("integer", nullable=True),
         "b": Column("boolean", nullable=True),
    "c": Column("category", nullable=True),
         "t": Column("timestamp", nullable=True), "w": Column("text", nullable=True)}
MADE = {"share": (share, "number", ["n", "c"]), "word": (word, "category", ["c", "t"]),
        "flag": (flag, "number", ["b", "i"]),
    "as it is": (same, "category", ["w"]), "when": (times, "number", ["t"])}
typed = st.fixed_dictionaries({"n": st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.just(-0.0),
    "i": st.none() | st.integers(-2**63, 2**63 - 1) | st.just(2**53 + 1),
                               "b": st.none() | st.booleans(), "c": st.none() | st.sampled_from(["a", "b", "new"]),
                               "t": st.none() | st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 1, 1)),
                               "w": st.none() | st.sampled_from(["a", "z"])})
TYPES = dict(n=pl.Float64, i=pl.Int64, b=pl.Boolean, c=pl.String, t=pl.Datetime("us"), w=pl.String)


@settings(deadline=None, max_examples=200)
@given(rows=st.lists(typed, min_size=1, max_size=12), made=st.booleans())
def test_vectors_are_the_matrix(rows, made):
    p = model_of(MIXED if made else {k: MIXED[k] for k in "nibc"}, functions=MADE if made else None)
    columns = {c: [r[c] for r in rows] for c in p.inputs}
    want = p.encode_frame(pl.DataFrame(columns, {c: TYPES[c] for c in columns}))
    got = p.encode_columns(columns)
    assert got.shape == want.shape and got.flags.c_contiguous and got.dtype == np.float64 and np.array_equal(got, want,
        equal_nan=True)
    assert (np.signbit(got) == np.signbit(want))[~np.isnan(want)].all()
    alone = np.concatenate([p.encode_columns({c: [v[i]] for c, v in columns.items()}) for i in range(len(rows))])
    assert alone.tobytes() == got.tobytes()


odd = st.one_of(st.none(), numbers, texts, st.booleans(), st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 1, 1)),
    st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2100, 1, 1), timezones=st.just(dt.UTC)),
    st.sampled_from([dt.datetime(2020, 1, 1), dt.date(2020, 1, 1), np.float64(2.5)]))


@settings(deadline=None, max_examples=250)
@given(row=typed, other=st.dictionaries(st.sampled_from([*MIXED]), odd, max_size=2),
       missing=st.lists(st.sampled_from(WORDS), max_size=4),
    made=st.booleans())
def test_a_row_that_needs_no_reading_is_what_the_contract_reads(row, other, missing, made):
    p = model_of(MIXED if made else {k: MIXED[k] for k in "nibc"}, missing, functions=MADE if made else None)
    plain = p._plain_columns({**row, **other})
    if not other.keys() & {*p.inputs} and not missing: assert plain is not None # the usual row takes the short way
    if plain is not None:
        want = p.encode_frame(pl.DataFrame({c: [{**row, **other}[c]] for c in p.inputs}))
        assert np.array_equal(p.encode_columns(plain), want,
            equal_nan=True) and (np.signbit(p.encode_columns(plain)) == np.signbit(want))[~np.isnan(want)].all()


def test_a_row_with_text_around_blanks_does_not_take_the_short_way():
    p = model_of({"c": Column("category"), "n": Column("number")}, ["-9"])
    good = {"c": "a", "n": 1.5}
    assert p._plain_columns(good) == {"c": ["a"], "n": [1.5]}
    for wrong in ({"c": " a"}, {"c": ""}, {"c": "-9"}, {"c": 1}, {"n": float("inf")}, {"n": float("nan")}, {"n": -9},
                  {"n": -9.0},
        {"n": 2**63}, {"n": True}, {"n": "1"}):
        assert p._plain_columns(good | wrong) is None


# ---- columns that the schema computes

def test_a_computed_column_is_computed_as_in_a_batch_and_not_asked_for():
    columns = dict(year=Column("integer", feature=False), month=Column("category", feature=False), x=Column("number"),
                   day=Column("timestamp", computed="strptime(concat(year, '-', month, '-01'), '%Y-%m-%d')"),
                   double=Column("number", computed="x * 2 + 0.1", range=(None, 100)))
    decoder = decoder_of(columns)
    rows = [dict(year=2024, month="02", x=0.3), dict(year=1999, month="12", x=-7.0)]
    got = decoder.from_json(json.dumps(rows).encode())
    batch = decoder.predictor.schema.with_computed(pl.DataFrame(dict(year=["2024", "1999"], month=["02", "12"],
                                                                     x=["0.3", "-7"])))
    assert got.columns["day"] == batch["day"].to_list() == [dt.datetime(2024, 2, 1), dt.datetime(1999, 12, 1)]
    assert got.X.tobytes() == decoder.predictor.encode_frame(batch).tobytes()
    assert decoder.from_columns({n: [r[n] for r in rows] for n in rows[0]}).X.tobytes() == got.X.tobytes()
    assert decoder.predictor.request_columns == ["x", "year", "month"]
    sent = decoder.from_json(json.dumps([dict(rows[0], double=5.0)]).encode()) # as a file that has the column
    assert sent.columns["double"] == [5.0]
    for row, says in ((dict(rows[0], x=99), "double: 198.1 is above 100 .computed as x "),
                      (dict(year=1, x=1), "month: missing"),
                      (dict(rows[0], month="13"), "day: missing .computed as strptime")):
        with pytest.raises(ValidationError, match=says): decoder.from_json(json.dumps(row).encode())
