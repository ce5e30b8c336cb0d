"""Errors of rows that go together: checkpoints of a run."""

import numpy as np
import pytest

from isoflop.analysis.laws.covariance import _blocks, covariance
from isoflop.analysis.laws.dense import CHINCHILLA
from isoflop.analysis.laws.fit import fit
from isoflop.analysis.laws.solver import Problem

TRUTH = {"E": 1.9, "A": 520.0, "B": 1900.0, "alpha": 0.345, "beta": 0.36}
SIZES = (5e7, 8e7, 1.4e8, 2.3e8, 3.8e8, 6e8)
POINTS = 30
TABLE = {
    "N": np.repeat(SIZES, POINTS),
    "D": np.tile(np.geomspace(4e8, 1.2e10, POINTS), len(SIZES)),
}
RUN = np.repeat(np.arange(len(SIZES)), POINTS)


def checkpoints(seed):
    """Losses of six runs, each off by its own .02 nats, with .007 of every checkpoint."""
    rng = np.random.default_rng(seed)
    off = 0.02 * rng.standard_normal(len(SIZES))[RUN] + 0.007 * rng.standard_normal(len(RUN))
    return TABLE | {"L": CHINCHILLA.predict(TRUTH, TABLE) + off}


def coverage(tables, clustered, bootstrap=0):
    best = CHINCHILLA.optimum(TRUTH, 6 * 6e8 * 1.2e10, {})
    truth = TRUTH | {name: float(best[name]) for name in ("a", "N_opt", "L_opt")}
    held = dict.fromkeys(truth, 0)
    for seed in range(tables):
        runs = checkpoints(seed) | ({"run": RUN} if clustered else {})
        fitted = fit(CHINCHILLA, runs, seed=seed, start=TRUTH, bootstrap=bootstrap)
        intervals = fitted.intervals | fitted.derived_intervals
        for name, value in truth.items():
            held[name] += intervals[name][0] <= value <= intervals[name][1]
    return {name: count / tables for name, count in held.items()}


@pytest.mark.parametrize("bootstrap", [0, 200])
def test_intervals_of_checkpoints_cover_with_their_runs(bootstrap):
    rates = coverage(120, clustered=True, bootstrap=bootstrap)
    assert all(rate >= 0.85 for rate in rates.values()), rates


def test_intervals_of_checkpoints_do_not_cover_without_them():
    rates = coverage(40, clustered=False)
    assert rates["alpha"] < 0.5
    assert rates["N_opt"] < 0.5


def test_a_run_of_one_row_each_is_no_run():
    rng = np.random.default_rng(0)
    runs = CHINCHILLA.simulate(TRUTH, TABLE, 5e-3, rng)
    alone = fit(CHINCHILLA, runs)
    assert fit(CHINCHILLA, runs | {"run": np.arange(180.0)}).intervals == alone.intervals
    assert fit(CHINCHILLA, runs | {"run": np.zeros(180)}).n_runs is None
    assert fit(CHINCHILLA, runs | {"run": RUN}).n_runs == 6


def test_blocks_are_powers_of_what_a_run_leaves():
    """(I - U'U)^(-1/2) of every run, against numpy's own on the whole matrix."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 5, 40)
    U = np.linalg.qr(rng.standard_normal((40, 3)))[0].T
    values = rng.standard_normal(40)
    expected = np.empty(40)
    for run in range(5):
        rows = group == run
        h, W = np.linalg.eigh(np.eye(rows.sum()) - U[:, rows].T @ U[:, rows])
        expected[rows] = W @ np.diag(h**-0.5) @ W.T @ values[rows]
    np.testing.assert_allclose(_blocks(U, group).adjusted(values), expected)


def test_the_freedom_is_bell_and_mccaffreys():
    """By its definition: G'G of the projected rows, for a law that is linear in one coefficient."""
    rng = np.random.default_rng(0)
    runs = CHINCHILLA.simulate(TRUTH, TABLE, 5e-3, rng)
    problem = Problem(CHINCHILLA, runs, 10.0)
    point = problem.point(np.array(list(TRUTH.values())))
    log_L = np.log(runs["L"])
    point = problem.minimise(point[None], log_L[None], np.ones((1, 180)))[0][0]
    known = covariance(problem, point, log_L, RUN)
    X = problem.evaluate(point[None], log_L[None])[1][0].T
    H = X @ np.linalg.inv(X.T @ X) @ X.T
    freedoms = []
    for q in range(5):
        c = np.linalg.inv(X.T @ X)[:, q]
        G = []
        for run in range(6):
            rows = run == RUN
            h, W = np.linalg.eigh(np.eye(rows.sum()) - H[np.ix_(rows, rows)])
            adjust = W @ np.diag(np.maximum(h, 1 / 6) ** -0.5) @ W.T
            G.append((np.eye(180) - H)[:, rows] @ adjust @ X[rows] @ c)
        GG = np.array(G) @ np.array(G).T
        freedoms.append(np.trace(GG) ** 2 / np.trace(GG @ GG))
    assert known.freedom == pytest.approx(max(1, min(freedoms)), rel=0.1)
