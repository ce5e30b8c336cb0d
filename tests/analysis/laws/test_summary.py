"""A fit against scipy's own least squares on the same rows, and how it is printed."""

import re

import numpy as np
import pytest
from scipy.optimize import least_squares

from isoflop.analysis.laws.dense import CHINCHILLA
from isoflop.analysis.laws.fit import fit
from tests.analysis.laws.bias import isoflop_grid

SURFACE = CHINCHILLA.example
GRID = isoflop_grid(SURFACE, np.geomspace(1e18, 1e21, 6), sizes=7, decades=0.8)
RUNS = CHINCHILLA.simulate(SURFACE, GRID, 5e-3, np.random.default_rng(0))


def scipys(delta):
    """The same objective, by scipy: log residuals of E + A/N^alpha + B/D^beta."""
    scale = np.array([1.0, 100.0, 1000.0, 0.1, 0.1])

    def residuals(p):
        E, A, B, alpha, beta = p * scale
        return np.log((E + A * RUNS["N"] ** -alpha + B * RUNS["D"] ** -beta) / RUNS["L"])

    start = np.array(list(SURFACE.values())) / scale
    loss = {} if delta is None else {"loss": "huber", "f_scale": delta}
    found = least_squares(
        residuals, start, xtol=1e-15, ftol=1e-15, gtol=1e-15, max_nfev=10_000, **loss
    )
    return found, scale


@pytest.mark.parametrize("delta", [None, 5e-3])
def test_the_minimum_is_scipys(delta):
    found, scale = scipys(delta)
    fitted = fit(CHINCHILLA, RUNS, delta=delta or 10)
    assert fitted.objective == pytest.approx(found.cost, rel=1e-9)
    assert list(fitted.params.values()) == pytest.approx(list(found.x * scale), rel=1e-4)


def test_the_standard_errors_are_the_sandwich_of_scipys_jacobian():
    found, scale = scipys(None)
    fitted = fit(CHINCHILLA, RUNS, delta=10)
    bread = np.linalg.inv(found.jac.T @ found.jac)
    leverage = np.einsum("ni,ij,nj->n", found.jac, bread, found.jac)
    meat = (found.jac * (found.fun**2 / (1 - leverage))[:, None]).T @ found.jac  # HC2
    errors = np.sqrt(np.diag(bread @ meat @ bread)) * scale
    assert list(fitted.std_errors.values()) == pytest.approx(list(errors), rel=2e-3)


def rows(text):
    """Numbers of a summary by the first word of their line."""
    return {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}


def test_a_summary_says_what_was_done():
    fitted = fit(CHINCHILLA, RUNS)
    lines = rows(fitted.summary())
    assert all(len(line) <= 78 for line in fitted.summary().splitlines())
    value, error, low, high = map(float, lines["alpha"])
    assert value == pytest.approx(fitted.params["alpha"], rel=1e-5)
    assert error == pytest.approx(fitted.std_errors["alpha"], rel=1e-5)
    assert (low, high) == pytest.approx(fitted.intervals["alpha"], rel=1e-5)
    assert float(lines["N_opt"][0]) == pytest.approx(fitted.derived["N_opt"], rel=1e-5)
    assert re.search("Status: +converged", fitted.summary())
    assert f"{fitted.delta:.3g} (1.345 sd, first fit)" in fitted.summary()


def test_a_summary_says_what_is_not_known():
    few = fit(CHINCHILLA, {name: values[:5] for name, values in RUNS.items()})
    assert "Too few points" in few.summary()
    assert rows(few.summary())["alpha"][1:] == ["-", "-", "-"]
    none = fit(CHINCHILLA, {name: values[:3] for name, values in RUNS.items()})
    assert rows(none.summary())["alpha"] == ["-", "-", "-", "-"]
    given = fit(CHINCHILLA, RUNS, fixed={"E": 1.8}, ties=[("alpha", "beta")])
    assert rows(given.summary())["E"] == ["1.8", "fixed"]
    assert rows(given.summary())["beta"][1:] == ["=", "alpha"]
    bound = fit(CHINCHILLA, RUNS | {"L": 3 + 1e8 / RUNS["N"]})
    assert bound.status != "converged"
    assert bound.summary().splitlines()[-1].startswith(("Bound hit:", "Not identified:"))
    runs = fit(CHINCHILLA, RUNS | {"run": np.repeat(np.arange(6), 7)})
    assert "42, of 6 runs" in runs.summary()
    assert "CR2 by run" in runs.summary()
