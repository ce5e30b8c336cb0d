"""A machine's share of a suite, for a cluster: every machine works out its own, none is told."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from isoflop.bench.suite import SuiteError

if TYPE_CHECKING:
    from isoflop.bench.plan import Cell


def share(cells: list[Cell], shard: str) -> list[Cell]:
    """Share K of N, in the cells' order; N shares together are exactly the cells.

    Cells are dealt out by budget, the largest first, there and back again (1..N, N..1), so that
    shares cost about the same FLOPs. Within a budget they go by id, a hash: otherwise a share could
    get all cells of one size or variant, whose seconds per FLOP differ.

    Args:
        cells: all of them, whether they have records or not: a share must not move.
        shard: "K/N".
    Raises:
        SuiteError: `shard` is not K/N, or there are fewer cells than shares.
    """
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard, re.ASCII)
    k, n = map(int, found.groups()) if found else (1, 0)
    if k > n:
        raise SuiteError(f"--shard: {shard!r} is not K/N with K from 1 to N, such as 2/4")
    if n > len(cells):
        raise SuiteError(f"--shard: {shard}: there are only {len(cells)} cells to share")
    dealt = sorted(range(len(cells)), key=lambda i: (-cells[i].budget, cells[i].id))
    there, back = dealt[k - 1 :: 2 * n], dealt[2 * n - k :: 2 * n]
    return [cells[i] for i in sorted(there + back)]
