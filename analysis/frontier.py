"""The frontier of a variant by its parabolas: loss at the best size, L*(C) = E + A C^-alpha.

The law is fitted by least squares to the minima of the isoFLOP curves, for all bootstrap samples at
once (see `curves`; sample 0 is the data). `laws.fit` fits the same law to a table of runs, to log
losses with the Huber loss. That would not do here: with four minima the Huber loss acts like the
absolute value, and its minimum jumps from sample to sample.

With three budgets the three constants fit the minima exactly, which leaves no residual to check the
law with. Two give a power law without a floor. With three a pure power law (E = 0) would leave a
residual but the wrong shape: on a surface with E = 1.8 and three budgets a factor of 4 apart, it
gives 1.40 for a multiplier of 1.5 and 2.15 for one of 2.5, with intervals that exclude the truth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.analysis.estimate import Array

REACH = 100.0  # the frontier is extrapolated by at most this factor beyond its budgets
ALPHAS = np.geomspace(0.01, 1.0, 60)  # between two of these the best exponent is sought


@dataclass(frozen=True)
class Frontier:
    """L(C) = floor + scale (C / unit)^-alpha, for each sample: arrays of shape (1 + samples,)."""

    budgets: Array  # (b,) FLOPs, that it was fitted to
    floor: Array  # irreducible loss E
    scale: Array
    alpha: Array
    unit: float  # FLOPs

    @property
    def falls(self) -> bool:
        """Whether the loss falls with compute, in the fit to the data."""
        return bool(self.scale[0] * self.alpha[0] > 0)

    def predict(self, compute: Array) -> Array:
        """The loss at `compute` (FLOPs, shape (n,)): shape (1 + samples, n), nats per token."""
        power = (compute / self.unit) ** -self.alpha[:, None]
        return self.floor[:, None] + self.scale[:, None] * power

    def invert(self, loss: Array) -> Array:
        """The compute (FLOPs) at which each sample's law reaches `loss`.

        The result is limited to a factor of REACH beyond the budgets of the fit. A loss below the
        floor, which the law never reaches, gives the upper limit.

        Args:
            loss: shape (1 + samples, ...), also that of the result.
        """
        shape = (-1,) + (1,) * (loss.ndim - 1)
        floor, scale, alpha = (
            parameter.reshape(shape) for parameter in (self.floor, self.scale, self.alpha)
        )
        excess = np.maximum((loss - floor) / scale, 1e-300)
        with np.errstate(over="ignore"):
            compute = self.unit * excess ** (-1 / alpha)
        return np.clip(compute, self.budgets.min() / REACH, self.budgets.max() * REACH)


def least_compute(frontiers: Sequence[Frontier], loss: Array) -> Array:
    """The least FLOPs at which one of several frontiers reaches losses, sample by sample.

    Args:
        loss: shape (1 + samples, ...), also that of the result.
    """
    return np.min([frontier.invert(loss) for frontier in frontiers], axis=0)


def fit_frontier(budgets: Array, losses: Array) -> Frontier | None:
    """Fit L(C) to the minima of each sample by least squares. With one budget there is no fit.

    Args:
        budgets: FLOPs, shape (b,).
        losses: shape (1 + samples, b), nats per token.
    """
    if len(budgets) < 2:
        return None
    unit = float(np.exp(np.log(budgets).mean()))
    log_c = np.log(budgets / unit)
    if len(budgets) == 2:
        logs = np.log(np.maximum(losses, 1e-9))  # a sample of a wild fit may be negative
        alpha = -(logs @ log_c) / (log_c @ log_c)
        scale = np.exp(logs.mean(axis=1))
        floor = np.zeros_like(scale)
        return Frontier(budgets, floor, scale, alpha, unit)

    def project(alpha: Array) -> tuple[Array, Array, Array, Array]:
        """The best floor >= 0 and scale for exponents of shape (..., samples), their squared
        error, and the sign of its derivative with respect to alpha."""
        basis = np.exp(-alpha[..., None] * log_c)
        centred = basis - basis.mean(axis=-1, keepdims=True)
        scale = (centred * losses).sum(axis=-1) / (centred**2).sum(axis=-1)
        floor = losses.mean(axis=-1) - scale * basis.mean(axis=-1)
        without_floor = (basis * losses).sum(axis=-1) / (basis**2).sum(axis=-1)
        scale = np.where(floor < 0, without_floor, scale)
        floor = np.maximum(floor, 0)
        residual = losses - floor[..., None] - scale[..., None] * basis
        slope = scale * (residual * log_c * basis).sum(axis=-1)
        return floor, scale, (residual**2).sum(axis=-1), slope

    best = project(ALPHAS[:, None])[2].argmin(axis=0)
    low = np.log(ALPHAS[np.maximum(best - 1, 0)])
    high = np.log(ALPHAS[np.minimum(best + 1, len(ALPHAS) - 1)])
    for _ in range(45):  # bisection, for all samples at once
        middle = (low + high) / 2
        rising = project(np.exp(middle))[3] > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    alpha = np.exp((low + high) / 2)
    floor, scale, _, _ = project(alpha)
    return Frontier(budgets, floor, scale, alpha, unit)
