"""The minimum of a law's summed Huber loss on given rows, for many problems at once.

The objective is the **sum** over rows of Huber_delta(log L̂ - log L). With the mean, which is n
times flatter, an optimiser at its default tolerance stops far from the optimum (2404.10102).
The problems of a batch share the law and the inputs of the rows. They differ in their starts,
losses and row weights, so starts, bootstrap samples and simulated tables can all be batches.
"""

from __future__ import annotations

from itertools import product

import numpy as np
from scipy.special import ndtri
from scipy.stats import qmc

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Columns, Law

CHUNK = 60_000  # rows of all problems of a batch together, so that the Jacobian fits the cache
TOLERANCE = 1e-13  # stop when a step would lower the objective by less than this share
ROUNDING = 1e-20  # objective of rows that are fitted up to rounding
SINGULAR = 1e7  # condition number of the scaled Jacobian at which a minimum is not unique


class Problem:
    """A law on fixed rows, in the coordinates of the solver.

    A point is (c', theta) with c'_k = c_k exp(mean_n l_k): each coefficient is the size of its term
    in the middle of the data. This removes the ridge along which A and alpha vary together.
    Dimensions: S problems, K terms, P shape parameters, Q = K + P, n rows.
    """

    def __init__(self, law: Law, x: Columns, delta: float) -> None:
        self.law, self.x, self.delta = law, x, delta
        self.K = len(law.terms)
        bounds = [(0.0, np.inf)] * self.K + list(law.shapes.values())
        self.lower, self.upper = np.array(bounds).T

    def chunks(self, S: int) -> list[slice]:
        size = max(1, CHUNK // len(self.x[self.law.inputs[0]]))
        return [slice(i, i + size) for i in range(0, S, size)]

    def exponents(self, theta_SP: Array) -> tuple[Array, Array]:
        l_SKn, dl_SKPn = self.law.exponents(theta_SP, self.x)
        return l_SKn - l_SKn.mean(-1, keepdims=True), dl_SKPn - dl_SKPn.mean(-1, keepdims=True)

    def named(self, points_SQ: Array) -> Array:
        """Points as parameters of the law."""
        named_SQ = points_SQ.copy()
        for chunk in self.chunks(len(points_SQ)):
            l_SKn, _ = self.law.exponents(points_SQ[chunk, self.K :], self.x)
            named_SQ[chunk, : self.K] *= np.exp(-l_SKn.mean(-1))
        return named_SQ

    def point(self, named: Array) -> Array:
        """The inverse of `named`, for a single vector."""
        l_SKn, _ = self.law.exponents(named[None, self.K :], self.x)
        return np.concatenate([named[: self.K] * np.exp(l_SKn[0].mean(-1)), named[self.K :]])

    def at_bound(self, points: Array) -> Array:
        return (points <= self.lower) | (points >= self.upper)

    def starts(self, target_Sn: Array, weights_Sn: Array, number: int, seed: int) -> Array:
        """Sobol points within the bounds of the shapes, each with its best coefficients."""
        low, high = self.lower[self.K :], self.upper[self.K :]
        unit = qmc.Sobol(len(low), seed=seed).random(number)
        theta_SP = low + (high - low) * unit
        l_SKn, _ = self.exponents(theta_SP)
        # Relative residuals are log residuals to first order.
        X_SKn = np.exp(l_SKn) / target_Sn[:, None]
        return np.concatenate([_nnls(X_SKn, weights_Sn), theta_SP], axis=1)

    def evaluate(self, points_SQ: Array, log_target_Sn: Array) -> tuple[Array, Array]:
        """The log residuals (S, n) and their derivatives (S, Q, n)."""
        l_SKn, dl_SKPn = self.exponents(points_SQ[:, self.K :])
        unit_SKn = np.exp(l_SKn)
        terms_SKn = points_SQ[:, : self.K, None] * unit_SKn
        total_Sn = terms_SKn.sum(axis=1)
        slope_SPn = (terms_SKn[:, :, None] * dl_SKPn).sum(axis=1)
        J_SQn = np.concatenate([unit_SKn, slope_SPn], axis=1) / total_Sn[:, None]
        return np.log(total_Sn) - log_target_Sn, J_SQn

    def huber(self, residual_Sn: Array, weights_Sn: Array) -> Array:
        size = np.abs(residual_Sn)
        inside = np.minimum(size, self.delta)
        return (weights_Sn * inside * (size - inside / 2)).sum(axis=1)

    def minimise(
        self, points_SQ: Array, log_target_Sn: Array, weights_Sn: Array
    ) -> tuple[Array, Array, Array]:
        """The minima of S problems: points, objectives, and whether each converged."""
        shape = (len(points_SQ), log_target_Sn.shape[1])
        log_target_Sn = np.broadcast_to(log_target_Sn, shape)
        weights_Sn = np.broadcast_to(weights_Sn, shape)
        parts = [
            self._minimise(points_SQ[chunk], log_target_Sn[chunk], weights_Sn[chunk])
            for chunk in self.chunks(len(points_SQ))
        ]
        points, objectives, converged = zip(*parts, strict=True)
        return np.concatenate(points), np.concatenate(objectives), np.concatenate(converged)

    def _minimise(
        self, p: Array, y: Array, w: Array, iterations: int = 300
    ) -> tuple[Array, Array, Array]:
        """Projected Newton steps, damped by the matrix of reweighted least squares.

        The curvature of the Huber loss is 1 within delta and 0 outside: exact, but singular if few
        rows are inside. The weights of iteratively reweighted least squares, min(1, delta/|r|), are
        an upper bound of it. So curvature + damping * bound gives a safe step at damping 1 and a
        Newton step as damping goes to 0.
        """
        out = p.copy()
        objective = np.full(len(p), np.inf)
        done = np.zeros(len(p), dtype=bool)
        live = np.arange(len(p))
        p, damping = p.copy(), np.ones(len(p))
        r, J = self.evaluate(p, y)
        f = self.huber(r, w)
        for _ in range(iterations):
            size = np.maximum(np.abs(r), 1e-300)
            g = (J @ (w * np.clip(r, -self.delta, self.delta))[..., None])[..., 0]
            stuck = ((p <= self.lower) & (g > 0)) | ((p >= self.upper) & (g < 0))
            free = ~stuck
            g = np.where(free, g, 0.0)
            JT = J.swapaxes(1, 2)
            newton = (J * (w * (size <= self.delta))[:, None]) @ JT
            bound = (J * (w * np.minimum(1.0, self.delta / size))[:, None]) @ JT
            matrix = newton + damping[:, None, None] * bound
            for M in (matrix, bound):
                M *= free[:, :, None] & free[:, None, :]
                diagonal = np.einsum("sqq->sq", M)
                diagonal += np.where(free, 1e-12 * diagonal + 1e-300, 1.0)
            step = -np.linalg.solve(matrix, g[..., None])[..., 0]
            decrement = (g * np.linalg.solve(bound, g[..., None])[..., 0]).sum(axis=1) / 2
            finished = decrement <= TOLERANCE * f + ROUNDING
            out[live], objective[live], done[live] = p, f, finished
            keep = ~finished
            if not keep.any():
                break
            live, y, w, p, r, J, f, damping = (a[keep] for a in (live, y, w, p, r, J, f, damping))
            trial = np.clip(p + step[keep], self.lower, self.upper)
            with np.errstate(all="ignore"):
                r_new, J_new = self.evaluate(trial, y)
                f_new = self.huber(r_new, w)
            better = f_new < f  # False for NaN
            p, r, f = (
                np.where(better[:, None], trial, p),
                np.where(better[:, None], r_new, r),
                np.where(better, f_new, f),
            )
            J = np.where(better[:, None, None], J_new, J)
            damping = np.clip(np.where(better, damping / 4, damping * 8), 1e-6, 1e12)
        return out, objective, done

    def spread(self, point: Array, log_target_n: Array) -> tuple[Array, float] | None:
        """The factor F of the sandwich covariance F'F of a minimum, and its degrees of freedom.

        None if the minimum is not unique. The variance of each row is estimated by its squared
        residual over 1 - leverage (HC2). The degrees of freedom are those of Bell and McCaffrey
        (2002), the smallest of any parameter: without them the intervals of small tables are too
        narrow.
        """
        r_Sn, J_SQn = self.evaluate(point[None], log_target_n[None])
        r, J = r_Sn[0], J_SQn[0]
        Q, n = J.shape
        scale = np.linalg.norm(J, axis=1)
        if np.any(scale == 0) or np.linalg.cond(J / scale[:, None]) > SINGULAR:
            return None
        J = J / scale[:, None]
        U_Qn = np.linalg.qr(J.T)[0].T  # orthonormal rows with the span of the Jacobian's
        leverage = np.minimum((U_Qn**2).sum(axis=0), 1 - 1 / n)
        # The curvature of the expected Huber loss at a row is the probability that its residual is
        # within delta. A wider band estimates it, as delta may contain only a few rows.
        spread = np.median(np.abs(r)) / ndtri(0.75) * np.sqrt(n / max(n - Q, 1))
        band = max(self.delta, 2 * spread * n**-0.2)
        curvature = (J * (np.abs(r) <= band)) @ J.T * min(1.0, self.delta / band)
        influence = np.linalg.pinv(curvature, hermitian=True) @ J / np.sqrt(1 - leverage)
        scores = influence * np.clip(r, -self.delta, self.delta)
        square = influence**2  # of each parameter, by row
        cross = np.einsum("qn,in,jn->qij", square, U_Qn, U_Qn)
        fourth = square**2 @ (1 - 2 * leverage) + (cross**2).sum(axis=(1, 2))
        freedom = np.min((square @ (1 - leverage)) ** 2 / fourth)
        return np.linalg.qr(scores.T)[1] / scale, float(freedom)

    def sample(
        self, point: Array, factor: Array, freedom: float, number: int, rng: np.random.Generator
    ) -> Array:
        """Multivariate-t samples around a point, clipped to the bounds; `factor` and `freedom` are
        those of `spread`."""
        samples = rng.standard_normal((number, len(point))) @ factor
        samples /= np.sqrt(rng.chisquare(freedom, size=(number, 1)) / freedom)
        return np.clip(point + samples, self.lower, self.upper)


def _nnls(X_SKn: Array, weights_Sn: Array) -> Array:
    """The non-negative least-squares solutions c_SK of sum_k c_k X_k = 1, for S problems at once.

    K is small, so every subset of the coefficients is solved and the best feasible one is taken.
    """
    S, K, _ = X_SKn.shape
    XtX = (X_SKn * weights_Sn[:, None]) @ X_SKn.swapaxes(1, 2)
    Xty = (X_SKn * weights_Sn[:, None]).sum(-1)
    best_SK, gain_S = np.zeros((S, K)), np.full(S, -np.inf)
    for subset in product([False, True], repeat=K):
        on = np.array(subset)
        if not on.any():
            continue
        part = XtX[:, on][:, :, on]
        part = part + 1e-13 * np.trace(part, axis1=1, axis2=2)[:, None, None] * np.eye(on.sum())
        c = np.linalg.solve(part, Xty[:, on][..., None])[..., 0]
        gain = np.where((c >= 0).all(axis=1), (c * Xty[:, on]).sum(axis=1), -np.inf)
        better = gain > gain_S
        gain_S = np.where(better, gain, gain_S)
        best_SK[better] = 0
        best_SK[np.ix_(better, on)] = c[better]
    return best_SK
