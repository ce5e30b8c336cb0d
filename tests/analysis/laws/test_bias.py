"""The bias of isoFLOP parabolas, on a surface without noise."""

import numpy as np
import pytest

from isoflop.analysis.laws.bias import estimated_bias, isoflop_bias
from isoflop.analysis.laws.dense import CHINCHILLA
from tests.analysis.laws.grids import isoflop_grid

C = np.geomspace(1e18, 1e21, 5)
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # alpha > beta
BESIROGLU = CHINCHILLA.example  # alpha < beta


def test_the_grid_is_at_its_budget_and_around_the_optimum():
    grid = isoflop_grid(BESIROGLU, C, sizes=7, decades=0.5)
    np.testing.assert_allclose(6 * grid["N"] * grid["D"], grid["C"])
    middle = [CHINCHILLA.nominal_optimum(BESIROGLU, budget, {})["N_opt"] for budget in C]
    np.testing.assert_allclose(grid["N"].reshape(5, 7)[:, 3], middle)


@pytest.mark.parametrize(("params", "sign"), [(HOFFMANN, 1), (BESIROGLU, -1)])
def test_a_centred_grid_biases_the_size_by_its_width_but_not_the_exponent(params, sign):
    ratios = []
    for decades in (0.1, 0.5, 1.5):
        bias = isoflop_bias(params, isoflop_grid(params, C, sizes=9, decades=decades))
        assert np.ptp(bias.size_ratio) < 1e-6
        assert abs(bias.exponent) < 1e-9
        ratios.append(sign * np.log(bias.size_ratio[0]))
    assert 0 < ratios[0] < 1e-3  # narrow: none to speak of
    assert ratios[0] < ratios[1] < ratios[2]
    assert ratios[2] > 0.02  # three decades: several per cent


def test_a_drifting_grid_biases_the_exponent():
    up, down = (
        isoflop_bias(
            HOFFMANN, isoflop_grid(HOFFMANN, C, sizes=9, decades=1.5, drift=drift)
        ).exponent
        for drift in (0.1, -0.1)
    )
    assert -0.01 < up < -0.001
    assert 0.001 < down < 0.01


def test_the_bias_of_a_table_is_estimated_from_its_own_runs():
    grid = isoflop_grid(HOFFMANN, C, sizes=9, decades=1.5, drift=0.1)
    table = CHINCHILLA.simulate(HOFFMANN, grid, 1e-4, np.random.default_rng(0))
    true = isoflop_bias(HOFFMANN, grid)
    bias = estimated_bias({name: table[name] for name in ("C", "N", "L")})
    assert bias is not None
    assert bias.exponent == pytest.approx(true.exponent, rel=0.1)
    assert bias.size_ratio == pytest.approx(true.size_ratio, rel=0.01)
    assert abs(true.size_ratio[0] - 1) > 0.02


def test_no_bias_is_estimated_without_a_surface():
    grid = isoflop_grid(HOFFMANN, C[:1], sizes=4, decades=0.5)  # fewer runs than parameters
    assert estimated_bias({**grid, "L": CHINCHILLA.predict(HOFFMANN, grid)}) is None
    floorless = HOFFMANN | {"E": -0.2}  # a fit to it has E at its bound, 0
    grid = isoflop_grid(HOFFMANN, C, sizes=9, decades=0.5)
    assert estimated_bias({**grid, "L": CHINCHILLA.predict(floorless, grid)}) is None
