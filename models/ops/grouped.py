"""The experts of a token-choice MoE, dropless, as one grouped matrix product per weight.

Sizes: M tokens, K experts per token, E experts, D model width, F expert width, R = M * K rows.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models.ops.bag_mix import activate, stable_argsort
from isoflop.models.ops.ops import gated_activation, grouped_mm, triton_lacks

BACKENDS = ("auto", "reference", "grouped")
ACTIVATIONS = ("gelu", "relu", "swiglu")

# FLOPs of one expert's product above which bfloat16 beats float32 on a CPU, whose bfloat16
# products cost more per call
CPU_BF16_FROM = 3e6


def expert_ffn(
    x_MD: Tensor,
    w_in_EDF: Tensor,
    w_out_EFD: Tensor,
    index_MK: Tensor,
    gate_MK: Tensor,
    activation: str = "gelu",
    backend: str = "auto",
) -> Tensor:
    """y[m] = sum_k gate[m, k] * act(x[m] w_in[e]) w_out[e] with e = index[m, k].

    4 * M * K * D * F FLOPs, 6 * M * K * D * F for "swiglu".

    Args:
        w_in_EDF: for "swiglu" [E, D, 2 F]: act(h) is silu(first half) * second half.
        activation: "gelu" (exact), "relu" or "swiglu".
        backend: "reference" (gather each token's weights: the definition, and the path that is
            counted), "grouped" (sort rows by expert, `F.grouped_mm`), or "auto": grouped, but the
            reference on the meta device. Grouped does not wait for the device where `F.grouped_mm`
            has a kernel: bfloat16 on a GPU of compute capability 9 or later.
    Returns:
        [M, D] in x's dtype.
    Raises:
        ValueError: an unknown back end or activation, or shapes that do not fit.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown: one of {', '.join(ACTIVATIONS)}")
    if backend not in BACKENDS:
        raise ValueError(f"back end {backend!r} is unknown: one of {', '.join(BACKENDS)}")
    E, d_model, d_in = w_in_EDF.shape
    d_out = d_in // 2 if activation == "swiglu" else d_in
    if w_out_EFD.shape != (E, d_out, d_model) or x_MD.shape[1:] != (d_model,):
        raise ValueError(
            f"x {tuple(x_MD.shape)}, w_in {tuple(w_in_EDF.shape)} and w_out "
            f"{tuple(w_out_EFD.shape)} do not fit {activation!r} experts"
        )
    if index_MK.shape != gate_MK.shape or index_MK.dim() != 2:
        raise ValueError(
            f"index {tuple(index_MK.shape)} and gate {tuple(gate_MK.shape)} must both be [M, K]"
        )
    if backend == "auto":
        backend = "reference" if x_MD.device.type == "meta" else "grouped"
    run = _reference if backend == "reference" else _grouped
    return run(x_MD, w_in_EDF, w_out_EFD, index_MK, gate_MK, activation).to(x_MD.dtype)


def _reference(
    x_MD: Tensor,
    w_in_EDF: Tensor,
    w_out_EFD: Tensor,
    index_MK: Tensor,
    gate_MK: Tensor,
    activation: str,
) -> Tensor:
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (x_MD, w_in_EDF, gate_MK)))
    x_MD, w_in_EDF, w_out_EFD, gate_MK = (t.to(dtype) for t in (x_MD, w_in_EDF, w_out_EFD, gate_MK))
    w_in_MKDF = F.embedding(index_MK, w_in_EDF.flatten(1)).unflatten(2, w_in_EDF.shape[1:])
    w_out_MKFD = F.embedding(index_MK, w_out_EFD.flatten(1)).unflatten(2, w_out_EFD.shape[1:])
    h_MKF = _activate(torch.einsum("md,mkdf->mkf", x_MD, w_in_MKDF), activation)
    return torch.einsum("mkf,mkfd->md", gate_MK.unsqueeze(-1) * h_MKF, w_out_MKFD)


def _grouped(
    x_MD: Tensor,
    w_in_EDF: Tensor,
    w_out_EFD: Tensor,
    index_MK: Tensor,
    gate_MK: Tensor,
    activation: str,
) -> Tensor:
    device = x_MD.device
    E, d_model, d_in = w_in_EDF.shape
    M, K = index_MK.shape
    dtype = torch.promote_types(x_MD.dtype, w_in_EDF.dtype)
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if (
        dtype == torch.bfloat16
        and device.type == "cpu"
        and 2 * M * K / E * d_model * d_in < CPU_BF16_FROM
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
        h_RF = _product(x_RD, w_in_EDF, ends_E)
        # the gate on the hidden side leaves a plain sum, and its gradient needs no y_RD
        gate_R = gate_MK.flatten().index_select(0, order_R)
        if triton_lacks(h_RF):
            h_RF = _activate(h_RF, activation) * gate_R.unsqueeze(1).to(dtype)
        else:
            h_RF = gated_activation(h_RF, gate_R, activation, "triton")
        y_RD = _product(h_RF, w_out_EFD, ends_E)
        return _Combine.apply(y_RD, token_R, row_MK)[:, :d_model]


def _product(a_RD: Tensor, b_EDF: Tensor, ends_E: Tensor) -> Tensor:
    """Each group of rows times its own matrix. Torch's operator calls for a fraction of the
    overhead of ours, which is for where that one fails: float64, and float32 when compiled."""
    if a_RD.dtype == torch.float64 or torch.compiler.is_compiling():
        return grouped_mm(a_RD, b_EDF, ends_E)
    return F.grouped_mm(a_RD, b_EDF, offs=ends_E)


def _pad(t: Tensor, *ends: int) -> Tensor:
    """Zeros at the end of the last dimensions, as many as given for each."""
    return F.pad(t, [p for end in reversed(ends) for p in (0, end)]) if any(ends) else t


def _activate(h: Tensor, activation: str) -> Tensor:
    if activation == "swiglu":
        gate, value = h.chunk(2, dim=-1)
        return F.silu(gate) * value
    return activate(h, activation)


class _Dispatch(torch.autograd.Function):
    """Each row its token's vector, x[token]. The gradient is `_Combine`'s sum: no atomics."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, token_R: Tensor, row_MK: Tensor) -> Tensor:
        ctx.save_for_backward(row_MK)
        return x_MD.index_select(0, token_R)

    @staticmethod
    def backward(ctx: Any, dx_RD: Tensor) -> tuple[Tensor | None, ...]:
        (row_MK,) = ctx.saved_tensors
        return F.embedding_bag(row_MK, dx_RD, mode="sum"), None, None


class _Combine(torch.autograd.Function):
    """Each token the sum of its K rows. The gradient is `_Dispatch`'s gather."""

    @staticmethod
    def forward(ctx: Any, y_RD: Tensor, token_R: Tensor, row_MK: Tensor) -> Tensor:
        ctx.save_for_backward(token_R)
        return F.embedding_bag(row_MK, y_RD, mode="sum")

    @staticmethod
    def backward(ctx: Any, dy_MD: Tensor) -> tuple[Tensor | None, ...]:
        (token_R,) = ctx.saved_tensors
        return dy_MD.index_select(0, token_R), None, None
