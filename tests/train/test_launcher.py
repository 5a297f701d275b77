"Two processes train one net: as one would, or cut up between them; killed, broken off, and orphaned."
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from msgspec.structs import replace
from support.net_problem import SMALL, problem

from mlops_nb.core.errors import UserError
from mlops_nb.model.network import deserialize_network
from mlops_nb.train.device import DeviceConfig
from mlops_nb.train.launcher import check_device_count, fit_net_distributed, write_training_job
from mlops_nb.train.net_trainer import TrainingJob, fit_net

TWO = {False: DeviceConfig("cpu", n_processes=2), True: DeviceConfig("cpu", n_processes=2, shard=True)}
EXACT = replace(SMALL, dropout=0, bf16=False, max_epochs=5)


def parts(task, n=580):
    "387 train rows: six batches of 64 and one of 3, of which the second process gets one; weighted."
    train, valid = problem(task, n=n)
    assert task == "regression" or len(train.y) % 64 == n * 2 // 3 % 64
    return train._replace(weights=np.random.default_rng(1).uniform(0.2, 3, len(train.y))), valid


def job(task, params, device=DeviceConfig("cpu"), **how):
    return TrainingJob(task, params, device, n_classes=3, cat_cardinalities={2: 5}, **how)


def together(train, valid, job, **callbacks): return fit_net_distributed(train, valid, job, **callbacks)


def workers(of=None):
    "The processes below this one that train, oldest first."
    found = [p for p in psutil.Process(of).children(recursive=True) if p.is_running() and "run-worker" in p.cmdline()]
    return sorted(found, key=lambda p: p.create_time())


@pytest.fixture(scope="module")
def cut(): return together(*parts("multiclass"), job("multiclass", EXACT, TWO[True]))


def close(ours, theirs):
    for a, b in zip(ours.loss_curve, theirs.loss_curve, strict=True):
        assert (a.train, a.valid) == pytest.approx((b.train, b.valid), rel=1e-5)
    ours, theirs = (deserialize_network(f.model)[1] for f in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for name, w in theirs.items(): np.testing.assert_allclose(ours[name], w, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
def test_two_processes_learn_what_one_does_from_chunks_too(capsys):
    train, valid = parts("regression")
    small = TWO[False]._replace(max_memory_mib=0.01)
    both = together(train, valid, job("regression", EXACT, small))
    assert "do not fit into the 0.01 MiB" in capsys.readouterr().err
    close(both, fit_net(train, valid, job("regression", EXACT)))


@pytest.mark.slow
def test_a_net_that_is_cut_up_learns_what_a_whole_one_does(cut):
    close(cut, fit_net(*parts("multiclass"), job("multiclass", EXACT)))


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True])
def test_a_worker_that_is_killed_changes_no_bit(shard, tmp_path, cut, capsys):
    # The latter with dropout, so that each has random numbers of its own, and with checkpoints within an epoch; a
    # checkpoint of one process lies there, which is none of two, and that is said.
    task, params = ("multiclass", EXACT) if shard else ("binary", replace(SMALL, batch_size=16))
    rows, epochs, path = parts(task), [], str(tmp_path / "c")
    want = cut if shard else together(*rows, job(task, params, TWO[False]))
    if not shard: fit_net(*rows, job(task, params, checkpoint=path))

    def step(epoch, valid):
        epochs.append(epoch)
        if epoch == 2: workers()[shard].send_signal(signal.SIGKILL)
    resumed = []
    killed = job(task, params, TWO[shard], checkpoint=path, checkpoint_interval_seconds=0)
    capsys.readouterr()
    got = together(*rows, killed, on_iteration=step, on_start=resumed.append)
    said = capsys.readouterr().err
    assert said.count("belongs to another training") == said.count(path) == (not shard)
    assert got == want and epochs == [p.iteration for p in want.loss_curve] and resumed == [False]
    if shard: return
    assert together(*rows, killed, on_start=resumed.append) == want
    assert capsys.readouterr().err == "" and resumed == [False, True]


@pytest.mark.slow
def test_broken_off_nobody_is_left():
    seen = []

    def step(epoch, valid):
        seen.extend(workers())
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError):
        together(*parts("binary"), job("binary", replace(SMALL, max_epochs=500, patience=500), TWO[False]),
                 on_iteration=step)
    assert len(seen) == 2 and not psutil.wait_procs(seen, timeout=20)[1]


ORPHANS = """
import sys
sys.path[:0] = [{tests!r}, {tests!r} + "/.."]
from test_launcher import *
long = job("binary", replace(SMALL, max_epochs=5000, patience=5000), TWO[False])
together(*parts("binary"), long, on_iteration=lambda *a: print("epoch", flush=True))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process whose parent is gone")
def test_when_the_stage_is_killed_nobody_trains_on():
    stage = subprocess.Popen([sys.executable, "-c", ORPHANS.format(tests=os.path.dirname(__file__))],
                             stdout=subprocess.PIPE)
    assert stage.stdout.readline() == b"epoch\n"
    left = workers(stage.pid)
    loaded = "".join(Path(f"/proc/{p.pid}/maps").read_text() for p in left)
    assert "/torch/" in loaded and "/pandas/" not in loaded # which would take each as long again to start
    stage.kill()
    stage.communicate()
    assert len(left) == 2 and not psutil.wait_procs(left, timeout=20)[1]


@pytest.mark.slow
def test_what_a_worker_says_to_people():
    rows = parts("binary")
    before = fit_net(*rows, job("binary", replace(SMALL, max_epochs=1))).model
    with pytest.raises(UserError, match=r"the initial net \(train.init_model\) has d_hidden = 24"):
        together(*rows, job("binary", replace(SMALL, d_hidden=8), TWO[False], init_model=before))


@pytest.mark.slow
def test_workers_that_crash_again_and_again_are_given_up(monkeypatch):
    def torn(folder, *job):
        write_training_job(folder, *job)
        (folder / "train.X.npy").write_bytes(b"")
    monkeypatch.setattr("mlops_nb.train.launcher.write_training_job", torn)
    with pytest.raises(UserError, match=r"crashed again and again \(.*Error.*\); set n_processes in section \[run\]"):
        together(*parts("binary"), job("binary", SMALL, TWO[False]))


def test_devices_that_are_too_few(monkeypatch):
    check_device_count(DeviceConfig("cpu", n_processes=9))
    with pytest.raises(UserError, match="spreads a net over several processes, and n_processes is 1"):
        check_device_count(DeviceConfig(shard=True))
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_device_count(DeviceConfig("auto", n_processes=2))
    with pytest.raises(UserError,
                       match="n_processes in section .run. of settings.ini is 3, and this machine has 2 CUDA devices"):
        check_device_count(DeviceConfig("cuda", n_processes=3))
    with pytest.raises(UserError, match="the device cuda:1 is one, and n_processes in section"):
        check_device_count(DeviceConfig("cuda:1", n_processes=2))


@pytest.mark.slow
def test_the_stage_trains_in_two_processes(tmp_path):
    from support import trained_project as modelling

    from mlops_nb.config.settings import RunSettings, Settings, write_settings
    from mlops_nb.core.typed_yaml import read_json
    from mlops_nb.train.stage import TrainingReport, run_train
    root = modelling.trained(tmp_path, learner="net")
    write_settings(root, Settings(run=RunSettings(device="cpu", n_processes=2)))
    facts = run_train(root, "net")
    model = read_json(root / "artifacts/models/net/training.json", TrainingReport)
    assert [f["iteration"] for f in facts["metrics_history"]] == [p.iteration for p in model.loss_curve]
    assert (len((root / "artifacts/models/net/model.safetensors").read_bytes()) > 1000
            and not (root / ".mlops/checkpoints/net").exists())
