"The baselines: what they score, that they are bounded, and that odd data does not stop a pipeline."
import os
import subprocess
import sys

import msgspec
import numpy as np
import polars as pl
import pytest
from scipy import sparse

from mlops_nb.config.params import Params, write_params
from mlops_nb.config.schema import Column, Schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.model.encoder import Encoder
from mlops_nb.train import baselines
from mlops_nb.train.baselines import BaselineModels, fit_constant, run_baselines

OUT = "artifacts/models/baseline"
CLASSES = {"binary": ["no", "yes"], "multiclass": ["low", "mid", "high"], "regression": None}


def project(root, task, n=1000, change=lambda frame: frame, numbers=("x",)):
    "Prepared parts in which a linear model has something to find; `change` gives a part its further `numbers`."
    rng = np.random.default_rng(3)
    kind, x = rng.integers(0, 5, n), rng.normal(5, 3, n)
    score = (x - 5) / 3 + 1.5 * (kind == 1) + 0.5 * rng.normal(size=n)
    y = {"binary": (score > 0.5) * 1.0, "multiclass": np.digitize(score, [-0.3, 1]) * 1.0,
         "regression": 100 + 10 * score}[task]
    frame = pl.DataFrame({"kind": [f"k{i}" for i in kind], "x": x, "ok": rng.random(n) < 0.5, "_target": y,
                          "_source": ["a.csv"] * n, "_row": np.arange(n)})
    (root / "artifacts/prepared").mkdir(parents=True, exist_ok=True)
    for name, a, b in (("train", 0, 0.6), ("valid", 0.6, 0.8), ("test", 0.8, 1)):
        change(frame[int(a * n):int(b * n)]).write_parquet(root / f"artifacts/prepared/{name}.parquet")
    write_schema(Schema("t", task, target="y", classes=CLASSES[task], columns={
        "kind": Column("category", nullable=True), "ok": Column("boolean", nullable=True),
        **{name: Column("number", nullable=True) for name in numbers},
        "y": Column("category" if CLASSES[task] else "number")}), root / "schema.yaml")
    write_params(msgspec.convert({"prepare": {"features_file": None}}, Params), root / "params.yaml")
    return root


def scores(root):
    parts = pl.concat([pl.read_parquet(root / f"artifacts/prepared/{p}.parquet").with_columns(split=pl.lit(p))
                       for p in ("valid", "test")])
    s = pl.read_parquet(root / OUT / "scores.parquet")
    assert s.columns == ["_source", "_row", "split", "constant", "linear"]
    joined = s.join(parts, on=["_source", "_row", "split"], maintain_order="left")
    assert s.height == parts.height == joined.height
    return joined


def fitted(root): return read_json(root / OUT / "baselines.json", BaselineModels)


def rmse(s): return float(((s["linear"] - s["_target"]) ** 2).mean() ** 0.5)


def test_binary(tmp_path):
    run_baselines(project(tmp_path, "binary"))
    s = scores(tmp_path)
    rate = pl.read_parquet(tmp_path / "artifacts/prepared/train.parquet")["_target"].mean()
    assert s["constant"].unique().to_list() == [rate]
    assert ((s["linear"] > 0.5) == (s["_target"] == 1)).mean() > 0.8 and s["linear"].is_between(0, 1).all()


def test_multiclass(tmp_path):
    run_baselines(project(tmp_path, "multiclass"))
    s = scores(tmp_path)
    assert s.schema["linear"] == s.schema["constant"] == pl.List(pl.Float64)
    p = np.array(s["linear"].to_list())
    assert p.shape == (s.height, 3) and np.allclose(p.sum(axis=1),
                                                    1) and (p.argmax(axis=1) == s["_target"].to_numpy()).mean() > 0.7
    assert np.allclose(np.array(s["constant"].to_list()).sum(axis=1), 1)


def test_regression(tmp_path):
    run_baselines(project(tmp_path, "regression"))
    s = scores(tmp_path)
    error = {c: float(((s[c] - s["_target"]) ** 2).mean() ** 0.5) for c in ("constant", "linear")}
    assert error["linear"] < 0.5 * error["constant"]
    assert set(fitted(tmp_path).constant) == {"score", "median"} and fitted(tmp_path).linear == "Ridge"


def test_constants():
    assert fit_constant(np.array([0.0, 0, 1, 1, 1]), "binary") == {"score": 0.6}
    assert fit_constant(np.array([0.0, 0, 1, 1]), "multiclass", 3) == {"score": [0.5, 0.5, 0.0]}
    assert fit_constant(np.array([1.0, 2, 9]), "regression") == {"score": 4.0, "median": 2.0}


@pytest.mark.parametrize("task", list(CLASSES))
def test_a_second_run_writes_the_same_bytes(tmp_path, task):
    run_baselines(project(tmp_path, task))
    first = file_hashes(tmp_path / OUT)
    run_baselines(tmp_path)
    assert file_hashes(tmp_path / OUT) == first


PROCESSOR = """
import sys
from pathlib import Path
import numpy as np
from scipy import sparse
from mlops_nb.train import baselines
rng = np.random.default_rng(0)
M = np.cumsum(rng.normal(size=(500, 60)), axis=1) # neighbouring columns are nearly the same
y = (M * rng.normal(size=60)).sum(axis=1) + rng.normal(size=500)
for limit in (1000, 0):
    baselines._MAX_EXACT_COEFFICIENTS = limit
    for task in ("binary", "multiclass", "regression"):
        root = Path(sys.argv[1]) / task
        baselines.run_baselines(root)
        (root / f"scores-{limit}").write_bytes((root / "artifacts/models/baseline/scores.parquet").read_bytes())
        target = dict(binary=(y > 0) * 1.0, multiclass=np.digitize(y, [-9, 9]) * 1.0, regression=y)[task]
        path = [m.coefficients.tobytes() for m in baselines.fit_linear_path(sparse.csr_matrix(M), target, task)]
        (root / f"path-{limit}").write_bytes(b"".join(path))
"""


def test_every_processor_and_number_of_threads_gives_the_same_bytes(tmp_path):
    """BLAS and NumPy are told to take this processor for another one; the columns are related, so that a solver has to
    work."""
    one = dict.fromkeys(["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS"], "1")
    processors = {"this": {}, "haswell, 1 thread": {"OPENBLAS_CORETYPE": "Haswell"} | one,
                  "zen": {"OPENBLAS_CORETYPE": "Zen"},
                  "no avx512": {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}}
    related, runs, found = lambda f: f.with_columns(x=pl.col("x") + 0.01 * pl.col("_target")), [], {}
    for name, variables in processors.items():
        for task in CLASSES: project(tmp_path / name / task, task, n=500, change=related)
        runs.append(subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROCESSOR, tmp_path / name],
                                     env=os.environ | variables))
    assert [run.wait(300) for run in runs] == [0] * len(runs)
    for name in processors:
        found[name] = {k: v for k, v in file_hashes(tmp_path / name).items()
                       if "models/baseline" in k or "scores-" in k or "path-" in k}
        assert len(found[name]) == 3 * 6 and found[name] == found["this"], name


@pytest.mark.parametrize("task", list(CLASSES))
def test_the_scores_are_those_of_scikit_learn(monkeypatch, task):
    from sklearn.linear_model import LogisticRegression, Ridge
    rng = np.random.default_rng(0)
    M = sparse.csr_matrix(rng.normal(size=(400, 6)))
    score = M @ rng.normal(size=6) + rng.normal(size=400)
    y = {"binary": (score > 0) * 1.0, "multiclass": np.digitize(score, [-1, 1]) * 1.0, "regression": 5e6 + score}[task]
    for limit in (1000, 0):
        monkeypatch.setattr(baselines, "_MAX_EXACT_COEFFICIENTS", limit)
        for model in baselines.fit_linear_path(M, y, task):
            p, penalty = baselines.predict_linear(model, M, task, 3 if task == "multiclass" else 2), model.penalty * 400
            if task == "regression": expected = Ridge(alpha=penalty).fit(M.toarray(), y).predict(M.toarray())
            else: expected = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=1000).fit(M, y).predict_proba(M)
            if task == "binary": expected = expected[:, 1]
            np.testing.assert_allclose(p, expected, **(dict(rtol=3e-7) if task == "regression" else dict(atol=2e-3)))
            assert model.converged and (p == p.astype(np.float32)).all()


def test_the_validation_rows_choose_the_penalty():
    rng = np.random.default_rng(0)
    M, M_valid = (sparse.csr_matrix(rng.normal(size=(n, 40))) for n in (200, 5000))
    noise, noise_valid, w = rng.normal(size=200), rng.normal(size=5000), rng.normal(size=40)
    for signal, penalty in ((0, baselines.LINEAR_PENALTIES[0]), (1000, baselines.LINEAR_PENALTIES[-1])):
        y, y_valid = signal * (M @ w) + noise, signal * (M_valid @ w) + noise_valid
        assert baselines.fit_linear(M, y, M_valid, y_valid, "regression").penalty == penalty
    noise, noise_valid = (noise > 0) * 1.0, (noise_valid > 0) * 1.0
    assert baselines.fit_linear(M, noise, M_valid, noise_valid, "binary").penalty == baselines.LINEAR_PENALTIES[0]


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_one_broken_value_does_not_ruin_the_fit(tmp_path, task):
    broken = pl.when(pl.col("_row") == 17).then(1e6).otherwise("x")
    found = []
    for name, x in (("whole", pl.col("x")), ("broken", broken)):
        run_baselines(project(tmp_path / name, task, n=10_000, change=lambda f, x=x: f.with_columns(x=x)))
        found.append(rmse(scores(tmp_path / name)))
    assert found[1] == pytest.approx(found[0], rel=0.01)


def test_a_missing_value_says_something(tmp_path):
    gone = (pl.col("_row") % 3) == 0
    def change(f): return f.with_columns(x=pl.when(gone).then(None).otherwise("x"),
                                         _target=5.0 * gone + 0.1 * pl.col("x"))
    facts = run_baselines(project(tmp_path, "regression", change=change))
    assert rmse(scores(tmp_path)) < 0.5 and facts["columns"] == 3 + 1 + 8


def test_a_rare_flag_is_not_clipped_away(tmp_path):
    flag = ((pl.col("_row") % 200) == 0) * 1.0
    run_baselines(project(tmp_path, "regression", n=5000, change=lambda f: f.with_columns(x=flag, _target=100 * flag)))
    assert rmse(scores(tmp_path)) < 1


def test_rare_names_share_what_is_known_of_them(tmp_path):
    rare, new = (pl.col("_row") % 4) == 0, (pl.col("_row") % 4) == 1
    once = pl.format("r{}", (pl.col("_row") // 4) % 120) # of 150 rows in training, 50 in each other part
    def change(f):
        known = pl.when(rare).then(once).when(new & (pl.col("_row") >= 800)).then(pl.lit("new")).otherwise(pl.lit("k"))
        return f.with_columns(kind=known, _target=10.0 * rare + 0.01 * pl.col("x"))
    facts, s = run_baselines(project(tmp_path, "regression", change=change)), scores(tmp_path)
    assert facts["columns"] == 2 + 1 + 4 and rmse(s.filter(pl.col("kind") != "new")) < 1
    assert s.filter(pl.col("kind") == "new")["linear"].is_between(0, 10.2).all()


def test_columns_that_hold_one_value(tmp_path):
    run_baselines(project(tmp_path, "regression", change=lambda f: f.with_columns(
        x=5.0, kind=pl.lit("one"), ok=pl.lit(None, pl.Boolean), _target=pl.col("_row") % 7 * 1.0)))
    s = scores(tmp_path)
    assert s["linear"].n_unique() == 1 and s["linear"][0] == pytest.approx(s["constant"][0], abs=1e-5)


def test_a_value_stays_within_those_of_the_training_rows(tmp_path):
    late, high = pl.col("_row") >= 600, pl.col("x") > 5
    def change(f): # both are high together in the later rows only
        return f.with_columns(ok=late | ~high).with_columns(_target=pl.col("x") + 50 * pl.col("ok"))
    run_baselines(project(tmp_path, "regression", change=change))
    seen = pl.read_parquet(tmp_path / "artifacts/prepared/train.parquet")["_target"]
    s = scores(tmp_path)
    assert s["_target"].max() > seen.max() == s["linear"].max() and s["linear"].min() >= seen.min()


def test_fewer_rows_are_drawn_of_a_wide_table(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "_MAX_CELLS", 900)
    monkeypatch.setattr(baselines, "_MIN_ROWS", 200)
    for task, rows in (("binary", 300), ("multiclass", 200)): # of three inputs
        run_baselines(project(tmp_path, task))
        assert fitted(tmp_path).rows == rows


@pytest.mark.realdata
def test_taxi_trips_are_fitted_better_than_by_a_line_through_the_clipped_distance(tmp_path, real_data):
    n, columns = 50_000, ["trip_distance", "fare_amount", "passenger_count", "tip_amount"]
    took = pl.col("lpep_dropoff_datetime") - pl.col("lpep_pickup_datetime")
    frame = pl.read_parquet(real_data("nyc_green_taxi") / "green_tripdata_2021-01.parquet").select(
        *(pl.col(c).cast(pl.Float64) for c in columns), _target=took.dt.total_seconds() / 60, _source=pl.lit("taxi"))
    frame = frame.filter(pl.col("_target").is_between(1, 60)).sample(n, seed=0).with_columns(_row=pl.int_range(n))
    project(tmp_path, "regression", n=n, numbers=columns, change=lambda f: f.select("kind", "ok", "_row").join(
        frame, on="_row", maintain_order="left"))
    run_baselines(tmp_path)
    s, train = scores(tmp_path), frame[:int(0.6 * n)]
    slope, start = np.polyfit(train["trip_distance"].clip(0, 20), train["_target"], 1)
    line = s.with_columns(linear=slope * pl.col("trip_distance").clip(0, 20) + start)
    assert rmse(s) < 0.9 * rmse(line)


def test_more_rows_than_it_needs_are_sampled_with_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_LINEAR_ROWS", 200)
    facts = run_baselines(project(tmp_path, "binary"))
    first = file_hashes(tmp_path / OUT)
    assert facts["rows"] == 600 and fitted(tmp_path).rows == 200
    write_params(msgspec.convert({"prepare": {"features_file": None}, "train": {"seed": 5}}, Params),
                 tmp_path / "params.yaml")
    run_baselines(tmp_path)
    assert file_hashes(tmp_path / OUT) != first


def test_an_event_too_rare_for_the_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_LINEAR_ROWS", 5)
    rare = pl.when(pl.col("_row") == 17).then(1.0).otherwise(0.0)
    run_baselines(project(tmp_path, "binary", change=lambda f: f.with_columns(_target=rare)))
    s = scores(tmp_path)
    assert s["constant"][0] == pytest.approx(1 / 600) and s["linear"].is_finite().all()


def test_many_categories_are_bounded(tmp_path):
    facts = run_baselines(project(tmp_path, "binary", n=30_000,
                                  change=lambda f: f.with_columns(kind=pl.format("c{}", pl.col("_row") % 900))))
    assert facts["columns"] == 2 + 1 + 3 + baselines.MAX_LINEAR_CATEGORIES


def test_holes_infinities_huge_numbers_new_names(tmp_path):
    odd = pl.col("_row") % 5
    def change(f):
        x = pl.when(odd == 0).then(None).when(odd == 1).then(float("inf")).when(odd == 2).then(1.7e308).otherwise("x")
        return f.with_columns(x=x, ok=pl.lit(None, pl.Boolean),
                              kind=pl.when(pl.col("_row") > 600).then(pl.lit("new")).otherwise("kind"))
    run_baselines(project(tmp_path, "regression", change=change))
    assert scores(tmp_path)["linear"].is_finite().all()


@pytest.mark.parametrize("task", list(CLASSES))
def test_a_handful_of_rows(tmp_path, task):
    run_baselines(project(tmp_path, task, n=10))
    assert scores(tmp_path).height == 4


def test_a_class_without_training_rows_gets_probability_zero(tmp_path):
    root = project(tmp_path, "multiclass")
    path = root / "artifacts/prepared/train.parquet"
    pl.read_parquet(path).filter(pl.col("_target") != 1).write_parquet(path)
    run_baselines(root)
    assert (np.array(scores(root)["linear"].to_list())[:, 1] == 0).all()


def test_the_solver_may_fail_to_converge(tmp_path, monkeypatch, recwarn):
    monkeypatch.setattr(baselines, "MAX_LINEAR_ITERATIONS", 1)
    run_baselines(project(tmp_path, "binary"))
    assert not fitted(tmp_path).converged and fitted(tmp_path).penalty == baselines.LINEAR_PENALTIES[0]
    assert not [w for w in recwarn if "onverge" in str(w.message)]


def test_a_target_that_is_all_the_same_and_an_empty_part(tmp_path):
    root = project(tmp_path, "binary", change=lambda f: f.with_columns(_target=pl.lit(1.0)))
    with pytest.raises(UserError, match="is 'yes' in all 600 rows"): run_baselines(root)
    project(root, "binary")
    path = root / "artifacts/prepared/test.parquet"
    pl.read_parquet(path)[:0].write_parquet(path)
    with pytest.raises(UserError, match="test.parquet holds no row"): run_baselines(root)
    assert not (root / OUT).exists()


def test_the_matrix_by_hand():
    columns = {"k": Column("category"), "x": Column("number"), "y": Column("category")}
    schema = Schema("t", "binary", target="y", classes=["a", "b"], columns=columns)
    frame = pl.DataFrame({"k": ["p"] * 10 + ["q"] * 1 + ["p"] * 190, "x": [*map(float, range(200)), None]})
    encoder = Encoder.fit(frame, schema)
    design = baselines.fit_linear_preprocessor(encoder, encoder.transform(frame))
    row = pl.DataFrame({"k": ["p", "q", "new", None], "x": [199.0, 1e9, None, 99.5]})
    M = design.transform(encoder.transform(row)).toarray()
    assert M[:, 2:].tolist() == [[0, 0, 0, 0, 1], [0, 0, 0, 1, 0], [1, 0, 1, 0, 0], [0, 1, 0, 0, 0]]
    evenly = 0.5 * 12 ** 0.5 # the largest of evenly spread values, standardised
    assert M[0, 0] == M[1, 0] == pytest.approx(evenly * 0.98, abs=0.05) and M[2:, 0] == pytest.approx(0, abs=0.02)
    assert M[0, 1] == M[1, 1] == pytest.approx(evenly, abs=0.03) and M[2:, 1] == pytest.approx(0, abs=0.02)


def test_a_value_of_many_rows_has_the_rank_in_their_middle():
    x = np.array([0.0] * 80 + [*range(1, 21)])
    number = baselines._fit_numeric(0, x)
    _, ranks = number.columns(x[:, None])
    spread = ranks.max() - ranks.min() # from the middle of the zeros, at 0.4, to 1
    assert (ranks[84] - ranks[0]) / spread == pytest.approx((0.85 - 0.4) / 0.6, abs=0.02)
    assert (np.diff(ranks) >= 0).all()
