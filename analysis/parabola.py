"""A parabola of loss in the logarithm of something, and where it is lowest, for every sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Status = Literal["ok", "concave", "edge", "few"]
EXPLAIN: dict[Status, str] = {
    "ok": "convex, with its minimum inside the grid",
    "concave": "the parabola is not convex: no minimum",
    "edge": "the minimum lies at the edge of the grid or beyond it",
    "few": "fewer than 4 points: a parabola through them has nothing left to be checked with",
}
LEAST_POINTS = 4


class Estimate(NamedTuple):
    """A value and the ends of its 95% interval (nan where the noise is not known)."""

    value: float
    low: float
    high: float


def estimate(samples: Array) -> Estimate:
    """The estimate of samples of one quantity, shape (1 + samples,): sample 0 is the data's own."""
    if len(samples) == 1:
        return Estimate(float(samples[0]), np.nan, np.nan)
    low, high = np.quantile(samples[1:], [0.025, 0.975])
    return Estimate(float(samples[0]), float(low), float(high))


def projector(log_x: Array) -> tuple[Array, int]:
    """The least-squares map from losses to coefficients, and how many of them are determined.

    Coefficients of 1, z, z^2 with z = log_x - mean(log_x), shape (3, points); with fewer than
    three distinct points the highest are zero.
    """
    terms = min(3, len(np.unique(log_x)))
    design = np.vander(log_x - log_x.mean(), terms, increasing=True)
    return np.vstack([np.linalg.pinv(design), np.zeros((3 - terms, len(log_x)))]), terms


@dataclass(frozen=True)
class Parabola:
    """Bootstrap samples are indexed first: shape (1 + samples, ...)."""

    log_x: Array  # (points,) increasing
    coefficients: Array  # (1 + samples, 3), see `projector`
    status: Status  # of sample 0
    log_lowest: Array  # (1 + samples,) where each parabola is lowest within the grid
    lowest: Array  # (1 + samples,) its value there

    def __call__(self, log_x: Array) -> Array:
        """Fitted loss of sample 0 at `log_x`."""
        return np.vander(log_x - self.log_x.mean(), 3, increasing=True) @ self.coefficients[0]

    @property
    def at(self) -> Estimate:
        """Where the parabola is lowest, held to the grid."""
        return estimate(np.exp(self.log_lowest))

    @property
    def loss(self) -> Estimate:
        """Its value there."""
        return estimate(self.lowest)

    @property
    def unsettled(self) -> bool:
        """Whether the interval of the minimum reaches the edge of the grid."""
        low, high = np.quantile(self.log_lowest, [0.025, 0.975])
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
