"""How well a fit is known: the sandwich covariance, by row or by run, and samples from it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import qr
from scipy.special import ndtri

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Index
from isoflop.analysis.laws.solver import Problem

SINGULAR = 1e7  # condition number of the scaled Jacobian from which a minimum is not unique
ROWS = 64  # rows at which a sample's losses are compared with their linear prediction
LINEAR = 0.1  # relative difference from it beyond which a sample is refitted
EXACT = 1e-9  # difference of log losses that is no difference
PRECISION = 1e-6  # of a sample's refit: its objective's fall per step over that of no refit
WEBB = np.sqrt([0.5, 1, 1.5, 0.5, 1, 1.5]) * [1, 1, 1, -1, -1, -1]


@dataclass(frozen=True, eq=False)
class Covariance:
    """factor' factor of a point's free parameters, with Student's degrees of freedom."""

    factor: Array  # (F, F)
    freedom: float

    def std_errors(self, problem: Problem, point: Array) -> Array:
        """(Q,) standard errors of all the law's parameters, to first order."""
        step = 1e-5 * np.maximum(np.abs(point), 1e-6)
        sides = [problem.named(point + sign * np.diag(step)) for sign in (1, -1)]
        return np.linalg.norm(self.factor @ ((sides[0] - sides[1]) / (2 * step[:, None])), axis=0)


def covariance(
    problem: Problem, point: Array, log_target_n: Array, run: Index | None = None
) -> Covariance | None:
    """The sandwich covariance of a minimum; None where the minimum is not unique.

    Residuals of a row, or of all rows of a run (`run`, its index by row), stand for their noise,
    divided by the square root of 1 - leverage (HC2; CR2 by run, Bell and McCaffrey 2002). Their
    degrees of freedom, the least of any parameter, say how few rows or runs that noise is known
    from: without them intervals of small tables are too narrow.
    """
    r_Sn, J_SFn = problem.evaluate(point[None], log_target_n[None])
    r, J = r_Sn[0], J_SFn[0]
    F, n = J.shape
    scale = np.linalg.norm(J, axis=1)
    if np.any(scale == 0) or not np.isfinite(J).all():
        return None
    J = J / scale[:, None]
    if np.linalg.cond(J) > SINGULAR:
        return None
    U_Fn = np.linalg.qr(J.T)[0].T  # orthonormal rows that span the Jacobian's
    # The curvature of the expected Huber loss at a row is the chance that its residual is
    # within delta; a wider band makes up for delta catching only a handful of rows.
    delta = problem.delta
    spread = np.median(np.abs(r)) / ndtri(0.75) * np.sqrt(n / max(n - F, 1))
    band = max(delta, 2 * spread * n**-0.2)
    curvature = (J * (np.abs(r) <= band)) @ J.T * min(1.0, delta / band)
    influence_Fn = np.linalg.pinv(curvature, hermitian=True) @ J
    psi = np.clip(r, -delta, delta)
    group = np.arange(n) if run is None else run
    scores, freedom = _scores(influence_Fn, psi, _blocks(U_Fn, group))
    return Covariance(np.linalg.qr(scores)[1] / scale, freedom)


@dataclass(frozen=True, eq=False)
class _Blocks:
    """The groups' blocks U_g of U (orthonormal rows), by U_g U_g' = W diag(h) W'.

    With them the powers of I - U_g' U_g, a matrix of the group's rows, act without it.
    """

    group: Index
    U: Array
    h: Array  # (G, F)
    W: Array  # (G, F, F)

    def sums(self, by_row: Array) -> Array:
        """(G, k) sums by group of (k, n)."""
        G = len(self.h)
        return np.stack([np.bincount(self.group, row, G) for row in by_row], axis=1)

    def adjusted(self, values: Array) -> Array:
        """(I - U_g' U_g)^(-1/2) times each group's part of values (n,)."""
        part = self.half(self.sums(self.U * values))
        return values + np.einsum("fn,nf->n", self.U, part[self.group])

    def half(self, in_U_GF: Array) -> Array:
        """The same on what lies in the span of U_g', in its coordinates, less the values."""
        inner = np.einsum("gfw,gf->gw", self.W, in_U_GF) * ((1 - self.h) ** -0.5 - 1) / self.h
        return np.einsum("gfw,gw->gf", self.W, inner)


def _blocks(U: Array, group: Index) -> _Blocks:
    G, F = int(group.max()) + 1, len(U)
    products = (U[:, None] * U[None]).reshape(F * F, -1)
    M = np.stack([np.bincount(group, row, G) for row in products], axis=1).reshape(G, F, F)
    h, W = np.linalg.eigh(M)
    return _Blocks(group, U, np.clip(h, 1e-12, 1 - 1 / max(G, 2)), W)


def _scores(influence: Array, psi: Array, blocks: _Blocks) -> tuple[Array, float]:
    """Each group's (G, F) share of the estimate's error, and Bell and McCaffrey's freedom."""
    scores = blocks.sums(influence * blocks.adjusted(psi))
    F = len(influence)
    cross = (influence[:, None] * blocks.U[None]).reshape(F * F, -1)
    B_GQW = blocks.sums(cross).reshape(-1, F, F) @ blocks.W
    v_GQ = blocks.sums(influence**2) + (B_GQW**2 / (1 - blocks.h)[:, None]).sum(axis=2)
    k_GQW = B_GQW * (1 - blocks.h[:, None]) ** -0.5 @ blocks.W.swapaxes(1, 2)
    k_GQ = (k_GQW**2).sum(axis=2)
    inner = np.einsum("gqf,gqe->qfe", k_GQW, k_GQW)
    trace = (v_GQ - k_GQ).sum(axis=0)
    trace_of_square = (v_GQ**2 - 2 * v_GQ * k_GQ).sum(axis=0) + (inner**2).sum(axis=(1, 2))
    return scores, float(max(1.0, np.min(trace**2 / np.maximum(trace_of_square, 1e-300))))


def samples(
    problem: Problem, point: Array, known: Covariance, number: int, rng: np.random.Generator
) -> Array:
    """Multivariate-t samples around a point.

    Where the law bends between the point and a sample, so that its losses are not the linear
    ones, the sample is the law fitted to the linear ones: steps along a ridge stay on it.
    """
    steps = rng.standard_normal((number, len(point))) @ known.factor
    steps /= np.sqrt(rng.chisquare(known.freedom, size=(number, 1)) / known.freedom)
    _, J_SFn = problem.evaluate(point[None], np.zeros((1, problem.n)))
    _, decisive = qr(J_SFn[0], mode="r", pivoting=True)  # rows without which it is not unique
    chosen = np.concatenate([decisive[: len(point)], rng.permutation(problem.n)])
    part = problem.rows(np.unique(chosen[:ROWS]))
    zero = np.zeros((1, part.n))
    log_loss, J_SFn = part.evaluate(point[None], zero)
    linear = steps @ J_SFn[0]
    moved = np.clip(point + steps, problem.lower, problem.upper)
    with np.errstate(all="ignore"):
        bent = part.evaluate(moved, zero)[0] - log_loss - linear
    far = ~(np.abs(bent).max(axis=1) <= LINEAR * np.abs(linear).max(axis=1) + EXACT)
    if far.any():
        start = np.broadcast_to(point, (int(far.sum()), len(point)))
        enough = PRECISION * part.huber(linear[far], np.ones((1, part.n)))
        moved[far], _, _ = part.minimise(
            start, log_loss + linear[far], np.ones((1, part.n)), enough
        )
    return moved


def bootstrap_samples(
    problem: Problem,
    point: Array,
    log_target_n: Array,
    run: Index | None,
    known: Covariance,
    number: int,
    rng: np.random.Generator,
) -> Array:
    """Refits to `number` tables: of resampled rows, or of the law and resampled runs' residuals.

    A sample with fewer distinct rows than parameters is left out. Of a few runs too few distinct
    ones would be drawn: instead each run's residuals, over the square root of 1 - leverage, are
    multiplied by one random weight (wild bootstrap, Webb's six) and by Student's for the few runs.
    """
    n, F = problem.n, len(point)
    parts = [np.empty((0, F))]
    ones = np.ones((1, n))
    if run is not None:
        r, J = (values[0] for values in problem.evaluate(point[None], log_target_n[None]))
        U = np.linalg.qr((J / np.linalg.norm(J, axis=1)[:, None]).T)[0].T
        noise = -_blocks(U, run).adjusted(r)
        law = log_target_n + r
    for chunk in problem.chunks(number):
        size = len(range(*chunk.indices(number)))
        if run is None:
            weights = rng.multinomial(n, np.full(n, 1 / n), size=size).astype(float)
            weights = weights[np.count_nonzero(weights, axis=1) >= F]
            target = log_target_n[None]
        else:
            wild = rng.choice(WEBB, size=(size, int(run.max()) + 1))
            wild *= np.sqrt(known.freedom / rng.chisquare(known.freedom, size=(size, 1)))
            weights, target = ones, law + wild[:, run] * noise
        start = np.broadcast_to(point, (max(len(weights), len(target)), F))
        if len(start):
            refits, _, settled = problem.minimise(start, target, weights)
            parts.append(refits[settled])
    return np.concatenate(parts)
