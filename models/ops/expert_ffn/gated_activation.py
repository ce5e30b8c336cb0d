"""`isoflop::gated_activation`: a hidden row's activation times its gate, by Triton's kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from isoflop.models.ops.backends import define


def _forward(h: Tensor, gate: Tensor, activation: str) -> Tensor:
    from isoflop.models.ops.expert_ffn import triton  # on first use: Triton may not be installed

    return triton.forward(h, gate, activation)


def _backward(dy: Tensor, h: Tensor, gate: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    from isoflop.models.ops.expert_ffn import triton

    return triton.backward(dy, h, gate, activation)


gated_activation = define(
    "gated_activation(Tensor h, Tensor gate, str activation) -> Tensor", _forward, "triton"
)
gated_activation_backward = define(
    "gated_activation_backward(Tensor dy, Tensor h, Tensor gate, str activation)"
    " -> (Tensor, Tensor)",
    _backward,
    "triton",
)


@torch.library.register_fake("isoflop::gated_activation")
def _(h: Tensor, gate: Tensor, activation: str) -> Tensor:
    return h.new_empty(h.shape[0], h.shape[1] // (2 if activation == "swiglu" else 1))


@torch.library.register_fake("isoflop::gated_activation_backward")
def _(dy: Tensor, h: Tensor, gate: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(h), torch.empty_like(gate)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *operands, ctx.activation = inputs
    ctx.save_for_backward(*operands)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    dh, dgate = gated_activation_backward(dy.contiguous(), *ctx.saved_tensors, ctx.activation)
    return dh, dgate, None


torch.library.register_autograd("isoflop::gated_activation", _gradients, setup_context=_setup)
