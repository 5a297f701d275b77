"Means of names: shrunk by a known formula, none with a row's own target in it, the same bits alone and in a batch."
import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from mlops_nb.config.params import EncoderParams, GbdtParams, NetParams, TrainParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.model.booster import Booster
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.predictor import MODEL_LOADERS, Predictor
from mlops_nb.model.target_encoding import cross_fit_encoding, fit_target_encoding, shrunk_means
from mlops_nb.model.text_scores import score_target
from mlops_nb.serve.request_validation import RequestDecoder
from mlops_nb.train.dataset import to_training_part
from mlops_nb.train.learners import LEARNERS, fit_learner

CLASSES = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": None}
FEW = EncoderParams(min_category_count=40, max_categories=5)


def schema(task="regression", **more):
    columns = {"who": Column("category", nullable=True), "x": Column("number"), "team": Column("category"),
               "y": Column("number" if task == "regression" else "category")}
    return Schema("r", task, "y", classes=CLASSES[task], columns=columns, **more)


def rows(task="regression", n=1200, n_names=60, seed=0, known=True):
    "Names that differ in the target, a few of them missing."
    rng, of_name = np.random.default_rng(seed), np.random.default_rng(5).normal(size=n_names)
    name = rng.integers(0, n_names, n)
    signal = known * 2 * of_name[name] + rng.normal(size=n)
    y = {"binary": signal > 0, "multiclass": np.digitize(signal, [-1, 1]), "regression": 50 + signal}[task]
    return pl.DataFrame({"who": [None if m else f"n{i}" for i, m in zip(name, rng.random(n) < .03)],
                         "x": rng.normal(size=n), "team": rng.choice(["red", "blue"], n), "_target": y.astype(float)})


def fit(frame, task="regression", params=FEW, **more):
    return Encoder.fit(frame, schema(task, **more), params=params, target=frame["_target"].to_numpy())


def auc(y, score):
    a, b = score[y > 0][:, None], score[y == 0]
    return np.mean(a > b) + np.mean(a == b) / 2


@pytest.mark.parametrize("within, between", [(1., 1.), (4., 1.), (1., .2)])
def test_the_variances_are_those_that_made_the_rows(within, between):
    "Over 200 draws the estimated credibility of a name of 20 rows is that of the truth."
    sizes, found = np.random.default_rng(0).integers(5, 60, 80), []
    group = np.repeat(np.arange(80), sizes)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y = rng.normal(7, between, 80)[group] + rng.normal(0, within, len(group))
        shrunk, overall = shrunk_means(group, y, 80)
        own = np.bincount(group, y) / sizes
        weight = (shrunk - overall) / (own - overall)
        ratio = sizes * (1 / weight - 1) # within² / between², one number for all names
        assert np.ptp(ratio) < 1e-6 * ratio.mean()
        found.append(20 / (20 + ratio.mean()))
    assert abs(np.mean(found) - 20 / (20 + within**2 / between**2)) < .02


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.floats(-1e6, 1e6))
def test_a_mean_lies_between_its_own_and_that_of_all(seed, n_names, shift):
    rng = np.random.default_rng(seed)
    group, y = rng.integers(-1, n_names, 60), rng.normal(size=60) * 10.**rng.integers(-3, 4) + shift
    y[rng.random(60) < .1] = np.nan
    shrunk, overall = shrunk_means(group, y, n_names)
    assert np.isfinite(shrunk).all() and np.isclose(overall, np.nanmean(y))
    for i in range(n_names):
        own = y[(group == i) & np.isfinite(y)]
        near = own.mean() if len(own) else overall
        tolerance = 1e-9 * (1 + abs(shift))
        assert min(near, overall) - tolerance <= shrunk[i] <= max(near, overall) + tolerance


def test_nothing_to_learn_from():
    assert shrunk_means(np.array([0, 1]), np.array([np.nan, np.nan]), 2)[1] == 0
    assert_array_equal(shrunk_means(np.array([-1, -1]), np.array([1., 3]), 2)[0], [2, 2])
    assert_array_equal(shrunk_means(np.array([0, 0]), np.array([1., 3]), 1)[0], [2]) # one name: that is all rows
    assert_array_equal(shrunk_means(np.arange(4), np.arange(4.), 4)[0], [1.5] * 4) # nobody repeats


def test_random_targets_leave_nothing_in_cross_fitted_means():
    honest = []
    for seed in range(6):
        frame = rows("binary", 3000, 400, seed, known=False)
        y = frame["_target"].to_numpy()
        target = score_target(y, schema("binary"))
        means = fit_target_encoding(frame["who"], target)
        known = frame["who"].is_not_null().to_numpy()
        honest.append(auc(y[known], cross_fit_encoding(means, frame["who"], target)[known, 0]))
    assert abs(np.mean(honest) - .5) < .03


def test_the_training_matrix_holds_cross_fitted_means_and_nothing_else_differs():
    frame = rows()
    encoder, y = fit(frame), frame["_target"].to_numpy()
    assert encoder.matrix_names == ["who", "who.mean", "x", "team"] and encoder.categorical == [0, 3]
    X, plain = encoder.transform_training(frame, y, schema()), encoder.transform(frame)
    differs = (plain != X) & ~(np.isnan(X) & np.isnan(plain))
    assert differs[:, 1].mean() > .9 and not differs[:, [0, 2, 3]].any()
    missing = frame["who"].is_null().to_numpy()
    assert np.isnan(X[missing, :2]).all() and np.isfinite(X[~missing, :2]).all()
    known = np.corrcoef(X[~missing, 1], y[~missing])[0, 1]
    assert .6 < known < np.corrcoef(plain[~missing, 1], y[~missing])[0, 1]


def test_rows_of_one_entity_say_nothing_of_each_other():
    "Every name belongs to one team, so nothing that is learned from other teams can know it."
    frame = rows("binary", 2000, 100, known=False)
    number = frame["who"].str.strip_prefix("n").cast(pl.Int64).fill_null(0).to_numpy()
    frame = frame.with_columns(team=pl.Series([f"t{i // 2}" for i in number]))
    y = (np.random.default_rng(3).random(100) < .5).astype(float)[number] # what the name alone decides
    by_team = schema("binary", entity="team")
    by_team.columns["team"].feature = False
    encoder = Encoder.fit(frame, by_team, params=FEW, target=y)
    known = frame["who"].is_not_null().to_numpy()
    assert auc(y[known], encoder.transform(frame)[known, 1]) > .95
    assert abs(auc(y[known], encoder.transform_training(frame, y, by_team)[known, 1]) - .5) < .05


def test_who_has_means():
    frame = rows()
    y = frame["_target"].to_numpy()
    of = lambda params, frame=frame: Encoder.fit(frame, schema(), params=params, target=y).columns[0].target_encoding
    assert of(EncoderParams()) is None # each has a code
    assert of(FEW) and of(EncoderParams(max_categories=50))
    assert of(EncoderParams(max_categories=50, target_encoding=False)) is None
    assert Encoder.fit(frame, schema(), params=FEW).columns[0].target_encoding is None # without a target
    alone = frame.with_columns(who=pl.Series([f"person {i}" for i in range(len(frame))]))
    assert of(FEW, alone) is None # nobody is seen twice
    def with_seldom(n_names, n): # so many names of so many rows each beside one of all others
        return frame.with_columns(who=pl.Series(["often"] * (len(frame) - n_names * n)
                                                + [f"s{i // n}" for i in range(n_names * n)]))
    assert of(EncoderParams(), with_seldom(9, 9)) is None # few names
    assert of(EncoderParams(), with_seldom(10, 9))
    long = pl.concat([with_seldom(10, 5), *[frame.with_columns(who=pl.lit("often"))] * 4])
    of_long = Encoder.fit(long, schema(), target=long["_target"].to_numpy()).columns[0].target_encoding
    assert of_long is None # 50 of 6,000 rows
    seldom = pl.Series(["often"] * 400 + [f"n{i // 4}" for i in range(400)] + [f"m{i // 5}" for i in range(400)])
    assert {*of(FEW, frame.with_columns(who=seldom)).means} == {"often", *(f"m{i}" for i in range(80))} # five rows


@pytest.mark.parametrize("task, names", [("binary", ["mean"]), ("regression", ["mean"]),
                                         ("multiclass", ["mean.0", "mean.1", "mean.2"])])
def test_each_task(task, names):
    frame = rows(task)
    encoder = fit(frame, task)
    assert encoder.matrix_names == ["who", *(f"who.{n}" for n in names), "x", "team"]
    Z = encoder.transform(pl.DataFrame({"who": ["n1", "new", None], "x": [0.] * 3, "team": ["red"] * 3}))
    assert Z[1, 0] == 0 and np.isfinite(Z[1, 1:]).all() and np.isnan(Z[2, :1 + len(names)]).all()
    y = frame["_target"].to_numpy()
    share = y.mean() if task != "multiclass" else [(y == k).mean() for k in range(3)]
    assert_allclose(Z[1, 1:1 + len(names)], share)
    again = Encoder.from_json(encoder.to_json())
    assert_array_equal(again.transform(frame), encoder.transform(frame))


def test_labels_that_are_missing_alone():
    frame = rows("binary")
    y = np.column_stack([frame["_target"], 1 - frame["_target"]])
    y[::3, 0] = np.nan
    columns = {n: c for n, c in schema().columns.items() if n != "y"} | {n: Column("integer") for n in "pq"}
    labels = Schema("r", "multilabel", "", columns, targets=["p", "q"])
    encoder = Encoder.fit(frame, labels, params=FEW, target=y)
    assert encoder.matrix_names[:3] == ["who", "who.mean.0", "who.mean.1"]
    assert np.isfinite(encoder.transform_training(frame, y, labels)[frame["who"].is_not_null().to_numpy(), 1:3]).all()


def test_a_column_of_that_name_is_refused():
    frame, named = rows().rename({"x": "who.mean"}), schema()
    named.columns["who.mean"] = named.columns.pop("x")
    with pytest.raises(UserError, match="'who.mean' has the name of what the category 'who' becomes"):
        Encoder.fit(frame, named, params=FEW, target=frame["_target"].to_numpy())


@pytest.mark.parametrize("task, learner", [("binary", "gbdt"), ("multiclass", "gbdt"), ("regression", "gbdt"),
                                           ("regression", "net")])
def test_one_row_is_the_batch_and_contributions_are_of_columns(task, learner):
    params = TrainParams(gbdt=GbdtParams(n_estimators=20), encoder=FEW,
                         net=NetParams(ensemble_size=2, d_hidden=8, d_embedding=0, max_epochs=2))
    given, s = [rows(task, seed=seed) for seed in (0, 1)], schema(task)
    encoder = fit(given[0], task)
    parts = tuple(to_training_part(f, split, encoder, s) for f, split in zip(given, ("train", "valid")))
    model = MODEL_LOADERS[LEARNERS[learner].file](fit_learner(learner, parts, s, encoder, params).model)
    predictor = Predictor(s, load_features(None), Encoder.from_json(encoder.to_json()), model)
    frame = rows(task, 300, seed=2)
    p = predictor.predict(frame)
    for row, one in zip(frame.head(30).to_dicts(), p): assert np.array_equal(predictor.predict_one(row), one)
    decoder, want = RequestDecoder(predictor), predictor.encode_frame(frame.head(30))
    sent = msgspec.json.encode(frame.head(30).drop("_target").to_dicts())
    assert decoder.from_json(sent).X.tobytes() == want.tobytes()
    parts, raw = predictor.contributions(frame.head(6)), predictor.predict_raw(frame.head(6))
    assert parts.shape[-1] == 4 and predictor.feature_names == ["who", "x", "team"]
    assert_allclose(parts.sum(-1), raw, atol=1e-6)
    if isinstance(model, Booster): # more was learned of who it is than of noise
        strength = np.abs(predictor.contributions(frame)).reshape(-1, 4).mean(0)
        assert strength[0] > 3 * strength[1]
