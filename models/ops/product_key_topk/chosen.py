"""Gradients of the chosen sub-keys alone, as a value sum over one table of all sub-keys."""

from __future__ import annotations

import torch
from torch import Tensor


def as_value_sum(
    dscore_HMk: Tensor, query_SHMC: Tensor, keys_SHCN: Tensor, index_SHMk: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operands of the value sum that gives the gradient of the queries.

    Returns:
        the table of sub-keys [2 S n, C]; the 2 H M half-queries, which are its tokens, [2 H M, C];
        the rows of each, [2 H M, k], int32; and the gates, [2 H M, k].
    """
    _, H, _, C = query_SHMC.shape
    S, n = keys_SHCN.shape[1], keys_SHCN.shape[-1]
    table_NC = keys_SHCN.transpose(2, 3).reshape(2 * S * n, C)
    half = torch.arange(2, device=table_NC.device, dtype=torch.int32)[:, None]
    head = torch.arange(H, device=table_NC.device, dtype=torch.int32) % S
    row_SHMk = index_SHMk + n * (half * S + head)[..., None, None]
    # Triton's kernels read memory in order, and flatten alone may leave an expanded view
    gate_SHMk = dscore_HMk.expand_as(index_SHMk).contiguous()
    return table_NC, query_SHMC.flatten(0, 2), row_SHMk.flatten(0, 2), gate_SHMk.flatten(0, 2)


def table_to_keys(table_NC: Tensor, like_SHCN: Tensor) -> Tensor:
    """The table of `as_value_sum` as keys [2, S, C, n]."""
    _, S, C, n = like_SHCN.shape
    return table_NC.view(2, S, n, C).transpose(2, 3).contiguous()
