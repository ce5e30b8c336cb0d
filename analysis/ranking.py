"""How every variant compares with the best dense one and with the others.

The compute multiplier at budget C is C_dense(L*(C)) / C: the compute at which the dense frontier
reaches the loss that the layer reaches with C, over C (the efficiency leverage of arXiv
2507.17702). Two estimators give it, from surfaces and from parabolas; `surface_headline` says which
of them a row shows. Ranks come from the ratios of what is shown (see `ratios`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Literal

import numpy as np

from isoflop.analysis.curves import Curve
from isoflop.analysis.estimate import Array, Estimate, estimate
from isoflop.analysis.frontier import Frontier, fit_frontier, least_compute
from isoflop.analysis.ratios import compare
from isoflop.analysis.report.format import flops, interval
from isoflop.analysis.surface import EXPLAIN, Surface
from isoflop.analysis.surface_headline import Headline, choose, parabola_samples
from isoflop.analysis.surface_multiplier import SurfaceMultipliers
from isoflop.analysis.time_multiplier import Place, Speed, log_time_multiplier
from isoflop.results.record import Record

POINTS = 41  # of compute along which multipliers are drawn and crossings are looked for
UNUSABLE = ("flat", "not converged")  # a surface that loss cannot be read from
LEAST_SPAN = 10.0  # of budgets, largest over smallest, for a trend to be stated


@dataclass(frozen=True)
class Multiplier:
    """The compute multipliers of one variant from its surface, with samples first."""

    budgets: Array  # (b,) FLOPs, those that it has cells at
    at_budget: Array  # (1 + samples, b)
    dense_largest: float  # FLOPs, the largest budget of a dense variant
    compute: Array  # (g,) FLOPs, a grid over the budgets
    band: Array  # (1 + samples, g)

    @property
    def slope(self) -> Array:
        """Of log10(multiplier) per decade of compute, shape (1 + samples,)."""
        decades = np.log10(self.budgets)
        decades -= decades.mean()
        return np.asarray(np.log10(self.at_budget) @ decades / (decades @ decades))

    @property
    def trend(self) -> Literal["grows", "fades", "inconclusive", "not stated"]:
        """Whether the multiplier grows or fades with compute; not stated from budgets that span
        less than a decade, which a trend per decade would be extrapolated from."""
        if self.budgets[-1] < LEAST_SPAN * self.budgets[0] * (1 - 1e-9):
            return "not stated"
        _, low, high = estimate(self.slope)
        return "grows" if low > 0 else "fades" if high < 0 else "inconclusive"


@dataclass(frozen=True)
class Standing:
    """How one variant compares with the others."""

    variant: str
    curves: tuple[Curve, ...]  # by budget
    largest: float  # FLOPs, the budget of the ranking
    surface: Surface | None = None
    multiplier: Multiplier | None = None  # from the surface
    parabolas: Mapping[float, Array] = field(default_factory=dict)  # log multipliers by budget
    shown: Headline | None = None  # the multiplier at the budget of the ranking
    log_time: Array | None = None  # (1 + samples,) natural logarithm of the time multiplier
    flags: tuple[str, ...] = ()  # what a reader of the multiplier must know
    reason: str = ""  # why there is no multiplier
    rank: int | None = None
    rank_interval: tuple[int, int] | None = None  # what the significant differences leave open
    differs: Literal["better", "worse", ""] = ""  # significantly, from every dense variant

    @property
    def headline(self) -> Estimate | None:
        """The multiplier at the budget of the ranking."""
        return self.shown.estimate if self.shown else None

    @property
    def parabola(self) -> Estimate | None:
        """The multiplier that the parabolas give at the budget of the ranking."""
        samples = self.parabolas.get(self.largest)
        return None if samples is None else estimate(np.exp(samples))

    @property
    def time(self) -> Estimate | None:
        """The time multiplier at the budget of the ranking."""
        return None if self.log_time is None else estimate(np.exp(self.log_time))

    @property
    def top(self) -> Curve | None:
        """The curve at the budget of the ranking."""
        return next((curve for curve in self.curves if curve.budget == self.largest), None)

    @property
    def nearest(self) -> tuple[Record, ...]:
        """The runs of the cell nearest to the best size at the budget of the ranking."""
        if not self.top:
            return ()
        at = self.top.nearest
        if self.surface:
            _, size = self.surface.frontier(np.log([self.largest]))
            at = int(np.argmin(np.abs(self.top.log_n - size[0, 0])))
        return self.top.cells[at]

    def loss(self, budget: float) -> Estimate | None:
        """The lowest loss at a budget that the variant has cells at, from what the row shows."""
        curve = next((curve for curve in self.curves if curve.budget == budget), None)
        if not curve:
            return None
        if self.surface and not (self.shown and self.shown.source == "parabola"):
            return estimate(self.surface.frontier(np.log([budget]))[0][:, 0])
        return curve.parabola.loss if curve.trusted else None


@dataclass(frozen=True)
class Crossing:
    """Two frontiers that cross: `below` has the lower loss at less compute, `above` at more."""

    below: str
    above: str
    compute: Estimate  # FLOPs
    resolved: bool  # whether each is ahead at its end of the range in 95% of the samples


def rank(
    curves: Mapping[str, Sequence[Curve]],
    fits: SurfaceMultipliers,
    dense: Sequence[str],
    speeds: dict[str, dict[Place, Speed]],
    planned: str | None = None,
) -> tuple[Standing, ...]:
    """Compare every variant with the best dense one: best first, those without a multiplier last.

    Args:
        curves: of each variant, by budget.
        fits: the surfaces.
        dense: the dense variants.
        speeds: of the variants by device.
        planned: the variant that was to be compared with dense before anything was seen; this one
            comparison needs no correction for the number of variants.
    """
    frontiers = [
        frontier
        for name in dense
        if (frontier := _frontier(curves.get(name, ()))) and frontier.falls
    ]
    paired = parabola_samples(fits.fits["floor per variant"], dense, fits.budget)
    standings = []
    for variant, its_curves in curves.items():
        parabolas: dict[float, Array] = {}
        for curve in its_curves if frontiers else ():
            if curve.trusted:
                lowest = curve.parabola.lowest
                ratio = least_compute(frontiers, lowest) / curve.budget
                # by definition for the only dense variant, whose frontier may miss its minima
                alone = list(dense) == [variant]
                parabolas[curve.budget] = np.zeros(len(lowest)) if alone else np.log(ratio)
        standing = Standing(
            variant,
            tuple(its_curves),
            fits.budget,
            fits.surface(variant) if variant in fits.forms else None,
            _multiplier(variant, fits),
            parabolas,
        )
        standing = _with_headline(standing, fits, paired.get(variant))
        if standing.shown:
            time = log_time_multiplier(variant, standing.shown.log_multiplier, fits, speeds)
            standing = replace(standing, log_time=time)
        standings.append(standing)
    return _ranked(standings, dense, planned)


def _frontier(curves: Sequence[Curve]) -> Frontier | None:
    trusted = [curve for curve in curves if curve.trusted]
    if not trusted:
        return None
    budgets = np.array([curve.budget for curve in trusted])
    return fit_frontier(budgets, np.stack([curve.parabola.lowest for curve in trusted], axis=1))


def _multiplier(variant: str, fits: SurfaceMultipliers) -> Multiplier | None:
    if variant not in fits.forms:
        return None
    budgets = np.unique(fits.surface(variant).cells.budget)
    compute = np.geomspace(budgets[0], budgets[-1], POINTS)
    return Multiplier(
        budgets,
        np.exp(fits.log_multiplier(variant, budgets)),
        max(float(fits.surface(name).cells.budget.max()) for name in fits.baselines),
        compute,
        np.exp(fits.log_multiplier(variant, compute)),
    )


def _with_headline(standing: Standing, fits: SurfaceMultipliers, paired: Array | None) -> Standing:
    """The standing with the multiplier that it shows, or why it has none."""
    variant, parabola = standing.variant, standing.parabolas.get(standing.largest)
    why = fits.reasons.get(variant, "no finished cell")
    if variant in fits.forms:
        why = _broken(variant, fits)
    largest = max((curve.budget for curve in standing.curves), default=fits.budget)
    if not why and largest < fits.budget:
        return replace(standing, reason=_until(variant, largest, fits))
    if not why:
        shown = choose(fits.headline(variant), parabola, paired, fits.trusted(variant))
        flags = fits.flags(variant)
        return replace(standing, shown=shown, flags=(*filter(None, [shown.flag]), *flags))
    if parabola is None:
        return replace(standing, reason=why)
    shown = Headline(parabola, "parabola", np.nan)
    return replace(standing, shown=shown, flags=(f"{why}: the parabola is shown",))


def _until(variant: str, largest: float, fits: SurfaceMultipliers) -> str:
    """Why a variant is not ranked whose cells end at a smaller budget: laws are not read beyond."""
    value = estimate(np.exp(fits.log_multiplier(variant, np.array([largest]))[:, 0]))
    doubt = "" if fits.trusted(variant) else ", from a surface that is not trusted"
    at = f"{interval(value, unit='x')} at {flops(largest)}{doubt}"
    return f"no finished cell at {flops(fits.budget)} FLOPs; {at}"


def _broken(variant: str, fits: SurfaceMultipliers) -> str:
    """Why the surfaces give no multiplier at all, not even a marked one; empty if they do."""
    surfaces = fits.fits[fits.forms[variant]].surfaces
    for name in dict.fromkeys((variant, fits.baseline)):
        if surfaces[name].status in UNUSABLE:
            return f"no surface of {name}: {EXPLAIN[surfaces[name].status]}"
    return ""


def _ranked(
    standings: Sequence[Standing], dense: Sequence[str], planned: str | None
) -> tuple[Standing, ...]:
    """Best first, with ranks from the significant differences."""
    compared = [(standing, standing.shown) for standing in standings if standing.shown]
    without = [standing for standing in standings if not standing.shown]
    if not compared:
        return tuple(without)
    pairs = compare(np.stack([shown.log_multiplier for _, shown in compared]))
    of_dense = [i for i, (standing, _) in enumerate(compared) if standing.variant in dense]
    placed = []
    for i in pairs.order:
        standing, shown = compared[i]
        _, low, high = shown.estimate
        differs: Literal["better", "worse", ""] = ""
        alone = standing.variant == planned
        if low > 1 and (alone or pairs.better[i, of_dense].all()):
            differs = "better"
        elif high < 1 and (alone or pairs.better[of_dense, i].any()):
            differs = "worse"
        placed.append(
            replace(
                standing,
                rank=pairs.ranks[i],
                rank_interval=pairs.rank_intervals[i],
                differs=differs if standing.variant not in dense else "",
            )
        )
    return (*placed, *without)


def crossings(standings: Sequence[Standing]) -> tuple[Crossing, ...]:
    """Where two frontiers cross, within the budgets that both variants have."""
    fitted = {standing.variant: standing.surface for standing in standings if standing.surface}
    if len(fitted) < 2:
        return ()
    ends = {name: law.cells.budget for name, law in fitted.items()}
    log_c = np.log(
        np.geomspace(
            min(budget.min() for budget in ends.values()),
            max(budget.max() for budget in ends.values()),
            POINTS,
        )
    )
    losses = {name: law.frontier(log_c)[0] for name, law in fitted.items()}
    result = []
    for first, second in combinations(fitted, 2):
        low = np.log(max(ends[first].min(), ends[second].min())) - 1e-9
        high = np.log(min(ends[first].max(), ends[second].max())) + 1e-9
        both = (log_c >= low) & (log_c <= high)
        if both.sum() < 2:
            continue
        gap = (losses[first] - losses[second])[:, both]
        below, above = (second, first) if gap[0, 0] > 0 else (first, second)
        gap = gap * np.sign(gap[0, 0])  # the loss of `above` minus that of `below`
        if gap[0, -1] >= 0:
            continue
        change = gap[:, :-1] * gap[:, 1:] < 0
        at = change.argmax(axis=1)
        before, after = (gap[np.arange(len(gap)), at + step] for step in (0, 1))
        share = np.clip(before / np.where(before == after, 1, before - after), 0, 1)
        crossed = np.exp(log_c[both][at] + share * (log_c[1] - log_c[0]))
        crossed = np.concatenate([crossed[:1], crossed[1:][change[1:].any(axis=1)]])
        resolved = np.mean(gap[1:, 0] > 0) > 0.95 and np.mean(gap[1:, -1] < 0) > 0.95
        result.append(Crossing(below, above, estimate(crossed), bool(resolved)))
    return tuple(result)
