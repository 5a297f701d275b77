"Texts and vectors through training and prediction, for each task: the same bits alone and in a batch."
import msgspec
import numpy as np
import polars as pl
import pytest

from mlops_nb.config.params import EncoderParams, GbdtParams, NetParams, TextParams, TrainParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.config.vectors import lists_as_text
from mlops_nb.core.errors import UserError
from mlops_nb.model.booster import Booster
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.predictor import MODEL_LOADERS, Predictor
from mlops_nb.serve.inference_protocol import decode_infer_request, decode_rows
from mlops_nb.serve.request_validation import RequestDecoder
from mlops_nb.train.dataset import to_training_part
from mlops_nb.train.learners import LEARNERS, fit_learner

N, CLASSES = 400, {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": None}
GOOD, BAD = ["great", "love", "perfect"], ["broken", "refund", "poor"]
OTHER = ["phone", "case", "arrived", "week", "it"]


def rows(task, seed=0):
    rng = np.random.default_rng(seed)
    mood, v = rng.random(N) < .5, rng.normal(size=(N, 6))
    notes = [" ".join([*rng.choice(OTHER, 3), *rng.choice(GOOD if m else BAD, 2)]) for m in mood]
    signal = mood + v[:, 0]
    target = {"binary": signal > .5, "multiclass": np.digitize(signal, [0, 1]), "regression": signal}[task]
    missing = rng.random(N) < .05
    return pl.DataFrame({"note": [None if m else t for m, t in zip(missing, notes)], "x": rng.normal(size=N),
                         "v": [None if m else a for m, a in zip(missing[::-1], v.tolist())],
                         "_target": target.astype(float)})


def trained(task, learner):
    schema = Schema("r", task, "y", classes=CLASSES[task], columns={
        "note": Column("text", nullable=True), "x": Column("number"),
        "v": Column("vector", size=6, producer="p", version="1", nullable=True),
        "y": Column("number" if task == "regression" else "category")})
    params = TrainParams(gbdt=GbdtParams(n_estimators=20),
                         net=NetParams(ensemble_size=2, d_hidden=8, d_embedding=0, max_epochs=3),
                         encoder=EncoderParams(max_vector_components=4, text=TextParams(n_components=5)))
    given = [lists_as_text(rows(task, seed)) for seed in (0, 1)]
    encoder = Encoder.fit(given[0], schema, params=params.encoder)
    parts = tuple(to_training_part(f, split, encoder, schema) for f, split in zip(given, ("train", "valid")))
    fitted = fit_learner(learner, parts, schema, encoder, params)
    model = MODEL_LOADERS[LEARNERS[learner].file](fitted.model)
    return Predictor(schema, load_features(None), Encoder.from_json(encoder.to_json()), model)


@pytest.mark.parametrize("task, learner", [("binary", "gbdt"), ("multiclass", "gbdt"), ("regression", "gbdt"),
                                           ("binary", "net")])
def test_one_row_is_the_batch_and_contributions_are_of_columns(task, learner):
    predictor, frame = trained(task, learner), rows(task, 2).head(40)
    p = predictor.predict(frame)
    for row, one in zip(frame.to_dicts(), p): assert np.array_equal(predictor.predict_one(row), one)
    few = frame.head(6)
    parts, raw = predictor.contributions(few), predictor.predict_raw(few)
    assert parts.shape[-1] == 4 and predictor.feature_names == ["note", "x", "v"]
    np.testing.assert_allclose(parts.sum(-1), raw, atol=1e-6)
    if isinstance(predictor.model, Booster): # both were learned from, more than from noise
        strength = np.abs(predictor.contributions(frame)).reshape(-1, 4).mean(0)
        assert strength[0] > strength[1] and strength[2] > strength[1]


def test_the_server_reads_what_a_batch_reads():
    predictor, frame = trained("binary", "gbdt"), rows("binary", 3).head(12).drop("_target")
    decoder, want = RequestDecoder(predictor), predictor.encode_frame(frame)
    sent = frame.to_dicts()
    assert decoder.from_json(msgspec.json.encode(sent)).X.tobytes() == want.tobytes()
    for row, x in zip(sent, want): assert decoder.from_json(msgspec.json.encode(row)).X.tobytes() == x.tobytes()


def test_a_vector_is_a_tensor_with_a_column_for_each_number():
    decoder, v = RequestDecoder(trained("binary", "gbdt")), np.arange(12.).reshape(2, 6)
    note, x = (dict(name="note", shape=[2], datatype="BYTES", data=["great", None]),
               dict(name="x", shape=[2], datatype="FP64", data=[1, 2]))
    want = decoder.from_json(msgspec.json.encode([dict(note=n, x=i, v=a) for n, i, a in zip(
        ["great", None], [1, 2], v.tolist())]))

    def decode(binary=b"", **tensor):
        body = msgspec.json.encode({"inputs": [note, x, {"name": "v", "shape": [2, 6], "datatype": "FP64", **tensor}]})
        length = str(len(body)) if binary else None
        return decode_rows(decode_infer_request(body + binary, length, decoder.max_rows, decoder.max_values), decoder)

    for found in (decode(data=v.ravel().tolist(), parameters={"producer": "p"}), decode(data=v.tolist()),
                  decode(datatype="INT64", data=[*range(12)]),
                  decode(v.astype("<f4").tobytes(), datatype="FP32", parameters={"binary_data_size": 48}),
                  decode(shape=[2], datatype="BYTES", data=[str(a) for a in v.tolist()])):
        assert found.X.tobytes() == want.X.tobytes() and found.columns == want.columns
    assert decode(data=[None] * 6 + v[1].tolist()).columns["v"] == [None, want.columns["v"][1]]
    for bad, says in ((dict(shape=[2, 5], data=[1] * 10), r"of the shape \[2, 6\]"), (dict(shape=[12], data=[1] * 12),
                      "vectors of 2 rows"), (dict(datatype="BOOL", data=[True] * 12), "BOOL"),
                      (dict(data=[None] + [1] * 11), "row 0: v: holds a value that is no finite number"),
                      (dict(data=[1] * 12, parameters={"version": "2"}), "comes from the version '2'")):
        with pytest.raises(UserError, match=says): decode(**bad)
