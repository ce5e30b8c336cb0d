"""Product-key retrieval with the scoring fused in, on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from models.sparse import ops


def product_key_topk(query_SHMC: Tensor, keys_SHCN: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k keys of n^2 with the highest <query[0], keys[0][i]> + <query[1], keys[1][j]>.

    The scores of single sub-keys are never written. In float32 throughout; among equal scores the
    lower ranks win, on every run alike. Differentiable in query and keys.

    Args:
        query_SHMC: both halves of each head's queries, [2, heads, tokens, d_key / 2].
        keys_SHCN: the n sub-keys of each half, [2, heads, d_key / 2, n], or [2, 1, ...] where all
            heads share them.
    Returns:
        scores [heads, tokens, k] in falling order, and key indices i * n + j, int64.
    Raises:
        ValueError: no Triton for this device, or shapes that do not fit.
    """
    lacks = ops.triton_lacks(query_SHMC)
    if lacks:
        raise ValueError(f"fused product-key top-k is impossible here: {lacks}")
    _, H, _, C = query_SHMC.shape
    n = keys_SHCN.shape[-1]
    if keys_SHCN.shape not in {(2, 1, C, n), (2, H, C, n)} or not 0 < k <= n:
        raise ValueError(
            f"query {tuple(query_SHMC.shape)}, keys {tuple(keys_SHCN.shape)} and k = {k} do not fit"
        )
    with torch.autocast(query_SHMC.device.type, enabled=False):
        query, keys = query_SHMC.float().contiguous(), keys_SHCN.float().contiguous()
        score_HMk, index_SHMk = ops.product_key_topk(query, keys, k)
    return score_HMk, index_SHMk[0].long() * n + index_SHMk[1]
