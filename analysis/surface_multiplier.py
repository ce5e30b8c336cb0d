"""Compute multipliers from fitted surfaces.

The compute multiplier at C is the compute at which the baseline's frontier reaches the lowest loss
that the variant reaches with C, over C. Both losses come from surfaces fitted to all cells
(see `surface`), so every cell adds to the multiplier at every compute.

Each variant has its own floor, unless its loss lies beyond the baseline's largest budget. Then the
baseline's law is extrapolated, where a floor per variant is hardly determined: the multiplier comes
from surfaces with a shared floor instead, and is marked. Where the cells reject a shared floor
(F-test), the floors stay apart, and the row says that it is extrapolated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import f as f_distribution

from isoflop.analysis.estimate import Array
from isoflop.analysis.frontier import REACH
from isoflop.analysis.report.format import flops
from isoflop.analysis.surface import EXPLAIN, Cells, Form, Surface, Surfaces, fit_surfaces
from isoflop.analysis.surface_misfit import LEAST_P as LEAST_FIT
from isoflop.analysis.surface_misfit import misfits

POINTS = 121  # of compute at which the baseline's frontier is tabulated
LEAST_P = 0.05  # of a shared floor


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
        for name in dict.fromkeys((variant, self.baseline)):
            if doubt := self._doubt(name, variant):
                sentences.append(f"the surface of {name} is not trusted: {doubt}")
        if missing := surface.cells.missing:
            plural = "s" * (missing != 1)
            sentences.append(f"left out: {missing} run{plural} that diverged or failed")
        _, size = surface.frontier(np.log([self.budget]))
        sizes = surface.cells.log_size
        if not sizes[0] < size[0, 0] < sizes[-1]:
            sentences.append("its best size lies outside the trained ones")
        largest = self._frontiers["floor per variant"].surface.cells.budget.max()
        if self.headline(variant)[0] + np.log(self.budget) > np.log(largest):
            shared = self.forms[variant] == "shared floor"
            how = "read with one floor for all variants" if shared else "extrapolated"
            end = f"{self.baseline}'s largest budget, {flops(largest)} FLOPs"
            sentences.append(f"its loss is beyond {end}: {how}")
        return tuple(sentences)

    def trusted(self, variant: str) -> bool:
        """Whether the surfaces of the variant and of the baseline may be used without a mark."""
        return not any(self._doubt(name, variant) for name in (variant, self.baseline))

    def _doubt(self, name: str, variant: str) -> str:
        """Why the surface of `name`, read for `variant`, is not trusted; empty if it is."""
        fit = self.fits[self.forms[variant]].surfaces[name]
        if not fit.trusted:
            return EXPLAIN[fit.status]
        if self._misfits[name] < LEAST_FIT:
            return f"its cells do not lie on such a law (p = {self._misfits[name]:.1g})"
        return ""

    @cached_property
    def _misfits(self) -> dict[str, float]:
        return misfits(self.fits["floor per variant"])

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
        shared = fit_surfaces(cells, "shared floor", samples=samples, random=random)
        if floors_differ(separate, shared) < LEAST_P:
            forms = dict.fromkeys(forms, "floor per variant")
        else:
            fits["shared floor"] = shared
    return SurfaceMultipliers(baseline, budget, fits, forms, reasons)


def floors_differ(separate: Surfaces, shared: Surfaces) -> float:
    """The probability of cells that fit a shared floor so much worse, if it is the truth."""
    noise, extra = separate.noise, len(separate.surfaces) - 1
    assert noise, "there are surfaces, so there is noise"
    squares = [
        sum(
            (((cells.loss - predicted) / noise.deviation(cells.budget, cells.seeds)) ** 2).sum()
            for cells, predicted in (
                (surface.cells, surface.predict(surface.cells.log_n, surface.cells.log_d)[0])
                for surface in fits.surfaces.values()
            )
        )
        for fits in (separate, shared)
    ]
    return float(f_distribution.sf((squares[1] - squares[0]) / extra, extra, noise.degrees))
