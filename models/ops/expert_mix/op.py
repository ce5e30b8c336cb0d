"""`isoflop::expert_mix` in torch's dispatcher: schemas, shapes, gradients, FLOPs."""

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
    "expert_mix(Tensor x, Tensor up, Tensor down, Tensor index, Tensor gate, str activation,"
    " str backend) -> (Tensor, Tensor, Tensor)",
    lambda *args: _kernels(args[-1]).forward(*args[:-1]),
)
backward = define(
    "expert_mix_backward(Tensor dy, Tensor x, Tensor up, Tensor down, Tensor index, Tensor gate,"
    " Tensor hidden, Tensor order, str activation, str backend)"
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
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    pairs = index.numel()
    order = index.new_empty(pairs if backend == "cpu" else 0, dtype=torch.int64)
    return torch.empty_like(x), gate.new_empty(pairs), order


@torch.library.register_fake("isoflop::expert_mix_backward")
def _(
    dy: Tensor, x: Tensor, up: Tensor, down: Tensor, index: Tensor, gate: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (x, up, down, gate))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(*operands, *output[1:])
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    dx, dup, ddown, dgate = backward(
        dy.contiguous(), *ctx.saved_tensors, ctx.activation, ctx.backend
    )
    return dx, dup, ddown, None, dgate, None, None


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
