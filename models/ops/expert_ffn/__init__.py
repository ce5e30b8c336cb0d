"""The experts of a token-choice MoE, dropless: each token through the experts that it chose.

Sizes: M tokens, K experts per token, E experts, D model width, F expert width, R = M * K rows.
"""

from __future__ import annotations

from torch import Tensor

from isoflop.models.ops.backends import check_name
from isoflop.models.ops.expert_ffn import grouped, reference
from isoflop.models.ops.expert_ffn.grouped import working_dtype
from isoflop.models.ops.verify import note, works

BACKENDS = ("auto", "reference", "grouped", "loop")
ACTIVATIONS = ("gelu", "relu", "swiglu")


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
        x_MD: M tokens of width D.
        w_in_EDF: each expert's first matrix; for "swiglu" [E, D, 2 F], where act(h) is
            silu(first half) * second half (arXiv 2002.05202).
        w_out_EFD: each expert's second matrix.
        index_MK: the K experts of each token, int64.
        gate_MK: their weights.
        activation: "gelu" (exact), "relu" or "swiglu".
        backend: "reference" (gather each token's weights: the definition, and the path that is
            counted), "grouped" (sort rows by expert, `F.grouped_mm`), "loop" (a product for each
            expert; waits for the device), or "auto": grouped, or loop where grouped fails, but the
            reference on the meta device. Grouped does not wait for the device where `F.grouped_mm`
            has a kernel: bfloat16 on a GPU of compute capability 9 or later.
    Returns:
        [M, D] in x's dtype.
    Raises:
        ValueError: an unknown back end or activation, or shapes that do not fit.
    """
    check_name("activation", activation, ACTIVATIONS)
    check_name("back end", backend, BACKENDS)
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
    device = x_MD.device
    if backend == "auto" and device.type == "meta":
        backend = "reference"
    elif backend == "auto":
        dtype, sizes = working_dtype(x_MD, w_in_EDF), (d_model, d_out, activation)
        agrees = works("expert_ffn", "grouped", device, dtype, sizes)
        backend = "grouped" if agrees else "loop"
    note("expert_ffn", backend)
    operands = (x_MD, w_in_EDF, w_out_EFD, index_MK, gate_MK, activation)
    if backend == "reference":
        return reference.forward(*operands).to(x_MD.dtype)
    return grouped.forward(*operands, loop=backend == "loop").to(x_MD.dtype)
