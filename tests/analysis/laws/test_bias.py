"""The bias of isoFLOP parabolas, on a surface without noise."""

import numpy as np
import pytest

from isoflop.analysis.laws.dense import CHINCHILLA
from tests.analysis.laws.bias import isoflop_bias, isoflop_grid

C = np.geomspace(1e18, 1e21, 5)
HOFFMANN = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}  # alpha > beta
BESIROGLU = CHINCHILLA.example  # alpha < beta


def test_the_grid_is_at_its_budget_and_around_the_optimum():
    grid = isoflop_grid(BESIROGLU, C, sizes=7, decades=0.5)
    np.testing.assert_allclose(6 * grid["N"] * grid["D"], grid["C"])
    middle = [CHINCHILLA.optimum(BESIROGLU, budget, {})["N_opt"] for budget in C]
    np.testing.assert_allclose(grid["N"].reshape(5, 7)[:, 3], middle)


@pytest.mark.parametrize(("params", "sign"), [(HOFFMANN, 1), (BESIROGLU, -1)])
def test_a_centred_grid_biases_the_size_by_its_width_but_not_the_exponent(params, sign):
    ratios = []
    for decades in (0.1, 0.5, 1.5):
        bias = isoflop_bias(params, C, sizes=9, decades=decades, reach=np.inf)
        assert np.ptp(bias.size_ratio) < 1e-6
        assert abs(bias.exponent) < 1e-9
        ratios.append(sign * np.log(bias.size_ratio[0]))
    assert 0 < ratios[0] < 1e-3  # narrow: none to speak of
    assert ratios[0] < ratios[1] < ratios[2]
    assert ratios[2] > 0.02  # three decades: several per cent


def test_a_drifting_grid_biases_the_exponent():
    up, down = (
        isoflop_bias(HOFFMANN, C, sizes=9, decades=1.5, drift=drift, reach=np.inf).exponent
        for drift in (0.1, -0.1)
    )
    assert -0.01 < up < -0.001
    assert 0.001 < down < 0.01


@pytest.mark.parametrize("params", [HOFFMANN, BESIROGLU])
@pytest.mark.parametrize("drift", [0.1, -0.1])
def test_sizes_near_the_minimum_bias_less(params, drift):
    wide, near = (
        isoflop_bias(params, C, sizes=13, decades=1.5, drift=drift, reach=reach)
        for reach in (np.inf, 8)
    )
    assert abs(near.exponent) < abs(wide.exponent) / 3
    assert np.abs(np.log(near.size_ratio)).max() < np.abs(np.log(wide.size_ratio)).max() / 2
