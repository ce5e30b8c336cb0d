"""The best size at each budget, read off a table of runs: what approaches 1 and 2 are fitted to."""

from __future__ import annotations

import numpy as np

from isoflop.analysis.laws.law import Array, Columns

SAME_BUDGET = 0.05  # runs whose FLOPs differ by less (relative, neighbour to neighbour) share one


def budgets(C: Array) -> Array:
    """The index of each run's budget: runs are one budget as long as no gap parts their FLOPs."""
    order = np.argsort(C)
    log_C = np.log(C[order])
    index = np.empty(len(C), dtype=int)
    index[order] = np.cumsum(np.diff(log_C, prepend=log_C[0]) > SAME_BUDGET)
    return index


def envelope(columns: Columns) -> Columns:
    """Approach 1: the runs, or points of runs, that no other with the same FLOPs or fewer beats."""
    order = np.lexsort((columns["L"], columns["C"]))
    C, N, L = (columns[name][order] for name in ("C", "N", "L"))
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(L)[:-1]])
    best = best_before > L
    return {"C": C[best], "N": N[best], "L": L[best]}


def isoflop(columns: Columns) -> Columns:
    """Approach 2: per budget, the minimum of the least-squares parabola of L in log N.

    A budget is left out unless its parabola is convex, over three sizes or more, with its minimum
    between the smallest and the largest.
    """
    found = []
    index = budgets(columns["C"])
    for budget in range(index.max() + 1):
        C, N, L = (columns[name][index == budget] for name in ("C", "N", "L"))
        if len(np.unique(N)) < 3:
            continue
        centre = np.log(N).mean()
        c0, c1, c2 = np.polynomial.polynomial.polyfit(np.log(N) - centre, L, 2)
        best = np.exp(centre - c1 / (2 * c2)) if c2 > 0 else np.inf
        if N.min() < best < N.max():
            found.append((np.exp(np.log(C).mean()), best, c0 - c1**2 / (4 * c2)))
    C, N, L = np.array(found).reshape(-1, 3).T
    return {"C": C, "N": N, "L": L}
