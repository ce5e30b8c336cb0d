"""Parameters that are given or shared."""

import numpy as np
import pytest

from isoflop.analysis.laws.constraints import ConstraintError, Constraints
from isoflop.analysis.laws.dense import CHINCHILLA
from isoflop.analysis.laws.fit import fit
from isoflop.analysis.laws.moe import JOINT_MOE
from isoflop.analysis.laws.solver import Problem
from tests.analysis.laws.bias import isoflop_grid

SURFACE = CHINCHILLA.example
GRID = isoflop_grid(SURFACE, np.geomspace(1e18, 1e21, 6), sizes=7, decades=0.8)


def table(params, noise=1e-3):
    return CHINCHILLA.simulate(params, GRID, noise, np.random.default_rng(0))


@pytest.mark.parametrize("name", SURFACE)
def test_a_fixed_parameter_stays_and_the_others_are_fitted(name):
    fitted = fit(CHINCHILLA, table(SURFACE, 0), fixed={name: SURFACE[name]})
    assert fitted.params == pytest.approx(SURFACE, rel=1e-5)
    assert fitted.params[name] == SURFACE[name]
    assert fitted.intervals[name] == (SURFACE[name], SURFACE[name])
    assert fitted.std_errors[name] == 0


def test_a_fixed_parameter_narrows_the_others():
    free = fit(CHINCHILLA, table(SURFACE))
    fixed = fit(CHINCHILLA, table(SURFACE), fixed={"E": SURFACE["E"]})
    assert fixed.std_errors["alpha"] < 0.8 * free.std_errors["alpha"]
    wrong = fit(CHINCHILLA, table(SURFACE), fixed={"E": 1.5})
    assert wrong.params["E"] == 1.5
    assert wrong.objective > 2 * free.objective


@pytest.mark.parametrize("pair", [("alpha", "beta"), ("A", "B")])
def test_tied_parameters_are_one(pair):
    truth = SURFACE | {pair[1]: SURFACE[pair[0]]}
    fitted = fit(CHINCHILLA, table(truth, 0), ties=[pair])
    assert fitted.params == pytest.approx(truth, rel=1e-5)
    assert fitted.params[pair[0]] == fitted.params[pair[1]]
    assert (fitted.samples[:, 3] == fitted.samples[:, 4]).all() == (pair == ("alpha", "beta"))


def test_a_tie_to_a_fixed_parameter_fixes_both():
    constraints = Constraints(CHINCHILLA, {"alpha": 0.3}, [("alpha", "beta")])
    assert constraints.free == ("E", "A", "B")
    fitted = fit(CHINCHILLA, table(SURFACE), fixed={"alpha": 0.3}, ties=[("beta", "alpha")])
    assert fitted.params["alpha"] == fitted.params["beta"] == 0.3


def test_the_derivative_is_that_of_the_constrained_law():
    """By finite differences, with a fixed and a tied coefficient and tied exponents."""
    rng = np.random.default_rng(1)
    x = {"N": np.geomspace(1e8, 1e10, 400), "D": np.geomspace(1e10, 1e9, 400)}
    x["E"] = rng.choice([1.0, 8.0, 64.0], 400)
    for law, fixed, ties in (
        (CHINCHILLA, {"A": 482.0}, [("alpha", "beta")]),
        (CHINCHILLA, {"alpha": 0.3}, [("A", "B")]),
        (JOINT_MOE, {"c": 1.4, "E_start": 2.0}, [("a", "b"), ("gamma", "zeta")]),
    ):
        problem = Problem(law, x, 1e-3, Constraints(law, fixed, ties))
        named = np.array([law.example[name] for name in law.names])
        point = problem.point(named)
        _, J = problem.evaluate(point[None], np.zeros((1, 400)))
        for q in range(len(point)):
            step = 1e-6 * max(abs(point[q]), 0.1)
            nudge = step * np.eye(len(point))[[q]]
            sides = [problem.evaluate(point + way * nudge, np.zeros((1, 400))) for way in (1, -1)]
            numeric = (sides[0][0] - sides[1][0]) / (2 * step)
            np.testing.assert_allclose(J[0, q], numeric[0], rtol=1e-5, atol=1e-8)
        again = problem.point(problem.named(point[None])[0])
        np.testing.assert_allclose(again, point, rtol=1e-9)


@pytest.mark.parametrize(
    ("fixed", "ties", "message"),
    [
        ({"Q": 1.0}, [], "Q: chinchilla has no such parameter; it has E, A, B, alpha, beta"),
        ({}, [("alpha", "Q")], "Q: chinchilla has no such parameter"),
        ({"alpha": 9.0}, [], "alpha=9: alpha lies between 0 and 1.5"),
        ({"E": -1.0}, [], "E=-1: E lies between 0 and inf"),
        ({}, [("A", "alpha")], "A=alpha: a coefficient cannot be tied to an exponent"),
        ({"A": 1.0, "B": 2.0}, [("A", "B")], "B=2: it is tied to A, fixed at another value"),
        (dict(SURFACE), [], "chinchilla: every parameter is fixed; nothing is left to fit"),
    ],
)
def test_what_a_law_does_not_allow(fixed, ties, message):
    with pytest.raises(ConstraintError, match="^" + message.replace("(", r"\(")):
        Constraints(CHINCHILLA, fixed, ties)


def test_ties_without_a_common_value():
    with pytest.raises(ConstraintError, match="has no value in common"):
        Constraints(JOINT_MOE, ties=[("E_start", "E_end")])
