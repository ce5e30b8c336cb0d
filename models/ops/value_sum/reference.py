"""The definition of the value sum, and the path whose FLOPs are counted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def forward(values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor) -> Tensor:
    """y [M, D]: gather the row of every pair, then a product."""
    rows_MPD = F.embedding(index_MP, values_ND)
    return torch.einsum("mp,mpd->md", gate_MP.to(values_ND.dtype), rows_MPD)
