"""The definition of product-key retrieval, and the path whose FLOPs are counted."""

from __future__ import annotations

import torch
from torch import Tensor


def forward(query_SHMC: Tensor, keys_SHCN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores [H, M, k] in falling order, and key indices i * n + j, [H, M, k]."""
    return best_sums(query_SHMC @ keys_SHCN, k)


def best_sums(score_SHMN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k highest sums of one score from each half, and i * n + j for scores i and j.

    The best k of each half, then the best k sums of these.
    """
    n = score_SHMN.shape[-1]
    top_SHMk, index_SHMk = score_SHMN.topk(min(k, n), dim=-1)
    rank_i, rank_j = candidate_ranks(k, min(k, n)).to(score_SHMN.device)
    sums = top_SHMk[0].index_select(-1, rank_i) + top_SHMk[1].index_select(-1, rank_j)
    score_HMk, best_HMk = sums.topk(k, dim=-1)
    first = index_SHMk[0].gather(-1, rank_i[best_HMk])
    second = index_SHMk[1].gather(-1, rank_j[best_HMk])
    return score_HMk, first * n + second


def candidate_ranks(k: int, half: int) -> Tensor:
    """The ranks (i, j), from 0, of the pairs that can be among the best k, [2, pairs].

    With the best `half` of both sides sorted, pair (i, j) has (i + 1) (j + 1) pairs at least as
    good, itself included, so only those with (i + 1) (j + 1) <= k can be needed: 50 of 256 for
    k = 16.
    """
    pairs = [(i, j) for i in range(half) for j in range(min(half, k // (i + 1)))]
    return torch.tensor(pairs).t().contiguous()
