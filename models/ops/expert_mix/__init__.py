"""PEER's expert mix: the weighted outputs of single-neuron experts, gathered for every token."""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.models.ops.backends import check_name
from isoflop.models.ops.expert_mix import dense, op, reference
from isoflop.models.ops.pairs import choose_pair_backend, working_dtype
from isoflop.models.ops.verify import note

ACTIVATIONS = ("gelu", "relu", "silu")


def expert_mix(
    x_MD: Tensor,
    up_ND: Tensor,
    down_ND: Tensor,
    index_MP: Tensor,
    gate_MP: Tensor,
    activation: str,
    backend: str = "auto",
) -> Tensor:
    """y[m] = sum_p gate[m, p] * act(<x[m], up[index[m, p]]>) * down[index[m, p]].

    The experts of PEER (arXiv 2407.04153, eq. 1), with the choices of all heads side by side. A
    token may choose an expert several times. 4 * M * P * D FLOPs.

    Args:
        x_MD: M tokens of width D.
        up_ND: input weights of N experts, each of a single neuron.
        down_ND: their output weights.
        index_MP: the P experts of each token, int64.
        gate_MP: their weights.
        activation: "gelu" (exact), "relu" or "silu".
        backend: "reference" (gather and einsum: the definition, and the path that is counted),
            "dense" (all N experts, then select), "cpu" (CPU, N >= P), "triton" (CUDA), or "auto":
            the fastest for the device and the sizes, the reference on the meta device.
    Returns:
        [M, D] in x's dtype.
    Raises:
        ValueError: an unknown or impossible back end or activation, or shapes that do not fit.
    """
    check_name("activation", activation, ACTIVATIONS)
    if x_MD.shape[1:] != up_ND.shape[1:] or up_ND.shape != down_ND.shape:
        raise ValueError(
            f"x {tuple(x_MD.shape)}, up {tuple(up_ND.shape)} and down {tuple(down_ND.shape)} "
            "must be [M, D], [N, D] and [N, D]"
        )
    tensors = (x_MD, up_ND, down_ND)
    backend = choose_pair_backend("expert_mix", backend, tensors, index_MP, gate_MP, activation)
    dtype = working_dtype(backend, x_MD, up_ND, down_ND)
    x = x_MD.to(dtype)
    gate = gate_MP.to(torch.promote_types(dtype, torch.float32))
    if backend in ("reference", "dense"):
        note("expert_mix", backend)
        forward = reference.forward if backend == "reference" else dense.forward
        y_MD = forward(x, up_ND.to(dtype), down_ND.to(dtype), index_MP, gate, activation)
    else:
        up, down = (t.detach().to(dtype) for t in (up_ND, down_ND))
        operands = (t.contiguous() for t in (x, up, down, index_MP.to(torch.int32), gate))
        y_MD, _, _ = op.forward(*operands, up_ND, down_ND, activation, backend)
    return y_MD.to(x_MD.dtype)
