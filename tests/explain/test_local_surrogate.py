"Distances, the line around one row, and pairs of features that act together."
import msgspec
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trained_project import CLASSES, trained

from mlops_nb.config.schema import Column, Schema
from mlops_nb.explain.interactions import pairwise_interactions, partial_dependence, partial_dependence_2d
from mlops_nb.explain.local_surrogate import (
    fit_local_surrogate,
    fit_sparse_ridge,
    gower_distance,
    low_fidelity_warning,
    perturb_row,
    robust_range,
    round_significant,
    scaled_differences,
)
from mlops_nb.model.dataframes import cast_to_schema
from mlops_nb.model.encoder import Encoder
from mlops_nb.model.features import load_features
from mlops_nb.model.predictor import Predictor
from mlops_nb.train.stage import open_trained_predictor

# distances

VALUES = st.fixed_dictionaries({"x": st.none() | st.floats(-1e9, 1e9), "count": st.integers(-5, 5),
                                "place": st.none() | st.sampled_from("abc"), "known": st.booleans()})
TYPES = {"x": pl.Float64, "count": pl.Int64, "place": pl.String, "known": pl.Boolean}


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=8))
def test_a_distance_is_a_distance(values):
    frame = pl.DataFrame(values, schema=TYPES)
    spreads = [robust_range(frame[c]) for c in frame.columns]
    assert min(spreads) > 0
    apart = np.array([gower_distance(scaled_differences(frame[i:i + 1], frame, spreads)) for i in range(len(frame))])
    assert (apart >= 0).all() and (apart <= 1).all() and np.allclose(apart, apart.T) and (apart.diagonal() == 0).all()
    differing = np.array([[sum(a[c] != b[c] for c in TYPES) for b in values] for a in values])
    assert (apart <= differing / len(TYPES) + 1e-12).all()


def test_numbers_are_measured_by_their_spread_and_times_are_numbers():
    frame = pl.DataFrame(
        {"x": [0.0, 1, 2, 3, None], "t": pl.date_range(pl.date(2026, 1, 1), pl.date(2026, 1, 5), eager=True)}
    )
    found = scaled_differences(frame[1:2], frame, [2., 4.])
    assert (
        found[:4, 0].tolist() == [-0.5, 0, 0.5, 1]
        and np.isnan(found[4, 0])
        and found[:, 1].tolist() == [-0.25, 0, 0.25, 0.5, 0.75]
    )
    assert gower_distance(scaled_differences(frame[:1], frame, [1e9, 4.]))[4] == 1
    assert robust_range(pl.Series([0.0] * 99 + [7])) == 7 and robust_range(
        pl.Series([None, None], dtype=pl.Float64)
    ) == 1 == robust_range(pl.Series([3, 3]))


# a line around one row


class Formula:
    "A model that is a formula of the matrix."
    def __init__(self, f, features): self.f, self.feature_names, self.n_classes = f, features, 1
    def predict_raw(self, X): return self.f(X)
    predict = predict_raw


def formula(f, frame):
    "A predictor that computes `f` of the columns of `frame`; categories come as their codes."
    kind = {pl.String: "category", pl.Boolean: "boolean", pl.Int64: "integer"}
    schema = Schema(
        "made",
        "regression",
        "y",
        {n: Column(kind.get(t, "number"), nullable=True) for n, t in frame.schema.items()} | {"y": Column("number")},
    )
    encoder = Encoder.fit(frame, schema, load_features(None))
    return Predictor(schema, load_features(None), encoder, Formula(f, encoder.feature_names))


def made(n=800, seed=0):
    rng = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "a": rng.normal(5, 2, n),
            "b": rng.exponential(3, n),
            "c": rng.integers(0, 9, n),
            "d": rng.choice(["u", "v"], n),
            "e": rng.normal(size=n),
        }
    )


def line(predictor, frame, i=0, **kw):
    return fit_local_surrogate(
        predictor, frame[i : i + 1], frame, [robust_range(frame[c]) for c in frame.columns], **kw
    )


def slopes(found): return {t.column: t.slope for t in found.terms}


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-3, 3).filter(lambda x: abs(x) > .1), min_size=3, max_size=3), st.integers(0, 700))
def test_a_linear_model_is_found_again(k, i):
    frame = made()
    v = (
        Encoder.fit(frame, Schema("s", "regression", "y", {"d": Column("category"), "y": Column("number")}))
        .columns[0]
        .codes["v"]
    )
    predictor = formula(lambda X: k[0] * X[:, 0] + k[1] * X[:, 2] + k[2] * (X[:, 3] == v) + 7, frame)
    found = line(predictor, frame, i)
    want = {
        "a": k[0] * robust_range(frame["a"]),
        "c": k[1] * robust_range(frame["c"]),
        "d": k[2] * (-1 if frame["d"][i] == "v" else 1),
    }
    assert found.fidelity > 0.999999 and found.local_prediction == pytest.approx(
        predictor.predict_raw(frame[i : i + 1])[0], abs=1e-3
    )
    assert slopes(found) == pytest.approx(want | {"b": 0, "e": 0}, abs=2e-3) and not low_fidelity_warning(found)
    assert [abs(t.slope) for t in found.terms] == sorted((abs(t.slope) for t in found.terms), reverse=True)


def test_a_column_that_is_ignored_gets_nothing():
    frame = made()
    found = slopes(line(formula(lambda X: np.tanh(X[:, 0] - 5) * 3 + (X[:, 1] > 2), frame), frame))
    assert all(abs(found.get(c, 0)) < .05 * found["a"] for c in "cde")


def test_a_model_without_a_line_is_called_so_and_a_constant_fits():
    frame = made()
    tangle = line(formula(lambda X: np.sign((X[:, 0] - 5) * X[:, 4]), frame), frame)
    assert tangle.fidelity < .5 and "too little to go by" in low_fidelity_warning(tangle)
    flat = line(formula(lambda X: np.full(len(X), 3.), frame), frame)
    assert (flat.fidelity, round(flat.local_prediction, 9)) == (1, 3) and all(abs(t.slope) < 1e-9 for t in flat.terms)


def test_the_seed_decides_and_the_number_of_terms_is_kept():
    frame = made()
    predictor = formula(lambda X: X[:, 0] * X[:, 1] + X[:, 2], frame)
    assert line(predictor, frame) == line(predictor, frame) != line(predictor, frame, seed=1)
    assert [len(line(predictor, frame, max_terms=k).terms) for k in (1, 3)] == [1, 3]


def test_missing_values_are_a_step_of_their_own():
    frame = made().with_columns(a=pl.when(pl.int_range(800) % 3 > 0).then("a"))
    predictor = formula(lambda X: np.isnan(X[:, 0]) * 4., frame)
    term = line(predictor, frame, 0).terms[0]
    assert (term.column, term.value, term.is_number) == ("a", None, False) and term.slope < -1
    assert fit_local_surrogate(predictor, frame[:1], frame[:1], [1.] * 5).fidelity == 1 # nothing to take over


def test_similar_rows_take_whole_values_from_donors():
    frame = made()
    near = perturb_row(frame[:1], frame[1:], 500)
    assert near.schema == frame.schema and near.row(0) == frame.row(0)
    real = [set(frame[c]) for c in frame.columns]
    assert all(v in real[j] for r in near.rows() for j, v in enumerate(r))
    kept = [sum(v == w for v, w in zip(r, frame.row(0), strict=True)) for r in near.rows()]
    assert {0, 5} < set(kept) and 1.5 < np.mean(kept) < 3.5


@pytest.mark.parametrize("task, learner", [*((task, "gbdt") for task in CLASSES), ("multiclass", "net")])
def test_of_trees_and_nets(tmp_path, task, learner):
    root = trained(tmp_path / "p", task, learner=learner, n=500)
    predictor = open_trained_predictor(root, learner)
    test = pl.read_parquet(root / "artifacts/prepared/test.parquet")
    rows = cast_to_schema(test, predictor.schema, predictor.inputs)
    found = line(predictor, rows, n_samples=300)
    assert (found.label in CLASSES[task] if task == "multiclass" else found.label is None) and 1 <= len(
        found.terms
    ) <= 5
    assert msgspec.json.decode(msgspec.json.encode(found), type=type(found)) == found
    X = predictor.encode_frame(test[:12])
    pairs = pairwise_interactions(predictor, X, predictor.feature_names[:3])
    assert (
        len(pairs) == 3 and pairs["strength"].is_sorted(descending=True) and pairs["h_squared"].is_between(0, 1).all()
    )
    assert partial_dependence_2d(predictor, test, X, *pairs.row(0)[:2])["class"].n_unique() == predictor.model.n_classes


def test_the_weights_decide_where_a_crooked_model_is_fitted():
    x = np.linspace(-1, 1, 201)
    for at, slope in ((-.9, -1), (.9, 1)):
        found, *_ = fit_sparse_ridge(x[:, None], np.abs(x), np.exp(-((x - at) / .05)**2), 1)
        assert found[0] == pytest.approx(slope, abs=.01)


# pairs


def test_partial_dependence_by_hand():
    frame = made(30)
    predictor = formula(lambda X: X[:, 0] * X[:, 1] + X[:, 4], frame)
    X = predictor.encode_frame(frame)
    b, e = frame["b"].to_numpy().mean(), frame["e"].to_numpy().mean()
    np.testing.assert_allclose(partial_dependence(predictor, X[:7], X, [0])[:, 0], X[:7, 0] * b + e)
    np.testing.assert_allclose(partial_dependence(predictor, X[:7], X, [0, 1])[:, 0], X[:7, 0] * X[:7, 1] + e)


def test_only_what_acts_together_has_strength():
    frame = made(40)
    predictor = formula(lambda X: np.exp(X[:, 0] / 5) + (X[:, 1] - 3) * (X[:, 2] - 4) + 50 * X[:, 4], frame)
    pairs = pairwise_interactions(predictor, predictor.encode_frame(frame), predictor.feature_names)
    assert pairs.row(0)[:2] == ("b", "c") and (pairs["strength"][1:] < 1e-10).all()
    b, c = (frame[n].to_numpy() - frame[n].to_numpy().mean() for n in "bc")
    assert pairs["strength"][0] == pytest.approx(np.sqrt(np.mean((b * c - (b * c).mean()) ** 2)))
    alone = pairwise_interactions(formula(lambda X: X[:, 1] * 0 + 5, frame), predictor.encode_frame(frame), ["a", "b"])
    assert alone.row(0) == ("a", "b", 0, 0) and not len(
        pairwise_interactions(predictor, predictor.encode_frame(frame), ["a"])
    )


def test_the_surface_is_the_function():
    frame = made(400).with_columns(a=pl.when(pl.int_range(400) % 5 > 0).then("a"))
    predictor = formula(lambda X: np.nan_to_num(X[:, 0]) * (X[:, 3] - 1), frame)
    grid = partial_dependence_2d(predictor, frame, predictor.encode_frame(frame[:20]), "a", "d")
    assert grid["label"].n_unique() == 13 and set(grid["other_label"]) == {"u", "v"}
    assert (grid.filter(label="(missing)")["value"] == 0).all()
    code = predictor.encoder.columns[3].codes
    for r in grid.filter(pl.col("label") != "(missing)").rows(named=True):
        low, high = (float(x) for x in r["label"].split(" to "))
        assert low * .999 <= r["value"] / (code[r["other_label"]] - 1) <= high * 1.001


# the same on any processor


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e12, 1e12))
def test_six_digits_are_kept(x):
    rounded = round_significant(x)
    assert abs(rounded - x) <= 5e-6 * abs(x) * 1.001 and round_significant(rounded) == rounded


def test_a_line_does_not_depend_on_the_order_of_sums():
    "Another BLAS adds in another order; so do the same rows in another order."
    rng = np.random.default_rng(0)
    S, w = rng.normal(size=(1000, 8)), rng.random(1000)
    S[:, 5] = S[:, 2]  # the same effect twice: rounding must not decide between them
    y = S @ rng.normal(size=8) + np.sin(3 * S[:, 0])
    first = fit_sparse_ridge(S, y, w, 4)
    for seed in range(20):
        mix = np.random.default_rng(seed).permutation(1000)
        slopes, *others = fit_sparse_ridge(S[mix], y[mix], w[mix], 4)
        assert slopes.tolist() == first[0].tolist() and others == [*first[1:]]
    for v in (*first[0], *first[1:]): assert v == float(f"{v:.6g}")


def test_what_is_kept_of_a_line_has_six_digits():
    rng = np.random.default_rng(0)
    frame = pl.DataFrame({"x": rng.normal(size=300), "z": rng.normal(size=300)})
    predictor = formula(lambda X: np.sin(X[:, 0]) + X[:, 1] / 3, frame)
    found = fit_local_surrogate(predictor, frame[:1], frame, [robust_range(frame[c]) for c in frame.columns])
    assert len(found.terms) == 2
    for v in (found.fidelity, found.local_prediction, *(t.slope for t in found.terms)): assert v == float(f"{v:.6g}")


def test_more_columns_than_rows_give_the_slopes_of_the_normal_equations():
    from mlops_nb.explain.local_surrogate import _ridge
    r = np.random.default_rng(0)
    S, w = r.normal(size=(40, 60)), r.random(40)
    y = S[:, 0] - 2 * S[:, 1] + r.normal(size=40)
    slopes, intercept = _ridge(S, y, w)
    share = w / w.sum()
    A, b = S - share @ S, y - share @ y
    normal = np.linalg.solve((A.T * share) @ A + 1e-6 * np.eye(60), (A.T * share) @ b)
    assert np.abs(slopes - normal).max() < 1e-6 * np.abs(normal).max() and len(slopes) == 60
    assert abs(intercept - (share @ y - share @ S @ slopes)) < 1e-9


def test_differences_of_a_column_do_not_depend_on_its_neighbours():
    row = pl.DataFrame(dict(a=[1.0], b=["x"], c=[None], d=[True], e=[3]), schema_overrides=dict(c=pl.Float64))
    frame = pl.DataFrame(dict(a=[2.0, None], b=["x", None], c=[None, 1.0], d=[False, True], e=[3, 9]))
    together = scaled_differences(row, frame, [2.0, 1.0, 1.0, 1.0, 3.0])
    for j, (name, width) in enumerate(zip("abcde", [2.0, 1.0, 1.0, 1.0, 3.0])):
        alone = scaled_differences(row.select(name), frame.select(name), [width])[:, 0]
        assert np.array_equal(together[:, j], alone, equal_nan=True)
    assert np.array_equal(together, [[0.5, 0, 0, 1, 0], [np.nan, 1, np.nan, 0, 2]], equal_nan=True)
