"""A compute multiplier in words, and what it would take to settle an open one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from analysis.parabola import Estimate


@dataclass(frozen=True)
class Verdict:
    """What the interval of a multiplier says."""

    word: Literal["better", "worse", "not resolved"]
    more_seeds: int | None  # that would resolve it; None if it is resolved, or none would


def verdict(multiplier: Estimate, seeds: int) -> Verdict:
    """Better or worse if the interval excludes 1.

    If it does not, the seeds that would narrow it until it does, should the estimate stay: the
    half-width, in the logarithm and on the side of 1, is taken to fall as 1 / sqrt(seeds). What
    sizes depart from a parabola by no seed removes, so this is the least.

    Args:
        multiplier: with its interval; nan ends mean that the noise is unknown.
        seeds: of each cell that it rests on.
    """
    value, low, high = multiplier
    if low > 1:
        return Verdict("better", None)
    if high < 1:
        return Verdict("worse", None)
    distance = abs(math.log(value))
    if math.isnan(low) or not distance or not low:
        return Verdict("not resolved", None)
    half = math.log(value / low) if value > 1 else math.log(high / value)
    return Verdict("not resolved", math.floor(seeds * (half / distance) ** 2) + 1 - seeds)
