"""The frontier of a variant: loss at the compute-optimal size, L*(C) = E + A C^-alpha.

Least squares on the losses, for all bootstrap samples of the minima at once (see `curves`; sample 0
is the data). `laws.fit` with its frontier law does the same for one table, on log losses and with
Huber's loss; with four minima that loss acts as the absolute value, whose minimum jumps from sample
to sample.

With three budgets the three constants pass through the minima exactly and nothing is left to check
the law with; the status says so. A pure power law (E = 0) would leave something, but bends where
losses do not: on a surface with E = 1.8 and three budgets a factor 4 apart it reads a multiplier of
1.5 as 1.40 and one of 2.5 as 2.15, with intervals that exclude the truth.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.analysis.parabola import Array

REACH = 100.0  # the dense frontier is not followed further beyond its budgets than this factor
ALPHAS = np.geomspace(0.01, 1.0, 60)


@dataclass(frozen=True)
class Frontier:
    """L(C) = floor + scale (C / unit)^-alpha, one law per sample; arrays (1 + samples,)."""

    budgets: Array  # (b,) it was fitted to
    floor: Array  # irreducible loss E
    scale: Array
    alpha: Array
    unit: float
    status: str

    @property
    def falls(self) -> bool:
        """Whether the loss of sample 0 falls with compute."""
        return bool(self.scale[0] * self.alpha[0] > 0)

    def predict(self, compute: Array) -> Array:
        """Loss, shape (1 + samples, len(compute))."""
        power = (compute / self.unit) ** -self.alpha[:, None]
        return self.floor[:, None] + self.scale[:, None] * power

    def invert(self, loss: Array) -> Array:
        """Compute at which each sample's law reaches its `loss` (shape (1 + samples, ...)).

        Held to REACH times beyond the budgets the law was fitted to: a loss under the floor, which
        the law never reaches, gives the upper end.
        """
        shape = (-1,) + (1,) * (loss.ndim - 1)
        floor, scale, alpha = (each.reshape(shape) for each in (self.floor, self.scale, self.alpha))
        excess = np.maximum((loss - floor) / scale, 1e-300)
        with np.errstate(over="ignore"):
            compute = self.unit * excess ** (-1 / alpha)
        return np.clip(compute, self.budgets.min() / REACH, self.budgets.max() * REACH)


def fit_frontier(budgets: Array, losses: Array) -> Frontier | None:
    """Fit L(C) to the minima of each sample by least squares; None with fewer than two budgets.

    Args:
        budgets: FLOPs, shape (b,).
        losses: shape (1 + samples, b), nats per token.
    """
    if len(budgets) < 2:
        return None
    unit = float(np.exp(np.log(budgets).mean()))
    log_c = np.log(budgets / unit)
    if len(budgets) == 2:
        logs = np.log(losses)
        alpha = -(logs @ log_c) / (log_c @ log_c)
        scale = np.exp(logs.mean(axis=1))
        floor = np.zeros_like(scale)
        return Frontier(budgets, floor, scale, alpha, unit, "power law: only 2 budgets")

    def project(alpha: Array) -> tuple[Array, Array, Array, Array]:
        """For exponents of shape (..., samples): the best floor >= 0 and scale, the squared error
        they leave, and the sign of its derivative in alpha."""
        basis = np.exp(-alpha[..., None] * log_c)
        centred = basis - basis.mean(axis=-1, keepdims=True)
        scale = (centred * losses).sum(axis=-1) / (centred**2).sum(axis=-1)
        floor = losses.mean(axis=-1) - scale * basis.mean(axis=-1)
        without = (basis * losses).sum(axis=-1) / (basis**2).sum(axis=-1)
        scale = np.where(floor < 0, without, scale)
        floor = np.maximum(floor, 0)
        left = losses - floor[..., None] - scale[..., None] * basis
        return floor, scale, (left**2).sum(axis=-1), scale * (left * log_c * basis).sum(axis=-1)

    best = project(ALPHAS[:, None])[2].argmin(axis=0)
    low = np.log(ALPHAS[np.maximum(best - 1, 0)])
    high = np.log(ALPHAS[np.minimum(best + 1, len(ALPHAS) - 1)])
    for _ in range(45):  # bisection, every sample at once
        middle = (low + high) / 2
        rising = project(np.exp(middle))[3] > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    alpha = np.exp((low + high) / 2)
    floor, scale, _, _ = project(alpha)
    status = "ok"
    if len(budgets) == 3:
        status = "3 budgets: the law passes through them, unchecked"
    elif floor[0] == 0:
        status = "no floor found: a power law"
    elif not ALPHAS[1] < alpha[0] < ALPHAS[-2]:
        status = "exponent at the edge of what is searched"
    return Frontier(budgets, floor, scale, alpha, unit, status)
