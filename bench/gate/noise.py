"""Whether losses are within the noise of stored ones: the statistics of the gate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

ERROR = 0.01  # family-wise false-alarm rate: how often the losses of unchanged code fail


@dataclass(frozen=True)
class Departure:
    """How far losses are from the stored ones."""

    z: float  # in standard deviations
    limit: float  # of |z|, that unchanged code rarely exceeds

    @property
    def ok(self) -> bool:
        return abs(self.z) <= self.limit


def departures(
    stored: Sequence[Sequence[float]], new: Sequence[float], groups: Sequence[tuple[str, object]]
) -> tuple[dict[str, Departure], list[Departure]]:
    """Do losses agree with the stored ones? Tested for every variant and for every cell.

    A cell's z is its loss minus the stored mean, over the standard deviation of that difference.
    The variance between seeds is pooled over the cells of equal size and budget: it depends on
    these far more than on the layer. A variant's z is the sum of its cells' z over the root of
    their number. Cells of equal seed share their data order, so the standard deviation of a
    variant's z may be above 1: it is estimated from the stored seeds, leaving out one at a time.
    Limits are two-sided, of Student's t. The tests of variants and those of cells have a
    family-wise error of `ERROR` / 2 (Bonferroni).

    Args:
        stored: losses by cell and seed, (cells, seeds).
        new: a loss for each cell.
        groups: of each cell the variant, and the size with the budget.
    Returns:
        the departure of each variant by name, and of each cell in order.
    """
    losses = np.array(stored)
    seeds = losses.shape[1]
    variant = np.array([name for name, _ in groups])
    indices = {setting: index for index, setting in enumerate(dict.fromkeys(g for _, g in groups))}
    group = np.array([indices[setting] for _, setting in groups])

    def scores(known: np.ndarray, tested: np.ndarray) -> np.ndarray:
        variance = known.var(axis=1, ddof=1)
        pooled = np.array([variance[group == index].mean() for index in range(len(indices))])
        return (tested - known.mean(axis=1)) / np.sqrt(pooled[group] * (1 + 1 / known.shape[1]))

    def whole(score: np.ndarray, name: str) -> float:
        scores_of_variant = score[variant == name]
        return float(scores_of_variant.sum() / math.sqrt(len(scores_of_variant)))

    names = list(dict.fromkeys(variant.tolist()))
    held_out = [scores(np.delete(losses, seed, axis=1), losses[:, seed]) for seed in range(seeds)]
    spread = math.sqrt(np.mean([whole(score, name) ** 2 for score in held_out for name in names]))
    score = scores(losses, np.array(new))
    limit = float(stats.t.isf(ERROR / 4 / len(names), len(names) * (seeds - 1)))
    of_variant = {name: Departure(whole(score, name) / max(spread, 1), limit) for name in names}
    degrees = (seeds - 1) * np.bincount(group)[group]
    of_cell = stats.t.isf(ERROR / 4 / len(score), degrees)
    return of_variant, [Departure(float(z), float(t)) for z, t in zip(score, of_cell, strict=True)]
