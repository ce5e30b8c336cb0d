"""Summed Huber loss of a law on given rows, and its minimum, for many problems side by side.

The objective is the **sum** over rows of Huber_delta(log L̂ - log L). Its mean is n times flatter
than an optimiser's default tolerance expects and stops far from the optimum, a mistake with a
history (2404.10102). Problems share the law and the rows' inputs and differ in start, losses and
row weights, so starts, bootstrap samples and simulated data sets are all batches.
"""

from __future__ import annotations

from copy import copy
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.constraints import Constraints
from isoflop.analysis.laws.law import Columns, Index, Law

MIDDLE = 256  # rows whose mean is the origin of the exponents
CHUNK = 60_000  # rows of all problems in a batch: keeps the Jacobian in cache
TOLERANCE = 1e-13  # of the objective, by which one more step would lower it
ROUNDING = 1e-24  # the objective of rows fitted to rounding
UNIT = 4 * np.finfo(float).eps  # error of a log residual, relative to the logarithms it is between


class Problem:
    """The law at fixed rows, in the coordinates it is solved in.

    A point is (c', theta), the free parameters, with c'_k = c_k exp(mean_n l_k): each coefficient
    is its term's size at the middle of the data, which takes out the ridge that ties A to alpha.
    Shapes: S problems, K terms, P shape parameters, F free parameters, n rows.
    """

    def __init__(
        self, law: Law, x: Columns, delta: float, constraints: Constraints | None = None
    ) -> None:
        self.law, self.delta = law, delta
        self.x = {name: x[name] for name in law.inputs}
        self.n = len(self.x[law.inputs[0]])
        # Rows whose mean is the middle of the data: any will do, and few are quick.
        self.middle = self.x
        if self.n > MIDDLE:
            every = -(-self.n // MIDDLE)
            self.middle = {name: values[::every] for name, values in self.x.items()}
        constraints = constraints or Constraints(law)
        K, self.K = len(law.terms), constraints.terms
        self.spread_cF = constraints.spread[:K, : self.K]
        self.spread_PF = constraints.spread[K:, self.K :]
        self.given_c, self.given_P = constraints.given[:K], constraints.given[K:]
        self.mean_cF = self.spread_cF / self.spread_cF.sum(axis=0)  # of a tied group's terms
        self.constrained = len(constraints.free) < len(law.names)
        self.lower, self.upper = constraints.lower, constraints.upper

    def rows(self, keep: Index) -> Problem:
        """The same problem, in the same coordinates, at some of its rows."""
        part = copy(self)
        part.x = {name: values[keep] for name, values in self.x.items()}
        part.n = len(keep)
        return part

    def chunks(self, S: int) -> list[slice]:
        size = max(1, CHUNK // self.n)
        return [slice(i, i + size) for i in range(0, S, size)]

    def shapes(self, points_SF: Array) -> Array:
        return points_SF[:, self.K :] @ self.spread_PF.T + self.given_P

    def exponents(self, points_SF: Array) -> tuple[Array, Array]:
        """Exponents l_SKn about the middle of the data, and their derivative by free shapes."""
        theta_SP = self.shapes(points_SF)
        l_SKn, dl_SKPn = self.law.exponents(theta_SP, self.x)
        middle_SKm, slope_SKPm = (l_SKn, dl_SKPn)
        if self.middle is not self.x:
            middle_SKm, slope_SKPm = self.law.exponents(theta_SP, self.middle)
        l_SK, dl_SKP = middle_SKm.mean(-1), slope_SKPm.mean(-1)
        if self.constrained:  # one origin for tied terms, none for a given one
            origin = self.spread_cF @ self.mean_cF.T
            l_SK, dl_SKP = l_SK @ origin.T, np.einsum("skp,jk->sjp", dl_SKP, origin)
        l_SKn, dl_SKPn = l_SKn - l_SK[..., None], dl_SKPn - dl_SKP[..., None]
        if self.constrained:
            dl_SKPn = np.einsum("skpn,pf->skfn", dl_SKPn, self.spread_PF)
        return l_SKn, dl_SKPn

    def named(self, points_SF: Array) -> Array:
        """Points in all of the law's own parameters."""
        theta_SP = self.shapes(points_SF)
        free_SF = points_SF[:, : self.K] * np.exp(-self._sizes(theta_SP))
        return np.concatenate([free_SF @ self.spread_cF.T + self.given_c, theta_SP], axis=1)

    def point(self, named: Array) -> Array:
        """The inverse of `named`, of one vector."""
        K = len(self.given_c)
        shapes = np.linalg.lstsq(self.spread_PF, named[K:] - self.given_P, rcond=None)[0]
        coefficients = named[:K] @ self.mean_cF * np.exp(self._sizes(named[None, K:])[0])
        return np.concatenate([coefficients, shapes])

    def _sizes(self, theta_SP: Array) -> Array:
        """Log of each free coefficient's term, at the middle of the data, per coefficient."""
        return self.law.exponents(theta_SP, self.middle)[0].mean(-1) @ self.mean_cF

    def at_bound(self, points: Array) -> NDArray[np.bool_]:
        return (points <= self.lower) | (points >= self.upper)

    def starts(self, target_n: Array, number: int, seed: int) -> Array:
        """Sobol points over the shapes' bounds, each with its best coefficients."""
        low, high = self.lower[self.K :], self.upper[self.K :]
        unit = qmc.Sobol(len(low), seed=seed).random(number) if len(low) else np.zeros((1, 0))
        points_SF = np.concatenate([np.zeros((len(unit), self.K)), low + (high - low) * unit], 1)
        for chunk in self.chunks(len(unit)):
            l_SKn, _ = self.exponents(points_SF[chunk])
            # Relative residuals are log residuals to first order.
            X_SKn = np.exp(l_SKn) / target_n
            given_Sn = np.einsum("k,skn->sn", self.given_c, X_SKn)
            X_SFn = np.einsum("kf,skn->sfn", self.spread_cF, X_SKn)
            points_SF[chunk, : self.K] = _nnls(X_SFn, 1 - given_Sn)
        return points_SF

    def evaluate(self, points_SF: Array, log_target_Sn: Array) -> tuple[Array, Array]:
        """Log residuals_Sn and their derivative_SFn."""
        l_SKn, dl_SKFn = self.exponents(points_SF)
        unit_SKn = np.exp(l_SKn)
        coefficients_SK = points_SF[:, : self.K] @ self.spread_cF.T + self.given_c
        terms_SKn = coefficients_SK[..., None] * unit_SKn
        total_Sn = terms_SKn.sum(axis=1)
        slope_SFn = (terms_SKn[:, :, None] * dl_SKFn).sum(axis=1)
        size_SFn = unit_SKn
        if self.constrained:
            size_SFn = np.einsum("skn,kf->sfn", unit_SKn, self.spread_cF)
        J_SFn = np.concatenate([size_SFn, slope_SFn], axis=1) / total_Sn[:, None]
        return np.log(total_Sn) - log_target_Sn, J_SFn

    def huber(self, residual_Sn: Array, weights_Sn: Array) -> Array:
        size = np.abs(residual_Sn)
        inside = np.minimum(size, self.delta)
        return (weights_Sn * inside * (size - inside / 2)).sum(axis=1)

    def minimise(
        self,
        points_SF: Array,
        log_target_Sn: Array,
        weights_Sn: Array,
        enough: Array | float = ROUNDING,
    ) -> tuple[Array, Array, Array]:
        """Points, objectives and whether each converged, of S problems solved side by side.

        `enough` is the fall of the objective, by problem, below which a step is not worth taking.
        """
        S = len(points_SF)
        shape = (S, log_target_Sn.shape[1])
        log_target_Sn = np.broadcast_to(log_target_Sn, shape)
        weights_Sn = np.broadcast_to(weights_Sn, shape)
        enough_S = np.broadcast_to(enough, S)
        parts = [
            self._minimise(
                points_SF[chunk], log_target_Sn[chunk], weights_Sn[chunk], enough_S[chunk]
            )
            for chunk in self.chunks(S)
        ]
        points, objectives, converged = zip(*parts, strict=True)
        return np.concatenate(points), np.concatenate(objectives), np.concatenate(converged)

    def _minimise(
        self, p: Array, y: Array, w: Array, enough: Array, iterations: int = 300
    ) -> tuple[Array, Array, Array]:
        """Projected Newton with the reweighted-least-squares matrix as its damping.

        Huber's own curvature is 1 within delta and 0 outside: exact, but singular when few rows
        are inside. min(1, delta/|r|), the weights of iteratively reweighted least squares, always
        bound it from above, so curvature + damping * bound is a step that is safe at damping 1
        and Newton's as damping goes to 0.
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
            # Below what rounding makes of the objective no fall shows, and steps go on at random.
            noise = UNIT * (w * np.minimum(size, self.delta) * np.maximum(1, np.abs(y))).sum(axis=1)
            finished = decrement <= TOLERANCE * f + enough + noise
            out[live], objective[live], done[live] = p, f, finished
            keep = ~finished
            if not keep.any():
                break
            live, y, w, p, r, J, f, damping, enough = (
                a[keep] for a in (live, y, w, p, r, J, f, damping, enough)
            )
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


def _nnls(X_SKn: Array, y_Sn: Array) -> Array:
    """Non-negative least squares of sum_k c_k X_k = y, for S problems at once: c_SK.

    K is small, so every subset of coefficients is solved and the best feasible one taken.
    """
    S, K, _ = X_SKn.shape
    XtX = X_SKn @ X_SKn.swapaxes(1, 2)
    Xty = (X_SKn * y_Sn[:, None]).sum(-1)
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
