"""The experts of a token-choice MoE.

Sizes: M tokens, K experts per token, E experts, D model width, F expert width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.sparse.bag import activate


def expert_ffn(
    x_MD: Tensor,
    w_in_EDF: Tensor,
    w_out_EFD: Tensor,
    index_MK: Tensor,
    gate_MK: Tensor,
    activation: str = "gelu",
    backend: str = "auto",
) -> Tensor:
    """y[m] = sum_k gate[m, k] * act(x[m] w_in[e]) w_out[e], e = index[m, k]. 4 M K D F FLOPs."""
    if x_MD.device.type == "meta" or backend == "reference":
        w_in = F.embedding(index_MK, w_in_EDF.flatten(1)).view(*index_MK.shape, *w_in_EDF.shape[1:])
        w_out = F.embedding(index_MK, w_out_EFD.flatten(1)).view(
            *index_MK.shape, *w_out_EFD.shape[1:]
        )
        h_MKF = activate(torch.einsum("md,mkdf->mkf", x_MD, w_in), activation)
        y = torch.einsum("mkf,mkfd->md", gate_MK.unsqueeze(-1) * h_MKF, w_out)
        return y.to(x_MD.dtype)
    K = index_MK.shape[1]
    order = index_MK.flatten().sort(stable=True).indices
    counts = torch.bincount(index_MK.flatten(), minlength=w_in_EDF.shape[0]).tolist()
    token = order // K
    parts = []
    for e, rows in enumerate(x_MD[token].split(counts)):
        if rows.shape[0]:
            parts.append(activate(rows @ w_in_EDF[e], activation) @ w_out_EFD[e])
    y = torch.cat(parts) * gate_MK.flatten()[order].unsqueeze(-1)
    return torch.zeros_like(x_MD).index_add(0, token, y.to(x_MD.dtype))
