"""PEER's expert mix and PKM's value sum: one function each, several back ends.

Sizes: M tokens, P pairs per token (heads * k), N experts or slots, D model width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.sparse import bag, ops

BACKENDS = ("auto", "reference", "bag", "dense")
ACTIVATIONS = ("gelu", "relu")


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

    The experts of PEER (arXiv 2407.04153, eq. 1), all heads' choices side by side. An expert may
    be chosen several times by one token. 4 * M * P * D FLOPs.

    Args:
        activation: "gelu" (exact) or "relu".
        backend: "reference" (gather and einsum: the definition, and the path that is counted),
            "bag" (CPU), "dense" (all N experts, then select), or "auto": the fastest for the
            device and the sizes, the reference on the meta device.
    Returns:
        [M, D] in x's dtype.
    Raises:
        ValueError: an unknown or impossible back end or activation, or shapes that do not fit.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation {activation!r} is unknown: one of {', '.join(ACTIVATIONS)}")
    if x_MD.shape[1:] != up_ND.shape[1:] or up_ND.shape != down_ND.shape:
        raise ValueError(
            f"x {tuple(x_MD.shape)}, up {tuple(up_ND.shape)} and down {tuple(down_ND.shape)} "
            "must be [M, D], [N, D] and [N, D]"
        )
    backend = _resolve(backend, down_ND, index_MP, gate_MP)
    dtype = _common_dtype(x_MD, up_ND, down_ND, gate_MP)
    x, up, down, gate = (t.to(dtype) for t in (x_MD, up_ND, down_ND, gate_MP))
    if backend == "bag":
        index = index_MP.to(torch.int32)
        y, _, _ = ops.expert_mix(x, up, down, index, gate, activation, backend)
    elif backend == "dense":
        hidden_MP = bag.activate((x @ up.t()).gather(1, index_MP), activation)
        y = _select(gate * hidden_MP, index_MP, down) @ down
    else:
        hidden_MP = torch.einsum("md,mpd->mp", x, F.embedding(index_MP, up))
        weight_MP = gate * bag.activate(hidden_MP, activation)
        y = torch.einsum("mp,mpd->md", weight_MP, F.embedding(index_MP, down))
    return y.to(x_MD.dtype)


def value_sum(
    values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, backend: str = "auto"
) -> Tensor:
    """y[m] = sum_p gate[m, p] * values[index[m, p]], the memory read of PKM (arXiv 1907.05242).

    2 * M * P * D FLOPs. Back ends and errors as for `expert_mix`.

    Returns:
        [M, D] in the common dtype of values and gates.
    """
    backend = _resolve(backend, values_ND, index_MP, gate_MP)
    dtype = _common_dtype(values_ND, gate_MP)
    values, gate = values_ND.to(dtype), gate_MP.to(dtype)
    if backend == "bag":
        return ops.value_sum(values, index_MP.to(torch.int32), gate, backend)
    if backend == "dense":
        return (_select(gate, index_MP, values) @ values).to(dtype)
    return torch.einsum("mp,mpd->md", gate, F.embedding(index_MP, values)).to(dtype)


def _resolve(backend: str, table_ND: Tensor, index_MP: Tensor, gate_MP: Tensor) -> str:
    """The back end to use. Raises ValueError as the public functions say."""
    if index_MP.shape != gate_MP.shape or index_MP.dim() != 2:
        raise ValueError(
            f"index {tuple(index_MP.shape)} and gate {tuple(gate_MP.shape)} must both be [M, P]"
        )
    device = table_ND.device.type
    if backend == "auto":
        return "bag" if device == "cpu" else "reference"
    if backend not in BACKENDS:
        raise ValueError(f"back end {backend!r} is unknown: one of {', '.join(BACKENDS)}")
    if backend == "bag" and device != "cpu":
        raise ValueError(f"back end 'bag' runs on a CPU only, not on {device}: use 'auto'")
    return backend


def _common_dtype(*tensors: Tensor) -> torch.dtype:
    dtype = torch.float32 if tensors[0].device.type == "cpu" else tensors[0].dtype
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _select(weight_MP: Tensor, index_MP: Tensor, table_ND: Tensor) -> Tensor:
    """The [M, N] matrix with each pair's weight in its row's column, repeats added up."""
    zeros = weight_MP.new_zeros(weight_MP.shape[0], table_ND.shape[0])
    return zeros.scatter_add(1, index_MP, weight_MP)
