"""The fitter of every law: variable projection gives the starts, Newton steps the Huber minimum.

All starts are solved as one batch, and so are all bootstrap samples, which start from the optimum
of the full table (many random starts reach the same minima: see the tests).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from isoflop.analysis.estimate import CENTRAL_95, Array, Estimate
from isoflop.analysis.laws.law import Columns, Law, Number, Params
from isoflop.analysis.laws.solver import Problem

Interval = tuple[float, float]
Status = Literal["converged", "bound hit", "not identified", "too few points", "not converged"]

STARTS = 64
COVARIANCE_SAMPLES = 2000
SAME_OPTIMUM = 1e-6  # relative difference from the best objective at which a start reached it


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    `status` is "converged" or a reason not to trust the fit:

    - "bound hit": a parameter is at its bound;
    - "not identified": other parameters fit equally well; the intervals are nan;
    - "too few points": no more rows than parameters, so that the noise cannot be estimated and the
      intervals are nan; with fewer rows than parameters everything is nan;
    - "not converged": the minimiser ran out of steps.

    `samples` (S, Q) are parameter vectors in the order of `params`. With a bootstrap these are
    refits to resampled rows, without those that have fewer distinct rows than parameters. Otherwise
    they are drawn from the sandwich covariance with Student's t for few degrees of freedom.
    Intervals are their central 95%. `derived` is what is compute-optimal at C, the largest budget
    of the table.
    """

    law: Law
    params: dict[str, float]
    intervals: dict[str, Interval]
    derived: dict[str, float]
    derived_intervals: dict[str, Interval]
    status: Status
    objective: float  # sum over rows of Huber_delta(log prediction - log target)
    delta: float
    share_of_starts: float  # that reached the best optimum
    n_points: int  # fitted rows: for Chinchilla's approaches 1 and 2 these are optima, not runs
    columns: Columns = field(repr=False)
    samples: Array = field(repr=False)

    def predict(self, columns: Columns) -> Array:
        """The prediction for each row, shape (n,)."""
        return self.law.predict(self.params, columns)

    def predict_interval(self, columns: Columns) -> Array:
        """The 95% interval of the prediction for each row, shape (n, 2), without a run's noise."""
        return np.quantile(self.law.predict(_named(self), columns), CENTRAL_95, axis=0).T

    def optimum(self, C: float) -> dict[str, Estimate]:
        """What is compute-optimal at C FLOPs, each quantity with its interval."""
        value = self.law.optimum(self.params, C, self.columns)
        samples = self.law.optimum(_named(self), C, self.columns)
        return {name: Estimate(float(value[name]), *_interval(samples[name])) for name in value}

    def to_json(self) -> dict[str, Any]:
        """The result without its samples; unknown numbers are None."""
        return {
            "law": self.law.name,
            "params": _known(self.params),
            "intervals": _known(self.intervals),
            "derived": _known(self.derived),
            "derived_intervals": _known(self.derived_intervals),
            "status": self.status,
            "objective": _known(self.objective),
            "n_points": self.n_points,
            "delta": self.delta,
            "share_of_starts": self.share_of_starts,
        }


def fit(
    law: Law,
    columns: Columns,
    *,
    delta: float | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    start: Params | None = None,
) -> Fit:
    """Fit a law to a table of runs.

    Args:
        law: what to fit.
        columns: arrays of equal length, by the names in `law.columns`, and C if it is known.
        delta: Huber threshold on log residuals; the law's if None. It changes the answer, so the
            result states it.
        bootstrap: number of resampled tables for the intervals; 0 for the sandwich covariance.
        seed: of the starts and samples.
        start: parameters near the optimum, such as those of a fit to almost the same rows. They
            replace the search from many starts.
    """
    delta = law.delta if delta is None else delta
    columns = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    rows = law.reduce(columns)
    target = rows[law.target]
    log_target, n, Q = np.log(target)[None], len(target), len(law.names)
    if n < Q:
        return _result(
            law, columns, "too few points", np.full((1, Q), np.nan), np.nan, delta, 0.0, n
        )

    problem = Problem(law, rows, delta)
    ones = np.ones((1, n))
    if start is None:
        starts = problem.starts(target[None], ones, STARTS, seed)
    else:
        starts = problem.point(np.array([start[name] for name in law.names]))[None]
    points, objectives, converged = problem.minimise(starts, log_target, ones)
    best = int(np.argmin(objectives))
    point, objective = points[best], float(objectives[best])
    share = float(np.mean(objectives <= objective * (1 + SAME_OPTIMUM) + n * 1e-20))

    spread = problem.spread(point, log_target[0])
    rng = np.random.default_rng(seed)
    status: Status = "converged"
    samples = np.empty((0, Q))
    if n == Q:
        status = "too few points"
    elif spread is None:
        status = "not identified"
    elif bootstrap:
        counts = rng.multinomial(n, np.full(n, 1 / n), size=bootstrap).astype(float)
        counts = counts[np.count_nonzero(counts, axis=1) >= Q]
        warm = np.broadcast_to(point, (len(counts), Q))
        samples, _, settled = problem.minimise(warm, log_target, counts)
        samples = samples[settled]
    else:
        samples = problem.sample(point, *spread, COVARIANCE_SAMPLES, rng)
    if status == "converged" and not converged[best]:
        status = "not converged"
    elif status == "converged" and np.any(problem.at_bound(point)):
        status = "bound hit"
    named = problem.named(np.concatenate([point[None], samples]))
    return _result(law, columns, status, named, objective, delta, share, n)


def _result(
    law: Law,
    columns: Columns,
    status: Status,
    named: Array,
    objective: float,
    delta: float,
    share: float,
    n: int,
) -> Fit:
    """The Fit of parameter vectors `named`: the fitted vector first, then the samples."""
    params = dict(zip(law.names, map(float, named[0]), strict=True))
    samples = named[1:] if len(named) > 1 else np.full((1, len(law.names)), np.nan)
    C = float(np.max(law.flops(columns)))
    derived = law.optimum(params, C, columns)
    spread = law.optimum(dict(zip(law.names, samples.T, strict=True)), C, columns)
    return Fit(
        law=law,
        params=params,
        intervals={name: _interval(samples[:, q]) for q, name in enumerate(law.names)},
        derived=({"C": C} if derived else {}) | {name: float(v) for name, v in derived.items()},
        derived_intervals={name: _interval(value) for name, value in spread.items()},
        status=status,
        objective=objective,
        delta=delta,
        share_of_starts=share,
        n_points=n,
        columns=columns,
        samples=samples,
    )


def _named(fitted: Fit) -> dict[str, Array]:
    return dict(zip(fitted.law.names, fitted.samples.T, strict=True))


def _interval(samples: Number) -> Interval:
    with np.errstate(invalid="ignore"):  # a sample may put an optimum at infinity
        low, high = np.quantile(samples, CENTRAL_95)
    return float(low), float(high)


def _known(value: Any) -> Any:
    """The value with None for nan, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _known(part) for name, part in value.items()}
    if isinstance(value, tuple):
        return [_known(part) for part in value]
    return value if np.isfinite(value) else None
