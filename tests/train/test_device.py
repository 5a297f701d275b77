"Where a net is trained: names of devices, and how much memory rows may take."
import math

import pytest
import torch

from mlops_nb.config.settings import RunSettings
from mlops_nb.core.errors import UserError
from mlops_nb.train.device import DeviceConfig, deterministic_algorithms, pick_device, row_memory_budget

CPU = torch.device("cpu")


def test_settings_become_a_configuration():
    run = RunSettings(device="cpu", max_device_memory_mib=512, n_processes=2, shard=True, deterministic=False)
    assert DeviceConfig.from_settings(run) == ("cpu", 512, 2, True, False)


@pytest.mark.parametrize("name", ["gpu", "cpu:0", "cuda:x", "cuda:-1", "", "CUDA"])
def test_what_is_no_device_is_refused_by_name(name):
    with pytest.raises(UserError, match="use auto, cpu, cuda or cuda:N"): pick_device(name)


def test_a_gpu_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("auto").type == pick_device("cuda").type == "cuda" and pick_device("cuda:0").index == 0
    with pytest.raises(UserError, match="cuda:1 is not there: this machine has 1 CUDA device; use auto or cpu"):
        pick_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert pick_device("auto") == pick_device("cpu") == CPU
    with pytest.raises(UserError, match="this machine has 0 CUDA devices"): pick_device("cuda")


def test_memory_is_halved_and_without_a_limit_there_is_none():
    assert row_memory_budget(CPU, 100) == 50 * 2**20 and row_memory_budget(CPU) == math.inf


def test_on_a_cpu_nothing_is_switched():
    before = torch.are_deterministic_algorithms_enabled()
    with deterministic_algorithms(CPU): assert torch.are_deterministic_algorithms_enabled() == before
