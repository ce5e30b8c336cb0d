"""Product-key retrieval: one function, several back ends.

Sizes: S = 2 halves, H heads, M tokens, C = d_key / 2, n sub-keys of each half for n^2 keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.models.layer import full_precision
from isoflop.models.ops import ops
from isoflop.models.ops.bag_topk import candidate_ranks

BACKENDS = ("auto", "reference", "bag", "triton")


def product_key_topk(
    query_SHMC: Tensor, keys_SHCN: Tensor, k: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The k of n^2 keys with the highest <query[0], keys[0][i]> + <query[1], keys[1][j]>.

    Equal to an exhaustive search (arXiv 1907.05242); which of equal scores is free, as it is for
    `torch.topk`. Float32 throughout, whatever autocast says. 4 * H * M * C * n FLOPs.

    Args:
        query_SHMC: both halves of each head's queries, [2, H, M, C].
        keys_SHCN: the sub-keys of each half, [2, H, C, n], or [2, 1, C, n] where all heads share
            them.
        backend: "reference" (all scores and their gradients: the path that is counted), "bag"
            (CPU: packed sorting, gradients of the chosen alone), "triton" (CUDA: scores never
            written), or "auto": the fastest for the device, the reference on the meta device.
    Returns:
        scores [H, M, k] in falling order, and key indices i * n + j, int64.
    Raises:
        ValueError: an unknown or impossible back end, or shapes that do not fit.
    """
    _, H, _, C = query_SHMC.shape
    n = keys_SHCN.shape[-1]
    # Tuples, not a set: under a trace sizes are tensors, equal but of different hash.
    if tuple(keys_SHCN.shape) not in ((2, 1, C, n), (2, H, C, n)) or not 0 < k <= n * n:
        raise ValueError(
            f"query {tuple(query_SHMC.shape)}, keys {tuple(keys_SHCN.shape)} and k = {k} do not fit"
        )
    on_cpu = query_SHMC.device.type == "cpu"
    lacks = {
        "bag": "" if on_cpu else f"it runs on a CPU only, not on {query_SHMC.device.type}",
        "triton": ops.triton_lacks(query_SHMC),
    }
    if backend == "auto":
        backend = next((fast for fast in lacks if not lacks[fast]), "reference")
    if backend not in BACKENDS:
        raise ValueError(f"back end {backend!r} is unknown: one of {', '.join(BACKENDS)}")
    if lacks.get(backend):
        raise ValueError(f"back end {backend!r} is impossible here: {lacks[backend]}")
    with full_precision(query_SHMC):
        dtype = torch.promote_types(keys_SHCN.dtype, torch.float32)
        query, keys = query_SHMC.to(dtype), keys_SHCN.to(dtype)
        if backend == "reference":
            return _reference(query, keys, k)
        operands = query.contiguous(), keys.contiguous()
        score_HMk, index_SHMk = ops.product_key_topk(*operands, k, backend)
        return score_HMk, index_SHMk[0].long() * n + index_SHMk[1]


def _reference(query_SHMC: Tensor, keys_SHCN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    score_SHMN = query_SHMC @ keys_SHCN
    n = score_SHMN.shape[-1]
    top_SHMk, index_SHMk = score_SHMN.topk(min(k, n), dim=-1)
    rank_i, rank_j = candidate_ranks(k, min(k, n)).to(score_SHMN.device)
    sums = top_SHMk[0].index_select(-1, rank_i) + top_SHMk[1].index_select(-1, rank_j)
    score_HMk, best_HMk = sums.topk(k, dim=-1)
    first = index_SHMk[0].gather(-1, rank_i[best_HMk])
    second = index_SHMk[1].gather(-1, rank_j[best_HMk])
    return score_HMk, first * n + second
