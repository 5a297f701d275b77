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


def project(root, task, n=1000, change=lambda frame: frame):
    "Prepared parts in which a linear model has something to find."
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
        "kind": Column("category", nullable=True), "x": Column("number", nullable=True),
        "ok": Column("boolean", nullable=True),
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
    fitted = read_json(tmp_path / OUT / "baselines.json", BaselineModels)
    assert set(fitted.constant) == {"score", "median"} and fitted.linear == "Ridge"


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
from mlops_nb.train import baselines
for limit in (1000, 0):
    baselines._MAX_NEWTON_COEFFICIENTS = limit
    for task in ("binary", "multiclass", "regression"):
        root = Path(sys.argv[1]) / task
        baselines.run_baselines(root)
        (root / f"scores-{limit}").write_bytes((root / "artifacts/models/baseline/scores.parquet").read_bytes())
"""


def test_every_processor_gives_the_same_bytes(tmp_path):
    """BLAS and NumPy are told to take this processor for another one; the columns are related, so that a solver has to
    work."""
    processors = {"this": {}, "haswell": {"OPENBLAS_CORETYPE": "Haswell"}, "zen": {"OPENBLAS_CORETYPE": "Zen"},
                  "no avx512": {"NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR"}}
    related, runs, found = lambda f: f.with_columns(x=pl.col("x") + 0.01 * pl.col("_target")), [], {}
    for name, variables in processors.items():
        for task in CLASSES: project(tmp_path / name / task, task, n=500, change=related)
        runs.append(subprocess.Popen([sys.executable, "-W", "ignore", "-c", PROCESSOR, tmp_path / name],
                                     env=os.environ | variables))
    assert [run.wait(300) for run in runs] == [0] * len(runs)
    for name in processors:
        found[name] = {k: v for k, v in file_hashes(tmp_path / name).items() if "baseline" in k or "scores-" in k}
        assert len(found[name]) == 3 * 4 and found[name] == found["this"], name


@pytest.mark.parametrize("task", list(CLASSES))
def test_the_scores_are_those_of_scikit_learn(tmp_path, task):
    from sklearn.linear_model import LogisticRegression, Ridge
    rng = np.random.default_rng(0)
    M = sparse.csr_matrix(rng.normal(size=(400, 6)))
    score = M @ rng.normal(size=6) + rng.normal(size=400)
    y = {"binary": (score > 0) * 1.0, "multiclass": np.digitize(score, [-1, 1]) * 1.0, "regression": 5e6 + score}[task]
    fitted = baselines.fit_linear(M, y, task)
    p = baselines.predict_linear(fitted, M, task, 3 if task == "multiclass" else 2)
    if task == "regression": np.testing.assert_allclose(p, Ridge().fit(M.toarray(), y).predict(M.toarray()), rtol=2e-7)
    else:
        expected = LogisticRegression(tol=1e-10, max_iter=1000).fit(M, y).predict_proba(M)
        np.testing.assert_allclose(p, expected[:, 1] if task == "binary" else expected, atol=1e-4)
    assert fitted.converged and (p == p.astype(np.float32)).all()


def test_more_rows_than_it_needs_are_sampled_with_the_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(baselines, "MAX_LINEAR_ROWS", 200)
    facts = run_baselines(project(tmp_path, "binary"))
    first = file_hashes(tmp_path / OUT)
    assert facts["rows"] == 600 and read_json(tmp_path / OUT / "baselines.json", BaselineModels).rows == 200
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
    assert facts["columns"] == 2 + 3 + baselines.MAX_LINEAR_CATEGORIES


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
    assert not read_json(tmp_path / OUT / "baselines.json", BaselineModels).converged
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
    frame = pl.DataFrame({"k": ["p"] * 10 + ["q"], "x": [0.0] * 5 + [2.0] * 5 + [None]})
    encoder = Encoder.fit(frame, schema)
    design = baselines.fit_linear_preprocessor(encoder, encoder.transform(frame))
    row = pl.DataFrame({"k": ["p", "q", "new", None], "x": [2.0, 100.0, None, 0.0]})
    M = design.transform(encoder.transform(row)).toarray()
    assert M[:, 1:].tolist() == [[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert M[0, 0] == pytest.approx(1, abs=0.1) and M[1, 0] == 10 and M[2, 0] == pytest.approx(0, abs=0.1)
