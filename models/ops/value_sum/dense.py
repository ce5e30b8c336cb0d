"""The value sum for small tables: one product with the whole table."""

from __future__ import annotations

from torch import Tensor

from isoflop.models.ops.pairs import pair_matrix


def forward(values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor) -> Tensor:
    """y [M, D]."""
    return pair_matrix(gate_MP, index_MP, values_ND.shape[0]).to(values_ND.dtype) @ values_ND
