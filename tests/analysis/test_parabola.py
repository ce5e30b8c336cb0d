"""Parabolas, their lowest points, and estimates from samples."""

import numpy as np
import pytest

from isoflop.analysis.estimate import estimate
from isoflop.analysis.parabola import fit_parabola, projector

LOG_X = np.log([1.0, 2.0, 4.0, 8.0, 16.0])


def test_every_sample_is_fitted_by_itself() -> None:
    vertices = np.log([3.0, 5.0, 7.0])
    losses = 2 + 0.1 * (LOG_X - vertices[:, None]) ** 2
    fit = fit_parabola(LOG_X, losses)
    np.testing.assert_allclose(fit.log_lowest, vertices)
    np.testing.assert_allclose(fit.lowest, 2)
    np.testing.assert_allclose(fit(LOG_X), losses[0])
    assert fit.status == "ok"


def test_minima_are_limited_to_the_grid() -> None:
    outside, concave_left, concave_right = (
        0.1 * (LOG_X - 9) ** 2,
        -0.1 * (LOG_X - 2) ** 2,
        -0.1 * (LOG_X - 1) ** 2,
    )
    fit = fit_parabola(LOG_X, np.stack([outside, concave_left, concave_right]))
    np.testing.assert_allclose(fit.log_lowest, [LOG_X[-1], LOG_X[0], LOG_X[-1]])
    np.testing.assert_allclose(fit.lowest, [outside[-1], concave_left[0], concave_right[-1]])
    assert fit.status == "edge"


@pytest.mark.parametrize(
    ("losses", "status", "lowest"),
    [
        ((LOG_X - 0.1) ** 2, "ok", 0.1),
        ((LOG_X + 0.1) ** 2, "edge", LOG_X[0]),
        ((LOG_X - LOG_X[-1] + 0.1) ** 2, "ok", LOG_X[-1] - 0.1),
        ((LOG_X - LOG_X[-1] - 0.1) ** 2, "edge", LOG_X[-1]),
        (-((LOG_X - 1.4) ** 2), "concave", LOG_X[0] if LOG_X.mean() < 1.4 else LOG_X[-1]),
        (-(LOG_X**2), "concave", LOG_X[-1]),
    ],
)
def test_the_status_is_that_of_the_data(losses: np.ndarray, status: str, lowest: float) -> None:
    fit = fit_parabola(LOG_X, np.stack([losses, (LOG_X - 1.4) ** 2]))
    assert fit.status == status
    assert fit.log_lowest[0] == pytest.approx(lowest)
    assert fit_parabola(LOG_X[:4], losses[None, :4]).status != "few"


def test_fewer_points_determine_fewer_terms() -> None:
    for points in (1, 2, 3):
        solve, terms = projector(LOG_X[:points])
        assert solve.shape == (3, points)
        assert terms == points
        losses = np.array([[2.0, 1.0, 3.0]])[:, :points]
        fit = fit_parabola(LOG_X[:points], losses)
        np.testing.assert_allclose(fit(LOG_X[:points]), losses[0])
        assert fit.status == "few"


def test_two_points_at_one_place_are_one_place() -> None:
    log_x = np.log([1.0, 1.0, 2.0, 4.0])
    assert fit_parabola(log_x, (log_x[None] - 0.5) ** 2).status == "few"


def test_a_minimum_whose_interval_reaches_the_edge_is_noticed() -> None:
    clear = fit_parabola(LOG_X, np.tile((LOG_X - 1.4) ** 2, (100, 1)))
    vertices = np.linspace(1.4, 3.0, 100)[:, None]
    assert not clear.reaches_edge
    assert fit_parabola(LOG_X, (LOG_X - vertices) ** 2).reaches_edge
    assert fit_parabola(LOG_X, (LOG_X - (2 * 1.4 - vertices)) ** 2).reaches_edge
    for vertex in (0.2, 2.6):  # beside the edge is not at it
        assert not fit_parabola(LOG_X, np.tile((LOG_X - vertex) ** 2, (100, 1))).reaches_edge
    # 2 of 100 at the edge are outside the central 95%, 4 are not
    for count, reaches in ((2, False), (4, True)):
        vertices = np.where(np.arange(100) < count, 3.0, 1.4)[:, None]
        assert fit_parabola(LOG_X, (LOG_X - vertices) ** 2).reaches_edge == reaches


def test_an_estimate_is_sample_zero_with_the_percentiles_of_the_rest() -> None:
    assert estimate(np.concatenate([[5.0], np.arange(1001)])) == (5.0, 25.0, 975.0)
    alone = estimate(np.array([5.0]))
    assert alone.value == 5.0
    assert np.isnan([alone.low, alone.high]).all()


def test_the_estimate_of_a_parabola_is_in_the_units_of_x() -> None:
    fit = fit_parabola(LOG_X, ((LOG_X - np.log(3.0)) ** 2)[None])
    assert fit.at.value == pytest.approx(3.0)
    assert fit.loss.value == pytest.approx(0.0, abs=1e-12)
