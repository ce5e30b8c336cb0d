"""Product-key retrieval on a CPU: vectorised sorting, and gradients of the chosen sub-keys alone.

`torch.topk` is the slowest part of a retrieval on few threads. numpy sorts float64 with vector
instructions, and a float64 has room for a float32 score and, in the low bits of its significand,
its index: so sorting the packed numbers sorts scores and indices together, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from isoflop.models.ops.pairs import row_sums, sort_pairs
from isoflop.models.ops.product_key_topk.chosen import as_value_sum, table_to_keys
from isoflop.models.ops.product_key_topk.reference import candidate_ranks
from isoflop.models.ops.value_sum import cpu as value_sum

SPARE_BITS = 52 - 23  # of a float64's significand over a float32's
BLOCK = 2**17  # scores packed and sorted at a time, so that they stay in a core's own cache
THREADS = 8  # torch.topk uses all threads, numpy a single one: from here on torch is faster
# sub-keys per chosen sub-key (n / k) from which gradients of the chosen alone are faster
SPARSE_FROM = 8


Rows = Callable[[slice], Tensor]  # computes some rows of a matrix when asked for them


def largest(rows: Rows, R: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each of R rows of n finite float32 numbers, in falling order.

    Rows are asked for block by block: no more of a product exists at once than a cache holds.

    Returns:
        the numbers and their indices, [R, k] each.
    """
    step = max(1, BLOCK // n)
    packed_Rk = np.empty((R, k))
    for start in range(0, R, step):
        block = slice(start, start + step)
        # numpy throughout: torch would start and join its threads in every line
        top = rows(block).numpy().astype(np.float64)
        packed = top.view(np.int64)
        packed |= np.arange(n)
        if n > 4 * k:
            top.partition(n - k)
            top = top[:, n - k :].copy()
        top.sort()
        packed_Rk[block] = top[:, -k:][:, ::-1]
    bits = packed_Rk.view(np.int64)
    index_Rk = torch.from_numpy(bits & (2**SPARE_BITS - 1))
    bits &= -(2**SPARE_BITS)
    return torch.from_numpy(packed_Rk.astype(np.float32)), index_Rk


def topk(rows: Rows, R: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    """`largest` by torch, for any floating type."""
    score_Rk, index_Rk = rows(slice(None)).topk(k)
    return score_Rk, index_Rk


def forward(query_SHMC: Tensor, keys_SHCN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores [H, M, k], falling, and the sub-keys of each half, [2, H, M, k], int32."""
    _, H, M, C = query_SHMC.shape
    S, n = keys_SHCN.shape[1], keys_SHCN.shape[-1]
    half = min(k, n)
    fast = query_SHMC.dtype == torch.float32 and n < 2**SPARE_BITS
    choose = largest if fast and torch.get_num_threads() < THREADS else topk
    # a single product for all heads where they share the keys
    tops = [
        choose(partial(_products, query_RC, keys_CN), len(query_RC), n, half)
        for query_HMC, keys_HCN in zip(query_SHMC, keys_SHCN, strict=True)
        for query_RC, keys_CN in zip(query_HMC.reshape(S, -1, C), keys_HCN, strict=True)
    ]
    first, second = torch.stack([top for top, _ in tops]).view(2, H * M, half)
    index_SRk = torch.stack([index for _, index in tops]).view(2, H * M, half)
    ranks = candidate_ranks(k, half)
    rank_i, rank_j = ranks
    sums = first.index_select(1, rank_i) + second.index_select(1, rank_j)
    score_Rk, best_Rk = choose(sums.__getitem__, len(sums), sums.shape[1], k)
    chosen_SRk = ranks.index_select(1, best_Rk.flatten()).view(2, H * M, k)
    index = index_SRk.gather(-1, chosen_SRk).to(torch.int32)
    return score_Rk.view(H, M, k), index.view(2, H, M, k)


def _products(query_RC: Tensor, keys_CN: Tensor, rows: slice) -> Tensor:
    return query_RC[rows] @ keys_CN


def backward(
    dscore_HMk: Tensor, query_SHMC: Tensor, keys_SHCN: Tensor, index_SHMk: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of query and keys."""
    S, n = keys_SHCN.shape[1], keys_SHCN.shape[-1]
    if n < SPARSE_FROM * dscore_HMk.shape[-1]:
        dscore_SHMN = query_SHMC.new_zeros(*query_SHMC.shape[:-1], n).scatter_add_(
            -1, index_SHMk.long(), dscore_HMk.expand_as(index_SHMk)
        )
        dquery = dscore_SHMN @ keys_SHCN.transpose(2, 3)
        dkeys = query_SHMC.transpose(2, 3) @ dscore_SHMN
        return dquery, dkeys.sum(1, keepdim=True) if S == 1 else dkeys
    table, query, index, dscore = as_value_sum(dscore_HMk, query_SHMC, keys_SHCN, index_SHMk)
    dquery = value_sum.forward(table, index, dscore)
    pairs = sort_pairs(index, table.shape[0])
    dtable = row_sums(pairs, query, dscore.flatten().index_select(0, pairs.order))
    return dquery.view_as(query_SHMC), table_to_keys(dtable, keys_SHCN)
