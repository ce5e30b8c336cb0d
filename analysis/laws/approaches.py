"""The best size at each budget in a table of runs, to which approaches 1 and 2 are fitted."""

from __future__ import annotations

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


def isoflop(columns: Columns) -> Columns:
    """Approach 2: for each budget, the minimum of the least-squares parabola of L in log N.

    A budget is left out unless it has at least three sizes and its parabola is convex with a
    minimum between the smallest and the largest.
    """
    optima = []
    index = budgets(columns["C"])
    for budget in range(index.max() + 1):
        C, N, L = (columns[name][index == budget] for name in ("C", "N", "L"))
        if len(np.unique(N)) < 3:
            continue
        centre = np.log(N).mean()
        c0, c1, c2 = np.polynomial.polynomial.polyfit(np.log(N) - centre, L, 2)
        best = np.exp(centre - c1 / (2 * c2)) if c2 > 0 else np.inf
        if N.min() < best < N.max():
            optima.append((np.exp(np.log(C).mean()), best, c0 - c1**2 / (4 * c2)))
    C, N, L = np.array(optima).reshape(-1, 3).T
    return {"C": C, "N": N, "L": L}
