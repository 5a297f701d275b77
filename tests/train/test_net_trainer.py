"A net: what it reads, that it learns, that nothing in the data breaks it, and that a kill changes no bit of it."
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from support.net_problem import SMALL, problem

from mlops_nb.config.params import NetParams
from mlops_nb.core.errors import UserError
from mlops_nb.model.network import (
    build_network,
    deserialize_network,
    fit_network_spec,
    fit_numeric_column,
    quantile_transform,
    serialize_network,
    to_tensors,
)
from mlops_nb.train.dataset import TrainingPart
from mlops_nb.train.device import DeviceConfig, pick_device
from mlops_nb.train.net_checkpoint import load_net_checkpoint
from mlops_nb.train.net_trainer import TrainingJob, fit_net, learning_rate_at


def opened(data): # As training sees it: the packages' module
    network, weights = deserialize_network(data)
    net = build_network(network)
    net.load_state_dict(weights)
    return network, net.eval()


def fit(train, valid, task="binary", params=SMALL, device=DeviceConfig("cpu"), on_iteration=lambda e, loss: None,
        on_start=lambda r: None, **how):
    how = {"cat_cardinalities": {2: 5}} | how
    if "checkpoint" in how: how["checkpoint"] = str(how["checkpoint"])
    return fit_net(train, valid, TrainingJob(task, params, device, n_classes=3, **how), on_iteration=on_iteration,
                   on_start=on_start)


# ---- what it reads

@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(allow_nan=True, allow_infinity=False, width=64), min_size=1, max_size=80), st.integers(0, 5))
def test_a_number_keeps_its_order_and_stays_small(values, repeats):
    x = np.array(values * (repeats + 1))
    how = fit_numeric_column(x)
    known = x[~np.isnan(x)]
    if how is None: assert len(np.unique(known)) <= 1; return
    z = quantile_transform(np.r_[x, -1.7e308, 1.7e308, np.nan], how)
    assert np.isfinite(z).all() and abs(z).max() < 3.2 and z[-1] == 0
    order = np.argsort(x[~np.isnan(x)], kind="stable")
    assert (np.diff(z[:-3][~np.isnan(x)][order]) >= -1e-6).all()


def test_quantiles_are_evenly_spread():
    x = np.random.default_rng(0).lognormal(sigma=3, size=50_000)
    z = quantile_transform(x, fit_numeric_column(x))
    assert [z.mean(), z.std()] == pytest.approx([0, 1], abs=0.01)
    assert np.quantile(z, [0.1, 0.9]).tolist() == pytest.approx([-1.2816, 1.2816], abs=0.01)


def test_missing_unknown_and_code_zero_are_three_places():
    train, _ = problem()
    network = fit_network_spec(train.X, train.y, "binary", SMALL, cat_cardinalities={2: 5})
    _, places = to_tensors(network, np.array([[0, 1, 0], [0, 1, np.nan], [np.nan, 1, 7], [0, np.nan, 4]]))
    assert places.tolist() == [[0, 0, 0], [5, 0, 0], [5, 1, 0], [4, 0, 1]]


def test_nothing_to_learn_from_is_said():
    with pytest.raises(UserError, match="one single value"): fit_network_spec(np.ones((50, 2)), np.zeros(50), "binary")


@pytest.mark.parametrize("columns", ["numbers", "categories"])
def test_only_numbers_or_only_categories(columns):
    train, valid = problem()
    keep = slice(0, 2) if columns == "numbers" else slice(2, 3)
    parts = (p._replace(X=p.X[:, keep]) for p in (train, valid))
    found = fit(*parts, cat_cardinalities={} if columns == "numbers" else {0: 5})
    assert np.isfinite(found.best_loss)
    assert bool(deserialize_network(found.model)[0].numeric_columns) == (columns == "numbers")


# ---- it learns

@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_it_overfits_64_rows(task):
    train, _ = problem(task, n=96)
    params = NetParams(ensemble_size=4, d_hidden=64, d_embedding=8, n_bins=16, dropout=0, weight_decay=0, batch_size=64,
                       max_epochs=400, patience=400,
                       learning_rate=0.005)
    net = fit(train, train, task, params)
    assert net.best_loss < (0.05 * train.y.std() if task == "regression" else 0.03)


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_it_beats_the_constant_and_best_is_what_the_kept_net_says(task):
    train, valid = problem(task, n=1500)
    found = fit(train, valid, task, replace(SMALL, max_epochs=25, learning_rate=0.01))
    network, net = opened(found.model)
    from mlops_nb.train.net_trainer import to_net_rows, validation_loss
    assert validation_loss(network, net,
                           to_net_rows(network, valid, torch.device("cpu"))) == pytest.approx(found.best_loss, rel=1e-9)
    shares = np.bincount(train.y.astype(int)) / len(train.y) if task != "regression" else None
    constant = valid.y.std() if task == "regression" else -np.log(shares[valid.y.astype(int)]).mean()
    assert found.best_loss < 0.8 * constant
    assert found.best_loss == min(p.valid
                                  for p in found.loss_curve) and found.loss_curve[found.best_iteration -
                                      1].valid == found.best_loss


def test_weights_count():
    train, valid = problem(n=1500)
    wrong = np.arange(len(train.y)) < 500
    flipped = train._replace(y=np.where(wrong, 1 - train.y, train.y), weights=np.where(wrong, 1e-6, 1))
    many = replace(SMALL, max_epochs=20, learning_rate=0.01)
    assert fit(flipped, valid, params=many).best_loss < 0.9 * fit(flipped._replace(weights=None), valid,
                                                                  params=many).best_loss


def test_it_stops_when_nothing_improves():
    train, valid = problem()
    noise = valid._replace(y=np.random.default_rng(0).integers(0, 2, len(valid.y)).astype(float))
    net = fit(train, noise, params=replace(SMALL, max_epochs=100, patience=3, learning_rate=0.01))
    assert net.iterations == net.best_iteration + 3 < 100


def test_further_training_starts_from_the_earlier_net():
    train, valid = problem(n=1500)
    before = fit(train, valid, params=replace(SMALL, max_epochs=20, patience=20, learning_rate=0.01))
    after = fit(train, valid, params=replace(SMALL, max_epochs=1), init_model=before.model)
    fresh = fit(train, valid, params=replace(SMALL, max_epochs=1))
    assert after.best_loss < before.best_loss * 1.2 < fresh.best_loss


def test_an_earlier_net_keeps_its_shape_and_learns_with_the_new_params():
    train, valid = problem()
    before = fit(train, valid)
    after = fit(train, valid, params=replace(SMALL, max_epochs=2, dropout=0, learning_rate=0.01),
                init_model=before.model)
    assert after.iterations == 2 and deserialize_network(after.model)[0].params.learning_rate == 0.01
    with pytest.raises(UserError,
                       match=r"the initial net \(train.init_model\) has ensemble_size = 4, d_hidden = 24, and "
                             r"params.yaml says otherwise"):
        fit(train, valid, params=replace(SMALL, ensemble_size=2, d_hidden=8), init_model=before.model)


def test_a_class_that_is_none():
    train, valid = problem("multiclass")
    with pytest.raises(UserError, match="the valid split holds the class 3, and the classes of the net are 0 to 2"):
        fit(train, valid._replace(y=np.where(valid.y == 2, 3, valid.y)), "multiclass")
    with pytest.raises(UserError, match="the train split holds the class 0.5, and the classes of the net are 0 to 1"):
        fit(train._replace(y=np.full(len(train.y), 0.5)), valid)


def test_a_class_that_no_train_row_has_gets_a_small_probability():
    train, valid = problem("multiclass", n=1500)
    known = train.y != 2
    net = fit(train._replace(X=train.X[known], y=train.y[known]), valid, "multiclass",
              replace(SMALL, max_epochs=10, learning_rate=0.01))
    from mlops_nb.train.net_trainer import predict_net_rows, to_net_rows
    p = predict_net_rows(*opened(net.model), to_net_rows(deserialize_network(net.model)[0], valid))
    assert np.isfinite(net.best_loss) and p.shape == (len(valid.y), 3) and p[:, 2].mean() < 0.05


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_half_precision_learns_as_well(task, monkeypatch):
    train, valid = problem(task, n=1500)
    many = replace(SMALL, max_epochs=15, learning_rate=0.01)
    from mlops_nb.train import net_trainer as module
    monkeypatch.setattr(module, "supports_bf16", lambda device: True) # a CPU that cannot do it pretends to
    half, full = (fit(train, valid, task, replace(many, bf16=half)) for half in (True, False))
    assert half.model != full.model and half.best_loss == pytest.approx(full.best_loss, rel=0.05)
    assert all(w.dtype == torch.float32 for w in deserialize_network(half.model)[1].values())


def test_the_rate_falls_like_a_cosine():
    p = NetParams(learning_rate=1.0, max_epochs=10, lr_schedule="cosine")
    assert [learning_rate_at(p, e)
            for e in (0, 5, 10)] == pytest.approx([1, 0.5, 0]) and learning_rate_at(replace(p, lr_schedule="constant"),
                                                                                    9) == 1


# ---- nothing in the data breaks it

@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("what", ["constant", "huge", "tiny", "missing", "one row a value", "outliers"])
def test_no_nan(task, what):
    train, valid = problem(task)
    values = {"constant": np.full(len(train.X), 3.0), "huge": train.X[:, 0] * 1e300, "tiny": train.X[:, 0] * 1e-300,
              "missing": np.full(len(train.X), np.nan), "one row a value": np.arange(len(train.X)) * 1e9,
              "outliers": np.where(np.arange(len(train.X)) % 50, train.X[:, 0], 1e30)}[what]
    X = train.X.copy()
    X[:, 0] = values
    found = fit(train._replace(X=X), valid, task)
    assert all(np.isfinite([p.train, p.valid]).all() for p in found.loss_curve) and np.isfinite(found.best_loss)
    network, net = opened(found.model)
    odd = np.array([[np.nan] * 3, [1e308, -1e308, 99], [0, 0, 0], [np.inf, -np.inf, 1]])
    with torch.no_grad(): assert torch.isfinite(net(*to_tensors(network, odd))).all()


def test_a_net_that_goes_astray_stops_and_keeps_what_was_good():
    train, valid = problem("regression")
    net = fit(train, valid, "regression", replace(SMALL, max_epochs=50, learning_rate=1e30, max_grad_norm=1e30))
    assert net.iterations < 50
    assert all(torch.isfinite(w).all() for w in deserialize_network(net.model)[1].values())


# ---- memory changes no bit

@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("kib", [1, 5, 9])
def test_a_table_in_chunks_makes_the_same_net(task, kib, capsys):
    train, valid = problem(task)
    weighted = train._replace(weights=np.random.default_rng(0).uniform(0.1, 2, len(train.y)))
    whole = fit(weighted, valid, task)
    assert capsys.readouterr().err == ""
    assert fit(weighted, valid, task, device=DeviceConfig("cpu", max_memory_mib=2 * kib / 1024)) == whole
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "do not fit into" in said[0] and "they are sent in chunks of" in said[0]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 40), st.floats(0, 5000), st.integers(0, 3))
def test_batches_are_the_rows_that_were_asked_for(n, batch, space, skipped):
    from mlops_nb.train.net_data import DeviceDataLoader, NetRows
    rows = NetRows(torch.arange(2 * n).reshape(n, 2), None, torch.arange(n), None)
    order = list(torch.randperm(n, generator=torch.Generator().manual_seed(n)).split(batch))[skipped:]
    table = DeviceDataLoader(rows, torch.device("cpu"), space, batch)
    got = list(table.batches(order))
    assert [b.y.tolist() for b in got] == [at.tolist() for at in order]
    assert all(b.categories is None and torch.equal(b.numbers[:, 0], 2 * b.y) for b in got)
    assert table.fits_on_device == (rows.nbytes <= space)
    assert (table.fits_on_device or table.batches_per_chunk == 1
            or 3 * table.batches_per_chunk * batch * rows.nbytes / n <= space + 1e-6)


def test_out_of_memory_it_goes_on_with_half_the_room(tmp_path, monkeypatch, capsys):
    train, valid = problem()
    whole = fit(train, valid)
    from mlops_nb.train import net_trainer as module
    learn, done = module.train_step, [0]

    def greedy(training, rows, total=None):
        done[0] += 1
        if done[0] == 10: raise torch.OutOfMemoryError("CUDA out of memory")
        learn(training, rows, total)
    monkeypatch.setattr(module, "train_step", greedy)
    assert fit(train, valid, checkpoint=tmp_path / "c", checkpoint_interval_seconds=0) == whole
    assert done[0] == 4 * 7 + 1, "no step was made twice"
    said = capsys.readouterr().err.splitlines()
    assert (len(said) == 2 and "ran out of memory; it goes on from the last checkpoint with" in said[0]
            and "in chunks of 64." in said[1])


@pytest.mark.parametrize("where", ["train_step", "to_net_rows", "NetTrainer"])
@pytest.mark.parametrize("error, device", [(torch.OutOfMemoryError("CUDA out of memory"), "cpu"),
                                           (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
                                            "this machine")])
def test_a_net_that_never_fits_is_said(where, error, device, monkeypatch):
    from mlops_nb.train import net_trainer as module
    calls = [0]

    def fails(*a, **k):
        calls[0] += 1
        raise error
    monkeypatch.setattr(module, where, fails)
    with pytest.raises(UserError,
                       match=f"the memory of {device} is not enough for this net and one batch of rows; lower batch"):
        fit(*problem(), device=DeviceConfig("cpu", max_memory_mib=1))
    assert calls[0] < 30


def test_another_error_of_torch_is_not_taken_for_memory(monkeypatch):
    from mlops_nb.train import net_trainer as module

    def fails(*a, **k): raise RuntimeError("something else")
    monkeypatch.setattr(module, "train_step", fails)
    with pytest.raises(RuntimeError, match="something else"): fit(*problem())


# ---- a kill changes no bit

class Killed(Exception): pass


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("at", [1, 8, 17, 20])
def test_resumed_at_any_step_it_is_the_same_net(task, at, tmp_path, monkeypatch):
    train, valid = problem(task)
    whole = fit(train, valid, task)
    from mlops_nb.train import net_trainer as module
    done, learn = [0], module.train_step

    def dying(*a):
        if done[0] == at: raise Killed
        done[0] += 1
        learn(*a)
    monkeypatch.setattr(module, "train_step", dying)
    with pytest.raises(Killed): fit(train, valid, task, checkpoint=tmp_path / "c", checkpoint_interval_seconds=0)
    monkeypatch.setattr(module, "train_step", learn)
    assert fit(train, valid, task, checkpoint=tmp_path / "c", checkpoint_interval_seconds=0) == whole


RUN = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
from pathlib import Path
from test_net_trainer import *
many = replace(SMALL, max_epochs=12, patience=12)
print("begins", flush=True)
fitted = fit(*problem(n=1200), params=many, checkpoint=Path({checkpoint!r}), checkpoint_interval_seconds=0)
Path({out!r}).write_bytes(fitted.model)
"""


@pytest.mark.slow
def test_killed_by_the_system_again_and_again(tmp_path):
    code = RUN.format(tests=os.path.dirname(__file__), out=str(tmp_path / "out"), checkpoint=str(tmp_path / "c"))
    want = fit(*problem(n=1200), params=replace(SMALL, max_epochs=12, patience=12))
    chance, kills = random.Random(0), 0
    for attempt in range(3):
        run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
        run.stdout.readline()
        while attempt and run.poll() is None and not (tmp_path / "c").exists(): time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.3))
        kills += run.poll() is None
        run.send_signal(signal.SIGKILL)
        run.communicate()
    assert kills
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert (tmp_path / "out").read_bytes() == want.model
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "out"]


def test_a_torn_or_foreign_checkpoint_is_left_aside_and_that_is_said(tmp_path, capsys):
    train, valid = problem()
    path, started = tmp_path / "c", []
    whole = fit(train, valid, checkpoint=path, on_start=started.append)
    good = path.read_bytes()
    assert fit(train, valid, checkpoint=path, on_start=started.append) == whole
    assert capsys.readouterr().err == "" and started == [False, True]
    of_old_names = good.replace(b'\\"best_loss\\"', b'\\"bestscore\\"')
    assert of_old_names != good
    for torn in (b"", good[:100], good[:-7], b"\xff" * 50, of_old_names):
        path.write_bytes(torn)
        assert load_net_checkpoint(path, "any")[0] is None
        started.clear()
        assert fit(train, valid, checkpoint=path, on_start=started.append) == whole
        said, = capsys.readouterr().err.splitlines()
        assert (f"the checkpoint {path} is damaged, or of another version; the training starts again from "
                f"the beginning" in said)
        assert started == [False]
    assert load_net_checkpoint(path, "another key")[0] is None
    changed = fit(train, valid, params=replace(SMALL, ensemble_size=2), checkpoint=path)
    said, = capsys.readouterr().err.splitlines()
    assert f"train net: the checkpoint {path} belongs to another training" in said
    assert changed == fit(train, valid, params=replace(SMALL, ensemble_size=2)) != whole


def test_the_seed_decides_and_nothing_outside_does():
    train, valid = problem()
    torch.manual_seed(123)
    outside = torch.get_rng_state()
    one = fit(train, valid)
    assert torch.equal(torch.get_rng_state(), outside)
    torch.manual_seed(321)
    assert fit(train, valid) == one != fit(train, valid, seed=1)


# ---- translated

def test_without_a_compiler_is_a_sentence(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(UserError,
                       match="needs a C\\+\\+ compiler, and neither g\\+\\+ nor clang\\+\\+ is on this machine"):
        fit(*problem(), params=replace(SMALL, compile=True))


@pytest.mark.slow
def test_a_compiled_net_learns_the_same_and_resumes_to_the_same_bits(tmp_path, monkeypatch):
    train, valid = problem()
    quick = replace(SMALL, ensemble_size=2, n_blocks=1, d_embedding=0, batch_size=200, max_epochs=2, dropout=0,
                    bf16=False, compile=True) # one size of batch
    whole = fit(train, valid, params=quick)
    plain = fit(train, valid, params=replace(quick, compile=False))
    assert [p.valid for p in whole.loss_curve] == pytest.approx([p.valid for p in plain.loss_curve], rel=1e-4)

    def killed(epoch, valid): raise Killed
    with pytest.raises(Killed):
        fit(train, valid, params=quick, checkpoint=tmp_path / "c", checkpoint_interval_seconds=0, on_iteration=killed)
    assert fit(train, valid, params=quick, checkpoint=tmp_path / "c") == whole


# ---- kept, and asked of devices

def test_a_damaged_file_is_refused():
    train, _ = problem()
    network = fit_network_spec(train.X, train.y, "binary", SMALL, cat_cardinalities={2: 5})
    good = serialize_network(network, build_network(network).state_dict())
    assert deserialize_network(good)[0] == network
    other = serialize_network(fit_network_spec(train.X, train.y, "binary", replace(SMALL, d_hidden=8),
                                               cat_cardinalities={2: 5}), build_network(network).state_dict())
    for bad in (b"", good[:50], good[:-1], good + b"x", good.replace(b"binary", b"bonary"), other):
        with pytest.raises(UserError, match="not a whole net"): deserialize_network(bad)


def test_devices():
    assert pick_device("cpu").type == "cpu" and pick_device().type in ("cpu", "cuda")
    for name in ("", "gpu", "cuda:", "cuda:-1", "cpu:0", "CUDA"):
        with pytest.raises(UserError): pick_device(name if name != "cuda:" else "cuda:x")
    with pytest.raises(UserError, match="is not there: this machine has"):
        fit(*problem(), device=DeviceConfig("cuda:77"))


# ---- real data

@pytest.mark.slow
@pytest.mark.realdata
def test_adult_is_as_accurate_as_the_literature_says(tmp_path):
    "0.858 is TabM without embeddings (FACTS); a net of 4 members and 4 epochs gets 0.866."
    import polars as pl
    from support.project_checks import new_project, run

    from mlops_nb.config.project import Project
    from mlops_nb.train.dataset import read_training_parts
    from mlops_nb.train.learners import resolve_init_model
    from mlops_nb.train.net_trainer import predict_net_rows, to_net_rows
    data = Path(__file__).parents[3] / "shared/data/adult/adult.[dt]*"
    root = new_project(tmp_path / "adult", data, "rtrim(outcome, '.')", "--test-files", "adult.test")
    for stage in ("validate", "prepare"): run("mlops-nb", "stage", stage, cwd=root)
    project = Project.open(root)
    encoder = resolve_init_model(project, "net").encoder
    train, valid = read_training_parts(project, encoder)
    codes = {i: max(encoder.columns[i].codes.values()) + 1 for i in encoder.categorical}
    params = NetParams(ensemble_size=4, d_hidden=128, max_epochs=4)
    weights = fit_net(train, valid, TrainingJob("binary", params, DeviceConfig("cpu"), cat_cardinalities=codes)).model
    test = pl.read_parquet(root / "artifacts/prepared/test.parquet")
    part = TrainingPart(encoder.transform(test), test["_target"].to_numpy())
    network, net = opened(weights)
    assert len(part.y) == 16281
    assert ((predict_net_rows(network, net,
                              to_net_rows(network, part,
                                          torch.device("cpu"))).numpy() >= 0.5) == part.y).mean() >= 0.858
