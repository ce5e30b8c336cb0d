"""The expert mix for few experts: all of them for every token, then select."""

from __future__ import annotations

from torch import Tensor

from isoflop.models.ops.activations import activate
from isoflop.models.ops.pairs import pair_matrix


def forward(
    x_MD: Tensor, up_ND: Tensor, down_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, activation: str
) -> Tensor:
    """y [M, D]."""
    hidden_MP = (x_MD @ up_ND.t()).gather(1, index_MP)
    weight_MP = gate_MP * activate(hidden_MP, activation)
    return pair_matrix(weight_MP, index_MP, down_ND.shape[0]).to(x_MD.dtype) @ down_ND
