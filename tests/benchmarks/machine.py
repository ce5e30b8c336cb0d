"""The device that the benchmarks run on, and its rates of copies and products: the limits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cache

import torch

from isoflop.bench.machine import device_name
from isoflop.bench.worker import ALLOCATOR

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
DTYPE = torch.bfloat16 if GPU else torch.float32
# whether freed memory stays with the process, as with a suite's workers
LIKE_A_WORKER = all(os.environ.get(key) == value for key, value in ALLOCATOR.items())


def synchronize() -> None:
    if GPU:
        torch.cuda.synchronize()


def seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """Wall-clock seconds of all repeats, the device's work included."""
    synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    synchronize()
    return time.perf_counter() - start


@cache
def bandwidth() -> float:
    """Bytes per second of a copy of tensors larger than any cache; read and write both count."""
    a = torch.zeros(2**28, dtype=torch.uint8, device=DEVICE)
    b = torch.zeros_like(a)
    return 2 * a.numel() / min(seconds(lambda: b.copy_(a)) for _ in range(8))


@cache
def matmul_rate() -> float:
    """FLOPs per second of a large product."""
    n = 8192 if GPU else 1024
    a = torch.randn(n, n, dtype=DTYPE, device=DEVICE)
    return 2 * n**3 / min(seconds(lambda: a @ a) for _ in range(8))


def describe() -> dict[str, object]:
    """A `Machine` of `isoflop.analysis.report.benchmarks`, without the name of the host."""
    return {
        "kind": "GPU" if GPU else "CPU",
        "device": device_name(DEVICE),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(DTYPE).removeprefix("torch."),
        "allocator": "worker" if LIKE_A_WORKER else "plain",
        "copy_bytes_per_second": bandwidth(),
        "matmul_flops_per_second": matmul_rate(),
    }
