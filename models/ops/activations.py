"""Activations of experts, by name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def activate(a: Tensor, activation: str) -> Tensor:
    """The activation of every element; of "swiglu", silu(first half) * second half of each row."""
    if activation == "swiglu":
        gate, value = a.chunk(2, dim=-1)
        return F.silu(gate) * value
    if activation == "silu":
        return F.silu(a)
    return F.gelu(a) if activation == "gelu" else F.relu(a)


def activate_backward(grad: Tensor, a: Tensor, activation: str) -> Tensor:
    """The gradient of `a` for "gelu", "relu" or "silu", given that of the activation."""
    if activation == "gelu":
        return torch.ops.aten.gelu_backward(grad, a)
    if activation == "silu":
        return torch.ops.aten.silu_backward(grad, a)
    return torch.ops.aten.threshold_backward(grad, a, 0)
