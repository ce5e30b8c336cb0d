"""PKM's value sum: the weighted rows of a table, gathered for every token."""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.models.ops.pairs import choose_pair_backend, working_dtype
from isoflop.models.ops.value_sum import dense, op, reference
from isoflop.models.ops.verify import note


def value_sum(
    values_ND: Tensor, index_MP: Tensor, gate_MP: Tensor, backend: str = "auto"
) -> Tensor:
    """y[m] = sum_p gate[m, p] * values[index[m, p]], the memory read of PKM (arXiv 1907.05242).

    2 * M * P * D FLOPs.

    Args:
        values_ND: a table of N rows of width D.
        index_MP: the P rows that each of M tokens reads, int64; a row may occur several times.
        gate_MP: their weights.
        backend: "reference" (gather and einsum: the definition, and the path that is counted),
            "dense" (a product with the whole table), "cpu" (CPU, N >= P), "triton" (CUDA), or
            "auto": the fastest for the device and the sizes, the reference on the meta device.
    Returns:
        [M, D] in the dtype of the values.
    Raises:
        ValueError: an unknown or impossible back end, or shapes that do not fit.
    """
    backend = choose_pair_backend("value_sum", backend, (values_ND,), index_MP, gate_MP)
    dtype = working_dtype(backend, values_ND)
    gate = gate_MP.to(torch.promote_types(dtype, torch.float32))
    if backend in ("reference", "dense"):
        note("value_sum", backend)
        forward = reference.forward if backend == "reference" else dense.forward
        y_MD = forward(values_ND.to(dtype), index_MP, gate)
    else:
        values = values_ND.detach().to(dtype)
        operands = (t.contiguous() for t in (values, index_MP.to(torch.int32), gate))
        y_MD = op.forward(*operands, values_ND, backend)
    return y_MD.to(values_ND.dtype)
