"""One fitter for every law: variable projection for the start, a Huber polish for the answer.

The minimiser (analysis.minimise) works on many problems at once, so all starts are one batch and a
bootstrap is another, warm-started from the full table's optimum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from analysis.laws import Array, Columns, Law, Number
from analysis.minimise import Problem

Interval = tuple[float, float]
Status = Literal["converged", "bound hit", "not identified", "too few points", "not converged"]

STARTS = 64
COVARIANCE_DRAWS = 4000


@dataclass(frozen=True)
class Fit:
    """A fitted law.

    `draws` (S, Q) are parameter vectors in the order of `params`: bootstrap refits (rows
    resampled; a draw with fewer distinct rows than parameters is left out) if any were asked for,
    else draws from the sandwich covariance with Student's t for the few degrees of freedom.
    Intervals are their central 95%.
    """

    law: Law
    params: dict[str, float]
    intervals: dict[str, Interval]
    derived: dict[str, float]
    derived_intervals: dict[str, Interval]
    status: Status
    objective: float  # the summed Huber loss of the log residuals
    delta: float
    share_of_starts: float  # that reached the best optimum
    n_points: int
    columns: Columns = field(repr=False)
    draws: Array = field(repr=False)

    def predict(self, columns: Columns) -> Array:
        """The law's value at each row, from the fitted parameters."""
        return self.law.predict(self.params, columns)

    def predict_interval(self, columns: Columns) -> Array:
        """(n, 2): the central 95% of the law's mean at each row; a new run adds its own noise."""
        return np.quantile(self.law.predict(self._named(), columns), [0.025, 0.975], axis=0).T

    def optimum(self, C: float) -> dict[str, tuple[float, float, float]]:
        """What is compute-optimal at C FLOPs: value, low and high end of each quantity."""
        value = self.law.optimum(self.params, C, self.columns)
        draws = self.law.optimum(self._named(), C, self.columns)
        return {name: (float(value[name]), *_interval(draws[name])) for name in value}

    def to_json(self) -> dict[str, Any]:
        return {
            "law": self.law.name,
            "params": self.params,
            "intervals": self.intervals,
            "derived": self.derived,
            "derived_intervals": self.derived_intervals,
            "status": self.status,
            "objective": self.objective,
            "n_points": self.n_points,
            "delta": self.delta,
            "share_of_starts": self.share_of_starts,
        }

    def _named(self) -> dict[str, Array]:
        return dict(zip(self.law.names, self.draws.T, strict=True))


def _interval(draws: Number) -> Interval:
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def fit(
    law: Law,
    columns: Columns,
    *,
    delta: float | None = None,
    bootstrap: int = 0,
    seed: int = 0,
) -> Fit:
    """Fit a law to columns of n rows each, by name (`law.columns`).

    `delta` is the Huber threshold on log-loss residuals (the law's own by default); it moves the
    answer, so the result states it. `bootstrap` resamples rows that many times for the intervals.
    """
    delta = law.delta if delta is None else delta
    columns = {name: np.asarray(values, dtype=float) for name, values in columns.items()}
    n = len(columns[law.columns[0]])
    x, target_Sn, weights_Sn = law.reduce(columns, np.ones((1, n)))
    problem = Problem(law, x, delta)
    rows = int(np.count_nonzero(weights_Sn))
    if rows < len(law.names):
        nothing = dict.fromkeys(law.names, float("nan"))
        empty = np.full((0, len(law.names)), np.nan)
        return Fit(
            law,
            nothing,
            {},
            {},
            {},
            "too few points",
            float("nan"),
            delta,
            0.0,
            rows,
            columns,
            empty,
        )

    starts = problem.starts(target_Sn, weights_Sn, STARTS, seed)
    points, objective, converged = problem.minimise(starts, np.log(target_Sn), weights_Sn)
    best = int(np.argmin(objective))
    point, objective_best = points[best], float(objective[best])
    share = float(np.mean(objective <= objective_best * (1 + 1e-6) + 1e-15))
    identified, covariance = problem.covariance(point, np.log(target_Sn[0]), weights_Sn[0])

    rng = np.random.default_rng(seed)
    if bootstrap:
        counts_Sn = rng.multinomial(n, np.full(n, 1 / n), size=bootstrap).astype(float)
        _, target_Sm, weights_Sm = law.reduce(columns, counts_Sn)
        start = np.broadcast_to(point, (bootstrap, len(point)))
        target_Sm = np.broadcast_to(target_Sm, weights_Sm.shape)
        enough = np.count_nonzero(weights_Sm, axis=1) >= len(point)
        draws, _, settled = problem.minimise(
            start[enough], np.log(target_Sm[enough]), weights_Sm[enough]
        )
        draws = draws[settled]
    else:
        draws = problem.sample(point, covariance, rows - len(point), COVARIANCE_DRAWS, rng)

    status: Status = "converged"
    if not identified:
        status = "not identified"
    elif np.any(problem.at_bound(point)):
        status = "bound hit"
    elif not converged[best]:
        status = "not converged"
    params = dict(zip(law.names, map(float, problem.named(point[None])[0]), strict=True))
    draws = problem.named(draws)
    budget = float(np.max(columns["C"] if "C" in columns else 6 * columns["N"] * columns["D"]))
    value = law.optimum(params, budget, columns)
    spread = law.optimum(dict(zip(law.names, draws.T, strict=True)), budget, columns)
    return Fit(
        law=law,
        params=params,
        intervals={name: _interval(draws[:, q]) for q, name in enumerate(law.names)},
        derived={"C": budget} | {name: float(v) for name, v in value.items()},
        derived_intervals={name: _interval(v) for name, v in spread.items()},
        status=status,
        objective=objective_best,
        delta=delta,
        share_of_starts=share,
        n_points=rows,
        columns=columns,
        draws=draws,
    )
