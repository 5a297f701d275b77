"Texts as numbers: any string, the same bits alone and among others, bounded in time and size."
import time
import unicodedata

import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from mlops_nb.config.params import EncoderParams, TextParams
from mlops_nb.config.schema import Column, Schema
from mlops_nb.core.errors import UserError
from mlops_nb.model import text_encoder as module
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.text_encoder import TextEncoding, fit_text, split_words, text_terms, truncated_svd

R = np.random.default_rng(0)
WORDS = ["line", "dead", "router", "signal", "outage", "invoice", "charged", "twice", "refund", "amount", "wrong"]
NOTES = [" ".join(R.choice(WORDS, R.integers(1, 9))) for _ in range(300)]
ENCODING = fit_text(pl.Series(NOTES), TextParams(n_components=8, char_ngrams=True))
texts = st.none() | st.text(max_size=60) | st.lists(st.sampled_from([*WORDS, "<br>", "&amp;", "é", "\u0301", "故障"]),
                                                     max_size=12).map(" ".join)


@settings(max_examples=150, deadline=None)
@given(st.lists(texts, min_size=1, max_size=20))
def test_a_row_alone_is_the_row_among_others_to_the_last_bit(rows):
    Z = ENCODING.encode(rows)
    assert Z.shape == (len(rows), 9)
    for i, text in enumerate(rows):
        assert ENCODING.encode([text]).tobytes() == Z[i].tobytes()
        assert np.isnan(Z[i]).all() if text is None else np.isfinite(Z[i]).all()
    assert (np.linalg.norm(np.nan_to_num(Z[:, 1:]), axis=1) < 1 + 1e-6).all()
    assert_array_equal(ENCODING.watch(rows)[:, 0], Z[:, 0])


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200))
def test_spelling_does_not_matter(text):
    words = split_words(text, 1000)
    assert words == split_words(unicodedata.normalize("NFC", unicodedata.normalize("NFD", text)), 1000) or "&" in text
    assert all(w == unicodedata.normalize("NFKC", w) and 0 < len(w) <= 64 for w in words)
    assert split_words(" ".join(words), 10**6) == words or any("'" in w or "’" in w for w in words)


@pytest.mark.parametrize("text, words", [
    ("", []), (" \t\n", []), ("<p>a<br/>b</p>", ["a", "b"]), ("a &lt;b&gt; c", ["a", "b", "c"]),
    ("x &nbsp;y", ["x", "y"]),
    ("1 < 2 and 3 > 2", ["1", "2"]), ("l'été", ["l'été"]), ("STRASSE straße", ["strasse", "strasse"]),
    ("don’t", ["don’t"]), ("a_b-c", ["a", "b", "c"]), ("ﬁne ½", ["fine", "1", "2"]), ("😀 ok 👍🏽", ["ok"]),
    ("故障abc", ["故", "障", "abc"]), ("हिन्दी", ["हिन्दी"]), ("\x00\ufffe a", ["a"]), ("x" * 65, []),
    ("e\u0301 é", ["é", "é"])])
def test_words(text, words): assert split_words(text, 1000) == words


def test_what_a_text_costs_grows_with_its_length_alone():
    "Nothing here takes quadratic time: ten times the text takes about ten times as long, and `max_chars` bounds it."
    for piece in ("<", "&", "&#", "<a ", "'a", "a'", "\u0301", "&amp;lt;", "ﷺ"):
        began = time.process_time()
        assert len(split_words(piece * 400_000, 200_000)) <= 200_000 * 4
        assert time.process_time() - began < 20 # a quadratic scan would take hours
    assert split_words("a " * 10, 5) == ["a", "a", "a"]


def test_terms_of_each_kind():
    assert text_terms(["a", "b", "c"], 3) == ["a", "b", "c", "a b", "b c", "a b c"]
    assert text_terms(["ab"], 1, True) == ["ab", "~ ab", "~ab ", "~ ab "] and text_terms([], 3, True) == []


def test_the_vocabulary_is_the_frequent_terms_and_bounded():
    found = fit_text(pl.Series(["a b", "a c", "a", None, ""] * 3 + ["z"]), TextParams(min_term_count=3, max_terms=3))
    assert found.terms == ["a", "a b", "a c"] and len(found.idf) == 3
    assert fit_text(pl.Series(["secret name"]), TextParams(min_term_count=2)).terms == []


def test_the_count_of_phrases_is_thinned_out(monkeypatch):
    monkeypatch.setattr(module, "_MAX_COUNTED_TERMS", 50)
    notes = [f"often said {i} and never {i + 1000} again" for i in range(200)]
    assert {"often", "often said", "and never"} <= {*fit_text(pl.Series(notes)).terms}


def test_many_frequent_phrases_are_bounded_as_well(monkeypatch):
    monkeypatch.setattr(module, "_MAX_COUNTED_TERMS", 100)
    words = [[f"w{i % 40}", f"w{i % 41}", "often"] for i in range(2_000)] # some 80 words, 3,000 phrases
    counted = module._count_rows(words, TextParams())
    assert len(counted) <= 100 and counted["often"] == 2_000


def test_a_sample_of_many_rows_is_read(monkeypatch):
    monkeypatch.setattr(module, "_MAX_FIT_ROWS", 50)
    assert fit_text(pl.Series(NOTES)).terms


@pytest.mark.parametrize("column", [[], [None], ["", None], ["rare words only"], ["same"] * 20])
def test_columns_with_nothing_to_learn(column):
    found = fit_text(pl.Series(column, dtype=pl.String))
    Z = found.encode(["same", None, "", "new words"])
    assert Z.shape[1] == 1 + found.n_components and found.n_components <= 1
    assert Z[:, 0].tolist()[0::2] == [1, 0] and np.isnan(Z[1]).all() and found.watch(["same"]).shape == (
        1, len(found.watched_names()))


def test_the_directions_are_those_of_an_exact_decomposition():
    A = R.normal(size=(80, 5)) @ R.normal(size=(5, 30))
    V = truncated_svd(A, 10)
    assert V.shape == (30, 5) # there are no more
    np.testing.assert_allclose(V.T @ V, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(A @ V @ V.T, A, atol=1e-8)
    assert (V[np.abs(V).argmax(0), range(5)] > 0).all()


def test_the_same_rows_give_the_same_encoding():
    assert fit_text(pl.Series(NOTES)) == fit_text(pl.Series(NOTES))


def test_it_travels_as_json_and_answers_to_the_same_bits():
    again = msgspec.json.decode(msgspec.json.encode(ENCODING), type=TextEncoding)
    assert again == ENCODING and again.encode(NOTES).tobytes() == ENCODING.encode(NOTES).tobytes()


SCHEMA = Schema("t", "binary", "y", classes=["a", "b"], columns={
    "x": Column("number"), "note": Column("text", nullable=True), "kind": Column("category"), "y": Column("category")})


def rows(n=100):
    return pl.DataFrame({"x": R.normal(size=n), "note": [None if i % 7 == 0 else NOTES[i] for i in range(n)],
                         "kind": ["u", "v"] * (n // 2)})


def test_where_a_text_is_in_the_matrix():
    encoder = Encoder.fit(rows(), SCHEMA, params=EncoderParams(text=TextParams(n_components=3)))
    assert encoder.matrix_names == ["x", "note.n_words", "note.0", "note.1", "note.2", "kind"]
    assert encoder.feature_names == ["x", "note", "kind"] and encoder.categorical == [5]
    assert encoder.largest_codes == {5: 3} and encoder.matrix_columns("note") == [1, 2, 3, 4]
    X = encoder.transform(rows())
    assert encoder.sum_by_input(X).shape == (100, 3)
    frame, again = rows(), Encoder.from_json(encoder.to_json())
    assert again.transform(frame).tobytes() == encoder.transform(frame).tobytes()
    figures = encoder.figures(frame)
    assert figures.columns == encoder.figure_names == [
        "note.n_words", "note.unknown_share", "note.0", "note.1", "note.2"]
    assert figures["note.n_words"].null_count() == 15


def test_a_number_is_no_text():
    encoder = Encoder.fit(rows(), SCHEMA)
    with pytest.raises(UserError, match="'note' holds Int64 values where the model expects a text"):
        encoder.transform(rows().with_columns(note=pl.lit(3, pl.Int64)))


def test_the_largest_vocabulary_is_bounded_in_bytes():
    "Whatever the texts hold: 50,000 terms of 64 characters a word at most."
    with pytest.raises(msgspec.ValidationError): msgspec.convert(dict(max_terms=50_001), TextParams)
    blobs = ["x" * 63 + chr(97 + i % 26) + " " + "y" * 10_000 for i in range(100)]
    found = fit_text(pl.Series(blobs), TextParams(min_term_count=1))
    assert all(len(word) <= 64 for term in found.terms for word in term.split())
