"""The value sum in Triton, for training on a GPU: see `pairs_triton`.

In bytes read per pair, rows of D elements: 1 forward, 2 backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.models.ops.pairs_triton import row_gradients, tile_sizes, token_major


def forward(values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor) -> Tensor:
    """y [M, D]."""
    M, P = index_MP.shape
    D = values_ND.shape[1]
    y_MD = values_ND.new_empty(M, D)
    token_major[(M,)](
        values_ND,
        values_ND,
        values_ND,
        index_MP,
        gate_MP,
        gate_MP,
        y_MD,
        P,
        D,
        MIX=False,
        ACTIVATION="",
        **tile_sizes(D, P)._asdict(),
    )
    return y_MD


def backward(
    dy_MD: Tensor, values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The gradients of values, in `dtype`, and gate."""
    dvalues_ND, dgate_MP, _, _ = row_gradients(
        dy_MD, None, values_ND, index_MP, gate_MP, None, dtype, ""
    )
    return dvalues_ND, dgate_MP
