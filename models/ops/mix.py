"""PEER's expert mix and PKM's value sum: one function each, several back ends.

Sizes: M tokens, P pairs per token (heads * k), N experts or slots, D model width.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.models.ops import ops
from isoflop.models.ops.bag_mix import activate

BACKENDS = ("auto", "reference", "bag", "dense", "triton")
ACTIVATIONS = ("gelu", "relu")

# "dense" is the fastest while N is at most this many times P: measured on a CPU; on a GPU an
# estimate from arithmetic, not measured
DENSE_WITHIN = {"cpu": 4, "cuda": 8}


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
            "dense" (all N experts, then select), "bag" (CPU, N >= P), "triton" (CUDA), or "auto":
            the fastest for the device and the sizes, the reference on the meta device.
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
    dtype = _working_dtype(backend, x_MD, up_ND, down_ND)
    x, up, down = (t.to(dtype) for t in (x_MD, up_ND, down_ND))
    gate = gate_MP.to(torch.promote_types(dtype, torch.float32))
    if backend in ("bag", "triton"):
        operands = (t.contiguous() for t in (x, up, down, index_MP.to(torch.int32), gate))
        y, _, _ = ops.expert_mix(*operands, activation, backend)
    elif backend == "dense":
        hidden_MP = (x @ up.t()).gather(1, index_MP)
        weight_MP = gate * activate(hidden_MP, activation)
        y = _select(weight_MP, index_MP, down).to(dtype) @ down
    else:
        hidden_MP = torch.einsum("md,mpd->mp", x, F.embedding(index_MP, up))
        weight_MP = gate * activate(hidden_MP, activation)
        y = torch.einsum("mp,mpd->md", weight_MP.to(dtype), F.embedding(index_MP, down))
    return y.to(x_MD.dtype)


def value_sum(
    values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, backend: str = "auto"
) -> Tensor:
    """y[m] = sum_p gate[m, p] * values[index[m, p]], the memory read of PKM (arXiv 1907.05242).

    2 * M * P * D FLOPs. Back ends and errors as for `expert_mix`.

    Returns:
        [M, D] in the dtype of the values.
    """
    backend = _resolve(backend, values_ND, index_MP, gate_MP)
    dtype = _working_dtype(backend, values_ND)
    values = values_ND.to(dtype)
    gate = gate_MP.to(torch.promote_types(dtype, torch.float32))
    if backend in ("bag", "triton"):
        operands = (t.contiguous() for t in (values, index_MP.to(torch.int32), gate))
        y = ops.value_sum(*operands, backend)
    elif backend == "dense":
        y = _select(gate, index_MP, values).to(dtype) @ values
    else:
        y = torch.einsum("mp,mpd->md", gate.to(dtype), F.embedding(index_MP, values))
    return y.to(values_ND.dtype)


def _resolve(backend: str, table_ND: Tensor, index_MP: Tensor, gate_MP: Tensor) -> str:
    """The back end to use. Raises ValueError as the public functions say."""
    if index_MP.shape != gate_MP.shape or index_MP.dim() != 2:
        raise ValueError(
            f"index {tuple(index_MP.shape)} and gate {tuple(gate_MP.shape)} must both be [M, P]"
        )
    lacks = {"bag": _bag_lacks(table_ND, index_MP), "triton": ops.triton_lacks(table_ND)}
    if backend == "auto":
        within = DENSE_WITHIN.get(table_ND.device.type, 0)
        if table_ND.shape[0] <= within * index_MP.shape[1]:
            return "dense"
        return next((fast for fast in lacks if not lacks[fast]), "reference")
    if backend not in BACKENDS:
        raise ValueError(f"back end {backend!r} is unknown: one of {', '.join(BACKENDS)}")
    if lacks.get(backend):
        raise ValueError(f"back end {backend!r} is impossible here: {lacks[backend]}")
    return backend


def _bag_lacks(table_ND: Tensor, index_MP: Tensor) -> str:
    """Why stock CPU operators cannot take these; empty if they can."""
    if table_ND.device.type != "cpu":
        return f"it runs on a CPU only, not on {table_ND.device.type}"
    if table_ND.shape[0] < index_MP.shape[1]:  # a sparse matrix holds no more than all its places
        return f"it needs as many rows as pairs per token: {index_MP.shape[1]}"
    return ""


def _working_dtype(backend: str, *tensors: Tensor) -> torch.dtype:
    """What a back end computes in: of stock operators, autocast sees to that itself."""
    device = tensors[0].device.type
    if backend == "triton" and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    dtypes = [t.dtype for t in tensors] + [torch.float32] * (backend == "bag")
    return functools.reduce(torch.promote_types, dtypes)


def _select(weight_MP: Tensor, index_MP: Tensor, table_ND: Tensor) -> Tensor:
    """The [M, N] matrix with each pair's weight in its row's column, repeats added up."""
    zeros = weight_MP.new_zeros(weight_MP.shape[0], table_ND.shape[0])
    return zeros.scatter_add(1, index_MP, weight_MP)
