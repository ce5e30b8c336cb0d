"""Which multiplier a variant is shown with: that of its surface, or that of its parabolas.

Surfaces assume a law, which parabolas (see `curves`) hardly do. If the law is right, both estimate
the same multiplier and the parabola's varies more: Hausman's test (Econometrica 46, 1978). The
spread of their difference comes from the bootstrap: parabolas are fitted to the very samples that
the surfaces are fitted to. Where the data's difference is not of that kind, the law is in doubt and
the parabola's multiplier is the headline. The difference of the two variances, as in the textbook,
serves worse: with the few residuals of a suite it would reject a right law in 10 to 20% of cases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.estimate import Array, Estimate, estimate
from isoflop.analysis.frontier import fit_frontier, least_compute
from isoflop.analysis.parabola import fit_parabola
from isoflop.analysis.surface import Surface, Surfaces

LARGEST_Z = 2.0  # of Hausman's test
LEAST_BUDGETS = 3  # of a dense frontier that parabolas may be read from in place of a surface


@dataclass(frozen=True)
class Headline:
    """The multiplier that is shown for a variant; logarithms, shape (1 + samples,)."""

    log_multiplier: Array
    source: Literal["surface", "parabola"]
    z: float  # of Hausman's test; nan without a parabola or without noise

    @property
    def estimate(self) -> Estimate:
        """The multiplier with its interval."""
        return estimate(np.exp(self.log_multiplier))

    @property
    def flag(self) -> str:
        """The sentence that marks a row which shows the parabola; empty otherwise."""
        if self.source == "surface":
            return ""
        if abs(self.z) > LARGEST_Z:
            return f"surface and parabola disagree (z = {self.z:+.1f}): the parabola is shown"
        return "the surface is not trusted: the parabola is shown"


def choose(
    surface: Array, parabola: Array | None, paired: Array | None, trusted: bool = True
) -> Headline:
    """The surface's multiplier, or the parabola's where Hausman's test rejects the surface or its
    fit is not trusted. A surface that is not trusted and has no parabola beside it is shown.

    Args:
        surface: natural logarithm of the multiplier, shape (1 + samples,).
        parabola: the same from the parabolas and their own bootstrap; None if they give none.
        paired: the parabolas' for the samples of `surface`, see `parabola_samples`.
        trusted: whether the surfaces are, see `SurfaceMultipliers.trusted`.
    """
    if parabola is None or paired is None or len(surface) < 2:
        return Headline(surface, "surface", np.nan)
    gap = paired - surface
    expected = max(_deviation(gap), _deviation(paired) / 2, 1e-300)
    z = float((gap[0] - np.median(gap[1:])) / expected)
    if trusted and abs(z) <= LARGEST_Z:
        return Headline(surface, "surface", z)
    return Headline(parabola, "parabola", z)


def _deviation(samples: Array) -> float:
    """Half the width of the central 68% of the samples, which a few far ones do not widen."""
    low, high = np.quantile(samples[1:], (0.16, 0.84))
    return float(high - low) / 2


def parabola_samples(fits: Surfaces, dense: Sequence[str], budget: float) -> dict[str, Array]:
    """The multipliers that parabolas give for the samples that the surfaces were fitted to.

    Sample 0 is what `curves` and `frontier` give for the data. The others show how parabola and
    surface differ where the law is right. There are none where every dense variant has two
    budgets or fewer: these determine only a power law without a floor, which is biased.

    Args:
        fits: the surfaces.
        dense: the dense variants; the best is picked anew in every sample.
        budget: FLOPs of the ranking.
    Returns:
        Natural logarithms by variant, shape (1 + samples,); none for a variant whose parabola at
        the budget is not trusted.
    """
    minima = {variant: _minima(surface) for variant, surface in fits.surfaces.items()}
    frontiers = [
        frontier
        for name in dense
        if len(minima.get(name, ())) >= LEAST_BUDGETS
        and (frontier := fit_frontier(np.array(list(minima[name])), _columns(minima[name])))
        and frontier.falls
    ]
    if not frontiers:
        return {}
    return {
        variant: np.log(least_compute(frontiers, lowest[budget]) / budget)
        for variant, lowest in minima.items()
        if variant not in dense and budget in lowest
    }


def _columns(minima: Mapping[float, Array]) -> Array:
    return np.stack(list(minima.values()), axis=1)


def _minima(surface: Surface) -> dict[float, Array]:
    """The lowest loss of every trusted parabola by budget, shape (1 + samples,)."""
    cells, result = surface.cells, {}
    for budget in np.unique(cells.budget):
        mine = cells.budget == budget
        parabola = fit_parabola(cells.log_n[mine], surface.losses[:, mine])
        if parabola.status == "ok":
            result[float(budget)] = parabola.lowest
    return result
