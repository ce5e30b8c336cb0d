"""The frontier law and its inverse."""

import numpy as np
import pytest

from isoflop.analysis.frontier import REACH, fit_frontier
from isoflop.analysis.laws import LAWS
from isoflop.analysis.laws.fit import fit
from isoflop.analysis.simulate import optimum

BUDGETS = np.array([1e14, 4e14, 1.6e15, 6.4e15, 2.56e16])


def law(
    budgets: np.ndarray, floor: float = 1.8, scale: float = 2.0, alpha: float = 0.16
) -> np.ndarray:
    return floor + scale * (budgets / 1e15) ** -alpha


def test_the_law_comes_back_from_its_own_points() -> None:
    fitted = fit_frontier(BUDGETS, law(BUDGETS)[None])
    assert fitted
    assert fitted.floor[0] == pytest.approx(1.8, abs=1e-4)
    assert fitted.alpha[0] == pytest.approx(0.16, abs=1e-4)
    beyond = np.array([1e13, 1e17])
    np.testing.assert_allclose(fitted.predict(beyond)[0], law(beyond), atol=1e-4)


def test_the_surface_of_the_simulator_has_such_a_frontier() -> None:
    losses = np.array([optimum(budget)[1] for budget in BUDGETS])
    fitted = fit_frontier(BUDGETS, losses[None])
    assert fitted
    np.testing.assert_allclose(fitted.predict(BUDGETS)[0], losses, atol=1e-6)


def test_it_agrees_with_the_general_fit() -> None:
    losses = law(BUDGETS) + 0.003 * np.random.default_rng(0).standard_normal(5)
    ours = fit_frontier(BUDGETS, losses[None])
    general = fit(LAWS["frontier"], {"C": BUDGETS, "L": losses}, delta=1.0)
    assert ours
    # they differ: ours weighs losses, the other their logarithms
    np.testing.assert_allclose(ours.predict(BUDGETS)[0], general.predict({"C": BUDGETS}), atol=5e-4)


def test_every_sample_is_fitted_by_itself() -> None:
    samples = np.stack([law(BUDGETS), law(BUDGETS, floor=1.2, alpha=0.1)])
    together = fit_frontier(BUDGETS, samples)
    assert together
    for row, losses in enumerate(samples):
        alone = fit_frontier(BUDGETS, losses[None])
        assert alone
        assert together.floor[row] == pytest.approx(alone.floor[0], abs=1e-9)
        assert together.alpha[row] == pytest.approx(alone.alpha[0], abs=1e-9)


def test_least_squares_cannot_be_improved() -> None:
    """With noise no exponent, floor or scale nearby has less squared error."""
    losses = law(BUDGETS) + 0.01 * np.random.default_rng(0).standard_normal(5)
    fitted = fit_frontier(BUDGETS, losses[None])
    assert fitted

    def error(floor: float, scale: float, alpha: float) -> float:
        return float(((floor + scale * (BUDGETS / fitted.unit) ** -alpha - losses) ** 2).sum())

    best = (fitted.floor[0], fitted.scale[0], fitted.alpha[0])
    for direction in np.random.default_rng(1).standard_normal((200, 3)):
        assert error(*(best + 1e-3 * direction)) >= error(*best) - 1e-12


def test_the_floor_is_never_negative() -> None:
    """Losses that bend the other way get a power law."""
    losses = 10 - 0.5 * np.log(BUDGETS / 1e14)
    fitted = fit_frontier(BUDGETS, losses[None])
    assert fitted
    assert fitted.floor[0] == 0
    assert fitted.falls


def test_a_loss_that_rises_with_compute_is_noticed() -> None:
    for count in (2, 3, 5):
        rising = fit_frontier(BUDGETS[:count], -law(BUDGETS[:count])[None] + 10)
        assert rising
        assert not rising.falls


def test_few_budgets_are_fitted_exactly() -> None:
    assert fit_frontier(BUDGETS[:1], law(BUDGETS[:1])[None]) is None
    two = fit_frontier(BUDGETS[:2], law(BUDGETS[:2])[None])
    three = fit_frontier(BUDGETS[:3], law(BUDGETS[:3])[None])
    assert two
    assert two.floor[0] == 0
    np.testing.assert_allclose(two.predict(BUDGETS[:2])[0], law(BUDGETS[:2]))
    assert three
    assert three.floor[0] == pytest.approx(1.8, abs=1e-4)
    np.testing.assert_allclose(three.predict(BUDGETS[:3])[0], law(BUDGETS[:3]), atol=1e-6)


def test_inverting_undoes_predicting_within_reach() -> None:
    samples = np.stack([law(BUDGETS), law(BUDGETS, floor=1.2)])
    fitted = fit_frontier(BUDGETS, samples)
    assert fitted
    compute = np.geomspace(1e13, 1e18, 7)
    np.testing.assert_allclose(
        fitted.invert(fitted.predict(compute)), np.broadcast_to(compute, (2, 7)), rtol=1e-6
    )
    unreachable = fitted.invert(np.array([1.0, 1.0]))
    np.testing.assert_allclose(unreachable, BUDGETS[-1] * REACH)
