"""The best size at each budget, read off a table of runs: what approaches 1 and 2 are fitted to.

Both functions take row weights_Sn, one row of weights per bootstrap draw, so a thousand draws
are one call; a row of weight 0 is absent.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SAME_BUDGET = 0.05  # runs whose FLOPs differ by less (relative, neighbour to neighbour) share one


def budgets(C: Array) -> Array:
    """The index of each run's budget: runs are one budget as long as no gap parts their FLOPs."""
    order = np.argsort(C)
    gap = np.diff(np.log(C[order]), prepend=np.log(C[order[0]])) > SAME_BUDGET
    index = np.empty(len(C), dtype=int)
    index[order] = np.cumsum(gap)
    return index


def envelope(
    columns: Mapping[str, Array], weights_Sn: Array
) -> tuple[Mapping[str, Array], Array, Array]:
    """Approach 1: the runs (or points of runs) that no other beats with the same FLOPs or fewer."""
    order = np.lexsort((columns["L"], columns["C"]))
    C, N, L = (columns[name][order] for name in ("C", "N", "L"))
    present_Sn = weights_Sn[:, order] > 0
    loss_Sn = np.where(present_Sn, L, np.inf)
    best_before_Sn = np.minimum.accumulate(loss_Sn, axis=1)[:, :-1]
    best_before_Sn = np.pad(best_before_Sn, ((0, 0), (1, 0)), constant_values=np.inf)
    return {"C": C}, N[None], (loss_Sn < best_before_Sn).astype(float)


def parabola(log_N: Array, loss: Array, weights_Sn: Array) -> tuple[Array, Array, Array]:
    """Weighted least squares of L = parabola(log N): minimum log N_S, its loss_S, valid_S.

    Valid means convex, four or more distinct sizes or an exact three, and a minimum with a size
    on both sides of it.
    """
    centre = log_N.mean()
    u = log_N - centre
    X_n3 = np.stack([np.ones_like(u), u, u * u], axis=1)
    XtX_S33 = np.einsum("sn,ni,nj->sij", weights_Sn, X_n3, X_n3)
    Xty_S3 = np.einsum("sn,ni,n->si", weights_Sn, X_n3, loss)
    sizes, which = np.unique(log_N, return_inverse=True)
    seen_Sk = np.stack(
        [weights_Sn[:, which == k].sum(axis=1) > 0 for k in range(len(sizes))], axis=1
    )
    enough_S = seen_Sk.sum(axis=1) >= 3
    XtX_S33[~enough_S] = np.eye(3)
    c0, c1, c2 = np.linalg.solve(XtX_S33, Xty_S3[..., None])[..., 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex_S = -c1 / (2 * c2)
        low_S = np.where(seen_Sk, sizes - centre, np.inf).min(axis=1)
        high_S = np.where(seen_Sk, sizes - centre, -np.inf).max(axis=1)
        valid_S = enough_S & (c2 > 0) & (low_S < vertex_S) & (vertex_S < high_S)
        return vertex_S + centre, c0 + vertex_S * c1 / 2, valid_S


def isoflop(
    columns: Mapping[str, Array], weights_Sn: Array
) -> tuple[Mapping[str, Array], Array, Array]:
    """Approach 2: per budget, the minimum of a parabola in log N; a minimum not valid weighs 0."""
    index = budgets(columns["C"])
    C, log_N, valid = [], [], []
    for budget in range(index.max() + 1):
        rows = index == budget
        vertex_S, _, valid_S = parabola(
            np.log(columns["N"][rows]), columns["L"][rows], weights_Sn[:, rows]
        )
        C.append(np.exp(np.log(columns["C"][rows]).mean()))
        log_N.append(np.where(valid_S, vertex_S, 0.0))
        valid.append(valid_S)
    return (
        {"C": np.array(C)},
        np.exp(np.stack(log_N, axis=1)),
        np.stack(valid, axis=1).astype(float),
    )
