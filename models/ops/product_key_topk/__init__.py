"""Product-key retrieval: the best k of n^2 keys from the scores of 2 n sub-keys.

Sizes: S = 2 halves, H heads, M tokens, C = d_key / 2, n sub-keys of each half for n^2 keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.models.layer import full_precision
from isoflop.models.ops.backends import choose_backend, cpu_obstacle, triton_obstacle
from isoflop.models.ops.product_key_topk import op, reference
from isoflop.models.ops.verify import note, works

BACKENDS = ("auto", "reference", "cpu", "triton")


def product_key_topk(
    query_SHMC: Tensor, keys_SHCN: Tensor, k: int, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """The k of n^2 keys with the highest <query[0], keys[0][i]> + <query[1], keys[1][j]>.

    The result is that of an exhaustive search (arXiv 1907.05242); among equal scores any may be
    chosen, as by `torch.topk`. Float32 throughout, under autocast too. 4 * H * M * C * n FLOPs.

    Args:
        query_SHMC: both halves of each head's queries, [2, H, M, C].
        keys_SHCN: the sub-keys of each half, [2, H, C, n], or [2, 1, C, n] where all heads share
            them.
        k: keys to retrieve per query.
        backend: "reference" (all scores and their gradients: the path that is counted), "cpu"
            (CPU: packed sorting, gradients of the chosen alone), "triton" (CUDA: scores never
            written), or "auto": the fastest for the device, the reference on the meta device.
    Returns:
        scores [H, M, k] in falling order, and key indices i * n + j, [H, M, k], int64.
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
    obstacles = {"cpu": cpu_obstacle(query_SHMC), "triton": triton_obstacle(query_SHMC)}
    dtype = torch.promote_types(keys_SHCN.dtype, torch.float32)
    sizes = (H, keys_SHCN.shape[1], C, n, k)

    def agrees(fast: str) -> bool:
        return works("product_key_topk", fast, query_SHMC.device, dtype, sizes)

    backend = choose_backend(backend, BACKENDS, obstacles, agrees)
    with full_precision(query_SHMC):
        query, keys = query_SHMC.to(dtype), keys_SHCN.to(dtype)
        if backend == "reference":
            note("product_key_topk", backend)
            return reference.forward(query, keys, k)
        operands = query.contiguous(), keys.contiguous()
        score_HMk, index_SHMk = op.forward(*operands, k, backend)
        return score_HMk, index_SHMk[0].long() * n + index_SHMk[1]
