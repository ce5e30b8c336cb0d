"""Compute multipliers from fitted surfaces, and the choice between them and the parabolas'.

The compute multiplier at C is the compute at which the baseline's frontier reaches the lowest loss
that the variant reaches with C, over C. Both losses come from surfaces fitted to all cells
(see `surface`), so every cell adds to the multiplier at every compute.

Each variant has its own floor, unless its loss lies beyond the baseline's largest budget. Then the
baseline's law is extrapolated, where a floor per variant is hardly determined: the multiplier comes
from surfaces with a shared floor instead, and is marked.

Surfaces assume a law, which parabolas (see `curves`) hardly do. If the law is right, both estimate
the same multiplier and the parabola's varies more: Hausman's test (Econometrica 46, 1978). The
spread of their difference comes from the bootstrap: parabolas are fitted to the very samples that
the surfaces are fitted to. Where the data's difference is not of that kind, the law is in doubt and
the parabola's multiplier is the headline. The difference of the two variances, as in the textbook,
serves worse: with the few residuals of a suite it would reject a right law in 10 to 20% of cases.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from isoflop.analysis.estimate import Array, Estimate, estimate
from isoflop.analysis.frontier import REACH, fit_frontier
from isoflop.analysis.parabola import fit_parabola
from isoflop.analysis.report.format import flops
from isoflop.analysis.surface import EXPLAIN, Cells, Form, Surface, Surfaces, fit_surfaces

POINTS = 121  # of compute at which the baseline's frontier is tabulated
LARGEST_Z = 2.0  # of Hausman's test


@dataclass(frozen=True)
class BaselineFrontier:
    """The baseline's frontier, to be read from loss to compute."""

    surface: Surface

    @cached_property
    def _table(self) -> tuple[Array, Array]:
        """Logarithm of compute (points,) and of loss less floor (1 + samples, points)."""
        budget = self.surface.cells.budget
        log_c = np.linspace(np.log(budget.min() / REACH), np.log(budget.max() * REACH), POINTS)
        loss, _ = self.surface.frontier(log_c)
        return log_c, np.log(loss - self.surface.floor[:, None])

    def invert(self, loss: Array, sample: int | None = None) -> Array:
        """Logarithm of the compute at which the frontier reaches losses.

        Held to the factor REACH beyond the budgets; a loss under the floor gives the upper end.

        Args:
            loss: shape (1 + samples, points).
            sample: read all losses off the frontier of this sample instead of each off its own.
        """
        log_c, excess = self._table
        floor = self.surface.floor
        if sample is not None:
            excess, floor = (
                np.repeat(part[sample : sample + 1], len(loss), 0) for part in (excess, floor)
            )
        wanted = np.log(np.maximum(loss - floor[:, None], 1e-300))
        result = np.empty_like(loss)
        every = np.arange(len(loss))
        for point, log_loss in enumerate(wanted.T):
            above = (excess > log_loss[:, None]).sum(axis=1)  # points, as the frontier falls
            right = np.clip(above, 1, POINTS - 1)
            start, end = excess[every, right - 1], excess[every, right]
            share = np.clip((start - log_loss) / np.maximum(start - end, 1e-300), 0, 1)
            result[:, point] = log_c[right - 1] + share * (log_c[right] - log_c[right - 1])
        return result


@dataclass(frozen=True)
class SurfaceMultipliers:
    """The variants of a suite against the baseline."""

    baseline: str
    budget: float  # FLOPs, of the ranking
    fits: dict[Form, Surfaces]
    forms: dict[str, Form]  # which fit each variant is read from; a variant without one has none
    reasons: dict[str, str]  # why a variant has no multiplier

    def log_multiplier(self, variant: str, compute: Array) -> Array:
        """Natural logarithm of the multiplier at FLOPs, shape (1 + samples, len(compute))."""
        if variant == self.baseline:
            return np.zeros((len(self._surface(variant).floor), len(compute)))
        loss, _ = self._surface(variant).frontier(np.log(compute))
        return self._frontiers[self.forms[variant]].invert(loss) - np.log(compute)

    def headline(self, variant: str) -> Array:
        """The logarithm of the multiplier at the budget of the ranking, shape (1 + samples,)."""
        return self.log_multiplier(variant, np.array([self.budget]))[:, 0]

    def variance_by_side(self, variant: str) -> tuple[float, float]:
        """The variance of `headline` from the noise of the baseline's cells alone, and from that of
        the variant's alone."""
        reader = self._frontiers[self.forms[variant]]
        loss, _ = self._surface(variant).frontier(np.log([self.budget]))
        of_baseline = reader.invert(np.repeat(loss[:1], len(loss), axis=0))
        of_variant = reader.invert(loss, sample=0)
        return float(of_baseline[1:].var()), float(of_variant[1:].var())

    def flags(self, variant: str) -> tuple[str, ...]:
        """What a reader of the multiplier must know, a sentence each."""
        surface, sentences = self._surface(variant), []
        for role in dict.fromkeys((variant, self.baseline)):
            fit = self.fits[self.forms[variant]].surfaces[role]
            if not fit.trusted:
                sentences.append(f"the surface of {role} is not trusted: {EXPLAIN[fit.status]}")
        if surface.cells.missing:
            sentences.append(f"{surface.cells.missing} runs diverged or failed and are left out")
        _, size = surface.frontier(np.log([self.budget]))
        sizes = surface.cells.log_size
        if not sizes[0] < size[0, 0] < sizes[-1]:
            sentences.append("its best size lies outside the trained ones")
        if self.forms[variant] == "shared floor":
            largest = self.fits["shared floor"].surfaces[self.baseline].cells.budget.max()
            sentences.append(
                f"its loss is beyond {self.baseline}'s largest budget, {flops(largest)} FLOPs: "
                "read with one floor for all variants"
            )
        return tuple(sentences)

    def trusted(self, variant: str) -> bool:
        """Whether the surfaces of the variant and of the baseline may be used without a mark."""
        surfaces = self.fits[self.forms[variant]].surfaces
        return surfaces[variant].trusted and surfaces[self.baseline].trusted

    def _surface(self, variant: str) -> Surface:
        return self.fits[self.forms[variant]].surfaces[variant]

    @cached_property
    def _frontiers(self) -> dict[Form, BaselineFrontier]:
        return {
            form: BaselineFrontier(fit.surfaces[self.baseline]) for form, fit in self.fits.items()
        }


def surface_multipliers(
    cells: Mapping[str, Cells],
    baseline: str,
    budget: float,
    *,
    samples: int = 1000,
    random: int = 0,
) -> SurfaceMultipliers:
    """Fit all surfaces and compare every variant with the baseline.

    Args:
        cells: by variant, see `surface.gather`.
        baseline: the dense variant.
        budget: FLOPs at which variants are ranked.
        samples: bootstrap samples.
        random: the seed of the bootstrap.
    """
    separate = fit_surfaces(cells, "floor per variant", samples=samples, random=random)
    reasons = dict(separate.unfitted)
    if baseline not in separate.surfaces:
        why = separate.unfitted.get(baseline, "no finished cell")
        reasons |= dict.fromkeys(separate.surfaces, f"no surface of {baseline}: {why}")
        return SurfaceMultipliers(baseline, budget, {}, {}, reasons)
    frontier = BaselineFrontier(separate.surfaces[baseline])
    largest = np.log(cells[baseline].budget.max())
    forms: dict[str, Form] = {}
    for variant, surface in separate.surfaces.items():
        loss, _ = surface.frontier(np.log([budget]))
        beyond = variant != baseline and frontier.invert(loss)[0, 0] > largest
        forms[variant] = "shared floor" if beyond else "floor per variant"
    fits: dict[Form, Surfaces] = {"floor per variant": separate}
    if "shared floor" in forms.values():
        fits["shared floor"] = fit_surfaces(cells, "shared floor", samples=samples, random=random)
    return SurfaceMultipliers(baseline, budget, fits, forms, reasons)


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


def parabola_samples(fits: Surfaces, baseline: str, budget: float) -> dict[str, Array]:
    """The multipliers that parabolas give for the samples that the surfaces were fitted to.

    Sample 0 is what `curves` and `frontier` give for the data. The others show how parabola and
    surface differ where the law is right.

    Args:
        fits: the surfaces.
        baseline: the dense variant.
        budget: FLOPs of the ranking.
    Returns:
        Natural logarithms by variant, shape (1 + samples,); none for a variant whose parabola at
        the budget is not trusted.
    """
    if baseline not in fits.surfaces:
        return {}
    dense = _minima(fits.surfaces[baseline])
    if not dense:
        return {}
    frontier = fit_frontier(np.array(list(dense)), np.stack(list(dense.values()), axis=1))
    if not frontier or not frontier.falls:
        return {}
    minima = {variant: _minima(surface) for variant, surface in fits.surfaces.items()}
    return {
        variant: np.log(frontier.invert(lowest[budget]) / budget)
        for variant, lowest in minima.items()
        if variant != baseline and budget in lowest
    }


def _minima(surface: Surface) -> dict[float, Array]:
    """The lowest loss of every trusted parabola by budget, shape (1 + samples,)."""
    cells, result = surface.cells, {}
    for budget in np.unique(cells.budget):
        mine = cells.budget == budget
        parabola = fit_parabola(cells.log_n[mine], surface.losses[:, mine])
        if parabola.status == "ok":
            result[float(budget)] = parabola.lowest
    return result
