"""The definition of the MoE experts, and the path whose FLOPs are counted."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models.ops.activations import activate


def forward(
    x_MD: Tensor,
    w_in_EDF: Tensor,
    w_out_EFD: Tensor,
    index_MK: Tensor,
    gate_MK: Tensor,
    activation: str,
) -> Tensor:
    """y [M, D]: gather each token's own matrices, then two products."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (x_MD, w_in_EDF, gate_MK)))
    x_MD, w_in_EDF, w_out_EFD, gate_MK = (t.to(dtype) for t in (x_MD, w_in_EDF, w_out_EFD, gate_MK))
    w_in_MKDF = F.embedding(index_MK, w_in_EDF.flatten(1)).unflatten(2, w_in_EDF.shape[1:])
    w_out_MKFD = F.embedding(index_MK, w_out_EFD.flatten(1)).unflatten(2, w_out_EFD.shape[1:])
    h_MKF = activate(torch.einsum("md,mkdf->mkf", x_MD, w_in_MKDF), activation)
    return torch.einsum("mkf,mkfd->md", gate_MK.unsqueeze(-1) * h_MKF, w_out_MKFD)
