"""The bias of isoFLOP parabolas (approach 2), which is there without any noise.

At a fixed budget, E + A/N^alpha + B/D^beta is not a parabola in log N: it is steeper above its
minimum if beta > alpha, and below it if alpha > beta. On sizes centred on the optimum this shifts
all minima by the same factor, which grows with the range of sizes, and leaves the exponent a
unbiased. If the centre drifts from budget to budget, so does the factor, and a is biased too
(2603.22339).
"""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.analysis.laws.dense import CHINCHILLA, CHINCHILLA_ISOFLOP
from isoflop.analysis.laws.fit import fit
from isoflop.analysis.laws.law import Columns, Params


@dataclass(frozen=True)
class IsoflopBias:
    """How far approach 2 is from the truth on runs without noise."""

    size_ratio: tuple[float, ...]  # by budget: minimum of the parabola over N_opt of the surface
    exponent: float  # a of the fit minus a of the surface


def isoflop_bias(params: Params, grid: Columns) -> IsoflopBias:
    """The bias of approach 2 on the runs of a table, if Chinchilla's surface is the truth.

    Args:
        params: of that surface.
        grid: C, N and D of the runs, shape (n,).
    """
    runs = {**grid, "L": CHINCHILLA.predict(params, grid)}
    minima = CHINCHILLA_ISOFLOP.reduce(runs)
    ratios = [
        float(N / CHINCHILLA.optimum(params, C, grid)["N_opt"])
        for C, N in zip(minima["C"], minima["N"], strict=True)
    ]
    a = fit(CHINCHILLA_ISOFLOP, runs).params["a"]
    true_a = float(params["beta"] / (params["alpha"] + params["beta"]))
    return IsoflopBias(tuple(ratios), a - true_a)


def estimated_bias(table: Columns) -> IsoflopBias | None:
    """The bias of approach 2 on a table's own runs, by the surface fitted to them (approach 3).

    Args:
        table: C, N and L of the runs, shape (n,); D is taken to be C / (6 N).

    Returns:
        None if the surface cannot be fitted, or if it gives approach 2 fewer than two minima.
    """
    grid = {"C": table["C"], "N": table["N"], "D": table["C"] / (6 * table["N"])}
    surface = fit(CHINCHILLA, {**grid, "L": table["L"]})
    if surface.status != "converged":
        return None
    bias = isoflop_bias(surface.params, grid)
    return bias if len(bias.size_ratio) > 1 else None
