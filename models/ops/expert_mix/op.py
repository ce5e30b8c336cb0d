"""`isoflop::expert_mix` in torch's dispatcher: schemas, shapes, gradients, FLOPs.

`up` and `down` are the tables in the dtype to work in. Gradients are those of `up_table` and
`down_table`, which have one dtype, in that dtype: see `value_sum.op`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from isoflop.models.ops.backends import define
from isoflop.models.ops.expert_mix import cpu


def _kernels(backend: str) -> ModuleType:
    if backend == "cpu":
        return cpu
    from isoflop.models.ops.expert_mix import triton  # on first use: Triton may not be installed

    return triton


forward = define(
    "expert_mix(Tensor x, Tensor up, Tensor down, Tensor index, Tensor gate, Tensor up_table,"
    " Tensor down_table, str activation, str backend) -> (Tensor, Tensor, Tensor)",
    lambda *args: _kernels(args[-1]).forward(*args[:5], args[-2]),
)
backward = define(
    "expert_mix_backward(Tensor dy, Tensor x, Tensor up, Tensor down, Tensor index, Tensor gate,"
    " Tensor hidden, Tensor order, ScalarType dtype, str activation, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    lambda *args: _kernels(args[-1]).backward(*args[:-1]),
)


@torch.library.register_fake("isoflop::expert_mix")
def _(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    index: Tensor,
    gate: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    backend = rest[-1]
    pairs = index.numel()
    order = index.new_empty(pairs if backend == "cpu" else 0, dtype=torch.int64)
    return torch.empty_like(x), gate.new_empty(pairs), order


@torch.library.register_fake("isoflop::expert_mix_backward")
def _(
    dy: Tensor, x: Tensor, up: Tensor, down: Tensor, index: Tensor, gate: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    tables = (torch.empty_like(t, dtype=rest[2]) for t in (up, down))
    return torch.empty_like(x), *tables, torch.empty_like(gate)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, table, _, ctx.activation, ctx.backend = inputs
    ctx.dtype = table.dtype
    ctx.save_for_backward(*operands, *output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 9
    dx, dup, ddown, dgate = backward(
        dy.contiguous(), *ctx.saved_tensors, ctx.dtype, ctx.activation, ctx.backend
    )
    return dx, None, None, None, dgate, dup, ddown, None, None


torch.library.register_autograd("isoflop::expert_mix", _gradients, setup_context=_setup)


@register_flop_formula(torch.ops.isoflop.expert_mix)
def _flops(
    x: list[int], up: list[int], down: list[int], index: list[int], *_: Any, **__: Any
) -> int:
    """Shapes come in, not tensors. Each pair has two products with a row of the width D."""
    return 4 * index[0] * index[1] * x[1]


@register_flop_formula(torch.ops.isoflop.expert_mix_backward)
def _backward_flops(dy: list[int], *shapes: Any, **kwargs: Any) -> int:
    return 2 * _flops(*shapes)
