"""Compute multipliers and ranks: what the frontiers say of each variant against the dense one.

The compute multiplier at budget C is C_dense(L*(C)) / C: the compute at which the dense frontier
reaches the loss the layer reaches with C, over C (the leverage of arXiv 2507.17702). It is computed
for every bootstrap draw (see `isoflop`), from the minimum at each budget, and along C from the
fitted frontier. A minimum that is not to be trusted enters nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from analysis.frontier import Frontier, fit_frontier
from analysis.isoflop import (
    EXPLAIN,
    AnalysisError,
    Array,
    Curve,
    Estimate,
    Noise,
    estimate,
    fit_curves,
)
from bench.record import Record


@dataclass(frozen=True)
class Multiplier:
    """Compute multipliers of one variant. Draws are indexed first: shape (1 + draws, ...)."""

    budgets: Array  # (b,) whose optimum is to be trusted
    at_budget: Array  # (1 + draws, b) from the minimum of each budget
    reaches: Array  # (b,) compute the dense frontier is read at, over its largest budget
    compute: Array  # (g,) a grid over the budgets
    band: Array  # (1 + draws, g) from the fitted frontier
    slope: Array  # (1 + draws,) of log10(multiplier) per decade of compute

    @property
    def trend(self) -> str:
        """Whether the gain grows or fades with compute, in words."""
        _, low, high = estimate(self.slope)
        return "grows" if low > 0 else "fades" if high < 0 else "not resolved"


@dataclass(frozen=True)
class Standing:
    """One variant's place."""

    variant: str
    layer: str
    curves: tuple[Curve, ...]  # by budget
    missing: tuple[Record, ...]  # cells that diverged or failed
    frontier: Frontier | None
    multiplier: Multiplier | None
    headline: Estimate | None  # the multiplier at the largest budget, if it is to be trusted
    rank: int | None
    reason: str  # why there is no rank

    @property
    def top(self) -> Curve | None:
        """The curve of the largest budget this variant has."""
        return self.curves[-1] if self.curves else None


@dataclass(frozen=True)
class Crossing:
    """Two frontiers that change places: `below` is ahead at less compute, `above` at more."""

    below: str
    above: str
    compute: Estimate
    resolved: bool  # whether each is ahead at its end of the range in 95% of the draws


@dataclass(frozen=True)
class Analysis:
    """All that a report shows."""

    records: tuple[Record, ...]
    variants: tuple[str, ...]  # the baseline, then by name
    budgets: tuple[float, ...]
    baseline: str | None  # the dense variant
    noise: Noise
    standings: tuple[Standing, ...]  # best first; those without a rank last
    crossings: tuple[Crossing, ...]


def analyse(records: Sequence[Record], *, draws: int = 1000) -> Analysis:
    """Fit, compare and rank every variant of `records`.

    Raises:
        AnalysisError: the records must not be compared (see `isoflop.check`), or several dense
            variants leave it open which is the baseline.
    """
    curves, noise = fit_curves(records, draws=draws)
    budgets = tuple(sorted({record.budget for record in records}))
    layers = {record.variant: record.layer for record in records}
    dense = [variant for variant, layer in layers.items() if layer == "dense"]
    if len(dense) > 1 and "dense" not in dense:
        raise AnalysisError(f"which of {', '.join(dense)} is the baseline? name one `dense`")
    baseline = None if not dense else "dense" if "dense" in dense else dense[0]
    variants = sorted(layers, key=lambda variant: (variant != baseline, _natural(variant)))
    frontiers = {}
    for variant in variants:
        trusted = [each for each in curves if each.variant == variant and each.status == "ok"]
        frontiers[variant] = fit_frontier(
            np.array([curve.budget for curve in trusted]),
            np.stack([curve.best_loss for curve in trusted], axis=1) if trusted else np.empty(0),
        )
    reference = frontiers[baseline] if baseline else None
    standings = []
    for variant in variants:
        own = tuple(curve for curve in curves if curve.variant == variant)
        multiplier = _multiplier(own, frontiers[variant], reference)
        reason = _doubt(own, budgets[-1], baseline, reference)
        headline = None
        if variant == baseline and not reason:
            headline = Estimate(1.0, 1.0, 1.0)  # by definition
        elif not reason and multiplier:
            headline = estimate(multiplier.at_budget[:, -1])
        missing = tuple(
            each for each in records if each.variant == variant and each.status != "finished"
        )
        standings.append(
            Standing(
                variant=variant,
                layer=layers[variant],
                curves=own,
                missing=missing,
                frontier=frontiers[variant],
                multiplier=multiplier,
                headline=headline,
                rank=None,
                reason=reason,
            )
        )
    return Analysis(
        records=tuple(records),
        variants=tuple(variants),
        budgets=budgets,
        baseline=baseline,
        noise=noise,
        standings=_ranked(standings),
        crossings=_crossings(frontiers),
    )


def _natural(name: str) -> list[tuple[str, int]]:
    """A sort key that puts moe-g4 before moe-g16."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _doubt(
    curves: Sequence[Curve], largest: float, baseline: str | None, reference: Frontier | None
) -> str:
    """Why a variant has no multiplier at the largest budget; empty if it has one."""
    if not curves or curves[-1].budget != largest:
        return f"no finished cell at {largest:.3g} FLOPs"
    if curves[-1].status != "ok":
        return EXPLAIN[curves[-1].status]
    if not baseline:
        return "no dense baseline"
    if not reference:
        return f"{baseline} has fewer than 2 budgets whose optimum is to be trusted"
    return ""


def _multiplier(
    curves: Sequence[Curve], frontier: Frontier | None, reference: Frontier | None
) -> Multiplier | None:
    trusted = [curve for curve in curves if curve.status == "ok"]
    if not trusted or not reference:
        return None
    budgets = np.array([curve.budget for curve in trusted])
    reached = reference.invert(np.stack([curve.best_loss for curve in trusted], axis=1))
    at_budget = reached / budgets
    compute, band = budgets[:0], at_budget[:, :0]
    slope = np.full(len(at_budget), np.nan)
    if frontier:
        compute = np.geomspace(budgets[0], budgets[-1], 61)
        band = reference.invert(frontier.predict(compute)) / compute
        decades = np.log10(budgets)
        decades -= decades.mean()
        slope = np.log10(at_budget) @ decades / (decades @ decades)
    return Multiplier(
        budgets, at_budget, reached[0] / reference.budgets.max(), compute, band, slope
    )


def _ranked(standings: list[Standing]) -> tuple[Standing, ...]:
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


def _crossings(frontiers: Mapping[str, Frontier | None]) -> tuple[Crossing, ...]:
    """Where fitted frontiers cross within the budgets that both were fitted to."""
    result = []
    fitted = [(variant, frontier) for variant, frontier in frontiers.items() if frontier]
    for (first, one), (second, other) in combinations(fitted, 2):
        low = max(one.budgets.min(), other.budgets.min())
        high = min(one.budgets.max(), other.budgets.max())
        if low >= high:
            continue
        compute = np.geomspace(low, high, 121)
        gap = one.predict(compute) - other.predict(compute)
        if gap[0, 0] * gap[0, -1] >= 0:
            continue
        change = gap[:, :-1] * gap[:, 1:] < 0
        at = compute[change.argmax(axis=1)]
        ahead = np.sign(gap[0, 0])  # positive: `first` has the higher loss at the low end
        resolved = (
            np.mean(gap[1:, 0] * ahead > 0) > 0.95 and np.mean(gap[1:, -1] * ahead < 0) > 0.95
        )
        below, above = (second, first) if ahead > 0 else (first, second)
        crossed = np.concatenate([at[:1], at[1:][change[1:].any(axis=1)]])
        result.append(Crossing(below, above, estimate(crossed), bool(resolved)))
    return tuple(result)
