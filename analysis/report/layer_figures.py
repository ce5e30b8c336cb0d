"""What explains how a sparse layer does: its load, what its router learns, its output at first."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from isoflop.analysis.ranking import Standing
from isoflop.results.record import LayerFigures, Record

COLLAPSED = 0.5  # of ln(experts), a load's KL from uniform above which a router has collapsed
OFF_BUDGET = 0.01  # of the budget, by which the FLOPs spent may differ from it
LEARNS = 1e-3  # of the gradient of the other parameters, below which a router learns nothing

TEXT = (
    "What explains the layers, at the cell nearest to the best size, averaged over its seeds and "
    "the layer's blocks. Output: root mean square at the start. Router gradient: that of what "
    "routes over that of the layer's other parameters, from the cross-entropy alone, after "
    "training. Used: share of experts or slots that the validation tokens use. Load KL: of their "
    "load from an even one, in nats; 0 if even, ln(experts) if one has all."
)
HEADER = ("variant", "output", "router gradient", "experts", "used", "load KL")


def rows(standings: Sequence[Standing]) -> list[list[str]]:
    """One row per variant whose records have such figures."""
    result = []
    for standing in standings:
        figures = _figures(standing.nearest)
        if figures:
            result.append(
                [
                    standing.variant,
                    _mean([f.output_rms for f in figures], ".3f"),
                    _mean([f.routing_gradient for f in figures], ".2g"),
                    f"{figures[0].experts:,}" if figures[0].experts else "-",
                    _mean([f.used for f in figures], ".1%"),
                    _mean([f.load_kl for f in figures], ".2f"),
                ]
            )
    return result


def flags(records: Sequence[Record]) -> list[str]:
    """What is wrong with a router, in these records of a cell."""
    result = []
    figures = _figures(records)
    if any(f.experts and (f.load_kl or 0) > COLLAPSED * math.log(f.experts) for f in figures):
        result.append("its router has collapsed: few experts take most of the load")
    if any(f.routing_gradient is not None and f.routing_gradient < LEARNS for f in figures):
        result.append("its router learns nothing from the loss")
    return result


def off_budget(records: Sequence[Record]) -> list[str]:
    """Which of a variant's records missed their budget, where the layer's work depends on data."""
    measured = [record for record in records if record.planned_flops is not None]
    spent = [record.flops / record.budget for record in measured]
    missed = sorted(ratio for ratio in spent if abs(ratio - 1) > OFF_BUDGET)
    if not missed:
        return []
    times = " to ".join(dict.fromkeys(f"{ratio:.2f}" for ratio in (missed[0], missed[-1])))
    return [
        f"{len(missed)} of {len(measured)} cells spent {times} times their budget: what a token "
        "costs was measured, which its law is charged for and its parabolas are not"
    ]


def _figures(records: Sequence[Record]) -> list[LayerFigures]:
    return [figures for record in records for figures in record.layers]


def _mean(values: Sequence[float | None], digits: str) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):{digits}}" if known else "-"
