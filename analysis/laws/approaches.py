"""The best size at each budget, read off a table of runs: what approaches 1 and 2 are fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Columns, Index

REACH = 8.0  # sizes within this factor of a minimum have their say in it
FLAT = 0.01  # log of a factor between FLOPs that is never a step from one budget to the next
STEP = 0.1  # log of the least factor between two budgets
WIDEST = 0.7  # log of the factor, 2, over which the runs of one budget may spread
EXACT = 1e-4  # log of the factor within which FLOPs are the same


@dataclass(frozen=True)
class Budget:
    """The runs of one budget, and the minimum of their parabola; `why` it is not used, or ""."""

    C: float  # geometric mean of the runs' FLOPs
    rows: int
    sizes: int
    smallest: float  # N
    largest: float
    near: int  # sizes that the parabola is fitted to
    N: float | None
    L: float | None
    why: str


def budgets(columns: Columns) -> tuple[Index, str]:
    """The index of each run's budget, by rising FLOPs, and how it was found.

    A column `budget` says it. Else steps between neighbouring runs' FLOPs are sorted; the largest
    jump among them parts the steps inside budgets from those between. What is still wider than a
    budget is cut at its widest step.
    """
    log_C = np.log(columns["C"])
    if "budget" in columns:
        _, label = np.unique(columns["budget"], return_inverse=True)
        mean = np.bincount(label, log_C) / np.bincount(label)
        return np.argsort(np.argsort(mean))[label], "the column budget"
    order = np.argsort(log_C, kind="stable")
    steps = np.diff(log_C[order])
    starts = [0, *(np.flatnonzero(steps > _threshold(steps)) + 1), len(order)]
    begins = np.zeros(len(order), dtype=int)
    for first, end in pairwise(starts):
        begins[_cuts(log_C[order], int(first), int(end))] = 1
    index = np.empty(len(order), dtype=int)
    index[order] = np.cumsum(begins) - 1
    clear = begins.sum() == len(starts) - 1
    return index, "gaps in C" if clear else "gaps in C, some of them not clear"


def _threshold(steps: Array) -> float:
    """The step in log C above which a new budget begins."""
    low = np.concatenate([[FLAT], np.maximum(np.sort(steps), FLAT)])
    high = np.append(low[1:], STEP)
    jump = np.where((high >= STEP) & (low <= WIDEST), high / low, 0.0)
    return float(low[np.argmax(jump)])


def _cuts(log_C: Array, first: int, end: int) -> list[int]:
    """Where budgets begin among sorted runs first to end, so that none is wider than WIDEST."""
    cuts, stack = [], [(first, end)]
    while stack:
        first, end = stack.pop()
        span = log_C[end - 1] - log_C[first]
        if span <= WIDEST:
            cuts.append(first)
            continue
        steps = np.diff(log_C[first:end])
        widest = int(np.argmax(steps))
        if steps[widest] > FLAT:
            stack += [(first, first + widest + 1), (first + widest + 1, end)]
        else:
            edges = np.linspace(log_C[first], log_C[end - 1], int(np.ceil(span / WIDEST)) + 1)
            cuts += [first + int(i) for i in np.searchsorted(log_C[first:end], edges[:-1])]
    return cuts


def parabolas(columns: Columns, reach: float = REACH) -> list[Budget]:
    """Approach 2: for each budget, the least-squares parabola of L in log N and its minimum.

    Sizes within a factor `reach` of the minimum are used, found by iteration. Where FLOPs differ
    within a budget, losses are first moved to its mean along a surface, log L quadratic in log N
    and log C, fitted to all rows.
    """
    index, _ = budgets(columns)
    N, L = columns["N"], _at_mean_flops(columns, index)
    order = np.argsort(index, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)
    return [_minimum(columns["C"][rows], N[rows], L[rows], reach) for rows in groups]


def _at_mean_flops(columns: Columns, index: Index) -> Array:
    log_C, log_N, L = np.log(columns["C"]), np.log(columns["N"]), columns["L"]
    off = log_C - (np.bincount(index, log_C) / np.bincount(index))[index]
    if np.ptp(off) <= EXACT:
        return L
    x, y = log_N - log_N.mean(), log_C - log_C.mean()
    quadratic = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    scale = np.linalg.norm(quadratic, axis=0)
    scale[scale == 0] = 1
    b = np.linalg.lstsq(quadratic / scale, np.log(L), rcond=1e-8)[0] / scale
    return L * np.exp(-off * (b[2] + b[4] * x + b[5] * (2 * y - off)))


def _minimum(C: Array, N: Array, L: Array, reach: float) -> Budget:
    sizes, size = np.unique(N, return_inverse=True)
    mean_C = float(np.exp(np.log(C).mean()))

    def budget(near: int, N: float | None, L: float | None, why: str) -> Budget:
        return Budget(
            mean_C, len(C), len(sizes), float(sizes[0]), float(sizes[-1]), near, N, L, why
        )

    if len(sizes) < 3:
        return budget(0, None, None, "two sizes" if len(sizes) == 2 else "one size")
    log_N = np.log(sizes)
    centre = log_N[np.argmin(np.bincount(size, L) / np.bincount(size))]
    near = np.zeros(len(sizes), dtype=bool)
    for _ in range(20):
        before = near
        distance = np.abs(log_N - centre)
        near = distance <= max(np.log(reach), np.sort(distance)[2]) + 1e-9
        if np.array_equal(near, before):
            break
        rows = near[size]
        x = np.log(N[rows])
        middle = x.mean()
        c0, c1, c2 = np.polynomial.polynomial.polyfit(x - middle, L[rows], 2)
        if c2 <= 0:
            return budget(int(near.sum()), None, None, "not convex")
        centre = np.clip(middle - c1 / (2 * c2), log_N[0], log_N[-1])
    best = float(np.exp(np.clip(middle - c1 / (2 * c2), -700, 700)))
    lowest = float(c0 - c1**2 / (4 * c2))
    used = sizes[near]
    if best <= used[0]:
        return budget(len(used), best, lowest, "minimum below the smallest size")
    if best >= used[-1]:
        return budget(len(used), best, lowest, "minimum above the largest size")
    return budget(len(used), best, lowest, "")


def isoflop(columns: Columns, reach: float = REACH) -> Columns:
    """Approach 2: the minima of `parabolas` that can be used."""
    used = [budget for budget in parabolas(columns, reach) if not budget.why]
    C, N, L = np.array([(b.C, b.N, b.L) for b in used], dtype=float).reshape(-1, 3).T
    return {"C": C, "N": N, "L": L}


def is_grid(columns: Columns) -> bool:
    """Whether some budget has several sizes, so that its best loss is to be found first."""
    if "N" not in columns:
        return False
    index, _ = budgets(columns)
    pairs = np.unique(np.stack([index, columns["N"]]), axis=1)
    return pairs.shape[1] > index.max() + 1


def best_losses(columns: Columns) -> Columns:
    """One row per budget for a frontier: the table's own, or the parabolas' minima of a grid."""
    return isoflop(columns) if is_grid(columns) else columns


def envelope(columns: Columns) -> Columns:
    """Approach 1: the runs, or points of runs, that no other with the same FLOPs or fewer beats."""
    order = np.lexsort((columns["L"], columns["C"]))
    L = columns["L"][order]
    best_before = np.concatenate([[np.inf], np.minimum.accumulate(L)[:-1]])
    best = order[best_before > L]
    return {name: columns[name][best] for name in ("C", "N", "L", "run") if name in columns}
