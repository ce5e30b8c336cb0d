"""One fitter for every law: variable projection for the start, a Huber polish for the answer.

All starts are one batch of the solver; a bootstrap is another, warm-started from the full table's
optimum (a cold multi-start reaches the same minima: see the tests).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from isoflop.analysis.laws.law import Array, Columns, Law, Number, Params
from isoflop.analysis.laws.solver import Problem

Interval = tuple[float, float]
Status = Literal["converged", "bound hit", "not identified", "too few points", "not converged"]

STARTS = 64
COVARIANCE_SAMPLES = 2000
SAME_OPTIMUM = 1e-6  # relative difference of objectives within which a start reached the best


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    `status` other than "converged": a parameter sits at its bound ("bound hit"); other parameters
    fit as well ("not identified": nan intervals); no more rows than parameters ("too few points":
    nan intervals, as nothing is left to tell the noise; nan throughout if fewer); the minimiser
    ran out of steps ("not converged").

    `samples` (S, Q) are parameter vectors in the order of `params`: bootstrap refits (rows
    resampled; a sample with fewer distinct rows than parameters is left out) if any were asked for,
    else samples from the sandwich covariance with Student's t for the few degrees of freedom.
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
    n_points: int  # rows fitted: optima, not runs, for Chinchilla's approaches 1 and 2
    columns: Columns = field(repr=False)
    samples: Array = field(repr=False)

    def predict(self, columns: Columns) -> Array:
        """The law at each row."""
        return self.law.predict(self.params, columns)

    def predict_interval(self, columns: Columns) -> Array:
        """(n, 2): the central 95% of the law at each row; a new run adds its own noise."""
        return np.quantile(self.law.predict(_named(self), columns), [0.025, 0.975], axis=0).T

    def optimum(self, C: float) -> dict[str, tuple[float, float, float]]:
        """What is compute-optimal at C FLOPs: each quantity's value, low and high end."""
        value = self.law.optimum(self.params, C, self.columns)
        samples = self.law.optimum(_named(self), C, self.columns)
        return {name: (float(value[name]), *_interval(samples[name])) for name in value}

    def to_json(self) -> dict[str, Any]:
        """The result without its samples; a number that is not known is None."""
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
    """Fit a law to a table: arrays of one length, by the names in `law.columns` (and C if known).

    `delta` is the Huber threshold on log residuals (by default the law's); it moves the answer,
    so the result states it. `bootstrap` is how many times to resample the rows for the intervals.
    `start`, parameters known to be near (a simulation's truth, a fit of a few rows fewer), saves
    the search from many starts.
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
    """The Fit of parameter vectors `named`: the answer, then the samples."""
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
        low, high = np.quantile(samples, [0.025, 0.975])
    return float(low), float(high)


def _known(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {name: _known(each) for name, each in value.items()}
    if isinstance(value, tuple):
        return [_known(each) for each in value]
    return value if np.isfinite(value) else None
