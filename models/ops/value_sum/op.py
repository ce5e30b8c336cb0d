"""`isoflop::value_sum` in torch's dispatcher: schemas, shapes, gradients, FLOPs.

`values` is `table` in the dtype to work in. The gradient is that of `table`, in its dtype: a kernel
that sums in float32 writes it as it is, unlike that of a copy in bfloat16.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from isoflop.models.ops.backends import define
from isoflop.models.ops.value_sum import cpu


def _kernels(backend: str) -> ModuleType:
    if backend == "cpu":
        return cpu
    from isoflop.models.ops.value_sum import triton  # on first use: Triton may not be installed

    return triton


forward = define(
    "value_sum(Tensor values, Tensor index, Tensor gate, Tensor table, str backend) -> Tensor",
    lambda *args: _kernels(args[-1]).forward(*args[:3]),
)
backward = define(
    "value_sum_backward(Tensor dy, Tensor values, Tensor index, Tensor gate, ScalarType dtype,"
    " str backend) -> (Tensor, Tensor)",
    lambda *args: _kernels(args[-1]).backward(*args[:-1]),
)


@torch.library.register_fake("isoflop::value_sum")
def _(values: Tensor, index: Tensor, gate: Tensor, table: Tensor, backend: str) -> Tensor:
    return values.new_empty(index.shape[0], values.shape[1])


@torch.library.register_fake("isoflop::value_sum_backward")
def _(
    dy: Tensor, values: Tensor, index: Tensor, gate: Tensor, dtype: torch.dtype, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values, dtype=dtype), torch.empty_like(gate)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, table, ctx.backend = inputs
    ctx.dtype = table.dtype
    ctx.save_for_backward(*operands)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dtable, dgate = backward(dy.contiguous(), *ctx.saved_tensors, ctx.dtype, ctx.backend)
    return None, None, dgate, dtable, None


torch.library.register_autograd("isoflop::value_sum", _gradients, setup_context=_setup)


@register_flop_formula(torch.ops.isoflop.value_sum)
def _flops(values: list[int], index: list[int], *_: Any, **__: Any) -> int:
    """Shapes come in, not tensors. Each pair has one product with a row of the width D."""
    return 2 * index[0] * index[1] * values[1]


@register_flop_formula(torch.ops.isoflop.value_sum_backward)
def _backward_flops(dy: list[int], *shapes: Any, **kwargs: Any) -> int:
    return 2 * _flops(*shapes)
