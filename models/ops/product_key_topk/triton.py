# mypy: allow-untyped-defs, allow-incomplete-defs
"""Product-key retrieval in Triton: scores and their top k without writing the scores.

A first kernel multiplies a block of half-queries with tiles of sub-keys and keeps each half-query's
best k so far, as 64-bit integers that order by score, then by lower index: so equal scores give the
same choice on every run. A second kernel adds up the pairs of ranks (i, j), counted
from 1, with i * j <= k, the only ones that can win, and keeps the best k of those.
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

# half-queries and sub-keys scored at a time, by 8 warps: twice as many do not fit in registers
BLOCK_M, TILE = 32, 64

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
def _half_topk(
    query_ptr,  # [2, H, M, C]
    key_ptr,  # [2, S, C, n]; S is H or 1
    score_ptr,  # [2, H, M, k] float32
    index_ptr,  # [2, H, M, k] int32
    M,
    H: tl.constexpr,
    S: tl.constexpr,
    C: tl.constexpr,
    n: tl.constexpr,
    k: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """The best k sub-keys of a block of half-queries: scores falling, and their indices."""
    half_head = tl.program_id(1)
    keys = half_head // H * S + half_head % H % S
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row = half_head.to(tl.int64) * M + m
    c = tl.arange(0, BLOCK_C)
    query = tl.load(
        query_ptr + row[:, None] * C + c[None, :],
        mask=(m < M)[:, None] & (c < C)[None, :],
        other=0.0,
    )
    best = tl.full([BLOCK_M, BLOCK_K], _WORST, tl.int64)
    for start in range(0, n, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        key = tl.load(
            key_ptr + (keys * C + c)[:, None] * n + i[None, :],
            mask=(c < C)[:, None] & (i < n)[None, :],
            other=0.0,
        )
        score = tl.dot(query, key, input_precision="ieee")
        packed = tl.where((i < n)[None, :], _pack(score, i[None, :]), _WORST)
        tile_best = tl.topk(packed, BLOCK_K)
        both = tl.reshape(tl.join(best, tile_best), [BLOCK_M, 2 * BLOCK_K])
        best = tl.topk(both, BLOCK_K)
    score, index = _unpack(best)
    rank = tl.arange(0, BLOCK_K)
    place = row[:, None] * k + rank[None, :]
    mask = (m < M)[:, None] & (rank < k)[None, :]
    tl.store(score_ptr + place, score, mask=mask)
    tl.store(index_ptr + place, index, mask=mask)


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


def forward(query_SHMC: Tensor, keys_SHCN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores [H, M, k], falling, float32, and the sub-keys of each half, [2, H, M, k], int32."""
    _, H, M, C = query_SHMC.shape
    n = keys_SHCN.shape[-1]
    device = query_SHMC.device
    half = min(k, n)
    block_half = triton.next_power_of_2(half)
    half_score = torch.empty(2, H, M, half, device=device)
    half_index = torch.empty(2, H, M, half, device=device, dtype=torch.int32)
    _half_topk[(triton.cdiv(M, BLOCK_M), 2 * H)](
        query_SHMC,
        keys_SHCN,
        half_score,
        half_index,
        M,
        H,
        keys_SHCN.shape[1],
        C,
        n,
        half,
        BLOCK_M=BLOCK_M,
        BLOCK_C=max(16, triton.next_power_of_2(C)),
        BLOCK_N=max(16, block_half, min(TILE, triton.next_power_of_2(n))),
        BLOCK_K=block_half,
        num_warps=8,
    )
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
    dtable, _ = value_sum.backward(query, table, index, dscore)
    return dquery.view_as(query_SHMC), table_to_keys(dtable, keys_SHCN)
