"""The best size at each budget in a table of runs, to which approaches 1 and 2 are fitted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Columns

SAME_BUDGET = 0.05  # a relative gap in FLOPs by which neighbouring budgets differ at least


def budgets(C: Array) -> Array:
    """The index of each run's budget: sorted by FLOPs, runs share a budget until there is a gap."""
    order = np.argsort(C)
    log_C = np.log(C[order])
    index = np.empty(len(C), dtype=int)
    index[order] = np.cumsum(np.diff(log_C, prepend=log_C[0]) > SAME_BUDGET)
    return index


def envelope(columns: Columns) -> Columns:
    """Approach 1: the runs, or points of training curves, with the lowest loss so far in FLOPs."""
    order = np.lexsort((columns["L"], columns["C"]))
    C, N, L = (columns[name][order] for name in ("C", "N", "L"))
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(L)[:-1]])
    best = best_before > L
    return {"C": C[best], "N": N[best], "L": L[best]}


@dataclass(frozen=True)
class Budget:
    """The runs of one budget and the minimum of their parabola."""

    C: float  # geometric mean of the runs' FLOPs
    sizes: int
    smallest: float  # N
    largest: float
    N: float | None  # at the minimum; None if there is none
    L: float | None
    why: str  # it is not used; empty if it is


def parabolas(columns: Columns) -> list[Budget]:
    """Approach 2: for each budget, the minimum of the least-squares parabola of L in log N.

    A budget is not used unless it has at least three sizes and its parabola is convex with a
    minimum between the smallest and the largest.
    """
    index = budgets(columns["C"])
    return [
        _minimum(*(columns[name][index == budget] for name in ("C", "N", "L")))
        for budget in range(index.max() + 1)
    ]


def _minimum(C: Array, N: Array, L: Array) -> Budget:
    sizes = np.unique(N)
    known = (float(np.exp(np.log(C).mean())), len(sizes), float(sizes[0]), float(sizes[-1]))
    if len(sizes) < 3:
        return Budget(*known, None, None, "fewer than three sizes")
    centre = np.log(N).mean()
    c0, c1, c2 = np.polynomial.polynomial.polyfit(np.log(N) - centre, L, 2)
    if c2 <= 0:
        return Budget(*known, None, None, "not convex")
    step = -c1 / (2 * c2)
    lowest = float(c0 - c1**2 / (4 * c2))
    best = float(np.exp(np.clip(centre + step, -700, 700)))
    why = ""
    if best <= sizes[0]:
        why = "minimum below the smallest size"
    elif best >= sizes[-1]:
        why = "minimum above the largest size"
    return Budget(*known, best, lowest, why)


def isoflop(columns: Columns) -> Columns:
    """The minima of `parabolas` that can be used."""
    used = [budget for budget in parabolas(columns) if not budget.why]
    C, N, L = np.array([(b.C, b.N, b.L) for b in used], dtype=float).reshape(-1, 3).T
    return {"C": C, "N": N, "L": L}
