# mypy: allow-untyped-defs, allow-incomplete-defs
"""Product-key retrieval on a GPU: products by torch, the best k of them in Triton.

The scores of all sub-keys are plain float32 products, for as many heads at a time as fit in
SCORE_BYTES. A kernel keeps rows of them in the registers of one warp and takes the largest k times,
of equal ones that with the lower index: so equal scores give the same choice on every run. A second
kernel adds up the pairs of ranks (i, j), counted from 1, with i * j <= k, the only ones that can
win, and keeps the best k of those.

On an H200 (65536 tokens, 8 heads, 1024 sub-keys, k = 16) products and search in one kernel took
23 ms when it merged sorted lists, 13 ms when it took the largest k times, and the products alone
4 ms by torch.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from isoflop.models.ops.product_key_topk.chosen import as_value_sum, table_to_keys
from isoflop.models.ops.product_key_topk.reference import candidate_ranks
from isoflop.models.ops.value_sum import triton as value_sum

SCORE_BYTES = 2**28  # of half-query scores that exist at a time
TILE = 1024  # scores that a warp holds, 32 a lane

_WORST: tl.constexpr = tl.constexpr(-(2**63))


@triton.jit
def _pack(score, index):
    """Integers that order as the float32 scores do, the lower index first among equals."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (index.to(tl.int64) ^ 0xFFFFFFFF)


@triton.jit
def _unpack(packed):
    ordered = (packed >> 32).to(tl.int32)
    bits = ordered ^ ((ordered >> 31) & 0x7FFFFFFF)
    return bits.to(tl.float32, bitcast=True), ((packed ^ 0xFFFFFFFF) & 0xFFFFFFFF).to(tl.int32)


@triton.jit
def _row_topk(
    score_ptr,  # [rows, n] float32
    best_ptr,  # [rows, k] float32
    index_ptr,  # [rows, k] int32
    rows,
    n: tl.constexpr,
    k: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The k largest scores of each row, falling, and their columns."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    in_row = row < rows
    rank = tl.arange(0, BLOCK_K)[None, :]
    best = tl.full([BLOCK_M, BLOCK_K], float("-inf"), tl.float32)
    index = tl.full([BLOCK_M, BLOCK_K], 0, tl.int32)
    for start in range(0, n, BLOCK_N):
        column = start + tl.arange(0, BLOCK_N)[None, :]
        mask = in_row & (column < n)
        score = tl.load(score_ptr + row * n + column, mask=mask, other=float("-inf"))
        before, index_before = best, index  # the best of earlier columns, which win if equal
        for r in range(k):
            value = tl.max(score, axis=1)[:, None]
            at = tl.min(tl.where(score == value, column, n - 1), axis=1)[:, None]
            if n > BLOCK_N:
                old = tl.max(before, axis=1)[:, None]
                old_rank = tl.min(tl.where(before == old, rank, BLOCK_K - 1), axis=1)[:, None]
                old_at = tl.sum(tl.where(rank == old_rank, index_before, 0), axis=1)[:, None]
                is_old = (old >= value) & (start > 0)
                before = tl.where(is_old & (rank == old_rank), float("-inf"), before)
                score = tl.where((column == at) & (is_old == 0), float("-inf"), score)
                value = tl.where(is_old, old, value)
                at = tl.where(is_old, old_at, at)
            else:
                score = tl.where(column == at, float("-inf"), score)
            best = tl.where(rank == r, value, best)
            index = tl.where(rank == r, at, index)
    mask = in_row & (rank < k)
    tl.store(best_ptr + row * k + rank, best, mask=mask)
    tl.store(index_ptr + row * k + rank, index, mask=mask)


@triton.jit
def _pair_topk(
    half_score_ptr,  # [2, H * M, half] float32, falling
    half_index_ptr,  # [2, H * M, half] int32
    rank_ptr,  # [2, pairs] int32
    score_ptr,  # [H * M, k] float32
    index_ptr,  # [2, H * M, k] int32, the pair's index in each half
    rows,
    pairs: tl.constexpr,
    half: tl.constexpr,
    k: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The best k sums of one score from each half."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    in_row = (row < rows)[:, None]
    pair = tl.arange(0, BLOCK_PAIRS)
    in_pair = (pair < pairs)[None, :]
    first_rank = tl.load(rank_ptr + pair, mask=pair < pairs, other=0)
    second_rank = tl.load(rank_ptr + pairs + pair, mask=pair < pairs, other=0)
    first = row[:, None] * half
    second = first + rows * half
    score = tl.load(half_score_ptr + first + first_rank[None, :], mask=in_row & in_pair, other=0.0)
    score += tl.load(
        half_score_ptr + second + second_rank[None, :], mask=in_row & in_pair, other=0.0
    )
    packed = tl.where(in_pair, _pack(score, pair[None, :]), _WORST)
    score, pair = _unpack(tl.topk(packed, BLOCK_K))
    rank = tl.arange(0, BLOCK_K)[None, :]
    mask = in_row & (rank < k)
    first_rank = tl.load(rank_ptr + pair, mask=mask, other=0)
    second_rank = tl.load(rank_ptr + pairs + pair, mask=mask, other=0)
    out = row[:, None] * k + rank
    tl.store(score_ptr + out, score, mask=mask)
    index = tl.load(half_index_ptr + first + first_rank, mask=mask, other=0)
    tl.store(index_ptr + out, index, mask=mask)
    index = tl.load(half_index_ptr + second + second_rank, mask=mask, other=0)
    tl.store(index_ptr + rows * k + out, index, mask=mask)


@functools.cache
def _ranks_on(device: torch.device, k: int, half: int) -> Tensor:
    """Copied to the device once: a copy in every step would wait for it, and break CUDA graphs."""
    return candidate_ranks(k, half).to(device, torch.int32)


def _half_topk(query_SHMC: Tensor, keys_SHCN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The best k sub-keys of each half-query, [2, H, M, k]: scores, falling, and int32 indices."""
    S, H, M, C = query_SHMC.shape
    n = keys_SHCN.shape[-1]
    best = query_SHMC.new_empty(S, H, M, k)
    index = query_SHMC.new_empty(S, H, M, k, dtype=torch.int32)
    keys = keys_SHCN.expand(S, H, C, n).flatten(0, 1)
    together = max(1, SCORE_BYTES // (4 * M * n))  # half-heads
    parts = [t.flatten(0, 1).split(together) for t in (query_SHMC, best, index)]
    block_n = max(16, min(TILE, triton.next_power_of_2(n)))
    block_m = TILE // block_n
    for query, keys_part, *results in zip(parts[0], keys.split(together), *parts[1:], strict=True):
        rows = query.shape[0] * M
        _row_topk[(triton.cdiv(rows, block_m),)](
            query @ keys_part,
            *results,
            rows,
            n,
            k,
            BLOCK_M=block_m,
            BLOCK_N=block_n,
            BLOCK_K=triton.next_power_of_2(k),
            num_warps=1,
        )
    return best, index


def forward(query_SHMC: Tensor, keys_SHCN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores [H, M, k], falling, float32, and the sub-keys of each half, [2, H, M, k], int32."""
    _, H, M, _ = query_SHMC.shape
    n = keys_SHCN.shape[-1]
    device = query_SHMC.device
    half = min(k, n)
    half_score, half_index = _half_topk(query_SHMC, keys_SHCN, half)
    ranks = _ranks_on(device, k, half)
    pairs = ranks.shape[1]
    score = torch.empty(H, M, k, device=device)
    index = torch.empty(2, H, M, k, device=device, dtype=torch.int32)
    block_pairs = triton.next_power_of_2(pairs)
    block_m = max(1, 1024 // block_pairs)
    _pair_topk[(triton.cdiv(H * M, block_m),)](
        half_score,
        half_index,
        ranks,
        score,
        index,
        H * M,
        pairs,
        half,
        k,
        BLOCK_M=block_m,
        BLOCK_PAIRS=block_pairs,
        BLOCK_K=triton.next_power_of_2(k),
    )
    return score, index


def backward(
    dscore_HMk: Tensor, query_SHMC: Tensor, keys_SHCN: Tensor, index_SHMk: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of query and keys."""
    table, query, index, dscore = as_value_sum(dscore_HMk, query_SHMC, keys_SHCN, index_SHMk)
    dquery = value_sum.forward(table, index, dscore)
    dtable, _ = value_sum.backward(query, table, index, dscore, table.dtype)
    return dquery.view_as(query_SHMC), table_to_keys(dtable, keys_SHCN)
