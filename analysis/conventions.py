"""Multipliers under other FLOP conventions, from the parts that every record stores.

The laws do not change, since they are in parameters and tokens; what a token costs does. A variant
is compared at the loss that it reaches at the budget of the ranking: the FLOPs, by a convention,
with which dense reaches that loss, over those with which the variant does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from isoflop.analysis.estimate import Estimate, estimate
from isoflop.analysis.surface import Surface
from isoflop.analysis.surface_multiplier import BaselineFrontier, SurfaceMultipliers
from isoflop.results.record import Record


def _causal(record: Record) -> int:
    """Scores and their product with the values are halved: 2 T D per block less."""
    size = record.size
    return record.flops_per_token.forward - 2 * record.context * size.width * size.depth


CONVENTIONS: dict[str, Callable[[Record], int]] = {
    "as counted": lambda record: record.flops_per_token.forward,
    "causal attention": _causal,
    "without head": lambda record: record.flops_per_token.forward - record.flops_per_token.head,
    "routing free": lambda record: record.flops_per_token.forward - record.flops_per_token.routing,
}


@dataclass(frozen=True)
class Convention:
    """The multipliers of the variants under one convention."""

    name: str
    multipliers: dict[str, Estimate]  # by variant, in the order of the published ones
    swapped: tuple[tuple[str, str], ...]  # pairs whose order it changes: ahead now, behind now


def conventions(fits: SurfaceMultipliers, records: Sequence[Record]) -> list[Convention]:
    """The multipliers of all ranked variants under every convention, the published one first.

    Args:
        fits: the surfaces.
        records: what they were fitted to.
    """
    result: list[Convention] = []
    ranked = [name for name in fits.forms if name not in fits.baselines]
    for name, forward in CONVENTIONS.items():
        values = {}
        for variant in ranked:
            loss, _ = fits.surface(variant).frontier(np.log([fits.budget]))
            surfaces = fits.fits[fits.forms[variant]].surfaces
            dense = np.min(
                [
                    BaselineFrontier(_priced(surfaces[base], records, forward)).invert(loss)
                    for base in fits.baselines
                ],
                axis=0,
            )
            mine = BaselineFrontier(_priced(surfaces[variant], records, forward)).invert(loss)
            values[variant] = estimate(np.exp(dense - mine)[:, 0])
        order = sorted(values, key=lambda variant: -values[variant].value)
        first = list(result[0].multipliers) if result else order
        swapped = tuple(
            (ahead, behind)
            for place, ahead in enumerate(order)
            for behind in order[place + 1 :]
            if first.index(ahead) > first.index(behind)
        )
        result.append(Convention(name, {variant: values[variant] for variant in first}, swapped))
    return result


def _priced(
    surface: Surface, records: Sequence[Record], forward: Callable[[Record], int]
) -> Surface:
    """The surface with what a token costs by a convention, forward and backward.

    Where FLOPs are measured, what they exceed the planned ones by costs as much in all conventions.
    """
    costs: dict[int, list[float]] = defaultdict(list)
    for record in records:
        if record.variant == surface.cells.variant:
            planned = record.flops if record.planned_flops is None else record.planned_flops
            more = (record.flops - planned) / record.tokens
            costs[record.parameters.active].append(3 * forward(record) + more)
    log_cost = np.log([np.mean(costs[size]) for size in sorted(costs)])
    return replace(surface, cells=replace(surface.cells, log_cost=log_cost))
