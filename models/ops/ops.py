"""Operators of torch's dispatcher, `isoflop::expert_mix` and the others defined below.

As operators torch.compile takes them whole, fvcore finds them by name, and FlopCounterMode counts
them, forward and backward. All but `grouped_mm` are carried out by the back end that their last
argument names, in its module `<back end>_mix`, `<back end>_topk` or `<back end>_gated`, by the
function of that name.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

# looked for once, here: torch.compile cannot trace the search
HAS_TRITON = importlib.util.find_spec("triton") is not None


def triton_lacks(tensor: Tensor) -> str:
    """Why Triton's kernels cannot take this tensor; empty if they can."""
    interpreted = tensor.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if tensor.device.type != "cuda" and not interpreted:
        return f"it runs on CUDA only, not on {tensor.device.type}"
    if tensor.dtype == torch.float64:
        return "it sums in float32, and this is float64"
    return "" if HAS_TRITON else "triton is not installed"


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
_library.define(
    "product_key_topk(Tensor query, Tensor keys, int k, str backend) -> (Tensor, Tensor)"
)
_library.define(
    "product_key_topk_backward(Tensor dscore, Tensor query, Tensor keys, Tensor index,"
    " str backend) -> (Tensor, Tensor)"
)
_library.define("gated_activation(Tensor h, Tensor gate, str activation, str backend) -> Tensor")
_library.define(
    "gated_activation_backward(Tensor dy, Tensor h, Tensor gate, str activation, str backend)"
    " -> (Tensor, Tensor)"
)
_library.define("grouped_mm(Tensor a, Tensor b, Tensor ends) -> Tensor")


def _carry_out(name: str, function: Callable[..., Any]) -> None:
    def on_its_gpu(tensor: Tensor, *rest: Any) -> Any:
        with torch.cuda.device(tensor.device):  # Triton launches on the current one, whatever it is
            return function(tensor, *rest)

    _library.impl(name, function, "CPU")
    _library.impl(name, on_its_gpu, "CUDA")


def _by_backend(name: str, kind: str) -> Callable[..., Any]:
    def run(*args: Any) -> Any:
        *operands, backend = args
        return getattr(importlib.import_module(f"isoflop.models.ops.{backend}_{kind}"), name)(
            *operands
        )

    return run


def _grouped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    if a.dtype != torch.float64:
        return F.grouped_mm(a, b, offs=ends)
    stops = ends.tolist()  # grouped_mm knows no float64, which only checks of gradients use
    groups = [slice(*pair) for pair in zip([0, *stops], stops, strict=False)]
    if b.dim() == 3:
        return torch.cat([a[rows] @ w for rows, w in zip(groups, b, strict=True)])
    return torch.stack([a[:, rows] @ b[rows] for rows in groups])


for _name, _kind in (
    ("expert_mix", "mix"),
    ("value_sum", "mix"),
    ("product_key_topk", "topk"),
    ("gated_activation", "gated"),
):
    _carry_out(_name, _by_backend(_name, _kind))
    _carry_out(f"{_name}_backward", _by_backend(f"{_name}_backward", _kind))
_carry_out("grouped_mm", _grouped_mm)


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


@torch.library.register_fake("isoflop::product_key_topk")
def _(query: Tensor, keys: Tensor, k: int, backend: str) -> tuple[Tensor, Tensor]:
    shape = (*query.shape[:-1], k)
    return query.new_empty(shape[1:]), query.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("isoflop::product_key_topk_backward")
def _(
    dscore: Tensor, query: Tensor, keys: Tensor, index: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(keys)


@torch.library.register_fake("isoflop::gated_activation")
def _(h: Tensor, gate: Tensor, activation: str, backend: str) -> Tensor:
    return h.new_empty(h.shape[0], h.shape[1] // (2 if activation == "swiglu" else 1))


@torch.library.register_fake("isoflop::gated_activation_backward")
def _(dy: Tensor, h: Tensor, gate: Tensor, activation: str, backend: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h), torch.empty_like(gate)


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


def _topk_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.backend = inputs[3]


def _topk_gradients(ctx: Any, dscore: Tensor, _: None) -> tuple[Tensor | None, ...]:
    dquery, dkeys = product_key_topk_backward(dscore, *ctx.saved_tensors, ctx.backend)
    return dquery, dkeys, None, None


def _gated_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.activation, ctx.backend = inputs
    ctx.save_for_backward(*operands)


def _gated_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dh, dgate = gated_activation_backward(
        dy.contiguous(), *ctx.saved_tensors, ctx.activation, ctx.backend
    )
    return dh, dgate, None, None


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
    "isoflop::product_key_topk", _topk_gradients, setup_context=_topk_setup
)
torch.library.register_autograd(
    "isoflop::gated_activation", _gated_gradients, setup_context=_gated_setup
)
torch.library.register_autograd(
    "isoflop::grouped_mm", _grouped_mm_gradients, setup_context=_grouped_mm_setup
)

expert_mix = torch.ops.isoflop.expert_mix.default
expert_mix_backward = torch.ops.isoflop.expert_mix_backward.default
value_sum = torch.ops.isoflop.value_sum.default
value_sum_backward = torch.ops.isoflop.value_sum_backward.default
product_key_topk = torch.ops.isoflop.product_key_topk.default
product_key_topk_backward = torch.ops.isoflop.product_key_topk_backward.default
gated_activation = torch.ops.isoflop.gated_activation.default
gated_activation_backward = torch.ops.isoflop.gated_activation_backward.default
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


@register_flop_formula(torch.ops.isoflop.product_key_topk)
def product_key_topk_flops(query: list[int], keys: list[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(query) * keys[-1]


@register_flop_formula(torch.ops.isoflop.product_key_topk_backward)
def product_key_topk_backward_flops(dscore: list[int], query: list[int], *_: Any, **__: Any) -> int:
    return 4 * math.prod(query) * dscore[-1]  # of the chosen sub-keys alone


@register_flop_formula([torch.ops.isoflop.grouped_mm, torch.ops.aten._grouped_mm])
def grouped_mm_flops(a: list[int], b: list[int], *_: Any, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[-1]
