"""Mutants that change no result, and why: as (file, its line, the line changed)."""

from __future__ import annotations

CONTINUOUS = "the two sides are continuous quantities, equal with probability zero"

EQUIVALENT: dict[tuple[str, str, str], str] = {
    (
        "analysis/ratios.py",
        "alone[first, last] if length == 2 else observed[inside, inside].max() > limit",
        "alone[first, last] if length == 2 else observed[inside, inside].max() >= limit",
    ): CONTINUOUS,
    (
        "analysis/ratios.py",
        "alone = (low > 0) | (high < 0)",
        "alone = (low > 0) | (high <= 0)",
    ): CONTINUOUS,
    (
        "analysis/ratios.py",
        "better[order[first], order[last]] = rejected[first, last] and low[first, last] > 0",
        "better[order[first], order[last]] = rejected[first, last] and low[first, last] >= 0",
    ): CONTINUOUS,
}
