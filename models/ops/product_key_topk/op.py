"""`isoflop::product_key_topk` in torch's dispatcher: schemas, shapes, gradients, FLOPs."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from isoflop.models.ops.backends import define
from isoflop.models.ops.product_key_topk import cpu


def _kernels(backend: str) -> ModuleType:
    if backend == "cpu":
        return cpu
    from isoflop.models.ops.product_key_topk import triton  # on first use: may not be installed

    return triton


forward = define(
    "product_key_topk(Tensor query, Tensor keys, int k, str backend) -> (Tensor, Tensor)",
    lambda *args: _kernels(args[-1]).forward(*args[:-1]),
)
backward = define(
    "product_key_topk_backward(Tensor dscore, Tensor query, Tensor keys, Tensor index,"
    " str backend) -> (Tensor, Tensor)",
    lambda *args: _kernels(args[-1]).backward(*args[:-1]),
)


@torch.library.register_fake("isoflop::product_key_topk")
def _(query: Tensor, keys: Tensor, k: int, backend: str) -> tuple[Tensor, Tensor]:
    shape = (*query.shape[:-1], k)
    return query.new_empty(shape[1:]), query.new_empty(shape, dtype=torch.int32)


@torch.library.register_fake("isoflop::product_key_topk_backward")
def _(
    dscore: Tensor, query: Tensor, keys: Tensor, index: Tensor, backend: str
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(keys)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.backend = inputs[3]


def _gradients(ctx: Any, dscore: Tensor, _: None) -> tuple[Tensor | None, ...]:
    dquery, dkeys = backward(dscore, *ctx.saved_tensors, ctx.backend)
    return dquery, dkeys, None, None


torch.library.register_autograd("isoflop::product_key_topk", _gradients, setup_context=_setup)


@register_flop_formula(torch.ops.isoflop.product_key_topk)
def _flops(query: list[int], keys: list[int], *_: Any, **__: Any) -> int:
    """Shapes come in, not tensors. All sub-keys are scored."""
    return 2 * math.prod(query) * keys[-1]


@register_flop_formula(torch.ops.isoflop.product_key_topk_backward)
def _backward_flops(dscore: list[int], query: list[int], *_: Any, **__: Any) -> int:
    """Of the chosen sub-keys alone."""
    return 4 * math.prod(query) * dscore[-1]
