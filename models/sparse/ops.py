"""Operators of torch's dispatcher: `isoflop::expert_mix`, `::value_sum` and `::grouped_mm`.

As operators torch.compile takes them whole, fvcore finds them by name, and FlopCounterMode counts
them, forward and backward. The first two are carried out by the back end that their last argument
names: a module with the functions `expert_mix`, `expert_mix_backward`, `value_sum` and
`value_sum_backward`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from models.sparse import bag

_BACKENDS: dict[str, ModuleType] = {"bag": bag}

_library = torch.library.Library("isoflop", "DEF")
_library.define(
    "expert_mix(Tensor x, Tensor up, Tensor down, Tensor index, Tensor gate, str activation,"
    " str backend) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "expert_mix_backward(Tensor dy, Tensor x, Tensor up, Tensor down, Tensor index, Tensor gate,"
    " Tensor hidden, Tensor order, str activation, str backend) -> (Tensor, Tensor, Tensor, Tensor)"
)
_library.define("value_sum(Tensor values, Tensor index, Tensor gate, str backend) -> Tensor")
_library.define(
    "value_sum_backward(Tensor dy, Tensor values, Tensor index, Tensor gate, str backend)"
    " -> (Tensor, Tensor)"
)
_library.define("grouped_mm(Tensor a, Tensor b, Tensor ends) -> Tensor")


def _carry_out(name: str) -> None:
    def run(*args: Any) -> Any:
        *operands, backend = args
        return getattr(_BACKENDS[backend], name)(*operands)

    for device in ("CPU", "CUDA"):
        _library.impl(name, run, device)


for _name in ("expert_mix", "expert_mix_backward", "value_sum", "value_sum_backward"):
    _carry_out(_name)


def _grouped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    if a.dtype != torch.float64:
        return F.grouped_mm(a, b, offs=ends)
    stops = ends.tolist()  # grouped_mm knows no float64, which only checks of gradients use
    groups = [slice(*pair) for pair in zip([0, *stops], stops, strict=False)]
    if b.dim() == 3:
        return torch.cat([a[rows] @ w for rows, w in zip(groups, b, strict=True)])
    return torch.stack([a[:, rows] @ b[rows] for rows in groups])


for _device in ("CPU", "CUDA"):
    _library.impl("grouped_mm", _grouped_mm, _device)


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
    order = index.new_empty(pairs if backend == "bag" else 0, dtype=torch.int64)
    return torch.empty_like(x), gate.new_empty(pairs), order


@torch.library.register_fake("isoflop::expert_mix_backward")
def _(
    dy: Tensor, x: Tensor, up: Tensor, down: Tensor, index: Tensor, gate: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (x, up, down, gate))


@torch.library.register_fake("isoflop::value_sum")
def _(values: Tensor, index: Tensor, gate: Tensor, backend: str) -> Tensor:
    return values.new_empty(index.shape[0], values.shape[1])


@torch.library.register_fake("isoflop::value_sum_backward")
def _(
    dy: Tensor, values: Tensor, index: Tensor, gate: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values), torch.empty_like(gate)


@torch.library.register_fake("isoflop::grouped_mm")
def _(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    groups = () if b.dim() == 3 else ends.shape
    return a.new_empty(*groups, a.shape[0], b.shape[-1])


def _expert_mix_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *operands, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(*operands, *output[1:])
    ctx.set_materialize_grads(False)


def _expert_mix_gradients(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    dx, dup, ddown, dgate = expert_mix_backward(
        dy.contiguous(), *ctx.saved_tensors, ctx.activation, ctx.backend
    )
    return dx, dup, ddown, None, dgate, None, None


def _value_sum_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.backend = inputs
    ctx.save_for_backward(*operands)


def _value_sum_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dvalues, dgate = value_sum_backward(dy.contiguous(), *ctx.saved_tensors, ctx.backend)
    return dvalues, None, dgate, None


def _grouped_mm_setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _grouped_mm_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    a, b, ends = ctx.saved_tensors
    dy = dy.contiguous()  # grouped_mm refuses an expanded gradient
    return grouped_mm(dy, b.transpose(1, 2), ends), grouped_mm(a.t(), dy, ends), None


torch.library.register_autograd(
    "isoflop::expert_mix", _expert_mix_gradients, setup_context=_expert_mix_setup
)
torch.library.register_autograd(
    "isoflop::value_sum", _value_sum_gradients, setup_context=_value_sum_setup
)
torch.library.register_autograd(
    "isoflop::grouped_mm", _grouped_mm_gradients, setup_context=_grouped_mm_setup
)

expert_mix = torch.ops.isoflop.expert_mix.default
expert_mix_backward = torch.ops.isoflop.expert_mix_backward.default
value_sum = torch.ops.isoflop.value_sum.default
value_sum_backward = torch.ops.isoflop.value_sum_backward.default
grouped_mm = torch.ops.isoflop.grouped_mm.default


# A pair's product with one row of the width D is 2 * D FLOPs; shapes, not tensors, come in.
@register_flop_formula(torch.ops.isoflop.expert_mix)
def expert_mix_flops(
    x: list[int], up: list[int], down: list[int], index: list[int], *_: Any, **__: Any
) -> int:
    return 4 * index[0] * index[1] * x[1]


@register_flop_formula(torch.ops.isoflop.expert_mix_backward)
def expert_mix_backward_flops(dy: list[int], *shapes: Any, **kwargs: Any) -> int:
    return 2 * expert_mix_flops(*shapes)


@register_flop_formula(torch.ops.isoflop.value_sum)
def value_sum_flops(values: list[int], index: list[int], *_: Any, **__: Any) -> int:
    return 2 * index[0] * index[1] * values[1]


@register_flop_formula(torch.ops.isoflop.value_sum_backward)
def value_sum_backward_flops(dy: list[int], *shapes: Any, **kwargs: Any) -> int:
    return 2 * value_sum_flops(*shapes)


@register_flop_formula(torch.ops.isoflop.grouped_mm)
def grouped_mm_flops(a: list[int], b: list[int], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[-1]
