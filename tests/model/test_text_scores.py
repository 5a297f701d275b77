"Scores of texts: no row's own target in its score, the same bits alone and among others, one path for every task."
import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from mlops_nb.config.params import EncoderParams, TextParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.model import encoder as encoder_module
from mlops_nb.model import text_scores as module
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.text_encoder import TextEncoding, fit_text
from mlops_nb.model.text_scores import cross_fit_scores, fit_text_scores, score_target

CLASSES = {"binary": ["no", "yes"], "multiclass": ["a", "b", "c"], "regression": None}
WORDS = [f"w{i}" for i in range(120)]


def schema(task="binary", **more):
    columns = {"note": Column("text", nullable=True), "x": Column("number"), "who": Column("category"),
               "y": Column("number" if task == "regression" else "category")}
    return Schema("r", task, "y", classes=CLASSES[task], columns=columns, **more)


def random_texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return pl.Series([" ".join(rng.choice(WORDS, 10)) for _ in range(n)])


def auc(y, score): return np.mean(score[y > 0][:, None] > score[y == 0])


def fitted(texts, target, n_components=2):
    return fit_text_scores(fit_text(texts, TextParams(n_components=n_components)), texts, target)


@pytest.mark.parametrize("n", [300, 2000])
def test_random_targets_leave_nothing_in_cross_fitted_scores(n):
    honest, new = [], []
    for seed in range(4):
        y, texts = (np.random.default_rng(seed + 10).random(n) < .3).astype(float), random_texts(n, seed)
        target = score_target(y, schema())
        encoding = fitted(texts, target)
        assert auc(y, encoding.encode(texts.to_list())[:, -1]) > .65 # its own rows: what must never be trained on
        honest.append(auc(y, cross_fit_scores(encoding, texts, target)[:, 0]))
        later = (np.random.default_rng(seed + 99).random(n) < .3).astype(float)
        new.append(auc(later, encoding.encode(random_texts(n, seed + 50).to_list())[:, -1]))
    assert abs(np.mean(honest) - .5) < .06 and abs(np.mean(new) - .5) < .06


def test_the_training_matrix_holds_cross_fitted_scores_and_nothing_else_differs():
    y = (np.random.default_rng(1).random(600) < .5).astype(float)
    frame = pl.DataFrame({"note": random_texts(600, 1), "x": np.arange(600.), "who": ["a"] * 600})
    encoder = Encoder.fit(frame, schema(), target=y)
    X, plain = encoder.transform_training(frame, y, schema()), encoder.transform(frame)
    assert encoder.matrix_names[33] == "note.score"
    same = [*range(33), 34, 35]
    assert_array_equal(X[:, same], plain[:, same])
    assert abs(auc(y, X[:, 33]) - .5) < .12 < auc(y, plain[:, 33]) - .5


def test_rows_of_one_entity_do_not_tell_each_others_target():
    "Each entity writes the same words in all of its rows, and its target is drawn at random."
    rng = np.random.default_rng(0)
    notes, y, who = random_texts(150), (rng.random(150) < .5).astype(float), np.arange(600) % 150
    frame = pl.DataFrame({"note": notes[who.tolist()], "x": np.arange(600.), "who": who.astype(str)})
    by_entity = schema(entity="who")
    by_entity.columns["who"].feature = False
    encoder = Encoder.fit(frame, by_entity, target=y[who])
    at = encoder.matrix_names.index("note.score")
    assert abs(auc(y[who], encoder.transform_training(frame, y[who], by_entity)[:, at]) - .5) < .15
    alone = schema()
    alone.columns["who"].feature = False
    assert auc(y[who], encoder.transform_training(frame, y[who], alone)[:, at]) > .9 # the leak that groups close


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.booleans())
def test_folds_are_whole_groups_of_about_one_size(seed, n_groups, continuous):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, n_groups, 200)
    y = rng.normal(size=(200, 1)) if continuous else (rng.random((200, 1)) < .2).astype(float)
    fold = module.stratified_folds(y, pl.Series(groups))
    assert all(len({*fold[groups == g]}) == 1 for g in set(groups.tolist()))
    assert len({*fold}) == min(5, len(set(groups.tolist())))
    single = module.stratified_folds(y, None)
    assert np.ptp(np.bincount(single)) <= 1
    if not continuous: assert np.ptp([y[single == i].sum() for i in range(5)]) <= 1


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression", "labels"])
def test_each_task_learns_what_words_say(task):
    rng = np.random.default_rng(3)
    kind = rng.integers(0, 3, 500)
    texts = pl.Series([f"{' '.join(rng.choice(WORDS[:20], 6))} {('bad', 'so so', 'great')[k]}" for k in kind])
    y = {"binary": (kind == 2).astype(float), "multiclass": kind.astype(float), "regression": 1000 + 50. * kind,
         "labels": np.stack([kind == 2, kind > 0], 1).astype(float)}[task]
    if task == "labels": y[::7, 0] = np.nan # a label may be missing alone
    target = score_target(y, schema("binary" if task == "labels" else task))
    encoding = fitted(texts, target)
    names = dict(binary=["score"], regression=["score"], multiclass=["score.0", "score.1", "score.2"],
                 labels=["score.0", "score.1"])[task]
    assert target.names == encoding.scores == names and encoding.names == ["n_words", "0", "1", *names]
    own, honest = encoding.encode(texts.to_list())[:, 3:], cross_fit_scores(encoding, texts, target)
    assert own.shape == honest.shape == (500, len(names)) and np.isfinite(honest).all()
    for scores in (own, honest):
        if task == "regression": assert np.abs(scores[:, 0] - y).mean() < 15
        elif task == "multiclass": assert (scores.argmax(1) == kind).mean() > .98
        else: assert auc(kind == 2, scores[:, 0]) > .98
        if task == "labels": assert auc(kind > 0, scores[:, 1]) > .98


@settings(max_examples=60, deadline=None)
@given(st.lists(st.none() | st.text(max_size=30) | st.lists(st.sampled_from(WORDS)).map(" ".join), min_size=1,
                max_size=9))
def test_a_row_alone_is_the_row_among_others_to_the_last_bit(rows):
    Z = ENCODING.encode(rows)
    assert all(ENCODING.encode([t]).tobytes() == z.tobytes() for t, z in zip(rows, Z))
    again = msgspec.json.decode(msgspec.json.encode(ENCODING), type=TextEncoding)
    assert again == ENCODING and again.encode(rows).tobytes() == Z.tobytes()


Y = np.arange(300) % 3.
ENCODING = fitted(random_texts(300), score_target(Y, schema("multiclass")))


def test_what_is_encoded_is_what_was_cross_fitted_from():
    "The matrix of a fit and the row-wise sum of a server are one linear model."
    texts = random_texts(80, 5)
    A = ENCODING._tfidf([t.split() for t in texts])
    W = np.frombuffer(ENCODING.coefficients, "<f4").reshape(len(ENCODING.terms), 3)
    assert_allclose(ENCODING.encode(texts.to_list())[:, 3:], A @ W + ENCODING.intercepts, atol=1e-5)
    assert_array_equal(ENCODING.encode(["zzz"])[0, 3:], ENCODING.intercepts)


def test_it_is_the_logistic_regression_that_people_know():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    texts, y = random_texts(400), rng.random(400) < .4
    texts = pl.Series([f"{t} {'good' if g else ''}" for t, g in zip(texts, y ^ (rng.random(400) < .2))])
    encoding = fit_text(texts, TextParams(n_components=0))
    A = encoding._tfidf([t.split() for t in texts])
    W, _ = module._fit_linear(A, y[:, None].astype(float), True)
    known = linear_model.LogisticRegression(C=2, tol=1e-8, max_iter=1000).fit(A, y).coef_[0]
    assert np.corrcoef(W[:, 0], known)[0, 1] > .999
    assert_allclose(W[:, 0], known, atol=.05)


@pytest.mark.parametrize("texts, y", [
    (["a b"] * 9, np.ones(9)), (["a b", None] * 9, np.arange(18) % 2), ([None] * 10, np.arange(10) % 2),
    (["a"] * 3, np.array([0, 1, np.nan])), (["a b c"] * 10, np.full(10, np.nan)), (["a"], np.ones(1))])
def test_columns_with_little_to_learn_stay_finite(texts, y):
    texts, target = pl.Series(texts, dtype=pl.String), score_target(y.astype(float), schema())
    encoding = fit_text_scores(fit_text(texts, TextParams(min_term_count=1)), texts, target)
    Z = encoding.encode(["a", "z", None])
    assert np.isfinite(Z[:2]).all() and (np.abs(Z[:2]) < 50).all() and np.isnan(Z[2]).all()
    if encoding.scores:
        cross = cross_fit_scores(encoding, texts, target)
        assert (np.isnan(cross[:, 0]) == texts.is_null().to_numpy()).all() and (np.abs(np.nan_to_num(cross)) < 50).all()


def test_of_many_classes_the_frequent_ones_have_a_score(monkeypatch):
    monkeypatch.setattr(module, "_MAX_SCORES", 2)
    many = Schema("r", "multiclass", "y", classes=[*"abcd"], columns={"y": Column("category")})
    target = score_target(np.array([3., 3, 1, 1, 1, 0, 2, 3, 3]), many)
    assert target.names == ["score.1", "score.3"] and target.values.sum(0).tolist() == [3, 4]


def test_rows_of_other_frequencies_are_asked_for_the_scores_of_the_encoding(monkeypatch):
    "A training may go on with the encoder of an earlier model."
    monkeypatch.setattr(module, "_MAX_SCORES", 2)
    schema = Schema("r", "multiclass", "y", classes=[*"abcd"], columns={"y": Column("category")})
    then, now = np.repeat([0., 1, 2, 3], [1, 5, 2, 9]), np.repeat([0., 1, 2, 3], [9, 1, 5, 2])
    names = score_target(then, schema).names
    assert names == ["score.1", "score.3"] and score_target(now, schema).names == ["score.0", "score.2"]
    assert_array_equal(score_target(now, schema, names).values, np.stack([now == 1, now == 3], 1))


def test_a_sample_of_many_words_is_learned_from(monkeypatch):
    monkeypatch.setattr(module, "_MAX_FIT_WORDS", 1000)
    texts, y = random_texts(400), np.arange(400) % 2.
    target = score_target(y, schema())
    encoding = fitted(texts, target)
    assert np.isfinite(cross_fit_scores(encoding, texts, target)).all()
    A, _, _ = module._read_texts(encoding, texts, target)
    assert 80 < len(module._fit_rows(A, target)) < 120


def test_scores_can_be_left_out_and_need_a_target():
    frame = pl.DataFrame({"note": random_texts(100), "x": np.arange(100.), "who": ["a"] * 100})
    for encoder in (Encoder.fit(frame, schema()),
                    Encoder.fit(frame, schema(), params=EncoderParams(text=TextParams(scores=False)), target=Y[:100])):
        assert "note.score" not in encoder.matrix_names
        assert_array_equal(encoder.transform_training(frame, Y[:100], schema()), encoder.transform(frame))
    only = EncoderParams(text=TextParams(n_components=0))
    assert Encoder.fit(frame, schema(), params=only, target=Y[:100] % 2).matrix_names[:2] == ["note.n_words",
                                                                                            "note.score"]


def test_a_vocabulary_that_is_too_large_is_refused(monkeypatch):
    monkeypatch.setattr(encoder_module, "_MAX_TEXT_MIB", .01)
    frame = pl.DataFrame({"note": random_texts(100), "x": np.arange(100.), "who": ["a"] * 100})
    with pytest.raises(UserError, match="the vocabulary of the text column 'note' takes .* lower max_terms or "):
        Encoder.fit(frame, schema(), target=Y[:100] % 2)


def test_an_encoding_of_an_older_bundle_has_no_scores():
    older = msgspec.to_builtins(fit_text(random_texts(50), TextParams(n_components=2)))
    for name in ("scores", "intercepts", "coefficients"): older.pop(name)
    assert msgspec.convert(older, TextEncoding, strict=False).encode(["w1 w2"]).shape == (1, 3)


def test_a_column_with_the_name_of_what_a_text_becomes_is_refused():
    frame = pl.DataFrame({"note": random_texts(60), "note.n_words": 1.0, "x": 2.0, "who": "a"})
    clash = schema()
    clash.columns["note.n_words"] = Column("number", feature=False)
    with pytest.raises(UserError, match="the column 'note.n_words' has the name of what the text 'note' becomes; give"):
        Encoder.fit(frame, clash)
