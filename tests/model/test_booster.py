"The C library through ctypes gives what lightgbm.Booster gives, one row or many, and refuses what is not a model."
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from support.lightgbm_models import KINDS, frame, train

from mlops_nb.core.errors import UserError
from mlops_nb.model.booster import _FLOAT_LINKS, INVERSE_LINKS, Booster, _sigmoid, _softmax


@pytest.fixture(scope="module", params=list(KINDS))
def pair(request):
    reference = train(request.param)
    return reference, Booster(reference.model_to_string())


@pytest.fixture(scope="module")
def binary():
    reference = train("binary")
    return reference, Booster(reference.model_to_string())


def same(a, b):
    assert a.shape == b.shape
    assert a.tobytes() == np.ascontiguousarray(b).tobytes()


ODD = np.array([np.nan, np.inf, -np.inf, -0.0, 1e300, -1e300, 5e-324, -1.0, 254.0, 1e9, 2.5, 1e-35])


def test_same_numbers_as_lightgbm(pair):
    reference, booster = pair
    X, _ = frame(700, seed=1)
    X[:12, 0], X[12:24, 1], X[24:36, 2] = ODD, ODD, ODD
    same(booster.predict(X), reference.predict(X))
    same(booster.predict_raw(X), reference.predict(X, raw_score=True))
    contributions = reference.predict(X, pred_contrib=True)
    same(booster.contributions(X[:400]).reshape(400, -1), contributions[:400])
    # from tables
    np.testing.assert_allclose(booster.contributions(X).reshape(contributions.shape), contributions, rtol=1e-9,
                               atol=1e-10)


def test_a_row_alone_equals_the_batch_to_the_last_bit(pair):
    _, booster = pair
    X, _ = frame(400, seed=2)
    X[:12, 0], X[12:24, 1], X[24:36, 2] = ODD, ODD, ODD
    same(np.array([booster.predict_one(x) for x in X]), booster.predict(X))


# ---- several blocks of trees

LARGE = {"binary": {}, "multiclass": {}, "regression": {}, "poisson": {}, "onevsall": {}}


@pytest.fixture(scope="module", params=LARGE)
def large(request):
    "Three megabytes of text: 255 leaves a tree."
    reference = train(request.param, trees=150, num_leaves=255, min_data_in_leaf=1)
    assert len(reference.model_to_string()) > 3 * 2**20
    return request.param, reference, Booster(reference.model_to_string())


def test_a_large_model_is_cut_where_its_link_is_known(large):
    kind, reference, booster = large
    assert len(booster._handles) > 1 and booster.n_iterations == reference.current_iteration()
    if kind != "binary": return
    other = reference.model_to_string().replace("objective=binary sigmoid:1", "objective=binary sigmoid:2")
    assert len(Booster(other)._handles) == 1, "an objective whose link is LightGBM's own affair"


def test_blocks_add_up_to_what_lightgbm_says(large):
    _, reference, booster = large
    X, _ = frame(700, seed=1)
    X[:12, 0], X[12:24, 1], X[24:36, 2] = ODD, ODD, ODD
    np.testing.assert_allclose(booster.predict(X), reference.predict(X), rtol=1e-11)
    np.testing.assert_allclose(booster.predict_raw(X), reference.predict(X, raw_score=True), rtol=1e-10, atol=1e-12)
    contributions = reference.predict(X[:50], pred_contrib=True)
    np.testing.assert_allclose(booster.contributions(X[:50]).reshape(contributions.shape), contributions, rtol=1e-8,
                               atol=1e-10)


def test_what_counts_is_above_0_and_adds_up_to_its_logarithm(large):
    kind, _, booster = large
    assert booster.log_link == (kind == "poisson")
    if kind != "poisson": return
    X, _ = frame(600, seed=1)
    assert (booster.predict(X) > 0).all()
    np.testing.assert_allclose(booster.contributions(X).sum(1), np.log(booster.predict(X)), rtol=1e-9, atol=1e-9)


def test_a_row_alone_equals_the_batch_over_blocks(large):
    _, reference, booster = large
    X, _ = frame(4001, seed=2)
    X[:12, 0], X[12:24, 1], X[24:36, 2] = ODD, ODD, ODD
    batch = booster.predict(X)
    same(np.array([booster.predict_one(x) for x in X]), batch)
    for part in (slice(1), slice(7, 12), slice(3, None, 5)): same(booster.predict(X[part]), batch[part])
    assert booster.predict(X[:0]).shape == batch[:0].shape


def test_extreme_sums_are_still_probabilities():
    with np.errstate(over="raise"):
        assert _softmax(np.array([[1000.0, 0, -1000]])).tolist() == [[1, 0, 0]]
        assert _sigmoid(np.array([-800.0, 0, 800])).tolist() == pytest.approx([0, .5, 1], abs=1e-300)


@pytest.mark.parametrize("link", _FLOAT_LINKS)
def test_a_sum_alone_is_turned_into_the_same_bits_as_among_others(link):
    z = np.array([0.0, -0.0, 709, -709, 710, -710, 5e-324, *np.random.default_rng(0).normal(0, 20, 5000), np.nan])
    z = np.concatenate([z, np.nextafter(z, -np.inf), np.nextafter(z, np.inf)])
    with np.errstate(over="ignore"):
        same(np.array([_FLOAT_LINKS[link](x) for x in z.tolist()]), INVERSE_LINKS[link](z))


# ---- rows alone, and odd input

@settings(deadline=None, max_examples=60)
@given(x=arrays(np.float64, 6, elements=st.floats(allow_nan=True, allow_infinity=True)))
def test_any_row_alone_equals_the_batch(binary, x):
    reference, booster = binary
    one = booster.predict_one(x)
    assert one == booster.predict(x[None])[0] == reference.predict(x[None])[0] and 0 < one < 1


def test_contributions_add_up(pair):
    _, booster = pair
    X, _ = frame(300, seed=3)
    np.testing.assert_allclose(booster.contributions(X).sum(-1), booster.predict_raw(X), rtol=1e-9, atol=1e-9)


def test_threads_layout_and_type_do_not_change_a_bit(pair):
    reference, booster = pair
    X, _ = frame(500, seed=4)
    want = booster.predict(X)
    same(booster.predict(np.asfortranarray(X)), want)
    same(booster.predict(np.column_stack([X, X])[:, :6]), want)
    same(booster.predict(X.tolist()), want)
    same(booster.predict(X[::2]), want[::2])


def test_no_rows(pair):
    _, booster = pair
    k = () if booster.n_classes == 1 else (booster.n_classes,)
    assert booster.predict(np.empty((0, 6))).shape == (0, *k)
    assert booster.contributions(np.empty((0, 6))).shape == (0, *k, 7)


@pytest.mark.parametrize("shape", [(3, 5), (3, 7), (6,), (1, 2, 6), (0, 5)])
def test_a_matrix_of_another_shape_is_refused(binary, shape):
    with pytest.raises(UserError, match="needs \\(rows, 6\\)"): binary[1].predict(np.zeros(shape))


@pytest.mark.parametrize("n", [0, 5, 7])
def test_a_row_of_another_length_is_refused(binary, n):
    with pytest.raises(UserError, match=f"has {n} values"): binary[1].predict_one(np.zeros(n))


def test_a_single_value_is_not_spread_over_the_row(binary):
    with pytest.raises(UserError, match="has 1 values"): binary[1].predict_one([3.0])


def test_many_threads_and_boosters_at_once(binary):
    "Batches and rows of two boosters, all at the same time: what LightGBM keeps in global variables must not hurt."
    reference, booster = binary
    X, _ = frame(300, seed=5)
    want = booster.predict(X)
    boosters = [booster, Booster(reference.model_to_string())]
    start = threading.Barrier(8)

    def work(i):
        start.wait()
        b = boosters[i % 2]
        for _ in range(10):
            same(b.predict(X), want)
            same(np.array([b.predict_one(x) for x in X[:50]]), want[:50])
            b.contributions(X[:20])
    with ThreadPoolExecutor(8) as pool: list(pool.map(work, range(8)))


LOADS = """
import gc, os, sys
import numpy as np
from mlops_nb.model.booster import _FLOAT_LINKS, INVERSE_LINKS, Booster, _sigmoid, _softmax
text = open(sys.argv[1]).read()
def load(): Booster(text).predict_one(np.zeros(6))
def resident(): return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
for _ in range(50): load()
gc.collect()
before = resident()
for _ in range(600): load()
gc.collect()
print(resident() - before)
"""


def test_handles_are_freed(binary, tmp_path):
    "In a process of its own: what other tests leave to be freed, or take meanwhile, is not counted."
    if not os.path.exists("/proc/self/statm"): pytest.skip("no /proc here to read the memory in use from")
    text = binary[0].model_to_string()
    (tmp_path / "model.txt").write_text(text)
    grown = int(subprocess.check_output([sys.executable, "-c", LOADS, str(tmp_path / "model.txt")]))
    assert grown < 600 * len(text) / 4


def test_names_and_classes_are_lightgbms(pair):
    reference, booster = pair
    assert booster.feature_names == reference.feature_name()
    assert booster.n_classes == reference.num_model_per_iteration()


def test_lightgbm_and_what_it_drags_in_are_not_imported(binary, tmp_path):
    (tmp_path / "model.txt").write_text(binary[0].model_to_string())
    code = """if True:
        import sys
        from mlops_nb.model.booster import Booster
        b = Booster(open(sys.argv[1]).read())
        b.predict_one([0.] * 6), b.predict([[0.] * 6]), b.contributions([[0.] * 6])
        heavy = {'lightgbm', 'scipy', 'pandas', 'sklearn', 'pyarrow', 'polars'}
        print(*sorted({m.split('.')[0] for m in sys.modules} & heavy))"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.txt")], capture_output=True, text=True,
                         timeout=60)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stdout + run.stderr


def test_a_missing_library_is_a_sentence(monkeypatch):
    from mlops_nb.model import booster
    monkeypatch.setattr(booster, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install lightgbm"): booster.lightgbm_library.__wrapped__()


def test_a_torn_model_does_not_reach_the_library(binary):
    text = binary[0].model_to_string()
    for cut in (0, len(text) // 3, text.index("end of trees")):
        with pytest.raises(UserError, match="not a LightGBM model|damaged"): Booster(text[:cut])
