"""Parabolas of loss in the logarithm of a quantity, and their minima: one per sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.analysis.estimate import CENTRAL_95, Array, Estimate, estimate

Status = Literal["ok", "concave", "edge", "few"]
EXPLAIN: dict[Status, str] = {
    "ok": "the parabola is convex and its minimum lies inside the grid",
    "concave": "the parabola is not convex, so it has no minimum",
    "edge": "the minimum lies at or beyond the edge of the grid",
    "few": "fewer than 4 points, too few to check a parabola",
}
LEAST_POINTS = 4


def projector(log_x: Array) -> tuple[Array, int]:
    """The matrix that maps losses to least-squares coefficients, and how many are determined.

    The coefficients are those of 1, z, z^2 with z = log_x - mean(log_x); the matrix has shape
    (3, points). With fewer than three distinct points the higher coefficients are zero.
    """
    terms = min(3, len(np.unique(log_x)))
    design = np.vander(log_x - log_x.mean(), terms, increasing=True)
    return np.vstack([np.linalg.pinv(design), np.zeros((3 - terms, len(log_x)))]), terms


@dataclass(frozen=True)
class Parabola:
    """Fitted parabolas. Arrays of samples have shape (1 + samples, ...), the data's own first."""

    log_x: Array  # (points,) increasing
    coefficients: Array  # (1 + samples, 3), see `projector`
    status: Status  # of the fit to the data
    log_lowest: Array  # (1 + samples,) where each parabola is lowest within the grid
    lowest: Array  # (1 + samples,) its value there

    def __call__(self, log_x: Array) -> Array:
        """The loss that the fit to the data gives at `log_x`."""
        return np.vander(log_x - self.log_x.mean(), 3, increasing=True) @ self.coefficients[0]

    @property
    def at(self) -> Estimate:
        """Where the parabola is lowest within the grid, in the units of x."""
        return estimate(np.exp(self.log_lowest))

    @property
    def loss(self) -> Estimate:
        """Its value there."""
        return estimate(self.lowest)

    @property
    def reaches_edge(self) -> bool:
        """Whether the interval of the minimum reaches the edge of the grid."""
        low, high = np.quantile(self.log_lowest, CENTRAL_95)
        return bool(low <= self.log_x[0] or high >= self.log_x[-1])


def fit_parabola(log_x: Array, losses: Array) -> Parabola:
    """Fit a parabola to each sample by least squares.

    Args:
        log_x: increasing, shape (points,).
        losses: shape (1 + samples, points).
    """
    coefficients = losses @ projector(log_x)[0].T
    middle = log_x.mean()
    low, high = log_x[0] - middle, log_x[-1] - middle
    _, slope, bend = coefficients.T
    convex = bend > 0
    vertex = -slope / np.where(convex, 2 * bend, 1)
    lower_end = np.where(slope * low + bend * low**2 <= slope * high + bend * high**2, low, high)
    z = np.where(convex, np.clip(vertex, low, high), lower_end)
    status: Status = "ok"
    if len(np.unique(log_x)) < LEAST_POINTS:
        status = "few"
    elif not convex[0]:
        status = "concave"
    elif not low < vertex[0] < high:
        status = "edge"
    lowest = (coefficients * np.stack([z**0, z, z**2], axis=1)).sum(axis=1)
    return Parabola(log_x, coefficients, status, z + middle, lowest)
