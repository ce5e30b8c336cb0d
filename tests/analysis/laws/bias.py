"""What isoFLOP parabolas (approach 2) get wrong with no noise at all.

A slice of E + A/N^alpha + B/D^beta at one budget is not a parabola in log N: it is steeper above
its minimum where beta > alpha, below where alpha > beta. On a grid centred on the optimum that
moves every minimum by the same factor, more the wider the grid, and leaves the exponent a alone;
where the centre drifts from budget to budget, the factor drifts with it and the exponent is wrong
too (2603.22339). Sizes far from the minimum do most of it: `approaches` leaves them out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.approaches import REACH, isoflop
from isoflop.analysis.laws.dense import CHINCHILLA
from isoflop.analysis.laws.law import Params


@dataclass(frozen=True)
class IsoflopBias:
    """Fitted over true, from runs without noise."""

    size_ratio: Array  # (budgets,) N* of the parabola over the surface's N_opt
    exponent: float  # a of the fit minus a of the surface


def isoflop_grid(
    params: Params, C: Array, *, sizes: int, decades: float, drift: float = 0.0
) -> dict[str, Array]:
    """C, N and D of runs at every budget C: sizes evenly spaced in log N around the optimum.

    The grid reaches `decades` to either side of a centre that is N_opt at the middle budget and
    off by 10^drift more per decade of compute.
    """
    offset_n = np.linspace(-decades, decades, sizes)
    distance_B1 = np.log10(C / np.exp(np.log(C).mean()))[:, None]
    optimal_B1 = np.array([CHINCHILLA.optimum(params, budget, {})["N_opt"] for budget in C])[
        :, None
    ]
    N = (optimal_B1 * 10 ** (drift * distance_B1 + offset_n)).ravel()
    budget = np.repeat(C, sizes)
    return {"C": budget, "N": N, "D": budget / (6 * N)}


def isoflop_bias(
    params: Params,
    C: Array,
    *,
    sizes: int,
    decades: float,
    drift: float = 0.0,
    reach: float = REACH,
) -> IsoflopBias:
    """The bias of approach 2 on Chinchilla's surface `params`, over the grid of `isoflop_grid`.

    Sizes farther than a factor `reach` from a minimum have no say in it.
    """
    grid = isoflop_grid(params, C, sizes=sizes, decades=decades, drift=drift)
    minima = isoflop(grid | {"L": CHINCHILLA.predict(params, grid)}, reach)
    true = [CHINCHILLA.optimum(params, budget, {})["N_opt"] for budget in minima["C"]]
    a = np.polyfit(np.log(minima["C"]), np.log(minima["N"]), 1)[0]
    true_a = float(params["beta"] / (params["alpha"] + params["beta"]))
    return IsoflopBias(minima["N"] / np.array(true), float(a - true_a))
