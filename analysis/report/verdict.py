"""The verdict on a layer, and how many more seeds or FLOPs would settle an inconclusive one.

Better or worse: the interval of the multiplier excludes 1. Equivalent: it lies within a margin
around 1. What would settle it supposes that the estimate is the truth and asks for 80% power: new
measurements would give the verdict with probability 0.8. An interval that only just reaches from
the truth to 1 would exclude it with probability 0.5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.estimate import Estimate, estimate
from isoflop.analysis.frontier import REACH
from isoflop.analysis.power import Seeds, lasting_share, seeds_to_settle
from isoflop.analysis.ranking import Multiplier, Standing
from isoflop.analysis.report.format import decade, flops, interval, listed
from isoflop.results.record import Point

POWER = (1.96 + 0.84) / 1.96  # half-widths from 1 at which 80% of the estimates exclude it


@dataclass(frozen=True)
class Verdict:
    """What is known of a layer beside the best dense variant."""

    word: Literal["better", "worse", "equivalent", "inconclusive"]
    seeds: Seeds | None = None  # further ones that would settle it; None if settled, or none would


def verdict(analysis: Analysis, standing: Standing) -> Verdict | None:
    """The verdict on a variant; None without a multiplier, and for dense variants."""
    if not standing.shown or standing.variant in analysis.dense:
        return None
    if standing.differs:
        return Verdict(standing.differs)
    _, low, high = standing.shown.estimate
    if low >= 1 - analysis.margin and high <= 1 + analysis.margin:
        return Verdict("equivalent")
    return Verdict("inconclusive", _more_seeds(analysis, standing))


def _more_seeds(analysis: Analysis, standing: Standing) -> Seeds | None:
    """The cheapest further seeds of dense and of the variant that would settle a comparison."""
    fits, shown = analysis.fits, standing.shown
    noise = fits.fits["floor per variant"].noise
    if not shown or not standing.surface or not noise:
        return None
    sides = fits.variance_by_side(standing.variant)
    scale = float(shown.log_multiplier[1:].var()) / max(sum(sides), 1e-300)
    cells = [surface.cells for surface in fits.fits["floor per variant"].surfaces.values()]
    dense = np.concatenate([fits.surface(name).cells.seeds for name in fits.baselines])
    own = standing.surface.cells.seeds
    between = int(sum((part.seeds - 1).sum() for part in cells))
    price = _price(analysis, fits.baselines), _price(analysis, (standing.variant,))
    return seeds_to_settle(
        float(shown.log_multiplier[0]),
        (sides[0] * scale, sides[1] * scale),
        (float(dense.mean()), float(own.mean())),
        price,
        lasting_share(noise, float(np.concatenate([dense, own]).mean()), between),
        analysis.margin,
    )


def _price(analysis: Analysis, variants: tuple[str, ...]) -> float:
    """FLOPs of one seed of all cells of some variants."""
    cells: dict[Point, int] = {
        record.key.point: record.flops for record in analysis.records if record.variant in variants
    }
    return float(sum(cells.values()))


def larger_budget(multiplier: Multiplier, headline: Estimate) -> float | None:
    """The smallest budget, up to REACH times the largest, at which the trend would resolve it.

    The trend is a line through the logarithms of the multipliers at the budgets, for every
    bootstrap sample. It resolves the comparison where its interval excludes 1 and its value is far
    enough from 1 that an interval as wide as the present one would exclude 1 too.

    Args:
        multiplier: of the layer.
        headline: its multiplier at the largest budget.

    Returns:
        FLOPs of a cell; None if the trend is unknown or resolves nothing within that range.
    """
    value, low, high = headline
    ends = (low, value) if value > 1 else (value, high)
    if multiplier.trend not in ("grows", "fades") or not ends[0] > 0:
        return None
    half = math.log(ends[1] / ends[0])
    middle = np.log10(multiplier.budgets).mean()
    level, slope = np.log(multiplier.at_budget).mean(axis=1), multiplier.slope * math.log(10)
    for budget in multiplier.budgets[-1] * np.geomspace(1, REACH, 41)[1:]:
        value, low, high = estimate(level + slope * (np.log10(budget) - middle))
        if (low > 0 or high < 0) and abs(value) >= POWER * half:
            return float(budget)
    return None


def result(analysis: Analysis) -> dict[str, object]:
    """The result of a comparison as plain values, with five digits as on the leaderboard.

    `verdict` is better, worse, equivalent, inconclusive or no multiplier; `sentence` says all.
    """
    name = analysis.highlight
    standing = next((s for s in analysis.standings if s.variant == name), None)
    at = f"at {flops(analysis.headline)} FLOPs"
    values: dict[str, object] = {
        "budget": analysis.headline,
        "multiplier": None,
        "low": None,
        "high": None,
        "time_multiplier": None,
        "verdict": "no multiplier",
        "more_seeds_dense": None,
        "more_seeds_layer": None,
        "more_flops": None,
        "larger_budget": None,
    }
    outcome = verdict(analysis, standing) if standing else None
    if not standing or not standing.headline or not outcome:
        reason = standing.reason if standing else "it has no record yet"
        return values | {"sentence": f"{name} has no compute multiplier {at}: {reason}."}
    headline = standing.headline
    for key, end in zip(("multiplier", "low", "high"), headline, strict=True):
        values[key] = float(f"{end:.5g}")
    if standing.time:
        values["time_multiplier"] = float(f"{standing.time.value:.5g}")
    values["verdict"] = outcome.word
    sentence = (
        f"{name} has a compute multiplier of {interval(headline, unit='x')} {at} (95% interval)"
    )
    time = in_time(standing)
    if outcome.word == "equivalent":
        sentence += f": equivalent to {analysis.dense_name} within {100 * analysis.margin:.3g}%."
    elif outcome.word != "inconclusive":
        sentence += f": significantly {outcome.word} than {analysis.dense_name}."
    if outcome.word != "inconclusive":
        return values | {"sentence": f"{sentence}{time}"}
    if outcome.seeds:
        values["more_seeds_dense"] = outcome.seeds.baseline
        values["more_seeds_layer"] = outcome.seeds.variant
        values["more_flops"] = outcome.seeds.flops
    parts = [f"{sentence}: inconclusive at this noise.{time}", about_seeds(analysis, name, outcome)]
    if standing.multiplier:
        budget = larger_budget(standing.multiplier, headline)
        values["larger_budget"] = budget and float(f"{budget:.2g}")
        parts.append(_about_budgets(standing.multiplier, budget))
    return values | {"sentence": " ".join(part for part in parts if part)}


def in_time(standing: Standing) -> str:
    """What the time multiplier adds to that of compute, after a space; empty if it is not known."""
    if not standing.time or not standing.headline:
        return ""
    text = f" The time multiplier of {standing.variant} is {interval(standing.time, unit='x')}"
    if loses_time(standing):
        return f"{text}: it wins on FLOPs and loses on time."
    return f"{text}."


def loses_time(standing: Standing) -> bool:
    """Whether a variant wins on FLOPs, by its verdict, and loses on time."""
    return bool(standing.differs == "better" and standing.time and standing.time.high < 1)


def about_seeds(analysis: Analysis, variant: str | None, outcome: Verdict) -> str:
    """How many more seeds of which side would settle an inconclusive comparison."""
    seeds = outcome.seeds
    if not seeds:
        return "More seeds alone would not settle a difference of this size."
    dense = " and ".join(analysis.fits.baselines)
    parts = [
        f"{count} more seed{'s' if count > 1 else ''} of {of}"
        for count, of in ((seeds.baseline, dense), (seeds.variant, variant))
        if count
    ]
    return f"{listed(parts)} ({flops(seeds.flops)} FLOPs) would settle it with 80% power."


def _about_budgets(multiplier: Multiplier, budget: float | None) -> str:
    """Whether larger budgets would resolve an inconclusive comparison."""
    if budget:
        return (
            f"If its trend of {decade(estimate(multiplier.slope))} per decade of compute "
            "continues, which is an assumption, budgets of up to about "
            f"{flops(float(f'{budget:.2g}'))} FLOPs per cell would resolve it."
        )
    if multiplier.trend == "not stated":
        return "Its budgets span less than a decade, too little to say what larger ones would do."
    if multiplier.trend == "inconclusive":
        return (
            "Its trend with compute is inconclusive, so larger budgets may or may not resolve it."
        )
    return f"Its trend would not resolve it within {REACH:g} times the largest budget."
