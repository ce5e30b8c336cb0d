"""Losses beside those of the same stored seed: has the arithmetic changed?

On one machine unchanged code gives every cell the same loss to the digit. A change that only rounds
otherwise, such as another order of a sum, grows over the steps of training as a tiny change of the
initial weights does; a change of what is computed moves losses further. What a change of the
weights by `RELATIVE` does is therefore measured for every variant and stored with its losses. It is
far below the spread between seeds, so that a shift which that spread would hide is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from isoflop.bench.data import prepare
from isoflop.bench.gate.scratch import scratch
from isoflop.bench.plan import Cell
from isoflop.bench.train import Hooks, train_cell

RELATIVE = 1e-6  # change of every initial weight, about that of rounding in float32
LEAST_SHIFT = 1e-5  # nats, of a variant that such a change hardly moves
CELL, VARIANT = 8.0, 5.0  # shifts of a cell, and standard errors of a variant's mean, that pass


def capability() -> str:
    """The instructions that torch uses on this CPU; empty if cells train on a GPU."""
    return "" if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()


def weight_shifts(cells: Sequence[Cell]) -> dict[str, float]:
    """How far the losses of every variant move if its initial weights change by `RELATIVE`.

    Args:
        cells: each is trained twice, here, one after another.
    Returns:
        the root mean square over a variant's cells, nats.
    """
    squares: dict[str, list[float]] = {}
    tokens = prepare(cells[0].corpus)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a cell trains on a CPU
    try:
        with scratch("perturbed") as folder:
            for cell in cells:
                plain, moved = (
                    train_cell(cell, tokens, torch.device("cpu"), Path(folder), hooks).loss
                    for hooks in (Hooks(), Hooks(built=_perturb))
                )
                if plain is not None and moved is not None:
                    squares.setdefault(cell.variant, []).append((moved - plain) ** 2)
    finally:
        torch.set_num_threads(threads)
    return {
        variant: max(math.sqrt(sum(values) / len(values)), LEAST_SHIFT)
        for variant, values in squares.items()
    }


@torch.no_grad()
def _perturb(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.mul_(1 + RELATIVE * noise.to(parameter))


def departures(pairs: Sequence[tuple[str, str, float]], shifts: dict[str, float]) -> list[str]:
    """A line for each cell and each variant whose losses moved too far for rounding.

    Args:
        pairs: of every cell its variant, its name, and its loss less the stored one of its seed.
        shifts: see `weight_shifts`.
    """
    lines, by_variant = [], dict[str, list[float]]()
    for variant, name, change in pairs:
        by_variant.setdefault(variant, []).append(change)
        limit = CELL * shifts[variant]
        if abs(change) > limit:
            lines.append(f"{name}: {change:+.5f} nats from the same seed, beyond {limit:.5f}")
    for variant, changes in by_variant.items():
        mean = sum(changes) / len(changes)
        limit = VARIANT * shifts[variant] / math.sqrt(len(changes))
        if abs(mean) > limit:
            lines.append(
                f"{variant}: {mean:+.5f} nats from the same seed on average, beyond {limit:.5f}"
            )
    return lines
