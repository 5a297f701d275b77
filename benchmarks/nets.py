"Net training."
import math
import time
from itertools import product

import numpy as np
import torch
from common import THREADS, alternating, quick, report, row
from msgspec.structs import replace
from torch.utils.data import DataLoader, TensorDataset

from mlops_nb.config.params import NetParams
from mlops_nb.model.network import build_network, fit_network_spec, training_loss
from mlops_nb.train.dataset import TrainingPart
from mlops_nb.train.net_data import DeviceDataLoader, to_net_rows
from mlops_nb.train.net_trainer import NetTrainer, deterministic_algorithms, supports_bf16, train_epoch
from mlops_nb.train.tensorboard import ThroughputMeter

TABM, MLP = NetParams(), NetParams(ensemble_size=1)
# rows, numbers, categories, task, and samples a second that were published for an A100 in bf16 without compile: TabM
# (k = 32), then MLP
SHAPES = {"Adult": (32_561, 6, 8, "binary", 54_000, 84_000),
          "California": (16_512, 8, 0, "regression", 82_000, 138_000),
          "Covertype": (581_012, 54, 0, "multiclass", 42_000, 309_000)}
BATCHES = {"Adult": [256], "California": [256], "Covertype": [256, 1024, 4096]}


def table(rows, numbers, categories, task):
    "Rows in the shape of a well-known data set."
    rng = np.random.default_rng(0)
    X = np.column_stack([rng.normal(size=(rows, numbers)), rng.integers(0, 10, (rows, categories))])
    y = rng.normal(size=rows) if task == "regression" else rng.integers(0, 7 if task == "multiclass" else 2,
                                                                        rows).astype(float)
    return TrainingPart(X, y), dict(n_classes=7, cat_cardinalities={numbers + i: 10 for i in range(categories)})


def ours(network, part, device):
    "A function that trains for an epoch, and gives its seconds."
    training = NetTrainer(network, None, 0, device)
    rows = DeviceDataLoader(to_net_rows(network, part), device, math.inf, network.params.batch_size)
    meter = ThroughputMeter(device)

    def epoch():
        clock = time.perf_counter()
        train_epoch(training, rows, meter)
        return time.perf_counter() - clock
    return epoch


def theirs(network, part, workers):
    "The loop of the tutorials: the same net, rows and batches from a DataLoader, in single precision."
    net, rows, p = build_network(network), to_net_rows(network, part), network.params
    optimizer = torch.optim.AdamW(net.parameters(), lr=p.learning_rate, weight_decay=p.weight_decay)
    loader = DataLoader(TensorDataset(rows.numbers, rows.categories, rows.y), p.batch_size, shuffle=True,
                        num_workers=workers)

    def epoch():
        clock = time.perf_counter()
        net.train()
        for numbers, categories, y in loader:
            optimizer.zero_grad()
            training_loss(network, net(numbers, categories), y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), p.max_grad_norm)
            optimizer.step()
        return time.perf_counter() - clock
    return epoch


def on_cpu(name, params, rows, times, bound):
    "Our epoch as it is shipped and in single precision, in turns with the loader's, without and with a worker process."
    _, *shape = SHAPES["Adult"][:4]
    part, how = table(rows, *shape)
    half, full = (fit_network_spec(part.X, part.y, shape[-1], replace(params, bf16=half), **how)
                  for half in (True, False))
    cpu = torch.device("cpu")
    epochs = [ours(half, part, cpu), ours(full, part, cpu), *(theirs(full, part, workers) for workers in (0, 1))]
    for epoch in epochs: epoch() # to warm up
    took = alternating(times, *epochs)
    fast, single, *loops = (rows / s for s in took)
    peer = ("`DataLoader`, 0 or 1 workers, the faster of both", f"{max(loops):,.0f} samples/s")
    ratios = [speed / max(loops) for speed in (fast, single)]
    return [row(f"training {name} on the CPU, 14 columns, batch 256", f"{fast:,.0f} samples/s", *peer,
                f"{ratios[0]:.2f}×",
                f"≥ {bound}×" if bound else "", bound and ratios[0] >= bound),
            row("… in single precision", f"{single:,.0f} samples/s", *peer, f"{ratios[1]:.2f}×")]


def busy(epoch, seconds):
    "The share of an epoch's time in which the GPU computes, by PyTorch's profiler."
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CUDA]) as seen: epoch()
    return sum(e.self_device_time_total for e in seen.key_averages()) / 1e6 / seconds


def one_on_gpu(part, network, epochs=3):
    "Samples a second, and the share of the time in which the GPU computes."
    gpu = torch.device("cuda")
    with deterministic_algorithms(gpu):
        epoch = ours(network, part, gpu)
        epoch() # compiles, and warms up
        seconds = min(epoch() for _ in range(epochs))
        return len(part.y) / seconds, busy(epoch, seconds)


def on_gpu(small):
    "Every shape and batch, with and without compile; published figures are of nets that differ in details, on an A100."
    for name, (rows, numbers, categories, task, *published) in SHAPES.items():
        part, how = table(rows // (50 if small else 1), numbers, categories, task)
        for (net, params), figure in zip((("TabM", TABM), ("MLP", MLP)), published, strict=True):
            for batch, compiled in product(BATCHES[name], (False, True)):
                network = fit_network_spec(part.X, part.y, task, replace(params, batch_size=batch, compile=compiled),
                                           **how)
                speed, share = one_on_gpu(part, network)
                yield row(f"training {net} on the GPU, {name}'s shape, batch {batch}{', compiled' if compiled else ''}",
                          f"{speed:,.0f} samples/s, GPU busy {share:.0%}", "published, A100", f"{figure:,} samples/s",
                          f"{speed / figure:.2f}×")


def main():
    small = quick()
    times, half = 1 if small else 5, "can" if supports_bf16(torch.device("cpu")) else "cannot"
    torch.set_num_threads(THREADS)
    rows = [*on_cpu("TabM", TABM, 512 if small else 2560, times, None if small else 1.5),
            *on_cpu("a plain net (ensemble_size 1)", MLP, 2560 if small else 25_600, times, None)]
    notes = [f"Nets: d_hidden 512, n_blocks 2, d_embedding 16; one epoch, median of {times} in turns, {THREADS} "
             "threads for all; "
             f"this CPU {half} multiply in bf16. The peer is the same net, loss, clipping and batch size with torch's "
             "AdamW and a "
             "shuffling DataLoader over a TensorDataset, in single precision; the row below the first shows what is "
             "left without bf16."]
    if torch.cuda.is_available():
        rows += on_gpu(small)
        notes.append(f"GPU: {torch.cuda.get_device_name()}; bf16, deterministic algorithms, the fastest of 3 epochs "
                     "after one to warm up. "
                     "Busy is the time of the kernels of an epoch, by PyTorch's profiler, over that of an epoch "
                     "without it.")
    else: notes.append("This machine has no CUDA device: training on a GPU was skipped.")
    report(rows, notes)


if __name__ == "__main__": main()
