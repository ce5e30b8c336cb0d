"""Least squares of L = E + A N^-alpha + B D^-beta for many samples of the losses at once.

Variants that share the floor E are one group and are fitted together; a variant with a floor of its
own is a group alone. Given E and the exponents, A and B follow from linear least squares. A grid
over E, alpha and beta therefore finds the valley of the global minimum for every sample, without a
starting point near any known answer; Levenberg-Marquardt steps with exact derivatives then lead to
its bottom.

Parameters of a group of V variants are stored in one row per sample: E; log a and log b of every
variant, the two terms at the middle of its cells, in nats; log alpha and log beta of every variant.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from isoflop.analysis.estimate import Array

EXPONENTS = (0.02, 3.0)  # bounds of alpha and beta
TERMS = (1e-9, 100.0)  # nats, bounds of the two terms at the middle of the cells
GRID = np.geomspace(0.05, 2.0, 10)  # of alpha and beta
FLOORS = np.linspace(0, 0.98, 11)  # the grid of E, relative to the lowest loss
LEAST_START = 1e-3  # nats, a term that the grid finds no use for starts from here
STEPS = 200
TOLERANCE = 1e-9  # relative decrease of the sum of squares at which a sample has converged
LONGEST_STEP = 2.0  # in any parameter
LEAST_DAMPING = 1e-12

Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Group:
    """The cells of variants with one floor; arrays have shape (cells,)."""

    log_n: Array  # natural logarithm of parameters, less its mean over the variant's cells
    log_d: Array  # the same of tokens
    variant: Indices  # 0 to variants - 1
    weight: Array  # one over the standard deviation of the noise

    @property
    def variants(self) -> int:
        return int(self.variant.max()) + 1


@dataclass(frozen=True)
class Solution:
    """The least-squares parameters of every sample, see the module."""

    group: Group
    theta: Array  # (samples, 1 + 4 variants)
    converged: Flags  # (samples,)

    @property
    def floor(self) -> Array:
        """E, shape (samples,)."""
        return self.theta[:, 0]

    @property
    def log_terms(self) -> Array:
        """Logarithm of A N^-alpha and B D^-beta at the middle, shape (samples, variants, 2)."""
        return self.theta[:, 1 : 1 + 2 * self.group.variants].reshape(len(self.theta), -1, 2)

    @property
    def exponents(self) -> Array:
        """alpha and beta, shape (samples, variants, 2)."""
        return np.exp(self.theta[:, 1 + 2 * self.group.variants :]).reshape(len(self.theta), -1, 2)

    def fitted(self) -> Array:
        """The fitted loss of sample 0, shape (cells,)."""
        return _model(self.group, self.theta[:1])[0][0] / self.group.weight

    def hat(self) -> Array:
        """The hat matrix of sample 0 (linearised, in weighted losses), shape (cells, cells)."""
        _, jacobian = _model(self.group, self.theta[:1])
        left, sizes, _ = np.linalg.svd(jacobian[0] / np.linalg.norm(jacobian[0], axis=0))
        left = left[:, : int((sizes > 1e-7 * sizes[0]).sum())]
        return left @ left.T


def solve(group: Group, losses: Array) -> Solution:
    """Fit the law to every sample.

    Args:
        group: the cells, of V variants.
        losses: nats per token, shape (samples, cells).
    """
    shape = 2 * group.variants
    low, high = (
        np.concatenate([[floor], np.full(shape, np.log(term)), np.full(shape, np.log(exponent))])
        for floor, term, exponent in zip((0.0, np.inf), TERMS, EXPONENTS, strict=True)
    )
    theta, converged = _descend(group, losses, np.clip(_start(group, losses), low, high), low, high)
    return Solution(group, theta, converged)


class _Nodes:
    """Weighted sums of one variant at pairs of exponents; A and B for a given floor and losses."""

    def __init__(self, group: Group, variant: int, alpha: Array, beta: Array) -> None:
        """alpha and beta have shape (nodes,)."""
        mine = group.variant == variant
        self.weight = group.weight[mine]
        self.of_n = self.weight * np.exp(-alpha[:, None] * group.log_n[mine])
        self.of_d = self.weight * np.exp(-beta[:, None] * group.log_d[mine])
        self.nn = (self.of_n**2).sum(axis=1)
        self.dd = (self.of_d**2).sum(axis=1)
        self.nd = (self.of_n * self.of_d).sum(axis=1)
        self.determinant = self.nn * self.dd - self.nd**2

    def terms(self, n: Array, d: Array) -> tuple[Array, Array]:
        """Non-negative a and b from the weighted products with each column, (samples, nodes)."""
        a = (n * self.dd - d * self.nd) / self.determinant
        b = (d * self.nn - n * self.nd) / self.determinant
        alone_a, alone_b = np.maximum(n, 0) / self.nn, np.maximum(d, 0) / self.dd
        without_b = alone_a * n > alone_b * d
        inside = (a > 0) & (b > 0)
        return (
            np.where(inside, a, np.where(without_b, alone_a, 0)),
            np.where(inside, b, np.where(without_b, 0, alone_b)),
        )


def _start(group: Group, losses: Array) -> Array:
    """The best node of the grid for every sample, as parameters."""
    alpha, beta = (mesh.ravel() for mesh in np.meshgrid(GRID, GRID, indexing="ij"))
    every = np.arange(len(losses))
    floors = losses.min(axis=1) * FLOORS[:, None]
    squares = np.zeros_like(floors)
    best: list[tuple[Indices, Array, Array]] = []  # by variant: node, a and b, (floors, samples)
    for variant in range(group.variants):
        nodes = _Nodes(group, variant, alpha, beta)
        weighted = losses[:, group.variant == variant] * nodes.weight
        with_n, with_d = weighted @ nodes.of_n.T, weighted @ nodes.of_d.T
        ones_n, ones_d = nodes.of_n @ nodes.weight, nodes.of_d @ nodes.weight
        node, a, b = np.empty(floors.shape, int), np.empty_like(floors), np.empty_like(floors)
        for i, floor in enumerate(floors):
            n, d = with_n - floor[:, None] * ones_n, with_d - floor[:, None] * ones_d
            at_a, at_b = nodes.terms(n, d)
            gain = at_a * n + at_b * d  # by which the terms lower the sum of squares
            node[i] = gain.argmax(axis=1)
            a[i], b[i] = at_a[every, node[i]], at_b[every, node[i]]
            left = weighted - floor[:, None] * nodes.weight
            squares[i] += (left**2).sum(axis=1) - gain[every, node[i]]
        best.append((node, a, b))
    floor = squares.argmin(axis=0)
    theta = [floors[floor, every][:, None]]
    theta += [
        np.log(np.maximum(np.stack([a, b], axis=-1)[floor, every], LEAST_START)) for _, a, b in best
    ]
    theta += [np.log(np.stack([alpha, beta], axis=-1)[node[floor, every]]) for node, _, _ in best]
    return np.concatenate(theta, axis=1)


def _model(group: Group, theta: Array) -> tuple[Array, Array]:
    """Weighted losses (samples, cells), and their derivative (samples, cells, parameters)."""
    a = 1 + 2 * group.variant  # the columns of theta that a cell depends on
    b, alpha, beta = a + 1, a + 2 * group.variants, a + 2 * group.variants + 1
    slope_n, slope_d = np.exp(theta[:, alpha]) * group.log_n, np.exp(theta[:, beta]) * group.log_d
    of_n = group.weight * np.exp(theta[:, a] - slope_n)
    of_d = group.weight * np.exp(theta[:, b] - slope_d)
    cells = np.arange(len(a))
    jacobian = np.zeros((len(theta), len(a), theta.shape[1]))
    jacobian[:, :, 0] = group.weight
    jacobian[:, cells, a] = of_n
    jacobian[:, cells, b] = of_d
    jacobian[:, cells, alpha] = -of_n * slope_n
    jacobian[:, cells, beta] = -of_d * slope_d
    return theta[:, :1] * group.weight + of_n + of_d, jacobian


def _descend(
    group: Group, losses: Array, theta: Array, low: Array, high: Array
) -> tuple[Array, Flags]:
    """Levenberg-Marquardt within the bounds; every sample has its own damping."""
    theta, target = theta.copy(), losses * group.weight
    predicted, jacobian = _model(group, theta)
    left = target - predicted
    squares = (left**2).sum(axis=1)
    damping = np.full(len(theta), 1e-3)
    converged = np.zeros(len(theta), dtype=bool)
    busy = np.arange(len(theta))
    for _ in range(STEPS):
        now = theta[busy]
        step = _step(jacobian, left[busy], damping[busy], now <= low, now >= high)
        trial = np.clip(now + np.clip(step, -LONGEST_STEP, LONGEST_STEP), low, high)
        predicted, trial_jacobian = _model(group, trial)
        trial_left = target[busy] - predicted
        trial_squares = (trial_left**2).sum(axis=1)
        better = trial_squares < squares[busy]
        decrease = 1 - trial_squares / np.maximum(squares[busy], 1e-300)
        done = better & (decrease < TOLERANCE) & (damping[busy] < 0.1)
        done |= (np.abs(trial - now).max(axis=1) < 1e-9) | (damping[busy] > 1e9)
        taken = busy[better]
        theta[taken], left[taken] = trial[better], trial_left[better]
        squares[taken] = trial_squares[better]
        jacobian[better] = trial_jacobian[better]
        damping[busy] = np.maximum(damping[busy] * np.where(better, 0.2, 4), LEAST_DAMPING)
        converged[busy[done]] = True
        busy, jacobian = busy[~done], jacobian[~done]
        if not len(busy):
            break
    return theta, converged


def _step(jacobian: Array, left: Array, damping: Array, at_low: Flags, at_high: Flags) -> Array:
    """Damped Gauss-Newton steps, shape (samples, parameters); none out of the bounds."""
    gradient = (left[:, None, :] @ jacobian)[:, 0]
    held = (at_low & (gradient < 0)) | (at_high & (gradient > 0))
    normal = jacobian.transpose(0, 2, 1) @ jacobian
    diagonal = np.einsum("spp->sp", normal).copy()
    normal *= ~(held[:, :, None] | held[:, None, :])
    scale = np.maximum(diagonal, 1e-12 * diagonal.max(axis=1, keepdims=True))
    index = np.arange(normal.shape[1])
    normal[:, index, index] = np.where(held, 1, diagonal + damping[:, None] * scale)
    step = np.linalg.solve(normal, np.where(held, 0, gradient)[..., None])[..., 0]
    return np.asarray(step, dtype=float)
