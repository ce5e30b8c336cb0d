"""The result of a comparison in words, and how many more seeds or FLOPs would resolve it.

Both answers suppose that the estimate is the truth and ask for 80% power: a new measurement would
exclude a multiplier of 1 with probability 0.8. An interval that only just reaches from the truth to
1 would exclude it with probability 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.estimate import Estimate, estimate
from isoflop.analysis.frontier import REACH
from isoflop.analysis.ranking import Multiplier
from isoflop.analysis.report.format import decade, flops, interval

POWER = (1.96 + 0.84) / 1.96  # half-widths from 1 at which 80% of the estimates exclude it


@dataclass(frozen=True)
class Verdict:
    """What the 95% interval of a multiplier says."""

    word: Literal["better", "worse", "inconclusive"]
    more_seeds: int | None = None  # that would resolve it; None if it is resolved, or none would


def verdict(multiplier: Estimate, seeds: int, fixed_share: float = 0.0) -> Verdict:
    """Significantly better or worse if the interval excludes 1, else inconclusive.

    If it is inconclusive, `more_seeds` is how many more seeds would narrow the interval enough. Its
    half-width, in the logarithm and towards 1, is taken to be proportional to the standard
    deviation of a cell's loss.

    Args:
        multiplier: with its interval; nan ends mean that the noise is unknown.
        seeds: number of seeds of each cell behind it.
        fixed_share: the share of a cell's variance that more seeds do not reduce (the departure of
            sizes from a parabola), if it is known.
    """
    value, low, high = multiplier
    if low > 1:
        return Verdict("better")
    if high < 1:
        return Verdict("worse")
    half = _half_width(multiplier)
    if math.isnan(half) or value == 1:
        return Verdict("inconclusive")
    wanted = (math.log(value) / (POWER * half)) ** 2  # variance, over the present variance
    if wanted <= fixed_share:
        return Verdict("inconclusive")
    total = seeds * (1 - fixed_share) / (wanted - fixed_share)
    return Verdict("inconclusive", max(1, math.ceil(total) - seeds))


def _half_width(multiplier: Estimate) -> float:
    """The half-width of the interval, in the logarithm and towards 1; nan if it is unknown."""
    value, low, high = multiplier
    ends = (low, value) if value > 1 else (value, high)
    return math.log(ends[1] / ends[0]) if ends[0] > 0 else math.nan


def larger_budget(multiplier: Multiplier, headline: Estimate) -> float | None:
    """The smallest budget, up to REACH times the largest, at which the trend would resolve it.

    The trend is a line through the logarithms of the multipliers at the budgets, for every
    bootstrap sample. It resolves the comparison where its interval excludes 1 and its value is far
    enough from 1 that an interval as wide as the present one would exclude 1 too.

    Args:
        multiplier: of the layer.
        headline: its multiplier at the largest budget.

    Returns:
        FLOPs of a cell; None if the trend is inconclusive or resolves nothing within that range.
    """
    half = _half_width(headline)
    if multiplier.trend == "inconclusive" or math.isnan(half):
        return None
    middle = np.log10(multiplier.budgets).mean()
    level, slope = np.log(multiplier.at_budget).mean(axis=1), multiplier.slope * math.log(10)
    for budget in multiplier.budgets[-1] * np.geomspace(1, REACH, 41)[1:]:
        value, low, high = estimate(level + slope * (np.log10(budget) - middle))
        if (low > 0 or high < 0) and abs(value) >= POWER * half:
            return float(budget)
    return None


def result(analysis: Analysis) -> dict[str, object]:
    """The result of a comparison as plain values, with five digits as on the leaderboard.

    `verdict` is better, worse, inconclusive or no multiplier; `sentence` says all of it.
    """
    name = analysis.highlight
    standing = next((s for s in analysis.standings if s.variant == name), None)
    at = f"at {flops(analysis.headline)} FLOPs"
    values: dict[str, object] = {
        "budget": analysis.headline,
        "multiplier": None,
        "low": None,
        "high": None,
        "verdict": "no multiplier",
        "more_seeds": None,
        "more_flops": None,
        "larger_budget": None,
    }
    if not standing or not standing.headline or not standing.multiplier:
        reason = standing.reason if standing else "it has no record yet"
        return values | {"sentence": f"{name} has no compute multiplier {at}: {reason}."}
    headline = standing.headline
    for key, end in zip(("multiplier", "low", "high"), headline, strict=True):
        values[key] = None if math.isnan(end) else float(f"{end:.5g}")
    compared = [r for r in analysis.records if r.variant in (name, analysis.baseline)]
    seeds = len({record.seed for record in compared})
    noise = analysis.noise
    total = noise.fit**2 + noise.seed**2 / seeds
    outcome = verdict(headline, seeds, noise.fit**2 / total if noise.seed else 0.0)
    values["verdict"] = outcome.word
    sentence = (
        f"{name} has a compute multiplier of {interval(headline, unit='x')} {at} (95% interval)"
    )
    if outcome.word != "inconclusive":
        sentence += f": significantly {outcome.word} than {analysis.baseline}."
        return values | {"sentence": sentence}
    if outcome.more_seeds:
        cells = {record.key.point: record.flops for record in compared}
        values["more_seeds"] = outcome.more_seeds
        values["more_flops"] = outcome.more_seeds * sum(cells.values())
    budget = larger_budget(standing.multiplier, headline)
    values["larger_budget"] = budget and float(f"{budget:.2g}")
    parts = [
        f"{sentence}: inconclusive at this noise.",
        _about_seeds(analysis, values),
        _about_budgets(standing.multiplier, values),
    ]
    return values | {"sentence": " ".join(part for part in parts if part)}


def _about_seeds(analysis: Analysis, values: Mapping[str, Any]) -> str:
    """How many more seeds would resolve an inconclusive comparison."""
    seeds = values["more_seeds"]
    if not seeds:
        known = analysis.noise.degrees
        return "More seeds alone would not resolve a difference of this size." if known else ""
    # With one seed, the part of the noise that more seeds do not reduce is unknown.
    count = f"{seeds}" if analysis.noise.seed else f"At least {seeds}"
    return (
        f"{count} more seed{'s' if seeds > 1 else ''} of {analysis.highlight} and "
        f"{analysis.baseline} ({flops(values['more_flops'])} FLOPs) would resolve a difference of "
        "this size with 80% power."
    )


def _about_budgets(multiplier: Multiplier, values: Mapping[str, Any]) -> str:
    """Whether larger budgets would resolve an inconclusive comparison."""
    if values["larger_budget"]:
        return (
            f"If its trend of {decade(estimate(multiplier.slope))} per decade of compute "
            "continues, which is an assumption, budgets of up to about "
            f"{flops(values['larger_budget'])} FLOPs per cell would resolve it."
        )
    if multiplier.trend == "inconclusive":
        return (
            "Its trend with compute is inconclusive, so larger budgets may or may not resolve it."
        )
    return f"Its trend would not resolve it within {REACH:g} times the largest budget."
