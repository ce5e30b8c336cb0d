"""The definition of the expert mix, and the path whose FLOPs are counted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models.ops.activations import activate


def forward(
    x_MD: Tensor, up_ND: Tensor, down_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, activation: str
) -> Tensor:
    """y [M, D]: gather both rows of every pair, then two products."""
    hidden_MP = torch.einsum("md,mpd->mp", x_MD, F.embedding(index_MP, up_ND))
    weight_MP = gate_MP * activate(hidden_MP, activation)
    return torch.einsum("mp,mpd->md", weight_MP.to(x_MD.dtype), F.embedding(index_MP, down_ND))
