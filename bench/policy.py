"""How cells run on a device: in which order, compiled or not, and how many at a time.

All of it follows from the plan and the device, so that it is known, and tested, without the device.
The figures for a GPU are estimates, after a few minutes on one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from isoflop.bench.cost import DEVICES, Device, predict_bytes, predict_host, predict_work
from isoflop.bench.plan import Cell

EAGER_HOST = 2.5  # the host's time for a step, uncompiled over compiled
EAGER_WORK = 1.2  # the device's: more passes over memory
# Seconds that a block takes of a GPU in each step, however small: its kernels, and the turns of
# the processes that share it. So predicted, 39 cells of `h100-lunch` take an H200 265 s; it took
# 318 s for these and for parts of others.
KERNELS = 4e-4
EAGER_KERNELS = 2.0  # of these, uncompiled over compiled
COMPILE_SECONDS = 30.0  # of a cell's two kinds of block, forward and backward
PROCESS_BYTES = 0.6e9  # of a GPU, that each process takes before its first tensor
MEMORY_SHARE = 0.9  # of a GPU, that predictions may fill
CORES = 8  # of the host, for each GPU, where it is not known


@dataclass(frozen=True)
class Need:
    """What a cell takes of a device, or of each of several."""

    seconds: float  # with the device to itself
    bytes: float
    load: float  # share of the time in which it keeps the device busy
    compiled: bool


@dataclass(frozen=True)
class Schedule:
    """How cells run on devices."""

    seconds: float  # until the last one ends
    held: float  # seconds of all devices together, each until its last one ends
    at_a_time: int  # cells, at most
    compiled: int  # cells


def need(cell: Cell, device: Device) -> Need:
    """What a cell takes, compiled if its training time repays that."""
    memory = predict_bytes(cell)
    work, host = predict_work(cell, device), predict_host(cell, device)
    if math.isinf(device.memory):  # a core
        return Need(work + host, memory, 1.0, False)
    kernels = cell.steps * cell.size.depth * KERNELS
    busy = work + kernels
    busy_eager = EAGER_WORK * work + EAGER_KERNELS * kernels
    compiled = max(busy, host) + COMPILE_SECONDS
    eager = max(busy_eager, EAGER_HOST * host)
    seconds = min(compiled, eager)
    alone = cell.training.gpus_per_cell > 1
    load = 1.0 if alone else (busy if compiled < eager else busy_eager) / seconds
    return Need(seconds, memory, load, compiled < eager)


def fits(new: Need, running: Sequence[Need], device: Device, cores: int = CORES) -> bool:
    """Whether a cell may start beside those that run on a device.

    Args:
        cores: of the host, for this device: each process needs one to keep a GPU fed.
    """
    together = [*running, new]
    return not running or (
        len(together) <= cores
        and sum(item.load for item in together) <= 1 + 1e-9
        and sum(item.bytes + PROCESS_BYTES for item in together) <= MEMORY_SHARE * device.memory
    )


def longest_first(cells: Iterable[Cell], device: Device, limited: bool = False) -> list[Cell]:
    """The order in which cells start: a long one must not be left for the end.

    Args:
        limited: the run will be cut off, so budget by budget: a whole one says something.
    """
    return sorted(
        cells, key=lambda cell: (cell.budget if limited else 0, -need(cell, device).seconds)
    )


def schedule(
    cells: Iterable[Cell], device: Device, devices: int = 1, cores: int = CORES
) -> Schedule:
    """Play a run on equal devices through: whenever there is room, the longest cell that fits.

    Cells of several processes take as many devices each; where there are fewer, which must be
    cores, the processes take turns.
    """
    cells = list(cells)
    ranks = max((cell.training.gpus_per_cell for cell in cells), default=1)
    groups, turns = max(1, devices // ranks), max(1.0, ranks / devices)
    needs = [need(cell, device) for cell in longest_first(cells, device)]
    waiting = [replace(item, seconds=turns * item.seconds) for item in needs]
    compiled = sum(item.compiled for item in waiting)
    running: list[list[tuple[float, Need]]] = [[] for _ in range(groups)]
    ends = [0.0] * groups
    now, most = 0.0, 0
    while waiting or any(running):
        for number, place in enumerate(running):
            while True:
                beside = [item for _, item in place]
                if sum(item.load for item in beside) >= 1:
                    break
                start = next(
                    (n for n, item in enumerate(waiting) if fits(item, beside, device, cores)),
                    None,
                )
                if start is None:
                    break
                item = waiting.pop(start)
                place.append((now + item.seconds, item))
                ends[number] = max(ends[number], now + item.seconds)
        most = max(most, sum(map(len, running)))
        now = min(end for place in running for end, _ in place)
        for place in running:
            place[:] = [entry for entry in place if entry[0] > now]
    return Schedule(now, sum(ends) * min(ranks, devices), most, compiled)


def card(name: str, memory: float) -> Device:
    """A GPU by the name and the bytes that its driver states; an unknown one as an A100."""
    plain = "".join(name.lower().split())
    known = next((device for key, device in DEVICES.items() if key in plain), DEVICES["a100"])
    return replace(known, name=name, memory=memory)
