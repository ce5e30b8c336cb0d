"""The dense feed-forward network, GELU or SwiGLU: the baseline, and every other block's FFN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.layer import Layer, register


def init_linear(weight: Tensor) -> None:
    """Normal with variance 1 / fan-in, over the last dimension."""
    nn.init.normal_(weight, std=weight.shape[-1] ** -0.5)


@register("dense")
class Dense(Layer):
    """y = W2 act(W1 x), or y = W2 (silu(Wg x) * W1 x) for SwiGLU (arXiv 2002.05202). No biases.

    SwiGLU has three matrices; its hidden width is 2/3 of `ratio * d_model`, rounded to a multiple
    of 8, so that all activations have about the same parameters and FLOPs. `relu2` is the square
    of ReLU (arXiv 2109.08668); its W2 starts at half the scale, since its outputs are larger.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        activation: Literal["gelu", "swiglu", "relu2"] = "gelu"
        ratio: float = 4.0  # hidden width over d_model, unless SwiGLU

        def __post_init__(self) -> None:
            if self.ratio <= 0:
                raise ValueError(f"ratio must be positive, not {self.ratio}")

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        hidden = self.options.ratio * d_model
        self.gated = self.options.activation == "swiglu"
        self.d_ff = max(8, round(hidden * 2 / 3 / 8) * 8) if self.gated else round(hidden)
        # One matrix for both halves of SwiGLU: one larger product is faster than two.
        self.up = nn.Linear(d_model, self.d_ff * (2 if self.gated else 1), bias=False)
        self.down = nn.Linear(self.d_ff, d_model, bias=False)
        init_linear(self.up.weight)
        init_linear(self.down.weight)
        if self.options.activation == "relu2":
            with torch.no_grad():
                self.down.weight.mul_(0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        h_BTF = self.up(x_BTD)
        if self.gated:
            gate_BTF, h_BTF = torch.chunk(h_BTF, 2, dim=-1)
            return self.down(F.silu(gate_BTF) * h_BTF)
        if self.options.activation == "relu2":
            return self.down(F.relu(h_BTF).square())
        return self.down(F.gelu(h_BTF))

    def flops_per_token(self) -> int:
        return 2 * self.d_model * self.d_ff * (3 if self.gated else 2)
