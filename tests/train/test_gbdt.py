"""Training: killed at random moments it ends with the same bytes; the loss, the weights, the tasks, and what a person
is told."""
import errno
import os
import random
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import lightgbm as lgb
import msgspec
import numpy as np
import polars as pl
import pytest

from mlops_nb.config.params import Params, TrainParams, write_params
from mlops_nb.config.schema import Column, Schema, read_schema, write_schema
from mlops_nb.core.errors import UserError
from mlops_nb.core.manifest import file_hashes
from mlops_nb.core.typed_yaml import read_json
from mlops_nb.model.booster import Booster
from mlops_nb.model.features import Features
from mlops_nb.train import dataset, gbdt, learners
from mlops_nb.train.dataset import TrainingPart, exponential_decay_weights
from mlops_nb.train.gbdt import BoostingState, GbdtJob, fit_gbdt
from mlops_nb.train.stage import TrainingReport, run_train

MODEL = Path("artifacts/models/gbdt")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch): monkeypatch.setenv("MLOPS_NB_RUN_THREADS", "1")


def params(**g):
    return msgspec.convert({"gbdt": {"early_stopping_rounds": 10, "n_estimators": 60, "checkpoint_every": 13} | g},
                           TrainParams)


def fit(train, validation, task, params, on_iteration=lambda i, loss: None, on_start=lambda resumed: None, **how):
    if "checkpoint" in how: how["checkpoint"] = str(how["checkpoint"])
    job = GbdtJob(task, params, **{"categorical": [0]} | how)
    return fit_gbdt(train, validation, job, on_iteration=on_iteration, on_start=on_start)


def problem(task, n=900, seed=0):
    "Rows with a category, a number and missing values, and a target of the task: train and valid part."
    rng = np.random.default_rng(seed)
    X = np.c_[rng.integers(0, 12, n), rng.normal(size=(n, 3))].astype(float)
    z = X[:, 1] + np.sin(X[:, 0]) + 0.5 * rng.normal(size=n)
    X[rng.random(X.shape) < 0.05] = np.nan
    y = {"binary": (z > 0.5) * 1.0, "multiclass": np.digitize(z, [-0.5, 0.7]) * 1.0, "regression": 37.7 * z + 5}[task]
    cut = int(n * 0.8)
    return TrainingPart(X[:cut], y[:cut]), TrainingPart(X[cut:], y[cut:])


def project(root, n=3000, task="binary", **sections):
    "A prepared project on disk."
    rng = np.random.default_rng(1)
    kind, x, z = rng.integers(0, 6, n), rng.normal(size=n), rng.normal(size=n)
    score = x + (kind == 2) + 0.7 * rng.normal(size=n)
    y = {"binary": (score > 0.5) * 1.0, "multiclass": np.digitize(score, [0, 1]) * 1.0, "regression": 10 * score}[task]
    frame = pl.DataFrame({"kind": [f"k{i}" for i in kind], "x": x, "z": z, "_target": y, "_source": ["s"] * n,
                          "_row": np.arange(n),
                          "at": [datetime(2025, 1, 1) + timedelta(hours=i) for i in range(n)]})
    prepared = root / "artifacts/prepared"
    prepared.mkdir(parents=True, exist_ok=True)
    for name, a, b in (("train", 0, 0.6), ("valid", 0.6, 0.8), ("test", 0.8, 1)):
        frame[int(a * n):int(b * n)].write_parquet(prepared / f"{name}.parquet")
    classes = {"binary": ["no", "yes"], "multiclass": ["low", "mid", "high"], "regression": None}[task]
    write_schema(Schema("t", task, target="y", classes=classes, event_time="at", columns={
        "kind": Column("category"), "x": Column("number"), "z": Column("number"), "at": Column("timestamp"),
        "y": Column("category" if classes else "number")}), root / "schema.yaml")
    write(root, **sections)
    return root


def write(root, **sections):
    p = msgspec.convert({"prepare": {"features_file": None}, "train": sections}, Params)
    write_params(p, root / "params.yaml")


# ---- the same bytes

@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("sampling",
                         [{}, {"subsample": 0.7}, {"extra_trees": True},
                          {"colsample_bytree": 0.6, "subsample": 0.4, "reg_lambda": 1.0, "extra_trees": True}])
@pytest.mark.parametrize("weighted", [False, True])
def test_broken_off_anywhere_the_model_is_the_same(tmp_path, task, sampling, weighted):
    a, b = problem(task)
    if weighted: a = a._replace(weights=0.5 ** (np.arange(len(a.y))[::-1] / 200))
    how = dict(n_classes=3)
    whole = fit(a, b, task, params(**sampling), **how)

    class Stop(Exception): pass

    def stop_at(i):
        def step(iteration, _):
            if iteration == i: raise Stop
        return step
    moments = random.Random(task + str(weighted)).sample(range(1, whole.iterations), 3)
    for moment in sorted(moments):
        with pytest.raises(Stop):
            fit(a, b, task, params(**sampling), **how, checkpoint=tmp_path / "s.json", on_iteration=stop_at(moment))
    first = []
    resumed = fit(a, b, task, params(**sampling), **how, checkpoint=tmp_path / "s.json", on_iteration=lambda i,
                  _: first.append(i))
    assert resumed == whole
    assert first[0] == max(moments) // 13 * 13 + 1 or max(moments) % 13 == 0


def test_the_number_of_threads_changes_nothing():
    a, b = problem("regression", 6000)
    texts = {fit(a, b, "regression", params(n_estimators=15), n_threads=t).model for t in (1, 2, 3)}
    assert len(texts) == 1


def test_without_a_limit_early_stopping_ends_the_training():
    a, b = problem("regression", n=300)
    limited, free = (fit(a, b, "regression", params(n_estimators=n, early_stopping_rounds=5)) for n in (3, None))
    assert (limited.iterations, limited.best_iteration) == (3, 3) and free.best_iteration > 3
    assert free.iterations - free.best_iteration >= 5


def test_how_often_a_checkpoint_is_written_changes_nothing_unless_rows_are_sampled():
    a, b = problem("binary")
    trees = {fit(a, b, "binary", params(checkpoint_every=c)).model for c in (1, 7, 1000)}
    assert len(trees) == 1


KILL = """
import sys, time
from pathlib import Path
from mlops_nb.train import learners
from mlops_nb.train.stage import run_train
fit = learners.fit_gbdt
def slow(*args, on_iteration, **kw):     # 4 ms a tree, so that there is a moment to be killed in; it never ends
    def wait(i, v): time.sleep(0.004 if i < 140 else 600); on_iteration(i, v)
    print('training', flush=True)
    return fit(*args, on_iteration=wait, **kw)
learners.fit_gbdt = slow
run_train(Path(sys.argv[1]))
"""


def test_sigkill_at_random_moments(tmp_path):
    how = {"gbdt": {"checkpoint_every": 9, "n_estimators": 150, "early_stopping_rounds": 150, "subsample": 0.8}}
    calm, killed = project(tmp_path / "calm", **how), project(tmp_path / "killed", **how)
    run_train(calm)
    dice, resumed = random.Random(7), 0
    env = dict(os.environ)
    for attempt in range(4):
        p = subprocess.Popen([sys.executable, "-c", KILL, str(killed)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             env=env)
        assert p.stdout.readline(), p.stderr.read().decode()
        while attempt % 2 and p.poll() is None and not [*(killed / ".mlops").rglob("state.json")]: time.sleep(0.01)
        time.sleep(dice.uniform(0.05, 0.5))
        p.send_signal(signal.SIGKILL)
        p.communicate()
        assert not (killed / MODEL).exists() and p.returncode == -signal.SIGKILL
        resumed += len(list((killed / ".mlops").rglob("state.json")))
    assert resumed, "no checkpoint was written before a kill: the test proved nothing"
    seen = []
    fit = learners.fit_gbdt
    learners.fit_gbdt = lambda *a, on_iteration, **k: fit(*a, on_iteration=lambda i, v: seen.append(i), **k)
    try: run_train(killed)
    finally: learners.fit_gbdt = fit
    assert seen[0] > 1, "it began from the beginning"
    assert file_hashes(calm / MODEL) == file_hashes(killed / MODEL)
    assert not list((killed / ".mlops").rglob("state.json"))


def test_a_full_disk_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    a, b = problem("binary")
    path, written, real = tmp_path / "s.json", [], gbdt.write_json

    def disk(p, obj):
        if len(written) == 2:
            from mlops_nb.core import files
            monkeypatch.setattr(files, "fsync_path", full)
        written.append(obj.iteration)
        return real(p, obj)

    def full(path): raise OSError(errno.ENOSPC, "No space left on device", str(path))
    monkeypatch.setattr(gbdt, "write_json", disk)
    with pytest.raises(OSError, match="No space left"): fit(a, b, "binary", params(), checkpoint=path)
    assert read_json(path, BoostingState).iteration == 26 and [p.name for p in tmp_path.iterdir()] == ["s.json"]
    monkeypatch.undo()
    assert fit(a, b, "binary", params(), checkpoint=path) == fit(a, b, "binary", params())


@pytest.mark.parametrize("content", ["", "{", '{"model": 3}', "null", '{"best": 0.3, "start": 0}'])
def test_a_torn_checkpoint_costs_a_fresh_start_and_that_is_said(tmp_path, content, capsys):
    a, b = problem("binary")
    path, started = tmp_path / "s.json", []
    path.write_text(content)
    whole = fit(a, b, "binary", params())
    assert capsys.readouterr().err == ""
    assert fit(a, b, "binary", params(), checkpoint=path, on_start=started.append) == whole
    said, = capsys.readouterr().err.splitlines()
    assert said.startswith(f"train gbdt: the checkpoint {path} is damaged, or of another version; the training starts "
                           f"again") and started == [False]
    assert fit(a, b, "binary", params(), checkpoint=path, on_start=started.append) == whole
    assert capsys.readouterr().err == "" and started == [False, True]


def test_an_interrupted_training_that_was_changed_says_that_it_starts_again(tmp_path, capsys):
    root, checkpoints = project(tmp_path, gbdt={"n_estimators": 30}), tmp_path / ".mlops/checkpoints/gbdt"
    (checkpoints / "0123abcd").mkdir(parents=True)
    run_train(root)
    said = [line for line in capsys.readouterr().err.splitlines() if "checkpoints" in line]
    assert len(said) == 1 and f"the checkpoints in {checkpoints} belong to another training" in said[0]
    run_train(root)
    assert "checkpoints" not in capsys.readouterr().err


def test_a_checkpoint_of_other_data_or_params_is_never_used(tmp_path):
    root = project(tmp_path, gbdt={"n_estimators": 30})
    keys = []
    real = learners.training_fingerprint
    learners.training_fingerprint = lambda *a: keys.append(real(*a)) or keys[-1]
    try:
        run_train(root)
        project(root, n=3001, gbdt={"n_estimators": 30}); run_train(root)
        write(root, gbdt={"n_estimators": 31}); run_train(root)
        write(root, gbdt={"n_estimators": 31}, sample_weight_half_life="3d"); run_train(root)
    finally: learners.training_fingerprint = real
    assert len(set(keys)) == 4


# ---- the same as LightGBM

@pytest.mark.parametrize("task, metric",
                         [("binary", "binary_logloss"), ("multiclass", "multi_logloss"), ("regression", "rmse")])
def test_the_loop_is_lightgbms_own(task, metric):
    a, b = problem(task)
    p = params(checkpoint_every=7, n_estimators=200, early_stopping_rounds=15)
    trees = fit(a, b, task, p, n_classes=3)
    history = {}
    plain = lgb.train(gbdt.lightgbm_params(task, p, 3, 1) | {"metric": metric},
                      lgb.Dataset(a.X, a.y, categorical_feature=[0]), 200,
                      lgb.Dataset(b.X, b.y),
                      callbacks=[lgb.early_stopping(15, verbose=False), lgb.record_evaluation(history)])
    booster = lgb.Booster(model_str=trees.model.decode())
    assert plain.best_iteration == trees.best_iteration == booster.current_iteration()
    assert trees.best_loss == pytest.approx(min(history["valid_0"][metric]), rel=1e-7) # it keeps targets in 32 bits
    np.testing.assert_array_equal(plain.predict(b.X), booster.predict(b.X))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_curve_is_what_scikit_learn_computes(task):
    from sklearn.metrics import log_loss, root_mean_squared_error
    parts = a, b = problem(task)
    weighted = a._replace(weights=np.random.default_rng(0).uniform(0.1, 1, len(a.y)))
    trees = fit(weighted, b, task, params(n_estimators=10), n_classes=3)
    score = root_mean_squared_error if task == "regression" else lambda y, p, **w: log_loss(y, p, labels=np.unique(a.y),
                                                                                            **w)
    last, model = trees.loss_curve[-1], lgb.Booster(model_str=trees.model.decode())
    assert last.iteration == trees.best_iteration == 10
    train, valid = (model.predict(part.X) for part in parts)
    # LightGBM keeps targets in 32 bits
    assert last.train == pytest.approx(score(a.y, train, sample_weight=weighted.weights), rel=1e-6)
    assert last.valid == trees.best_loss == pytest.approx(score(b.y, valid), rel=1e-6)


# ---- counts and amounts

def counts(n=900):
    return [part._replace(y=np.round(np.exp(part.y / 40))) for part in problem("regression", n)]


def test_counting_is_lightgbms_own_and_stops_by_its_deviance():
    from sklearn.metrics import mean_poisson_deviance, root_mean_squared_error
    a, b = counts()
    p = params(objective="poisson", n_estimators=200, early_stopping_rounds=15)
    trees = fit(a, b, "regression", p)
    plain = lgb.train(dict(objective="poisson", metric="poisson", learning_rate=.05, verbosity=-1, deterministic=True,
                           force_col_wise=True),
                      lgb.Dataset(a.X, a.y, categorical_feature=[0]), 200, lgb.Dataset(b.X, b.y),
                      callbacks=[lgb.early_stopping(15, verbose=False)])
    said = Booster(trees.model.decode()).predict(b.X)
    np.testing.assert_array_equal(said, plain.predict(b.X))
    assert (said > 0).all() and trees.best_loss == pytest.approx(mean_poisson_deviance(b.y, said), rel=1e-5)
    assert trees.rmse == pytest.approx(root_mean_squared_error(b.y, said), rel=1e-6)
    assert fit(a, b, "regression", params()).rmse is None


def test_the_curve_of_counts_is_the_deviance_that_scikit_learn_computes():
    from sklearn.metrics import mean_poisson_deviance
    a, b = counts()
    a = a._replace(weights=np.random.default_rng(0).uniform(0.1, 1, len(a.y)))
    seen = []
    trees = fit(a, b, "regression", params(objective="poisson", n_estimators=10), lambda i, v: seen.append(v))
    train, valid = (lgb.Booster(model_str=trees.model.decode()).predict(part.X) for part in (a, b))
    last = trees.loss_curve[-1]
    assert last.iteration == trees.best_iteration == 10 and seen[-1] == trees.rmse # what trials are pruned by
    assert last.train == pytest.approx(mean_poisson_deviance(a.y, train, sample_weight=a.weights), rel=1e-5)
    assert last.valid == trees.best_loss == pytest.approx(mean_poisson_deviance(b.y, valid), rel=1e-5)


def test_stopped_by_deviance_skewed_counts_have_less_of_it_on_new_rows():
    "Counts that vary more than Poisson's: the squared error hangs on a few large ones, and stops at the wrong moment."
    from sklearn.metrics import mean_poisson_deviance
    p, found = params(objective="poisson", n_estimators=400, early_stopping_rounds=50), []
    for seed in range(8):
        rng = np.random.default_rng(seed)

        def skewed(n, rng=rng):
            X = np.c_[np.zeros(n), rng.normal(size=(n, 5))]
            mean = np.exp(.3 + 1.2 * X[:, 1] + .5 * X[:, 2] * (X[:, 3] > 0))
            return TrainingPart(X, rng.poisson(mean * rng.exponential(size=n)).astype(float))
        a, b, new = skewed(1000), skewed(400), skewed(10_000)
        ours = lgb.Booster(model_str=fit(a, b, "regression", p).model.decode())
        theirs = lgb.train(gbdt.lightgbm_params("regression", p, 2, 1) | dict(metric="rmse"),
                           lgb.Dataset(a.X, a.y), 400, lgb.Dataset(b.X, b.y),
                           callbacks=[lgb.early_stopping(50, verbose=False)])
        found.append([mean_poisson_deviance(new.y, m.predict(new.X)) for m in (ours, theirs)])
    assert np.mean(found, 0)[0] < np.mean(found, 0)[1] and np.mean(np.diff(found)) > 0

@pytest.mark.parametrize("sampling", [{}, {"colsample_bytree": 0.6, "subsample": 0.8}])
def test_counting_broken_off_anywhere_and_going_on(tmp_path, sampling):
    a, b = counts()
    p = params(objective="poisson", **sampling)
    whole = fit(a, b, "regression", p)

    class Stop(Exception): pass

    def stop(iteration, _):
        if iteration == 30: raise Stop
    with pytest.raises(Stop): fit(a, b, "regression", p, checkpoint=tmp_path / "s.json", on_iteration=stop)
    assert fit(a, b, "regression", p, checkpoint=tmp_path / "s.json") == whole
    short = fit(a, b, "regression", params(objective="poisson", n_estimators=5))
    after = fit(a, b, "regression", p, init_model=short.model)
    assert after.best_loss < short.best_loss and after.iterations > 5


@pytest.mark.parametrize("where, value, says", [
    (0, -1e-9, "1 of the 720 train rows have a target below 0; set train.gbdt.objective to squared"),
    (1, -3, "1 of the 180 valid rows have a target below 0"),
    (0, None, "the target is 0 in all 720 train rows")])
def test_what_cannot_be_counted_is_refused(where, value, says):
    both = counts()
    if value is None: both[where].y[:] = 0
    else: both[where].y[7] = value
    with pytest.raises(UserError, match=says): fit(*both, "regression", params(objective="poisson"))
    fit(*both, "regression", params(n_estimators=2))
    a, b = counts()
    assert fit(a, b._replace(y=0 * b.y), "regression", params(objective="poisson", n_estimators=2)).iterations == 2


def test_classes_have_no_objective_to_choose():
    a, b = problem("binary")
    how = dict(n_estimators=5)
    assert fit(a, b, "binary", params(objective="poisson", **how)) == fit(a, b, "binary", params(**how))


@pytest.mark.parametrize("was, now", [("squared", "poisson"), ("poisson", "squared")])
def test_an_earlier_model_of_the_other_objective_is_refused(was, now):
    a, b = counts()
    early = fit(a, b, "regression", params(objective=was, n_estimators=3)).model
    with pytest.raises(UserError, match=f"adds up with the objective {was}, and train.gbdt.objective is {now}"):
        fit(a, b, "regression", params(objective=now), init_model=early)


# ---- weights by age

def test_a_weight_halves_with_every_half_life():
    times = pl.Series("at", [datetime(2025, 1, 1), datetime(2025, 1, 8), datetime(2025, 1, 15), datetime(2025, 1, 15)])
    for half_life in ("7d", "1w", "168h"):
        assert exponential_decay_weights(times, half_life).tolist() == [0.25, 0.5, 1, 1]
    assert exponential_decay_weights(times, "1s").min() > 0


def test_recent_rows_decide_when_old_ones_said_the_opposite(tmp_path):
    root = project(tmp_path)
    path = root / "artifacts/prepared/train.parquet"
    frame = pl.read_parquet(path)
    old = pl.int_range(pl.len()) < frame.height * 2 // 3
    frame.with_columns(_target=pl.when(old).then(1 - pl.col("_target")).otherwise("_target")).write_parquet(path)
    best = {}
    for half_life in (None, "10d"):
        write(root, sample_weight_half_life=half_life)
        run_train(root)
        best[half_life] = read_json(root / MODEL / "training.json", TrainingReport).best_loss
    assert best["10d"] < 0.9 * best[None]


def test_weights_need_a_time(tmp_path):
    root = project(tmp_path, sample_weight_half_life="7d")
    (root / "schema.yaml").write_text((root / "schema.yaml").read_text().replace("event_time: at", "event_time: null"))
    with pytest.raises(UserError, match="sample_weight_half_life.*needs event_time"): run_train(root)
    with pytest.raises(UserError, match="missing in 1 training rows"):
        exponential_decay_weights(pl.Series("at", [datetime(2025, 1, 1), None]), "7d")


# ---- going on from an earlier model

def test_going_on_from_a_model_folder(tmp_path):
    root = project(tmp_path, gbdt={"n_estimators": 5})
    run_train(root)
    (root / MODEL).rename(root / "earlier")
    early = read_json(root / "earlier/training.json", TrainingReport)
    write(root, gbdt={"n_estimators": 40}, init_model="earlier")
    run_train(root)
    after = read_json(root / MODEL / "training.json", TrainingReport)
    assert after.best_loss < early.best_loss and 5 < after.best_iteration <= 45 and after.init_model_sha256
    trees = [(root / d / "model.txt").read_text().split("\nTree=") for d in ("earlier", MODEL)]
    assert [t.split("end of trees")[0].strip() for t in trees[1][1:6]] == [t.split("end of trees")[0].strip()
                                                                           for t in trees[0][1:]]
    assert (root / "earlier/encoder.json").read_bytes() == (root / MODEL / "encoder.json").read_bytes()


def test_an_earlier_model_that_cannot_be_improved_is_the_result():
    a, b = problem("binary")
    early = fit(a, b, "binary", params(n_estimators=500, early_stopping_rounds=50))
    after = fit(a._replace(y=1 - a.y), b, "binary", params(), init_model=early.model)
    assert after.best_iteration == early.best_iteration and after.iterations == early.best_iteration + 10
    assert after.model.split(b"\nTree=")[1:10] == early.model.split(b"\nTree=")[1:10]


def test_an_earlier_model_must_fit(tmp_path):
    root = project(tmp_path, gbdt={"n_estimators": 5})
    run_train(root)
    (root / MODEL).rename(root / "earlier")
    schema = (root / "schema.yaml").read_text()
    write(root, init_model="nowhere")
    with pytest.raises(UserError, match="there is no model"): run_train(root)
    write(root, init_model="earlier")
    about = (root / "earlier/training.json").read_text()
    (root / "earlier/training.json").write_text(about.replace('"yes"', '"no!"'))
    with pytest.raises(UserError, match="with the classes"): run_train(root)
    (root / "earlier/training.json").write_text(about)
    s = read_schema(root / "schema.yaml")
    s.columns["z"].feature = False
    write_schema(s, root / "schema.yaml")
    with pytest.raises(UserError, match=r"other inputs than this project \(z\)"): run_train(root)
    (root / "schema.yaml").write_text(schema)
    run_train(root)


# ---- what bites

@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("n", [5, 30, 60])
def test_a_handful_of_rows_gives_a_model(tmp_path, task, n):
    run_train(project(tmp_path, n=n, task=task))
    booster = lgb.Booster(model_file=tmp_path / MODEL / "model.txt")
    p = booster.predict(np.zeros((1, 3)))
    assert np.isfinite(p).all() and booster.current_iteration() >= 1


@pytest.mark.parametrize("task, value", [("binary", "'no'"), ("multiclass", "'low'"), ("regression", "'0'")])
def test_a_target_that_is_all_the_same(tmp_path, task, value):
    root = project(tmp_path, task=task)
    path = root / "artifacts/prepared/train.parquet"
    pl.read_parquet(path).with_columns(_target=pl.lit(0.0)).write_parquet(path)
    with pytest.raises(UserError, match=f"{value} in all 1800 rows"): run_train(root)
    assert not (root / MODEL).exists()


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_target_that_is_missing_or_infinite(tmp_path, value):
    root = project(tmp_path, task="regression")
    path = root / "artifacts/prepared/valid.parquet"
    f = pl.read_parquet(path)
    f.with_columns(_target=pl.when(pl.col("_row") == f["_row"][0]).then(pl.lit(value,
                                                                               pl.Float64)).otherwise("_target")).write_parquet(path)
    with pytest.raises(UserError, match="missing or infinite in 1 rows of the valid split"): run_train(root)


def test_an_empty_part_a_missing_part_a_missing_column(tmp_path):
    root = project(tmp_path)
    path = root / "artifacts/prepared/valid.parquet"
    valid = pl.read_parquet(path)
    valid[:0].write_parquet(path)
    with pytest.raises(UserError, match="valid.parquet holds no row; give the valid split a larger share"):
        run_train(root)
    valid.drop("x").write_parquet(path)
    with pytest.raises(UserError, match="no column 'x'"): run_train(root)
    path.unlink()
    with pytest.raises(UserError, match="run the stage prepare"): run_train(root)


def test_columns_that_hold_nothing_or_infinities(tmp_path):
    root = project(tmp_path)
    for part in ("train", "valid"):
        path = root / f"artifacts/prepared/{part}.parquet"
        pl.read_parquet(path).with_columns(z=pl.lit(None, pl.Float64), kind=pl.lit(None, pl.String),
                                           x=pl.when(pl.col("_row") % 7 ==
                                                     0).then(float("inf")).otherwise("x")).write_parquet(path)
    run_train(root)
    assert read_json(root / MODEL / "training.json", TrainingReport).best_loss < 0.6


def test_a_class_that_is_not_in_the_train_part(tmp_path):
    root = project(tmp_path, task="multiclass")
    path = root / "artifacts/prepared/train.parquet"
    pl.read_parquet(path).filter(pl.col("_target") < 2).write_parquet(path)
    run_train(root)
    p = lgb.Booster(model_file=root / MODEL / "model.txt").predict(np.zeros((2, 3)))
    assert p.shape == (2, 3) and np.isfinite(p).all() and (p[:, 2] < 0.01).all()


def test_the_stage_says_what_it_measured_and_writes_none_of_it(tmp_path):
    facts = run_train(project(tmp_path))
    assert facts["rows"] == 1800 and facts["train_seconds"] > 0 and facts["rows_per_second"] > 0
    written = msgspec.json.decode((tmp_path / MODEL / "training.json").read_bytes())
    assert "seconds" not in str(written) and str(tmp_path) not in str(written)
    assert sorted(p.name for p in (tmp_path / MODEL).iterdir()) == ["encoder.json", "model.txt", "training.json"]


def test_own_features_are_inputs(tmp_path, monkeypatch):
    root = project(tmp_path)
    for part in ("train", "valid"):
        path = root / f"artifacts/prepared/{part}.parquet"
        pl.read_parquet(path).with_columns(double=2 * pl.col("x")).write_parquet(path)
    features = Features({"double": None}, {"double": "number"}, {"double": ["x"]})
    for module in (learners, dataset): monkeypatch.setattr(module, "load_features", lambda path: features)
    run_train(root)
    assert [c["name"] for c in msgspec.json.decode((root / MODEL / "encoder.json").read_bytes())["columns"]] == ["kind",
                                                                                                                 "x",
                                                                                                                 "z",
                                                                                                                 "double"]


def test_huber_reaches_a_target_in_the_thousands_and_is_not_pulled_by_far_values():
    near, valid = problem("regression")
    near, valid = (p._replace(y=1000 * p.y) for p in (near, valid))
    def rmse(objective, train):
        found = fit(train, valid, "regression", params(objective=objective, learning_rate=.2))
        return float(np.sqrt(np.mean((Booster(found.model.decode()).predict(valid.X) - valid.y) ** 2)))
    far = near._replace(y=np.where(np.arange(len(near.y)) % 40 == 0, near.y + 1e7, near.y))
    assert rmse("huber", near) < 1.1 * rmse("squared", near)
    assert rmse("huber", far) < rmse("squared", far) / 2
