"""The expert mix on a CPU, by stock operators on sorted pairs: see `pairs`."""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.models.ops.activations import activate, activate_backward
from isoflop.models.ops.pairs import pair_dots, pairs_in_order, row_sums, sort_pairs, unsort
from isoflop.models.ops.value_sum import cpu as value_sum


def forward(
    x_MD: Tensor, up_ND: Tensor, down_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, activation: str
) -> tuple[Tensor, Tensor, Tensor]:
    """y [M, D], and for the backward pass the hidden values and the order, both sorted [M * P]."""
    pairs = sort_pairs(index_MP, up_ND.shape[0])
    hidden = pair_dots(up_ND, x_MD, pairs)
    weight_MP = gate_MP * activate(unsort(hidden, pairs, gate_MP), activation)
    return value_sum.forward(down_ND, index_MP, weight_MP), hidden, pairs.order


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
    pairs = pairs_in_order(order, index_MP, up_ND.shape[0])
    gate = gate_MP.flatten().index_select(0, order)
    h = activate(hidden, activation)
    dweight = pair_dots(down_ND, dy_MD, pairs)
    dhidden = activate_backward(dweight * gate, hidden, activation)
    return (
        value_sum.forward(up_ND, index_MP, unsort(dhidden, pairs, gate_MP)),
        row_sums(pairs, x_MD, dhidden).to(dtype),
        row_sums(pairs, dy_MD, gate * h).to(dtype),
        unsort(dweight * h, pairs, gate_MP),
    )
