"JSON bodies of answers, explanations and labels."
from types import SimpleNamespace

import msgspec
import pytest

from mlops_nb.config.schema import Column, Schema
from mlops_nb.serve.endpoint import ExplanationResult, PredictionResult
from mlops_nb.serve.request_validation import ValidationError
from mlops_nb.serve.rest_protocol import decode_labels, encode_explain_response, encode_predict_response


def schema(task="binary", classes=("no", "yes")):
    return Schema("t", task, "y", classes=list(classes) if classes else None,
                  columns={"x": Column("number"), "y": Column("category")})


def predictions(classes=("no", "yes"), **more):
    result = PredictionResult(id="r", endpoint="e", variant="v", bundle="b", **more)
    decoder = SimpleNamespace(predictor=SimpleNamespace(schema=SimpleNamespace(score_names=classes, targets=None)))
    return msgspec.json.decode(encode_predict_response(result, decoder))["predictions"]


def test_what_a_task_does_not_have_is_left_out():
    assert predictions(None, scores=[1.5, 2]) == [{"score": 1.5}, {"score": 2}]
    assert predictions(scores=[.2], decisions=["no"]) == [{"score": .2, "decision": "no"}]
    assert predictions(scores=[.4], decisions=[None],
                       needs_review=[True]) == [{"score": .4, "decision": None, "needs_review": True}]
    assert predictions(scores=[.4, .5], decisions=["no", "no"], variants=["a", "b"])[1] == {"score": .5,
        "decision": "no", "variant": "b"}
    assert predictions("abc", scores=[[.2, .3, .5]],
                       decisions=["c"]) == [{"score": {"a": .2, "b": .3, "c": .5}, "decision": "c"}]


def test_contributions_of_several_classes_are_by_class():
    shares = [[[1., 2., .5], [0., 1., .25]]]
    result = ExplanationResult(variant="v", bundle="b", units="u", scores=[[.6, .4]], feature_names=["x", "z"],
                               contributions=shares)
    found = msgspec.json.decode(encode_explain_response(result, "r", "e", ["p", "q"]))
    assert found["units"] == "u" and found["explanations"] == [{
        "score": {"p": .6, "q": .4}, "raw_score": {"p": 3.5, "q": 1.25}, "base_value": {"p": .5, "q": .25},
        "contributions": {"p": {"x": 1., "z": 2.}, "q": {"x": 0., "z": 1.}}}]


@pytest.mark.parametrize("label, read", [('"yes"', "yes"), ("null", None)])
def test_labels_that_are_taken(label, read):
    assert decode_labels(b'{"labels": [{"id": "a", "label": %s}]}' % label.encode(), schema(), 9)[0][0].label == read


@pytest.mark.parametrize("sent, read", [(True, "true"), (1, "1"), (1.0, "1")])
def test_a_class_may_be_sent_as_a_boolean_or_a_number(sent, read):
    body = msgspec.json.encode({"labels": [{"id": "a", "label": sent}]})
    assert decode_labels(body, schema(classes=("true", "1")), 9)[0][0].label == read


@pytest.mark.parametrize("body, words", [
    (b"", "The body is not"), (b'{"labels": []}', "length"),
    (b'{"labels": [{"id": "", "label": 1}]}', "length"),
    (b'{"labels": [{"id": "%b", "label": 1}]}' % (b"x" * 257), "length"),
    (b'{"labels": [{"id": "a", "label": "yess"}]}', "did you mean 'yes'"),
    (b'{"labels": [{"id": "a", "label": 1, "row": -1}]}', "row")])
def test_labels_that_are_not(body, words):
    with pytest.raises(ValidationError, match=words): decode_labels(body, schema(), 9)


@pytest.mark.parametrize("wrong, words", [
    ({"id": "a", "label": "yess"}, "did you mean 'yes'"), ({"id": "a", "label": {}}, "Expected"), ({}, "required"),
    ({"id": "a", "label": "no", "row": -1}, "row"), ({"id": "a", "label": "no", "when": 1}, "unknown field"),
    (None, "Expected"), ([], "Expected"), ({"id": "a" * 257, "label": "no"}, "length")])
def test_one_that_is_none_does_not_keep_the_others_from_being_taken(wrong, words):
    body = msgspec.json.encode({"labels": [{"id": "a", "label": "no"}, wrong, {"id": "b", "label": "yes"}]})
    taken, rejected = decode_labels(body, schema(), 9)
    assert [x.id for x in taken] == ["a", "b"] and [x.index for x in rejected] == [1]
    assert words in rejected[0].reason and rejected[0].reason[-1] in ".?"


@pytest.mark.parametrize("body", [b'{"labels": [{}, {"id": "a", "label": "no"}', b'{"labels": [{}, {]}',
                                  b'{"labels": 3}', b'{"labels": [{"id": "a", "label": "no"}], "more": 1}'])
def test_what_is_no_request_is_refused_whole(body):
    with pytest.raises(ValidationError, match="The body is not"): decode_labels(body, schema(), 9)


def test_where_none_can_be_taken_the_first_is_named():
    body = msgspec.json.encode({"labels": [{"id": "a", "label": f"c{i}"} for i in range(3)]})
    with pytest.raises(ValidationError, match="None of the labels can be taken; label 0: 'c0' is no class"):
        decode_labels(body, schema(), 9)


def test_ten_thousand_wrong_labels_take_no_long_time_each():
    "The class that was meant is looked for a few times only, each text is spoken of once."
    classes = [f"class number {i}" for i in range(1000)]
    labels = [{"id": "a", "label": classes[0]}, *({"id": "a", "label": f"class numbr {i}"} for i in range(9999))]
    taken, rejected = decode_labels(msgspec.json.encode({"labels": labels}), schema("multiclass", classes), 10_000)
    assert len(taken) == 1 and len(rejected) == 9999
    assert sum("did you mean" in x.reason for x in rejected) == 20 and rejected[-1].reason.endswith("is no class.")


def test_too_many_labels():
    with pytest.raises(ValidationError, match="at most 1"):
        decode_labels(b'{"labels": [{"id": "a", "label": "no"}, {"id": "b", "label": "no"}]}', schema(), 1)


def test_labels_of_a_regression_are_numbers():
    body = b'{"labels": [{"id": "a", "label": 2}, {"id": "a", "label": 2.5}]}'
    assert [x.label for x in decode_labels(body, schema("regression", None), 9)[0]] == [2., 2.5]
    for wrong in (b"true", b'"2"', b"1e301"):
        with pytest.raises(ValidationError, match="a number is expected"):
            decode_labels(b'{"labels": [{"id": "a", "label": %s}]}' % wrong, schema("regression", None), 9)


def labels_schema():
    return Schema("t", "multilabel", "", {n: Column("integer", nullable=True) for n in "abc"}, targets=["a", "b", "c"])


def test_each_of_several_labels_has_its_answer():
    result = PredictionResult(id="r", endpoint="e", variant="v", bundle="b",
                              scores=[[.9, .2, .6], [.1, .1, .1], [.5] * 3],
                              decisions=["a, c", "none", None], needs_review=[False, False, True])
    decoder = SimpleNamespace(predictor=SimpleNamespace(schema=labels_schema()))
    first, second, third = msgspec.json.decode(encode_predict_response(result, decoder))["predictions"]
    assert first["labels"] == {"a": {"probability": .9, "decision": True}, "b": {"probability": .2, "decision": False},
                               "c": {"probability": .6, "decision": True}}
    assert first["decision"] == "a, c" and first["score"] == {"a": .9, "b": .2, "c": .6}
    assert not any(x["decision"] for x in second["labels"].values())
    assert third["needs_review"] and {x["decision"] for x in third["labels"].values()} == {None}


@pytest.mark.parametrize("label, read", [
    (["c", "a"], "a, c"), ([], "none"), ("a, b", "a, b"), ("none", "none"), (None, None),
    ({"a": 1, "b": 0, "c": 0}, "a"), ({"b": True, "a": None}, '{"b":1}'), ({"c": False}, '{"c":0}')])
def test_labels_of_a_row_that_may_have_several(label, read):
    body = msgspec.json.encode({"labels": [{"id": "r", "label": label}]})
    taken, _ = decode_labels(body, labels_schema(), 9)
    assert taken[0].label == read and (read is None or labels_schema().parse_labels(read) is not None)


@pytest.mark.parametrize("label, words", [
    (["d"], "'d' is no label"), ({"d": 1}, "no label"), ({"a": 2}, "neither 0 nor 1"), (1, "list the labels"),
    ({}, "anything said"), ("a,b", "no label"), ({"a": None}, "anything said"), (True, "list the labels"),
    ([1], "Expected `str`")])
def test_labels_of_a_row_that_are_none(label, words):
    with pytest.raises(ValidationError, match=words):
        decode_labels(msgspec.json.encode({"labels": [{"id": "r", "label": label}]}), labels_schema(), 9)


def test_one_label_is_no_list():
    with pytest.raises(ValidationError, match="Expected one label of the row"):
        decode_labels(b'{"labels": [{"id": "r", "label": ["yes"]}]}', schema(), 9)
