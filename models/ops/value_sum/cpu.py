"""The value sum on a CPU, by stock operators: see `pairs`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models.ops.pairs import pair_dots, row_sums, sort_pairs, unsort


def forward(values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor) -> Tensor:
    """y [M, D]."""
    return F.embedding_bag(index_MP, values_ND, per_sample_weights=gate_MP, mode="sum")


def backward(
    dy_MD: Tensor, values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients of values, in `dtype`, and gate."""
    pairs = sort_pairs(index_MP, values_ND.shape[0])
    dgate = pair_dots(values_ND, dy_MD, pairs)
    return (
        row_sums(pairs, dy_MD, gate_MP.flatten().index_select(0, pairs.order)).to(dtype),
        unsort(dgate, pairs, gate_MP),
    )
