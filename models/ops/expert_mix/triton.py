"""The expert mix in Triton, for training on a GPU: see `pairs_triton`.

In bytes read per pair, rows of D elements: 2 forward, 4 + 1 backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.models.ops.pairs_triton import row_gradients, tile_sizes, token_major
from isoflop.models.ops.value_sum import triton as value_sum


def forward(
    x_MD: Tensor, up_ND: Tensor, down_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y [M, D], and for the backward pass the hidden values; no order, backward sorts."""
    M, P = index_MP.shape
    D = x_MD.shape[1]
    y_MD = torch.empty_like(x_MD)
    hidden = torch.empty_like(gate_MP).flatten()
    token_major[(M,)](
        x_MD,
        up_ND,
        down_ND,
        index_MP,
        gate_MP,
        hidden,
        y_MD,
        P,
        D,
        MIX=True,
        ACTIVATION=activation,
        **tile_sizes(D, P)._asdict(),
    )
    return y_MD, hidden, index_MP.new_empty(0, dtype=torch.int64)


def backward(
    dy_MD: Tensor,
    x_MD: Tensor,
    up_ND: Tensor,
    down_ND: Tensor,
    index_MP: Tensor,
    gate_MP: Tensor,
    hidden: Tensor,
    order: Tensor,
    dtype: torch.dtype,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, of up and down in `dtype`, and of gate."""
    ddown_ND, dgate_MP, dup_ND, dhidden_MP = row_gradients(
        dy_MD, x_MD, down_ND, index_MP, gate_MP, hidden, dtype, activation
    )
    return value_sum.forward(up_ND, index_MP, dhidden_MP), dup_ND, ddown_ND, dgate_MP
