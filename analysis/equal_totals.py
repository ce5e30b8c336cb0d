"""The losses of variants at equal total parameters and equal training FLOPs, by their laws.

Total parameters are what a model takes to store, its tables and experts included. A variant's size
with a given total is interpolated, as logarithms, between its trained sizes; its loss there at a
budget of C FLOPs is that of its law at D = C / f(N) tokens. Nothing is said of totals beyond those
that a variant was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.estimate import Estimate, estimate
from isoflop.analysis.surface import Surface
from isoflop.results.record import Record

MOST = 5  # totals
DIGITS = (1, 2, 5)  # of round totals
LEAST = 2  # variants that must have models around a total


@dataclass(frozen=True)
class EqualTotals:
    """Losses by variant and total parameters; None where a variant has no such sizes."""

    budget: float  # FLOPs
    totals: tuple[float, ...]
    losses: dict[str, tuple[Estimate | None, ...]]


def equal_totals(
    surfaces: Mapping[str, Surface], records: Sequence[Record], budget: float
) -> EqualTotals | None:
    """The losses at round totals that two or more variants have models around.

    Args:
        surfaces: by variant, in the order of the result.
        records: of the variants.
        budget: training FLOPs.
    Returns:
        None if no two variants share a total.
    """
    sizes = {name: _sizes(name, records) for name in surfaces}
    decades = [np.log10(total) for totals in sizes.values() for total in totals.values()]
    if not decades:
        return None
    powers = range(int(np.floor(min(decades))), int(np.ceil(max(decades))) + 1)
    rounded = [digit * 10.0**power for power in powers for digit in DIGITS]
    shared = [
        total
        for total in rounded
        if sum(min(s.values()) <= total <= max(s.values()) for s in sizes.values()) >= LEAST
    ]
    if not shared:
        return None
    chosen = np.unique(np.linspace(0, len(shared) - 1, min(MOST, len(shared))).round().astype(int))
    totals = tuple(shared[at] for at in chosen)
    losses = {
        name: tuple(_loss(surface, sizes[name], total, budget) for total in totals)
        for name, surface in surfaces.items()
    }
    return EqualTotals(budget, totals, losses)


def _sizes(variant: str, records: Sequence[Record]) -> dict[int, int]:
    """Total parameters by active ones, increasing."""
    mine = [r.parameters for r in records if r.variant == variant and r.status == "finished"]
    return dict(sorted((parameters.active, parameters.total) for parameters in mine))


def _loss(
    surface: Surface, sizes: Mapping[int, int], total: float, budget: float
) -> Estimate | None:
    active, totals = (np.log(list(values)) for values in (sizes.keys(), sizes.values()))
    if not totals.min() <= np.log(total) <= totals.max() or (np.diff(totals) <= 0).any():
        return None
    log_n = np.interp(np.log([total]), totals, active)
    log_d = np.log(budget) - surface.cells.cost(log_n)
    return estimate(surface.predict(log_n, log_d)[:, 0])
