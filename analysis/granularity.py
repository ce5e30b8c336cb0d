"""Loss against granularity G at a fixed budget.

A granularity sweep consists of the variants of a layer that differ only in their option
`granularity`. A parabola in log G is fitted to the losses at their optima: at a fixed budget the
loss is U-shaped in G, because routing costs grow with it (arXiv 2402.07871, section 4.4;
2507.17702).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.curves import Curve
from isoflop.analysis.estimate import Array
from isoflop.analysis.parabola import Parabola, fit_parabola

LEAST_VALUES = 3


@dataclass(frozen=True)
class GranularitySweep:
    """The granularities of one layer at one budget."""

    layer: str
    budget: float  # FLOPs asked for
    curves: tuple[Curve, ...]  # by granularity
    parabola: Parabola  # of the loss in log G

    @property
    def values(self) -> Array:
        """The granularities, shape (values,)."""
        return np.array([_granularity(curve) for curve in self.curves])

    @property
    def losses(self) -> Array:
        """The loss at each curve's optimum, shape (values,), nats per token."""
        return np.array([curve.parabola.lowest[0] for curve in self.curves])


def granularity_sweeps(curves: Sequence[Curve]) -> tuple[GranularitySweep, ...]:
    """The sweeps of at least three granularities, by layer, then budget.

    Curves without a trusted optimum are left out.
    """
    groups: dict[tuple[str, str, float], list[Curve]] = defaultdict(list)
    for curve in curves:
        record = curve.cells[0][0]
        if curve.trusted and "granularity" in record.options:
            fixed = {name: value for name, value in record.options.items() if name != "granularity"}
            key = json.dumps([fixed, record.placement], sort_keys=True, default=str)
            groups[record.layer, key, curve.budget].append(curve)
    sweeps = []
    for (layer, _, budget), members in sorted(groups.items()):
        members.sort(key=_granularity)
        log_g = np.log([_granularity(curve) for curve in members])
        if len(np.unique(log_g)) >= LEAST_VALUES:
            losses = np.stack([curve.parabola.lowest for curve in members], axis=1)
            sweeps.append(
                GranularitySweep(layer, budget, tuple(members), fit_parabola(log_g, losses))
            )
    return tuple(sweeps)


def _granularity(curve: Curve) -> float:
    return float(curve.cells[0][0].options["granularity"])
