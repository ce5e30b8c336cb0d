"""One fitter for every law: variable projection for the start, a Huber polish for the answer.

All starts are one batch of the solver; a bootstrap is another, warm-started from the full table's
optimum (a cold multi-start reaches the same minima: see the tests).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.special import ndtri

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.constraints import Constraints
from isoflop.analysis.laws.covariance import bootstrap_samples, covariance, samples
from isoflop.analysis.laws.law import Columns, Index, Law, Number, Params
from isoflop.analysis.laws.solver import Problem

Interval = tuple[float, float]
Status = Literal["converged", "bound hit", "not identified", "too few points", "not converged"]

STARTS = 64
SEARCHED = 2000  # rows of a larger table that the search from many starts sees
FINALISTS = 3  # optima of that search that are polished on all rows
COVARIANCE_SAMPLES = 1000
SAME_OPTIMUM = 1e-6  # relative difference of objectives within which a start reached the best
FIRST_DELTA = 1e-3  # of the fit whose residuals say what delta should be
EFFICIENT = 1.345  # delta over the noise's sd: 95% as efficient as least squares on normal noise
LEAST_DELTA = 1e-4  # no run is known better
KNOWN = 0.95  # share of samples that must put a quantity at a finite value for an interval


@dataclass(frozen=True, eq=False)
class Fit:
    """A fitted law.

    `status` other than "converged": a parameter sits at its bound ("bound hit"); other parameters
    fit as well, or an optimum is at infinity within the noise ("not identified": nan intervals);
    no more rows than parameters ("too few points": nan intervals, as nothing is left to tell the
    noise; nan throughout if fewer); the minimiser ran out of steps ("not converged").

    `samples` (S, Q) are parameter vectors in the order of `params`: bootstrap refits if any were
    asked for, else samples from the sandwich covariance with Student's t for the few degrees of
    freedom. Intervals are their central 95%. `derived` is what is compute-optimal at C, the
    largest budget of the table.
    """

    law: Law
    params: dict[str, float]
    std_errors: dict[str, float]
    intervals: dict[str, Interval]
    derived: dict[str, float]
    derived_intervals: dict[str, Interval]
    status: Status
    objective: float  # sum over rows of Huber_delta(log prediction - log target)
    delta: float
    delta_from: Literal["given", "law", "data"]
    share_of_starts: float  # that reached the best optimum
    n_points: int  # rows fitted: optima, not runs, for Chinchilla's approaches 1 and 2
    n_runs: int | None  # by which errors are clustered, None if each row stands alone
    freedom: float  # Student's degrees of freedom of the covariance
    bootstrap: int  # refits that the intervals are from, 0 if they are from the covariance
    constraints: Constraints = field(repr=False)
    columns: Columns = field(repr=False)
    residuals: Array = field(repr=False)  # (n_points,) log prediction - log target
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
        spread = self.law.optimum(_named(self), C, self.columns)
        return {name: (float(value[name]), *_interval(spread[name])) for name in value}

    def summary(self) -> str:
        """The result as a page of text: how it was fitted, parameters, optima."""
        from isoflop.analysis.laws.summary import summary

        return summary(self)

    def to_json(self) -> dict[str, Any]:
        """The result without its samples; a number that is not uncertainty is None."""
        return {
            "law": self.law.name,
            "params": jsonable(self.params),
            "std_errors": jsonable(self.std_errors),
            "intervals": jsonable(self.intervals),
            "derived": jsonable(self.derived),
            "derived_intervals": jsonable(self.derived_intervals),
            "status": self.status,
            "objective": jsonable(self.objective),
            "n_points": self.n_points,
            "n_runs": self.n_runs,
            "fixed": self.constraints.fixed,
            "tied": [list(pair) for pair in self.constraints.ties],
            "delta": self.delta,
            "delta_from": self.delta_from,
            "freedom": jsonable(self.freedom),
            "bootstrap": self.bootstrap,
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
    fixed: Mapping[str, float] | None = None,
    ties: Sequence[tuple[str, str]] = (),
) -> Fit:
    """Fit a law to a table: arrays of one length, by the names in `law.columns` (and C if known).

    Columns `budget` and `run`, numbers, say which rows are one budget and one run; the errors of
    one run's rows are taken to go together. `delta` is the Huber threshold on log residuals; it
    moves the answer, so the result states it. Without it (and where the law has none) it is 1.345
    times the noise's sd, from the median size of a first fit's residuals. `bootstrap` is how many
    times to resample rows, or runs, for the intervals. `start`, parameters known to be near (a
    simulation's truth, a fit of a few rows fewer), saves the search from many starts. `fixed`
    gives parameters their values, and `ties` are pairs of parameters with one value.

    Raises:
        ConstraintError: `fixed` or `ties` ask for what the law does not allow.
    """
    constraints = Constraints(law, fixed, ties)
    columns = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    rows = law.reduce(columns)
    target = rows[law.target]
    log_target, n, F = np.log(target)[None], len(target), len(constraints.free)
    run = _runs(rows)
    problem = Problem(law, rows, delta or law.delta or FIRST_DELTA, constraints)
    about: dict[str, Any] = {
        "law": law,
        "constraints": constraints,
        "columns": columns,
        "n_points": n,
        "n_runs": None if run is None else int(run.max()) + 1,
        "delta_from": "given" if delta else "law" if law.delta else "data",
    }
    if n < F:
        return _unknown(problem, about)

    best = _search(problem, target, delta is None and law.delta is None, start, seed)
    point = best.point
    uncertainty = covariance(problem, point, log_target[0], run)
    rng = np.random.default_rng(seed)
    status: Status = "converged"
    spread = np.empty((0, F))
    if n == F:
        status = "too few points"
    elif uncertainty is None:
        status = "not identified"
    elif bootstrap:
        spread = bootstrap_samples(problem, point, log_target[0], run, uncertainty, bootstrap, rng)
    else:
        spread = samples(problem, point, uncertainty, COVARIANCE_SAMPLES, rng)
    if status == "converged" and not best.converged:
        status = "not converged"
    elif status == "converged" and np.any(problem.at_bound(point)):
        status = "bound hit"
    if status == "too few points" or uncertainty is None:
        errors = np.full(len(law.names), np.nan)
    elif bootstrap:
        errors = np.std(problem.named(spread), axis=0)
    else:
        errors = uncertainty.std_errors(problem, point)
    return _result(
        problem,
        about
        | {
            "std_errors": dict(zip(law.names, map(float, errors), strict=True)),
            "objective": best.objective,
            "share_of_starts": best.share,
            "freedom": uncertainty.freedom if uncertainty else np.nan,
            "bootstrap": len(spread) if bootstrap else 0,
            "residuals": problem.evaluate(point[None], log_target)[0][0],
        },
        status,
        problem.named(np.concatenate([point[None], spread])),
    )


@dataclass(frozen=True)
class Optimum:
    """The best minimum of a search."""

    point: Array
    objective: float
    converged: bool
    share: float


def _search(
    problem: Problem, target: Array, delta_from_data: bool, start: Params | None, seed: int
) -> Optimum:
    """The minimum that is lowest from all starts; sets the problem's delta if it is to be found."""
    n = problem.n
    part, keep = problem, np.arange(n)
    if start is not None:
        points = problem.point(np.array([start[name] for name in problem.law.names]))[None]
    else:
        if n > SEARCHED:
            keep = np.sort(np.random.default_rng(seed).permutation(n)[:SEARCHED])
            part = problem.rows(keep)
        points = part.starts(target[keep], STARTS, seed)
    log_target, ones = np.log(target[keep])[None], np.ones((1, len(keep)))
    points, objectives, converged = part.minimise(points, log_target, ones)
    if delta_from_data:
        best = points[[np.argmin(objectives)]]
        part.delta = problem.delta = _delta(part.evaluate(best, log_target)[0][0], points.shape[1])
        points, objectives, converged = part.minimise(points, log_target, ones)
    lowest = objectives.min() * (1 + SAME_OPTIMUM) + len(keep) * 1e-20
    share = float(np.mean(objectives <= lowest))
    if part is not problem:
        order = np.argsort(objectives)
        _, first = np.unique(np.round(objectives[order] / lowest, 3), return_index=True)
        points, objectives, converged = problem.minimise(
            points[order[first[:FINALISTS]]], np.log(target)[None], np.ones((1, n))
        )
    lowest_of = int(np.argmin(objectives))
    return Optimum(
        points[lowest_of], float(objectives[lowest_of]), bool(converged[lowest_of]), share
    )


def _delta(residuals: Array, F: int) -> float:
    """Huber's delta from a first fit: as many residuals as it has parameters are 0 by the fit."""
    size = np.sort(np.abs(residuals))[max(F - 1, 0) :]
    return max(EFFICIENT * float(np.median(size) / ndtri(0.75)), LEAST_DELTA)


def _runs(rows: Columns) -> Index | None:
    """The index of each row's run, or None where no run has two rows or all are of one."""
    if "run" not in rows:
        return None
    values, index = np.unique(rows["run"], return_inverse=True)
    return index if 1 < len(values) < len(index) else None


def _unknown(problem: Problem, about: dict[str, Any]) -> Fit:
    """The Fit of fewer rows than parameters."""
    names = problem.law.names
    nothing = {
        "std_errors": dict.fromkeys(names, np.nan),
        "objective": np.nan,
        "share_of_starts": 0.0,
        "freedom": np.nan,
        "bootstrap": 0,
        "residuals": np.full(about["n_points"], np.nan),
    }
    return _result(problem, about | nothing, "too few points", np.full((1, len(names)), np.nan))


def _result(problem: Problem, about: dict[str, Any], status: Status, named: Array) -> Fit:
    """The Fit of parameter vectors `named`: the answer, then the samples."""
    law, columns = problem.law, about["columns"]
    params = dict(zip(law.names, map(float, named[0]), strict=True))
    spread = named[1:] if len(named) > 1 else np.full((1, len(law.names)), np.nan)
    intervals = {name: _interval(spread[:, q]) for q, name in enumerate(law.names)}
    C = float(np.max(law.flops(columns)))
    derived = law.optimum(params, C, columns)
    optima = law.optimum(dict(zip(law.names, spread.T, strict=True)), C, columns)
    derived_intervals = {name: _interval(value) for name, value in optima.items()}
    if (
        status == "converged"
        and not np.isfinite([*intervals.values(), *derived_intervals.values()]).all()
    ):
        status = "not identified"
    return Fit(
        params=params,
        intervals=intervals,
        derived=({"C": C} if derived else {}) | {name: float(v) for name, v in derived.items()},
        derived_intervals=derived_intervals,
        status=status,
        delta=problem.delta,
        samples=spread,
        **about,
    )


def _named(fitted: Fit) -> dict[str, Array]:
    return dict(zip(fitted.law.names, fitted.samples.T, strict=True))


def _interval(samples: Number) -> Interval:
    """The central 95% of what is finite; a sample may put an optimum at infinity."""
    values = np.atleast_1d(samples)
    finite = values[np.isfinite(values)]
    if len(finite) < max(KNOWN * len(values), 1):
        return np.nan, np.nan
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)


def jsonable(value: Any) -> Any:
    """JSON has no nan."""
    if isinstance(value, dict):
        return {name: jsonable(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [jsonable(entry) for entry in value]
    return value if value is None or isinstance(value, str) or np.isfinite(value) else None
