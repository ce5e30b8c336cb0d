"""Estimates of what a cell costs in seconds and bytes, before it runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from time import perf_counter

import torch

from isoflop.bench.autocast import autocast
from isoflop.bench.plan import Cell

PASSES = 3  # over what a token moves: forward, and both sides of backward
# of the bandwidth, that such passes reach: PKM and PEER then take 1.16 and 1.31 times dense's step
# at width 768 on an H200, where 1.17 and 1.32 were measured (`results/benchmarks`)
GATHERED = 0.4


@dataclass(frozen=True)
class Device:
    """What a device can do, for predictions."""

    name: str
    flops: float  # bf16 matrix FLOPs per second
    bandwidth: float  # bytes per second
    memory: float  # bytes
    step_overhead: float  # seconds of the host per step and block, compiled on a GPU
    utilisation: float = 0.35  # of `flops`, that a training step reaches


# Public figures of the makers, dense bf16; `plan --device` takes these names. The host's time is
# after one cell of `quick` on an H200: 7.5 ms a step for three blocks, beside other processes.
DEVICES = {
    device.name: device
    for device in (
        Device("a100", 312e12, 2.0e12, 80e9, 2e-3),
        Device("h100", 990e12, 3.35e12, 80e9, 2e-3),
        Device("h200", 990e12, 4.8e12, 141e9, 2e-3),
        Device("rtx4090", 165e12, 1.0e12, 24e9, 2e-3),
    )
}


def predict_work(cell: Cell, device: Device) -> float:
    """Seconds of training in which the device itself works, within a factor of two or three.

    The sum of compute, the optimiser, and what each token moves for itself: rows of tables, and
    what its experts read and write. So of two layers of equal FLOPs the one of thinner experts, or
    of more rows, takes longer. A dense weight is read once for the whole batch.

    Of a cell of several processes each does its share, but for the optimiser, on a device of its
    own; their exchange of gradients is not counted.
    """
    compute = cell.flops / (device.flops * device.utilisation)
    moved = max(0, cell.row_bytes_per_token) + cell.moved_bytes_per_token
    traffic = PASSES * moved * cell.tokens / (GATHERED * device.bandwidth)
    optimiser = cell.steps * 28 * cell.parameters.total / device.bandwidth
    return (compute + traffic) / cell.training.gpus_per_cell + optimiser


def predict_host(cell: Cell, device: Device) -> float:
    """Seconds of training in which the host prepares steps; a GPU works meanwhile."""
    return cell.steps * cell.size.depth * device.step_overhead


def predict_bytes(cell: Cell) -> float:
    """Peak memory in bytes, roughly: fp32 parameters, gradients and two moments, activations,
    logits."""
    sequences = cell.training.micro_batch or cell.training.batch
    tokens = sequences * cell.training.context
    activations = tokens * cell.size.depth * cell.size.width * 34 * 2
    logits = tokens * cell.corpus.vocabulary * 10
    return 16 * cell.parameters.total + activations + logits


@cache
def local_cpu() -> Device:
    """One core of this CPU, with its matrix rate measured once in a process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    a = torch.randn(512, 512)
    rates = []
    with autocast("cpu"):
        for _ in range(5):
            start = perf_counter()
            for _ in range(10):
                a @ a
            rates.append(10 * 2 * 512**3 / (perf_counter() - start))
    torch.set_num_threads(before)
    return Device("cpu", max(rates), 8e9, math.inf, 2e-3)
