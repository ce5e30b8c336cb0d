"""Compute multipliers and ranks: every variant's frontier compared with that of the dense baseline.

The compute multiplier at budget C is C_dense(L*(C)) / C: the compute at which the dense frontier
reaches the loss that the layer reaches with C, over C (the efficiency leverage of arXiv
2507.17702). It is computed for every bootstrap sample (see `curves`), once from the minimum at each
budget and once along C from the fitted frontier. Minima that are not trusted are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from isoflop.analysis.curves import Curve
from isoflop.analysis.estimate import Array, Estimate, estimate
from isoflop.analysis.frontier import Frontier, fit_frontier
from isoflop.analysis.parabola import EXPLAIN
from isoflop.analysis.report.format import flops


@dataclass(frozen=True)
class Multiplier:
    """The compute multipliers of one variant, samples first: shape (1 + samples, ...)."""

    budgets: Array  # (b,) FLOPs, those with a trusted optimum
    at_budget: Array  # (1 + samples, b) from the minimum at each budget
    dense_largest: float  # FLOPs, the largest budget of the dense frontier
    compute: Array  # (g,) FLOPs, a grid over the budgets; empty with fewer than two of them
    band: Array  # (1 + samples, g) from the fitted frontier
    slope: Array  # (1 + samples,) of log10(multiplier) per decade of compute; nan with one budget

    @property
    def extrapolation(self) -> float:
        """Compute at which the dense frontier is read for the last budget, over its largest."""
        return float(self.at_budget[0, -1] * self.budgets[-1] / self.dense_largest)

    @property
    def trend(self) -> Literal["grows", "fades", "inconclusive"]:
        """Whether the multiplier grows or fades with compute."""
        _, low, high = estimate(self.slope)
        return "grows" if low > 0 else "fades" if high < 0 else "inconclusive"


@dataclass(frozen=True)
class Standing:
    """How one variant compares with the others."""

    variant: str
    curves: tuple[Curve, ...]  # by budget
    largest: float  # FLOPs, the budget of the ranking
    frontier: Frontier | None
    multiplier: Multiplier | None
    headline: Estimate | None  # the multiplier at the budget of the ranking, if it can be trusted
    reason: str = ""  # why there is no headline
    rank: int | None = None

    @property
    def top(self) -> Curve | None:
        """The curve at the budget of the ranking."""
        return _at(self.curves, self.largest)


@dataclass(frozen=True)
class Crossing:
    """Two frontiers that cross: `below` has the lower loss at less compute, `above` at more."""

    below: str
    above: str
    compute: Estimate  # FLOPs
    resolved: bool  # whether each is ahead at its end of the range in 95% of the samples


def rank(
    curves: Mapping[str, Sequence[Curve]], baseline: str | None, largest: float
) -> tuple[Standing, ...]:
    """Compare every variant with the baseline: best first, those without a multiplier last.

    Args:
        curves: of each variant, by budget.
        baseline: the dense variant.
        largest: FLOPs, the budget of the ranking.
    """
    frontiers = {variant: _frontier(variant_curves) for variant, variant_curves in curves.items()}
    reference = frontiers[baseline] if baseline else None
    if reference and not reference.falls:
        reference = None
    standings = []
    for variant, variant_curves in curves.items():
        multiplier = _multiplier(variant_curves, frontiers[variant], reference)
        reason = _why_none(_at(variant_curves, largest), largest, baseline, reference)
        headline = None
        if not reason and multiplier:
            headline = estimate(multiplier.at_budget[:, multiplier.budgets == largest][:, 0])
            if variant == baseline:
                headline = Estimate(1.0, 1.0, 1.0)  # by definition
        standings.append(
            Standing(
                variant,
                tuple(variant_curves),
                largest,
                frontiers[variant],
                multiplier,
                headline,
                reason,
            )
        )
    return _ranked(standings)


def _frontier(curves: Sequence[Curve]) -> Frontier | None:
    trusted = [curve for curve in curves if curve.trusted]
    if not trusted:
        return None
    budgets = np.array([curve.budget for curve in trusted])
    return fit_frontier(budgets, np.stack([curve.parabola.lowest for curve in trusted], axis=1))


def _at(curves: Sequence[Curve], budget: float) -> Curve | None:
    return next((curve for curve in curves if curve.budget == budget), None)


def _why_none(
    curve: Curve | None, largest: float, baseline: str | None, reference: Frontier | None
) -> str:
    """Why a variant has no multiplier at the budget of the ranking; empty if it has one."""
    if not curve:
        return f"no finished cell at {flops(largest)} FLOPs"
    if not curve.trusted:
        return EXPLAIN[curve.parabola.status]
    if not baseline:
        return "no dense baseline"
    if not reference:
        return f"{baseline} has no frontier: it needs two trusted optima and a loss that falls"
    return ""


def _multiplier(
    curves: Sequence[Curve], frontier: Frontier | None, reference: Frontier | None
) -> Multiplier | None:
    trusted = [curve for curve in curves if curve.trusted]
    if not trusted or not reference:
        return None
    budgets = np.array([curve.budget for curve in trusted])
    equivalent = reference.invert(np.stack([curve.parabola.lowest for curve in trusted], axis=1))
    at_budget = equivalent / budgets
    compute, band = budgets[:0], at_budget[:, :0]
    slope = np.full(len(at_budget), np.nan)
    largest = float(reference.budgets.max())
    if frontier:
        compute = np.geomspace(budgets[0], budgets[-1], 61)
        band = reference.invert(frontier.predict(compute)) / compute
        decades = np.log10(budgets)
        decades -= decades.mean()
        slope = np.log10(at_budget) @ decades / (decades @ decades)
    return Multiplier(budgets, at_budget, largest, compute, band, slope)


def _ranked(standings: Sequence[Standing]) -> tuple[Standing, ...]:
    """Best first. A variant shares the rank of its group's best if their intervals overlap."""
    compared = [(standing.headline, standing) for standing in standings if standing.headline]
    compared.sort(key=lambda pair: -pair[0].value)
    ranked = []
    rank, floor = 0, np.inf
    for position, (multiplier, standing) in enumerate(compared, start=1):
        if multiplier.high < floor or position == 1:
            rank, floor = position, multiplier.low
        ranked.append(replace(standing, rank=rank))
    return (*ranked, *(standing for standing in standings if not standing.headline))


def crossings(standings: Sequence[Standing]) -> tuple[Crossing, ...]:
    """Where two fitted frontiers cross, within the budgets that both were fitted to."""
    result = []
    fitted = [(standing.variant, standing.frontier) for standing in standings if standing.frontier]
    for (first, first_law), (second, second_law) in combinations(fitted, 2):
        low = max(first_law.budgets.min(), second_law.budgets.min())
        high = min(first_law.budgets.max(), second_law.budgets.max())
        if low >= high:
            continue
        compute = np.geomspace(low, high, 121)
        gap = first_law.predict(compute) - second_law.predict(compute)
        below, above = (second, first) if gap[0, 0] > 0 else (first, second)
        gap *= np.sign(gap[0, 0])  # the loss of `above` minus that of `below`
        if gap[0, -1] >= 0:
            continue
        change = gap[:, :-1] * gap[:, 1:] < 0
        at = compute[change.argmax(axis=1)]
        crossed = np.concatenate([at[:1], at[1:][change[1:].any(axis=1)]])
        resolved = np.mean(gap[1:, 0] > 0) > 0.95 and np.mean(gap[1:, -1] < 0) > 0.95
        result.append(Crossing(below, above, estimate(crossed), bool(resolved)))
    return tuple(result)
