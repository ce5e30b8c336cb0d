"""Loss against granularity G at a fixed budget, where a suite sweeps it.

A sweep is the variants of one layer that differ in their `granularity` option alone. The loss of
their optima is fitted by a parabola in log G: granularity is U-shaped at a fixed budget, since
routing costs grow with it (arXiv 2402.07871, section 4.4; 2507.17702).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.curves import Curve
from isoflop.analysis.parabola import Array, Parabola, fit_parabola

LEAST_VALUES = 3


@dataclass(frozen=True)
class GranularitySweep:
    """One layer at one budget."""

    layer: str
    budget: float
    curves: tuple[Curve, ...]  # by granularity
    parabola: Parabola  # over log G

    @property
    def values(self) -> Array:
        """Granularities, shape (values,)."""
        return np.array([_granularity(curve) for curve in self.curves])

    @property
    def losses(self) -> Array:
        """Loss of each curve's optimum, nats, shape (values,)."""
        return np.array([curve.parabola.lowest[0] for curve in self.curves])


def granularity_sweeps(curves: Sequence[Curve]) -> tuple[GranularitySweep, ...]:
    """Every sweep of at least three granularities among trusted curves, by layer and budget."""
    groups: dict[tuple[str, str, float], list[Curve]] = defaultdict(list)
    for curve in curves:
        record = curve.cells[0][0]
        if curve.trusted and "granularity" in record.options:
            others = {
                name: value for name, value in record.options.items() if name != "granularity"
            }
            alike = json.dumps([others, record.placement], sort_keys=True, default=str)
            groups[record.layer, alike, curve.budget].append(curve)
    result = []
    for (layer, _, budget), members in sorted(groups.items()):
        members.sort(key=_granularity)
        log_g = np.log([_granularity(curve) for curve in members])
        if len(np.unique(log_g)) >= LEAST_VALUES:
            losses = np.stack([curve.parabola.lowest for curve in members], axis=1)
            result.append(
                GranularitySweep(layer, budget, tuple(members), fit_parabola(log_g, losses))
            )
    return tuple(result)


def _granularity(curve: Curve) -> float:
    return float(curve.cells[0][0].options["granularity"])
