"""Fits below a budget, judged above it."""

import numpy as np
import pytest

from isoflop.analysis.laws.dense import CHINCHILLA, CHINCHILLA_ISOFLOP, FRONTIER
from isoflop.analysis.laws.extrapolation import extrapolate
from isoflop.results.errors import IsoflopError
from tests.analysis.laws.bias import isoflop_grid

SURFACE = CHINCHILLA.example
GRID = isoflop_grid(SURFACE, np.geomspace(1e18, 1e21, 7), sizes=7, decades=0.4)
RUNS = GRID | {"L": CHINCHILLA.predict(SURFACE, GRID)}


def test_a_law_that_holds_predicts_what_it_has_not_seen():
    beyond = extrapolate(CHINCHILLA, RUNS, 1e20)
    assert (beyond.fit.n_points, len(beyond.errors)) == (28, 21)
    assert abs(beyond.errors).max() < 1e-6
    assert beyond.to_json()["unit"] == "nats"


def test_a_law_that_breaks_is_caught():
    off = RUNS | {"L": RUNS["L"] + 0.05 * (RUNS["C"] > 9e20)}
    errors = extrapolate(CHINCHILLA, off, 1e21).to_json()
    assert errors["above"] == 7  # the budget named is held out
    assert errors["mean_error"] == pytest.approx(-0.05, abs=1e-6)
    assert errors["rms_error"] == pytest.approx(0.05, abs=1e-6)


def test_whole_steps_that_end_before_the_budget_are_of_it():
    short = RUNS | {"C": RUNS["C"] * 0.99}
    assert extrapolate(CHINCHILLA, short, 1e21).to_json()["above"] == 7


def test_sizes_and_frontiers_are_predicted_in_their_own_unit():
    sizes = extrapolate(CHINCHILLA_ISOFLOP, RUNS, 1e20).to_json()
    assert (sizes["below"], sizes["above"], sizes["unit"]) == (4, 3, "log N")
    assert abs(sizes["mean_error"]) < 1e-3
    frontier = extrapolate(FRONTIER, RUNS, 1e20).to_json()
    assert (frontier["below"], frontier["above"], frontier["unit"]) == (4, 3, "nats")
    assert abs(frontier["mean_error"]) < 1e-3


def test_nothing_to_fit_or_nothing_to_predict():
    with pytest.raises(IsoflopError, match=r"no run has 1e\+25 FLOPs; the largest has 1e\+21"):
        extrapolate(CHINCHILLA, RUNS, 1e25)
    with pytest.raises(IsoflopError, match=r"0 runs have less than 1e\+17 FLOPs, too few"):
        extrapolate(CHINCHILLA, RUNS, 1e17)
    with pytest.raises(IsoflopError, match="3 runs have less"):
        extrapolate(FRONTIER, {"C": RUNS["C"][::7], "L": RUNS["L"][3::7]}, 3.2e19)
