"""muMoE: all experts at once, mixed densely, as a factorised tensor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import Layer, full_precision


def entmax15(z: Tensor) -> Tensor:
    """1.5-entmax over the last dimension (arXiv 1905.05702): p_i = relu(z_i / 2 - tau)^2, sum 1.

    The exact algorithm, by sorting; its gradient flows through tau.
    """
    half = z / 2
    with torch.no_grad():
        ordered = half.sort(dim=-1, descending=True).values
        rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        mean = ordered.cumsum(-1) / rank
        scatter = ordered.square().cumsum(-1) - rank * mean.square()
        tau = mean - ((1 - scatter) / rank).clamp(min=0).sqrt()
        size = (tau <= ordered).sum(-1, keepdim=True)
        support = half >= ordered.gather(-1, size - 1)
    mean = (half * support).sum(-1, keepdim=True) / size
    scatter = ((half - mean) * support).square().sum(-1, keepdim=True)
    return ((half - mean + ((1 - scatter) / size).sqrt()) * support).square()


class CPExperts(nn.Module):
    """y = sum_n a_n W_n z with W[n, i, o] = sum_r expert[n, r] into[i, r] out[o, r] (eq. 2).

    Computed as ((a expert) * (z into)) out^T: the tensor is never built.
    """

    def __init__(self, n_experts: int, d_in: int, d_out: int, rank: int) -> None:
        super().__init__()
        self.expert_NR = nn.Parameter(torch.empty(n_experts, rank))
        self.into_IR = nn.Parameter(torch.empty(d_in, rank))
        self.out_OR = nn.Parameter(torch.empty(d_out, rank))
        nn.init.normal_(self.expert_NR, mean=1.0)
        nn.init.uniform_(self.into_IR, -(d_in**-0.5), d_in**-0.5)
        nn.init.uniform_(self.out_OR, -(rank**-0.5), rank**-0.5)

    def forward(self, z_BTI: Tensor, a_BTN: Tensor) -> Tensor:
        return ((a_BTN @ self.expert_NR) * (z_BTI @ self.into_IR)) @ self.out_OR.t()

    def flops_per_token(self) -> int:
        """One product with each of the three factors."""
        return 2 * sum(parameter.numel() for parameter in self.parameters())


class MuMoE(Layer):
    """CP-muMoE block: y = W2(a) gelu(W1(a) x), each W(a) a mix of all experts (arXiv 2402.12550).

    The expert coefficients a = entmax15(norm(x G)) are the same for both, as in the authors' code,
    which also gives the initialisation of every factor (zero for G). The norm is a LayerNorm
    without scale, which the paper uses for language.

    Chosen here: no biases, as in the rest of the model; a rank at which the block without its gate
    G has as many parameters as the dense FFN it replaces; a single level of experts.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        n_experts: int = 32
        ratio: float = 4.0  # hidden width over d_model

        def __post_init__(self) -> None:
            if self.n_experts < 2 or self.ratio <= 0:
                raise ValueError("n_experts must be at least 2 and ratio positive")

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        n_experts, d_ff = self.options.n_experts, round(self.options.ratio * d_model)
        rank = max(1, round(d_model * d_ff / (n_experts + d_model + d_ff)))
        self.gate = nn.Linear(d_model, n_experts, bias=False)
        nn.init.zeros_(self.gate.weight)
        self.up = CPExperts(n_experts, d_model, d_ff, rank)
        self.down = CPExperts(n_experts, d_ff, d_model, rank)

    def coefficients(self, x_BTD: Tensor) -> Tensor:
        """[batch, time, experts], not negative, sum 1."""
        with full_precision(x_BTD):
            logits_BTN = self.gate(x_BTD.to(self.gate.weight.dtype))
            return entmax15(F.layer_norm(logits_BTN, logits_BTN.shape[-1:]))

    def forward(self, x_BTD: Tensor) -> Tensor:
        a_BTN = self.coefficients(x_BTD)
        return self.down(F.gelu(self.up(x_BTD, a_BTN)), a_BTN)

    def flops_per_token(self) -> int:
        blocks = self.up.flops_per_token() + self.down.flops_per_token()
        return self.routing_flops_per_token() + blocks

    def routing_flops_per_token(self) -> int:
        return 2 * self.d_model * self.options.n_experts
