"""Product-key retrieval on a CPU: vectorised sorting, and gradients of the chosen sub-keys alone.

`torch.topk` is the slowest part of a retrieval on few threads. numpy sorts float64 with vector
instructions, and a float64 has room for a float32 score and, in the low bits of its significand,
its index: so sorting the packed numbers sorts scores and indices together, exactly.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
# numpy sorts whole rows fast by AVX-512, and partitions them fast by AVX2; the results are equal
AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"
SORT_WHOLE = 256 if AVX512 else 64  # longest row of float64 that is sorted and not partitioned
# rows longer than the first, up to the second, are packed into float32
PACK_SINGLE = (256, 1024) if AVX512 else (0, 0)
# sub-keys per chosen sub-key (n / k) from which gradients of the chosen alone are faster
SPARSE_FROM = 8


Rows = Callable[[slice], Tensor]  # computes some rows of a matrix when asked for them


def largest(rows: Rows, R: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each of R rows of n finite float32 numbers, in falling order.

    Rows are asked for block by block: no more of a product exists at once than the caches hold.
    As many blocks are sorted at a time as torch has threads; the result does not depend on them.

    Returns:
        the numbers and their indices, [R, k] each.
    """
    step, threads = max(1, BLOCK // n), torch.get_num_threads()
    packed_Rk = np.empty((R, k))
    blocks = [slice(start, start + step) for start in range(0, R, step)]

    def sort(block: slice, score_BN: np.ndarray) -> None:
        packed_Rk[block] = _largest_packed(score_BN, k)

    if threads == 1:
        for block in blocks:
            sort(block, rows(block).numpy())
    else:  # numpy's sort leaves the interpreter to the other threads
        for start in range(0, len(blocks), threads):
            some = blocks[start : start + threads]
            scores = [rows(block).numpy() for block in some]
            list(_sorters(os.getpid(), threads).map(sort, some, scores))
    bits = packed_Rk.view(np.int64)
    index_Rk = torch.from_numpy(bits & (2**SPARE_BITS - 1))
    bits &= -(2**SPARE_BITS)
    return torch.from_numpy(packed_Rk.astype(np.float32)), index_Rk


@functools.lru_cache(maxsize=1)
def _sorters(pid: int, threads: int) -> ThreadPoolExecutor:
    """The threads that sort; a forked process has none of its parent's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="isoflop-topk")


def _largest_packed(score_BN: np.ndarray, k: int) -> np.ndarray:
    """The k largest of each row, falling, with their indices in the bits that float64 spares.

    numpy throughout: torch would start and join its threads in every line.
    """
    n = score_BN.shape[1]
    if not PACK_SINGLE[0] < n <= PACK_SINGLE[1]:
        packed = score_BN.astype(np.float64)
        packed.view(np.int64)[:] |= np.arange(n)
        return _sorted_top(packed, k, k)[:, ::-1]
    # Half the bytes: the index in place of the lowest bits of a float32. Where two of the k + 1
    # largest are equal in the bits that are left, their order is not known: these few rows again.
    low = 2 ** (n - 1).bit_length() - 1
    packed = score_BN.copy()
    bits = packed.view(np.int32)
    bits &= ~low
    bits |= np.arange(n, dtype=np.int32)
    bits = _sorted_top(packed, k, min(n, k + 1)).view(np.int32)
    index = (bits[:, -k:][:, ::-1] & low).astype(np.int64)
    top = np.take_along_axis(score_BN, index, 1).astype(np.float64)
    top.view(np.int64)[:] |= index
    bits &= ~low
    unknown = np.flatnonzero((bits[:, 1:] == bits[:, :-1]).any(1))
    if len(unknown):
        packed = score_BN[unknown].astype(np.float64)
        packed.view(np.int64)[:] |= np.arange(n)
        top[unknown] = _sorted_top(packed, k, k)[:, ::-1]
    return top


def _sorted_top(packed: np.ndarray, k: int, count: int) -> np.ndarray:
    """The `count` largest of each row, rising; sorts in place."""
    n = packed.shape[1]
    # to sort a whole row is faster while it is short: in half the bytes, twice as long
    if n > max(4 * k, SORT_WHOLE * (8 // packed.itemsize)):
        packed.partition(n - count)
        packed = packed[:, n - count :].copy()
    packed.sort()
    return packed[:, -count:]


def topk(rows: Rows, R: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    """`largest` by torch, for any floating type."""
    score_Rk, index_Rk = rows(slice(None)).topk(k)
    return score_Rk, index_Rk


def forward(query_SHMC: Tensor, keys_SHCN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores [H, M, k], falling, and the sub-keys of each half, [2, H, M, k], int32."""
    _, H, M, C = query_SHMC.shape
    S, n = keys_SHCN.shape[1], keys_SHCN.shape[-1]
    half = min(k, n)
    choose = largest if query_SHMC.dtype == torch.float32 and n < 2**SPARE_BITS else topk
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
