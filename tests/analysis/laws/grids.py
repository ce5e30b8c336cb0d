"""Tables of runs at given budgets, for the tests of the laws."""

from __future__ import annotations

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.dense import CHINCHILLA
from isoflop.analysis.laws.law import Params


def isoflop_grid(
    params: Params, C: Array, *, sizes: int, decades: float, drift: float = 0.0
) -> dict[str, Array]:
    """C, N and D of runs at every budget C, with sizes evenly spaced in log N.

    The sizes reach `decades` to either side of a centre. It is N_opt at the middle budget, and off
    by a factor of 10^drift per decade of compute.
    """
    offset_n = np.linspace(-decades, decades, sizes)
    distance_B1 = np.log10(C / np.exp(np.log(C).mean()))[:, None]
    optima = [CHINCHILLA.nominal_optimum(params, budget, {})["N_opt"] for budget in C]
    N = (np.array(optima)[:, None] * 10 ** (drift * distance_B1 + offset_n)).ravel()
    budget = np.repeat(C, sizes)
    return {"C": budget, "N": N, "D": budget / (6 * N)}
