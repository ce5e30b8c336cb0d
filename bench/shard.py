"""A machine's share of a suite, computed alike on every machine of a cluster."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from isoflop.bench.suite import SuiteError

if TYPE_CHECKING:
    from isoflop.bench.plan import Cell


def share(cells: list[Cell], shard: str) -> list[Cell]:
    """Share K of N, in the cells' order; N shares together are exactly the cells.

    Cells are dealt to the shares by decreasing budget, in the order 1..N, N..1, 1..N and so on, so
    that shares cost about the same FLOPs. Within a budget they are sorted by id, a hash: otherwise
    a share could get all cells of one size or variant, whose seconds per FLOP differ.

    Args:
        cells: all of the suite, with or without records, so that a share never changes.
        shard: "K/N".
    Raises:
        SuiteError: `shard` is not K/N, or there are fewer cells than shares.
    """
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", shard, re.ASCII)
    k, n = map(int, match.groups()) if match else (1, 0)
    if k > n:
        raise SuiteError(f"--shard: {shard!r} is not K/N with K from 1 to N, such as 2/4")
    if n > len(cells):
        raise SuiteError(f"--shard: {shard}: there are only {len(cells)} cells to share")
    order = sorted(range(len(cells)), key=lambda i: (-cells[i].budget, cells[i].id))
    forth, back = order[k - 1 :: 2 * n], order[2 * n - k :: 2 * n]
    return [cells[i] for i in sorted(forth + back)]
