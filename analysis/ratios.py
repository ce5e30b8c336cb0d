"""Which variants differ: closed tests of the ratios of their multipliers, from paired samples.

Two multipliers of one sample share the baseline's noise, which cancels in their ratio, so that two
overlapping intervals say little about it. Two variants differ when

- the 95% interval of their ratio, over the samples, excludes 1; and
- every stretch of the sorted list that holds both is rejected too: the hypothesis that all its
  variants are equal is tested by the largest of their pairwise differences, each over its standard
  deviation, against the same maximum over the samples about their means.

The second keeps the chance that equal variants are told apart at 5%, however many there are (closed
testing over stretches, Einot and Gabriel 1975). Nothing depends on the order in which variants are
given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.analysis.estimate import CENTRAL_95, Array, Estimate, estimate

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Every pair of V variants, in the order in which they were given."""

    log_multipliers: Array  # (V, 1 + samples)
    better: NDArray[np.bool_]  # (V, V): the first is significantly better than the second

    def ratio(self, first: int, second: int) -> Estimate:
        """The multiplier of one variant over that of another."""
        return estimate(np.exp(self.log_multipliers[first] - self.log_multipliers[second]))

    @property
    def order(self) -> list[int]:
        """The variants by their multiplier, largest first."""
        return [int(i) for i in np.argsort(-self.log_multipliers[:, 0], kind="stable")]

    @property
    def ranks(self) -> list[int]:
        """One more than the number of significantly better variants."""
        return [int(rank) for rank in 1 + self.better.sum(axis=0)]

    @property
    def rank_intervals(self) -> list[tuple[int, int]]:
        """The ranks that the significant differences leave open to each variant."""
        last = len(self.better) - self.better.sum(axis=1)
        return [(rank, int(high)) for rank, high in zip(self.ranks, last, strict=True)]


def compare(log_multipliers: Array) -> Comparison:
    """Test every pair of variants.

    Args:
        log_multipliers: natural logarithms, shape (V, 1 + samples), the data's own first. Sample i
            is the same bootstrap sample for all variants. The baseline's row is 0: its noise is in
            the rows of the others.
    """
    count = len(log_multipliers)
    better = np.zeros((count, count), dtype=bool)
    if log_multipliers.shape[1] < 2:
        return Comparison(log_multipliers, better)
    order = np.argsort(-log_multipliers[:, 0], kind="stable")
    listed = log_multipliers[order]
    gap = listed[:, None] - listed[None]  # (V, V, 1 + samples)
    low, high = np.quantile(gap[..., 1:], CENTRAL_95, axis=2)
    alone = (low > 0) | (high < 0)
    deviation = np.maximum(gap[..., 1:].std(axis=2), 1e-12)
    observed = np.abs(gap[..., 0]) / deviation
    centred = np.abs(gap[..., 1:] - gap[..., 1:].mean(axis=2, keepdims=True)) / deviation[..., None]
    rejected = np.zeros((count, count), dtype=bool)  # of the stretch from first to last
    for length in range(count, 1, -1):
        for first in range(count - length + 1):
            last = first + length - 1
            wider = (first == 0 or rejected[first - 1, last]) and (
                last == count - 1 or rejected[first, last + 1]
            )
            if not wider:
                continue
            inside = slice(first, last + 1)
            largest = centred[inside, inside].max(axis=(0, 1))
            limit = np.quantile(largest, 1 - LEVEL)
            rejected[first, last] = (
                alone[first, last] if length == 2 else observed[inside, inside].max() > limit
            )
    for first in range(count):
        for last in range(first + 1, count):
            better[order[first], order[last]] = rejected[first, last] and low[first, last] > 0
    return Comparison(log_multipliers, better)
