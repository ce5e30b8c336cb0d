"""A compute multiplier in words, and what it would take to settle an open one.

Both ways out suppose that the estimate is the truth, and ask for so much that a new measurement
would exclude 1 with 80% power: an interval that just reaches from the truth to 1 would do so
only every second time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.frontier import REACH
from isoflop.analysis.parabola import Estimate, estimate
from isoflop.analysis.ranking import Multiplier
from isoflop.analysis.report.format import flops, interval

POWER = (1.96 + 0.84) / 1.96  # half-widths from 1 at which four estimates in five exclude it


@dataclass(frozen=True)
class Verdict:
    """What the interval of a multiplier says."""

    word: Literal["better", "worse", "inconclusive"]
    more_seeds: int | None = None  # that would resolve it; None if it is resolved, or none would


def verdict(multiplier: Estimate, seeds: int, lasting: float = 0.0) -> Verdict:
    """Better or worse if the interval excludes 1.

    If it does not, the seeds that would narrow it until it does: the half-width, in the logarithm
    and on the side of 1, is taken to fall as the standard deviation of a cell's loss does.

    Args:
        multiplier: with its interval; nan ends mean that the noise is unknown.
        seeds: of each cell that it rests on.
        lasting: the share of a cell's variance that no seed removes, if it is known: the departure
            of sizes from a parabola.
    """
    value, low, high = multiplier
    if low > 1:
        return Verdict("better")
    if high < 1:
        return Verdict("worse")
    half = _half_width(multiplier)
    if math.isnan(half) or value == 1:
        return Verdict("inconclusive")
    wanted = (math.log(value) / (POWER * half)) ** 2  # variance, over what it is now
    if wanted <= lasting:
        return Verdict("inconclusive")
    total = seeds * (1 - lasting) / (wanted - lasting)
    return Verdict("inconclusive", max(1, math.ceil(total) - seeds))


def _half_width(multiplier: Estimate) -> float:
    """Of the interval, in the logarithm and on the side of 1; nan if it is not known."""
    value, low, high = multiplier
    ends = (low, value) if value > 1 else (value, high)
    return math.log(ends[1] / ends[0]) if ends[0] > 0 else math.nan


def larger_budget(found: Multiplier, headline: Estimate) -> float | None:
    """The least budget, up to REACH times the largest, at which the trend would settle it.

    The trend is the line through the logarithms of the budgets' multipliers, for every bootstrap
    draw. It settles the matter where its interval excludes 1 and its value is so far from 1 that an
    interval as wide as today's would exclude it too.

    Args:
        found: of the layer.
        headline: its multiplier at the largest budget.
    Returns:
        FLOPs of one cell; None if the trend is inconclusive, or does not get there.
    """
    half = _half_width(headline)
    if found.trend == "inconclusive" or math.isnan(half):
        return None
    middle = np.log10(found.budgets).mean()
    level, slope = np.log(found.at_budget).mean(axis=1), found.slope * math.log(10)
    for budget in found.budgets[-1] * np.geomspace(1, REACH, 41)[1:]:
        value, low, high = estimate(level + slope * (np.log10(budget) - middle))
        if (low > 0 or high < 0) and abs(value) >= POWER * half:
            return float(budget)
    return None


def result(analysis: Analysis) -> dict[str, object]:
    """What a comparison found, as plain values; five digits, as in the leaderboard."""
    name = analysis.highlight
    standing = next((one for one in analysis.standings if one.variant == name), None)
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
        reason = standing.reason if standing else "no record of it yet"
        return values | {"sentence": f"{name}: no compute multiplier {at}: {reason}"}
    multiplier = standing.headline
    for key, end in zip(("multiplier", "low", "high"), multiplier, strict=True):
        values[key] = None if math.isnan(end) else float(f"{end:.5g}")
    noise, both = analysis.noise, (name, analysis.baseline)
    cells = {
        (one.variant, one.size.name, one.budget): one.flops
        for one in analysis.records
        if one.variant in both
    }
    seeds = len({one.seed for one in analysis.records if one.variant in both})
    total = noise.fit**2 + noise.seed**2 / seeds
    found = verdict(multiplier, seeds, noise.fit**2 / total if noise.seed else 0.0)
    values["verdict"] = found.word
    sentence = f"{name}: compute multiplier {interval(multiplier, unit='x')} {at}, 95% interval: "
    if found.word != "inconclusive":
        return values | {"sentence": f"{sentence}{found.word} than {analysis.baseline}"}
    ways = []
    if found.more_seeds:
        cost = found.more_seeds * sum(cells.values())
        values |= {"more_seeds": found.more_seeds, "more_flops": cost}
        least = "" if noise.seed else "at least "  # what is not seeds' noise is not known apart
        plural = "s" * (found.more_seeds > 1)
        ways.append(
            f"{least}{found.more_seeds} more seed{plural}, of it and of {analysis.baseline} "
            f"({flops(cost)} FLOPs), would resolve a difference of this size with 80% power"
        )
    elif noise.degrees:
        ways.append("no number of further seeds is known to resolve it")
    slope = estimate(standing.multiplier.slope)
    budget = larger_budget(standing.multiplier, multiplier)
    if budget:
        budget = float(f"{budget:.2g}")
        values["larger_budget"] = budget
        trend = interval(Estimate(*(10**end for end in slope)), unit="x")
        ways.append(
            f"if its trend of {trend} a decade continues, which is a guess, so would budgets up to "
            f"about {flops(budget)} FLOPs a cell, of both"
        )
    elif standing.multiplier.trend == "inconclusive":
        ways.append(
            "whether larger budgets would is not known: its trend with compute is inconclusive"
        )
    else:
        ways.append(f"its trend would not, within {REACH:g} times the largest budget")
    return values | {"sentence": f"{sentence}inconclusive at this noise; {'; '.join(ways)}"}
