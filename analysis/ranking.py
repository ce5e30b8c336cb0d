"""Compute multipliers and ranks: what the frontiers say of each variant against the dense one.

The compute multiplier at budget C is C_dense(L*(C)) / C: the compute at which the dense frontier
reaches the loss the layer reaches with C, over C (the leverage of arXiv 2507.17702). It is computed
for every bootstrap sample (see `curves`), from the minimum at each budget, and along C from the
fitted frontier. A minimum that is not to be trusted enters nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from isoflop.analysis.curves import Curve
from isoflop.analysis.frontier import Frontier, fit_frontier
from isoflop.analysis.parabola import EXPLAIN, Array, Estimate, estimate


@dataclass(frozen=True)
class Multiplier:
    """Compute multipliers of one variant, bootstrap samples first: shape (1 + samples, ...)."""

    budgets: Array  # (b,) whose optimum is to be trusted
    at_budget: Array  # (1 + samples, b) from the minimum of each budget
    dense_largest: float  # FLOPs up to which the dense frontier was fitted
    compute: Array  # (g,) a grid over the budgets; empty with fewer than two of them
    band: Array  # (1 + samples, g) from the fitted frontier
    slope: Array  # (1 + samples,) of log10(multiplier) per decade of compute; nan with one budget

    @property
    def reach(self) -> float:
        """Compute the dense frontier is read at for the last budget, over its largest."""
        return float(self.at_budget[0, -1] * self.budgets[-1] / self.dense_largest)

    @property
    def trend(self) -> Literal["grows", "fades", "inconclusive"]:
        """Whether the gain grows or fades with compute."""
        _, low, high = estimate(self.slope)
        return "grows" if low > 0 else "fades" if high < 0 else "inconclusive"


@dataclass(frozen=True)
class Standing:
    """One variant's place."""

    variant: str
    curves: tuple[Curve, ...]  # by budget
    largest: float  # the budget of the headline
    frontier: Frontier | None
    multiplier: Multiplier | None
    headline: Estimate | None  # the multiplier at that budget, if it is to be trusted
    reason: str = ""  # why there is no headline
    rank: int | None = None

    @property
    def top(self) -> Curve | None:
        """The curve at the budget of the headline."""
        return _at(self.curves, self.largest)


@dataclass(frozen=True)
class Crossing:
    """Two frontiers that change places: `below` is ahead at less compute, `above` at more."""

    below: str
    above: str
    compute: Estimate
    resolved: bool  # whether each is ahead at its end of the range in 95% of the samples


def rank(
    curves: Mapping[str, Sequence[Curve]], baseline: str | None, largest: float
) -> tuple[Standing, ...]:
    """Compare every variant with the baseline: best first, those without a multiplier last.

    Args:
        curves: of each variant, by budget.
        baseline: the dense variant.
        largest: the budget of the headline.
    """
    frontiers = {variant: _frontier(own) for variant, own in curves.items()}
    reference = frontiers[baseline] if baseline else None
    if reference and not reference.falls:
        reference = None
    standings = []
    for variant, own in curves.items():
        multiplier = _multiplier(own, frontiers[variant], reference)
        reason = _doubt(_at(own, largest), largest, baseline, reference)
        headline = None
        if not reason and multiplier:
            headline = estimate(multiplier.at_budget[:, multiplier.budgets == largest][:, 0])
            if variant == baseline:
                headline = Estimate(1.0, 1.0, 1.0)  # by definition
        standings.append(
            Standing(variant, tuple(own), largest, frontiers[variant], multiplier, headline, reason)
        )
    return _placed(standings)


def _frontier(curves: Sequence[Curve]) -> Frontier | None:
    trusted = [curve for curve in curves if curve.trusted]
    if not trusted:
        return None
    budgets = np.array([curve.budget for curve in trusted])
    return fit_frontier(budgets, np.stack([curve.parabola.lowest for curve in trusted], axis=1))


def _at(curves: Sequence[Curve], budget: float) -> Curve | None:
    return next((curve for curve in curves if curve.budget == budget), None)


def _doubt(
    curve: Curve | None, largest: float, baseline: str | None, reference: Frontier | None
) -> str:
    """Why a variant has no multiplier at the largest budget; empty if it has one."""
    if not curve:
        return f"no finished cell at {largest:g} FLOPs"
    if not curve.trusted:
        return EXPLAIN[curve.parabola.status]
    if not baseline:
        return "no dense baseline"
    if not reference:
        return f"{baseline} has no two budgets with optima to be trusted and a loss that falls"
    return ""


def _multiplier(
    curves: Sequence[Curve], frontier: Frontier | None, reference: Frontier | None
) -> Multiplier | None:
    trusted = [curve for curve in curves if curve.trusted]
    if not trusted or not reference:
        return None
    budgets = np.array([curve.budget for curve in trusted])
    reached = reference.invert(np.stack([curve.parabola.lowest for curve in trusted], axis=1))
    at_budget = reached / budgets
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


def _placed(standings: Sequence[Standing]) -> tuple[Standing, ...]:
    """Best first. A variant shares the rank of its group's leader if their intervals overlap."""
    placed = [(each.headline, each) for each in standings if each.headline]
    placed.sort(key=lambda pair: -pair[0].value)
    result = []
    rank, floor = 0, np.inf
    for place, (multiplier, standing) in enumerate(placed, start=1):
        if multiplier.high < floor or place == 1:
            rank, floor = place, multiplier.low
        result.append(replace(standing, rank=rank))
    return (*result, *(each for each in standings if not each.headline))


def crossings(standings: Sequence[Standing]) -> tuple[Crossing, ...]:
    """Where fitted frontiers cross within the budgets that both were fitted to."""
    result = []
    fitted = [(each.variant, each.frontier) for each in standings if each.frontier]
    for (first, one), (second, other) in combinations(fitted, 2):
        low = max(one.budgets.min(), other.budgets.min())
        high = min(one.budgets.max(), other.budgets.max())
        if low >= high:
            continue
        compute = np.geomspace(low, high, 121)
        gap = one.predict(compute) - other.predict(compute)
        below, above = (second, first) if gap[0, 0] > 0 else (first, second)
        gap *= np.sign(gap[0, 0])  # the loss of `above` over that of `below`
        if gap[0, -1] >= 0:
            continue
        change = gap[:, :-1] * gap[:, 1:] < 0
        at = compute[change.argmax(axis=1)]
        crossed = np.concatenate([at[:1], at[1:][change[1:].any(axis=1)]])
        resolved = np.mean(gap[1:, 0] > 0) > 0.95 and np.mean(gap[1:, -1] < 0) > 0.95
        result.append(Crossing(below, above, estimate(crossed), bool(resolved)))
    return tuple(result)
