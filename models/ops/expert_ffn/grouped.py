"""MoE experts on a CPU or GPU: rows sorted by expert, and one grouped product per weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models.ops.activations import activate
from isoflop.models.ops.backends import cpu_has_bfloat16, triton_obstacle
from isoflop.models.ops.expert_ffn.gated_activation import gated_activation
from isoflop.models.ops.expert_ffn.grouped_mm import grouped_mm, looped
from isoflop.models.ops.pairs import stable_argsort
from isoflop.models.ops.verify import works

# FLOPs of one expert's product above which bfloat16 beats float32 on a CPU, whose bfloat16
# products cost more per call
CPU_BF16_FROM = 3e6


def working_dtype(x_MD: Tensor, w_in_EDF: Tensor) -> torch.dtype:
    """What products are computed in; in bfloat16 on a CPU only large ones, and if it can."""
    if torch.is_autocast_enabled(x_MD.device.type):
        return torch.get_autocast_dtype(x_MD.device.type)
    return torch.promote_types(x_MD.dtype, w_in_EDF.dtype)


def forward(
    x_MD: Tensor,
    w_in_EDF: Tensor,
    w_out_EFD: Tensor,
    index_MK: Tensor,
    gate_MK: Tensor,
    activation: str,
    loop: bool = False,
) -> Tensor:
    """y [M, D]; by one product for each expert if `loop`, for where grouped ones fail."""
    device = x_MD.device
    E, d_model, d_in = w_in_EDF.shape
    M, K = index_MK.shape
    dtype = working_dtype(x_MD, w_in_EDF)
    if (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and (2 * M * K / E * d_model * d_in < CPU_BF16_FROM or not cpu_has_bfloat16())
    ):
        dtype = torch.float32

    order_R = stable_argsort(index_MK.flatten(), E)
    expert_R = index_MK.flatten().index_select(0, order_R)
    ends_E = torch.searchsorted(expert_R, torch.arange(E, device=device), right=True)
    ends_E = ends_E.to(torch.int32)
    token_R = order_R.div(K, rounding_mode="floor")
    row_MK = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(M * K, device=device))
    row_MK = row_MK.view(M, K)
    # zeros up to the 16 bytes that grouped_mm asks of every row; act(0) = 0 keeps them out
    step = 16 // dtype.itemsize
    pad_d, pad_f = -d_model % step, -w_out_EFD.shape[1] % step
    with torch.autocast(device.type, enabled=False):
        x_MD = _pad(x_MD.to(dtype), 0, pad_d)
        w_in_EDGF = w_in_EDF.to(dtype).unflatten(2, (-1, w_out_EFD.shape[1]))
        w_in_EDF = _pad(w_in_EDGF, pad_d, 0, pad_f).flatten(2)
        w_out_EFD = _pad(w_out_EFD.to(dtype), pad_f, pad_d)
        x_RD = _Dispatch.apply(x_MD, token_R, row_MK)
        product = looped if loop else _product
        h_RF = product(x_RD, w_in_EDF, ends_E)
        # the gate on the hidden side leaves a plain sum, and its gradient needs no y_RD
        gate_R = gate_MK.flatten().index_select(0, order_R)
        fused = not loop and not triton_obstacle(h_RF)
        sizes = (w_out_EFD.shape[1], activation)
        if not fused or not works("gated_activation", "triton", device, dtype, sizes):
            h_RF = activate(h_RF, activation) * gate_R.unsqueeze(1).to(dtype)
        else:
            h_RF = gated_activation(h_RF, gate_R, activation)
        y_RD = product(h_RF, w_out_EFD, ends_E)
        return _Combine.apply(y_RD, token_R, row_MK)[:, :d_model]


def _product(a_RD: Tensor, b_EDF: Tensor, ends_E: Tensor) -> Tensor:
    """Each group of rows times its own matrix.

    Torch's operator has a fraction of the overhead of ours, which is for where torch's fails:
    float64, and float32 when compiled.
    """
    if a_RD.dtype == torch.float64 or torch.compiler.is_compiling():
        return grouped_mm(a_RD, b_EDF, ends_E)
    return F.grouped_mm(a_RD, b_EDF, offs=ends_E)


def _pad(t: Tensor, *ends: int) -> Tensor:
    """Zeros at the end of the last dimensions, as many as given for each."""
    return F.pad(t, [p for end in reversed(ends) for p in (0, end)]) if any(ends) else t


class _Dispatch(torch.autograd.Function):
    """Copies each token's vector to its rows. The gradient is `_Combine`'s sum: no atomics."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, token_R: Tensor, row_MK: Tensor) -> Tensor:
        ctx.save_for_backward(row_MK)
        return x_MD.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, dx_RD: Tensor) -> tuple[Tensor | None, ...]:
        (row_MK,) = ctx.saved_tensors
        return F.embedding_bag(row_MK, dx_RD, mode="sum"), None, None


class _Combine(torch.autograd.Function):
    """Sums each token's K rows. The gradient is `_Dispatch`'s gather."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, token_R: Tensor, row_MK: Tensor) -> Tensor:
        ctx.save_for_backward(token_R)
        return F.embedding_bag(row_MK, y_RD, mode="sum")

    @staticmethod
    def backward(ctx: Any, dy_MD: Tensor) -> tuple[Tensor | None, ...]:
        (token_R,) = ctx.saved_tensors
        return dy_MD.index_select(0, token_R), None, None
