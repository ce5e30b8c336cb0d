"""Compute multipliers from fitted surfaces.

The compute multiplier at C is the compute at which the best dense frontier reaches the lowest loss
that the variant reaches with C, over C. Both losses come from surfaces fitted to all cells
(see `surface`), so every cell adds to the multiplier at every compute. Of several dense variants
the best is picked anew at every loss of every bootstrap sample.

Each variant has its own floor, unless its loss lies beyond the baseline's largest budget. Then the
baseline's law is extrapolated, where a floor per variant is hardly determined: the multiplier comes
from surfaces with a shared floor instead, and is marked. Where the cells reject a shared floor
(F-test), the floors stay apart, and the row says that it is extrapolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import fdtrc

from isoflop.analysis.estimate import Array
from isoflop.analysis.frontier import REACH
from isoflop.analysis.report.format import flops
from isoflop.analysis.surface import EXPLAIN, Cells, Form, Surface, Surfaces, fit_surfaces
from isoflop.analysis.surface_misfit import LEAST_P as LEAST_FIT
from isoflop.analysis.surface_misfit import misfits
from isoflop.analysis.surface_solver import Indices

POINTS = 121  # of compute at which a dense frontier is tabulated
LEAST_P = 0.05  # of a shared floor
DOUBTFUL = 1e-3  # probability of a misfit as large, below which a variant's noise is not pooled


@dataclass(frozen=True)
class Reading:
    """Where dense reaches losses; arrays of shape (1 + samples, points)."""

    log_compute: Array  # natural logarithm of FLOPs
    log_size: Array  # natural logarithm of the parameters of the model that does
    which: Indices  # the dense variant, by its number


@dataclass(frozen=True)
class BaselineFrontier:
    """The frontier of a dense variant, to be read from loss to compute."""

    surface: Surface

    @cached_property
    def _table(self) -> tuple[Array, Array, Array]:
        """Logarithm of compute (points,); of loss less floor, and of the best size, both
        (1 + samples, points)."""
        budget = self.surface.cells.budget
        log_c = np.linspace(np.log(budget.min() / REACH), np.log(budget.max() * REACH), POINTS)
        loss, size = self.surface.frontier(log_c)
        return log_c, np.log(loss - self.surface.floor[:, None]), size

    def invert(self, loss: Array, sample: int | None = None) -> Array:
        """Logarithm of the compute at which the frontier reaches losses, see `read`."""
        return self.read(loss, sample)[0]

    def read(self, loss: Array, sample: int | None = None) -> tuple[Array, Array]:
        """Logarithms of the compute at which the frontier reaches losses, and of the size there.

        Held to the factor REACH beyond the budgets; a loss under the floor gives the upper end.

        Args:
            loss: shape (1 + samples, points).
            sample: read all losses off the frontier of this sample instead of each off its own.
        """
        log_c, excess, size = self._table
        floor = self.surface.floor
        if sample is not None:
            excess, size, floor = (
                np.repeat(part[sample : sample + 1], len(loss), 0) for part in (excess, size, floor)
            )
        wanted = np.log(np.maximum(loss - floor[:, None], 1e-300))
        result, sizes = np.empty_like(loss), np.empty_like(loss)
        every = np.arange(len(loss))
        for point, log_loss in enumerate(wanted.T):
            above = (excess > log_loss[:, None]).sum(axis=1)  # points, as the frontier falls
            right = np.clip(above, 1, POINTS - 1)
            start, end = excess[every, right - 1], excess[every, right]
            share = np.clip((start - log_loss) / np.maximum(start - end, 1e-300), 0, 1)
            result[:, point] = log_c[right - 1] + share * (log_c[right] - log_c[right - 1])
            small, large = size[every, right - 1], size[every, right]
            sizes[:, point] = small + share * (large - small)
        return result, sizes


@dataclass(frozen=True)
class SurfaceMultipliers:
    """The variants of a suite against the best dense one."""

    baselines: tuple[str, ...]  # the dense variants that have a surface
    budget: float  # FLOPs, of the ranking
    fits: dict[Form, Surfaces]
    forms: dict[str, Form]  # which fit each variant is read from; a variant without one has none
    reasons: dict[str, str]  # why a variant has no multiplier

    @cached_property
    def baseline(self) -> str:
        """The dense variant that the data say is the best at the budget of the ranking."""
        log_c = np.log([self.budget])
        return min(self.baselines, key=lambda name: self.surface(name).frontier(log_c)[0][0, 0])

    def surface(self, variant: str) -> Surface:
        """The surface that a variant is read from."""
        return self.fits[self.forms[variant]].surfaces[variant]

    def log_multiplier(self, variant: str, compute: Array) -> Array:
        """Natural logarithm of the multiplier at FLOPs, shape (1 + samples, len(compute))."""
        return self.reading(variant, compute).log_compute - np.log(compute)

    def headline(self, variant: str) -> Array:
        """The logarithm of the multiplier at the budget of the ranking, shape (1 + samples,)."""
        return self.log_multiplier(variant, np.array([self.budget]))[:, 0]

    def reading(
        self, variant: str, compute: Array, gain: Mapping[str, Array] | None = None
    ) -> Reading:
        """Where the best dense variant reaches the loss that a variant has at FLOPs.

        Args:
            gain: nats by which the losses of variants are lower than their surfaces say, each of
                shape (1 + samples,); for what a better learning rate would change.
        """
        gain = gain or {}
        loss, size = self.surface(variant).frontier(np.log(compute))
        loss = loss - gain.get(variant, np.zeros(len(loss)))[:, None]
        # A dense variant reaches its own loss with just this compute.
        at_once = np.broadcast_to(np.log(compute), loss.shape)
        logs, sizes = [], []
        for name in self.baselines:
            shifted = loss + gain.get(name, np.zeros(len(loss)))[:, None]
            log_c, log_n = (
                (at_once, size)
                if name == variant
                else self._frontiers[self.forms[variant]][name].read(shifted)
            )
            logs.append(log_c)
            sizes.append(log_n)
        which = np.argmin(logs, axis=0)
        least, its_size = (
            np.take_along_axis(np.stack(part), which[None], axis=0)[0] for part in (logs, sizes)
        )
        return Reading(least, its_size, which)

    def variance_by_side(self, variant: str) -> tuple[float, float]:
        """The variance of `headline` from the noise of the dense cells alone, and from that of the
        variant's alone."""
        readers = self._frontiers[self.forms[variant]].values()
        loss, _ = self.surface(variant).frontier(np.log([self.budget]))
        still = np.repeat(loss[:1], len(loss), axis=0)
        of_baseline = np.min([reader.invert(still) for reader in readers], axis=0)
        of_variant = np.min([reader.invert(loss, sample=0) for reader in readers], axis=0)
        return float(of_baseline[1:].var()), float(of_variant[1:].var())

    def flags(self, variant: str) -> tuple[str, ...]:
        """What a reader of the multiplier must know, a sentence each."""
        surface, sentences = self.surface(variant), []
        for name in dict.fromkeys((variant, self.baseline)):
            if doubt := self._doubt(name, variant):
                sentences.append(f"the surface of {name} is not trusted: {doubt}")
        log_c = np.log([self.budget])
        _, size = surface.frontier(log_c)
        sizes = surface.cells.log_size
        if not sizes[0] < size[0, 0] < sizes[-1]:
            sentences.append("its best size lies outside the trained ones")
        reading = self.reading(variant, np.array([self.budget]))
        nearest = self.baselines[reading.which[0, 0]]
        largest = self.surface(nearest).cells.budget.max()
        if nearest != variant and reading.log_compute[0, 0] > np.log(largest):
            shared = self.forms[variant] == "shared floor"
            how = "read with one floor for all variants" if shared else "extrapolated"
            end = f"{nearest}'s largest budget, {flops(largest)} FLOPs"
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

    @cached_property
    def _frontiers(self) -> dict[Form, dict[str, BaselineFrontier]]:
        return {
            form: {name: BaselineFrontier(fit.surfaces[name]) for name in self.baselines}
            for form, fit in self.fits.items()
        }


def surface_multipliers(
    cells: Mapping[str, Cells],
    dense: Sequence[str],
    budget: float,
    *,
    samples: int = 1000,
    random: int = 0,
) -> SurfaceMultipliers:
    """Fit all surfaces and compare every variant with the best dense one.

    Args:
        cells: by variant, see `surface.gather`.
        dense: the dense variants.
        budget: FLOPs at which variants are ranked.
        samples: bootstrap samples.
        random: the seed of the bootstrap.
    """
    separate = fit_surfaces(cells, samples=samples, random=random)
    # A variant that lies on no such law must not widen the intervals of those that do.
    doubtful = {name for name, p in misfits(separate).items() if p < DOUBTFUL}
    if len(doubtful) == len(separate.surfaces):
        doubtful = set()  # there would be no noise at all
    if doubtful:
        separate = fit_surfaces(cells, samples=samples, random=random, doubtful=doubtful)
    reasons = dict(separate.unfitted)
    fits: dict[Form, Surfaces] = {"floor per variant": separate}
    baselines = tuple(name for name in dense if name in separate.surfaces)
    if not baselines:
        why = "no dense baseline"
        if dense:
            why = separate.unfitted.get(dense[0], "no finished cell")
            why = f"no surface of {dense[0]}: {why}"
        reasons |= dict.fromkeys(separate.surfaces, why)
        return SurfaceMultipliers((), budget, fits, {}, reasons)
    forms: dict[str, Form] = dict.fromkeys(separate.surfaces, "floor per variant")
    fitted = SurfaceMultipliers(baselines, budget, fits, dict(forms), reasons)
    beyond = [name for name in forms if name not in baselines and _beyond(fitted, name)]
    if beyond:
        shared = fit_surfaces(
            cells, "shared floor", samples=samples, random=random, doubtful=doubtful
        )
        if floors_differ(separate, shared) >= LEAST_P:
            fits = {**fits, "shared floor": shared}
            forms |= dict.fromkeys(beyond, "shared floor")
    return SurfaceMultipliers(baselines, budget, fits, forms, reasons)


def _beyond(fitted: SurfaceMultipliers, variant: str) -> bool:
    """Whether a variant's loss lies beyond the largest budget of the dense it is read from."""
    reading = fitted.reading(variant, np.array([fitted.budget]))
    nearest = fitted.surface(fitted.baselines[reading.which[0, 0]])
    return bool(reading.log_compute[0, 0] > np.log(nearest.cells.budget.max()))


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
    return float(fdtrc(extra, noise.degrees, max((squares[1] - squares[0]) / extra, 0.0)))
