"""`isoflop::grouped_mm`: `F.grouped_mm` in float64 too, compiled in float32 too, and its FLOPs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from isoflop.models.ops.backends import define


def _forward(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    if a.dtype != torch.float64:
        return F.grouped_mm(a, b, offs=ends)
    return looped(a, b, ends)  # grouped_mm knows no float64, which only checks of gradients use


def looped(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """The same by one product for each group, in any dtype; waits for the device."""
    stops = ends.tolist()
    groups = [slice(*pair) for pair in zip([0, *stops], stops, strict=False)]
    if b.dim() == 3:
        return torch.cat([a[rows] @ w for rows, w in zip(groups, b, strict=True)])
    return torch.stack([a[:, rows] @ b[rows] for rows in groups])


# Each group of a's rows times its own matrix of b; where b is a matrix, each group of a's columns
# times the same rows of b. `ends` has where each group ends, int32.
grouped_mm = define("grouped_mm(Tensor a, Tensor b, Tensor ends) -> Tensor", _forward, "stock")


@torch.library.register_fake("isoflop::grouped_mm")
def _(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    groups = () if b.dim() == 3 else ends.shape
    return a.new_empty(*groups, a.shape[0], b.shape[-1])


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    a, b, ends = ctx.saved_tensors
    dy = dy.contiguous()  # grouped_mm refuses an expanded gradient
    return grouped_mm(dy, b.transpose(1, 2), ends), grouped_mm(a.t(), dy, ends), None


torch.library.register_autograd("isoflop::grouped_mm", _gradients, setup_context=_setup)


@register_flop_formula([torch.ops.isoflop.grouped_mm, torch.ops.aten._grouped_mm])
def _flops(a: list[int], b: list[int], *_: Any, **__: Any) -> int:
    """Shapes come in, not tensors. Of torch's own operator too, which has no formula."""
    return 2 * a[0] * a[1] * b[-1]
