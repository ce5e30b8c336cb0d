"""XMoE: many small experts, of which each token takes as many as its router needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoflop import Layer, full_precision
from isoflop.models.ops import expert_ffn


class XMoE(Layer):
    """y = sum over the chosen experts of p_e FFN_e(x) (XMoE, arXiv 2403.18926).

    A token takes the smallest number of experts, most probable first, whose probabilities sum to
    at least `threshold`; p is the softmax over all experts, not renormalised. In training the
    load-balancing loss E * sum_e f_e P_e is added, where f_e is the share of tokens whose first
    choice is e and P_e its mean probability, as in the authors' code.

    Chosen here: no token is dropped, where the paper bounds an expert's tokens by a capacity;
    instead a token takes at most `cap` experts, which the paper leaves unbounded. GELU, no biases.

    FLOPs are counted at the cap, which is what this implementation computes: experts beyond the
    threshold get weight 0 and are not skipped.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        granularity: int = 8  # d_ff / d_expert
        expansion: int = 4  # there are granularity * expansion experts
        threshold: float = 0.9  # cumulative probability at which a token stops taking experts
        cap: int = 8  # experts a token can take
        balance: float = 0.01  # coefficient of the load-balancing loss
        ratio: float = 4.0  # d_ff over d_model

        def __post_init__(self) -> None:
            if self.granularity < 1 or self.expansion < 1 or self.ratio <= 0:
                raise ValueError("granularity and expansion must be at least 1, ratio positive")
            if not 0 < self.threshold <= 1:
                raise ValueError(f"threshold must be in (0, 1], not {self.threshold}")
            if not 1 <= self.cap <= self.granularity * self.expansion:
                raise ValueError(f"cap must be 1 to the number of experts, not {self.cap}")

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        self.n_experts = o.granularity * o.expansion
        self.d_expert = max(1, round(o.ratio * d_model / o.granularity))
        self.router = nn.Linear(d_model, self.n_experts, bias=False)
        self.up_EDF = nn.Parameter(torch.empty(self.n_experts, d_model, self.d_expert))
        self.down_EFD = nn.Parameter(torch.empty(self.n_experts, self.d_expert, d_model))
        nn.init.normal_(self.router.weight, std=d_model**-0.5)
        nn.init.normal_(self.up_EDF, std=d_model**-0.5)
        nn.init.normal_(self.down_EFD, std=self.d_expert**-0.5)

    def select(self, p_ME: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [tokens, experts] -> gates and indices, each [tokens, cap], best first.

        A gate is the expert's probability, or 0 if those before it reach the threshold.
        """
        gate_MK, index_MK = p_ME.topk(self.options.cap, dim=-1)
        before_MK = gate_MK.cumsum(dim=-1) - gate_MK
        return gate_MK * (before_MK < self.options.threshold), index_MK

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        with full_precision(x_MD):
            p_ME = self.router(x_MD.to(self.router.weight.dtype)).softmax(dim=-1)
        gate_MK, index_MK = self.select(p_ME)
        if self.training:
            first_M = index_MK[:, 0]
            counts_E = torch.zeros_like(p_ME[0]).index_add_(0, first_M, torch.ones_like(p_ME[:, 0]))
            share_E = counts_E / first_M.numel()
            self.aux_loss = self.options.balance * self.n_experts * (share_E * p_ME.mean(0)).sum()
        return expert_ffn(x_MD, self.up_EDF, self.down_EFD, index_MK, gate_MK).view_as(x_BTD)

    def routing_parameters(self) -> list[Tensor]:
        return [self.router.weight]

    def load(self, x_BTD: Tensor) -> Tensor:
        """Choices of each expert whose gate is not 0."""
        gate_MK, index_MK = self.select(self.router(x_BTD.flatten(0, 1)).softmax(dim=-1))
        return index_MK[gate_MK > 0].bincount(minlength=self.n_experts)

    def flops_per_token(self) -> int:
        """The router, and `cap` experts of two products each."""
        return self.routing_flops_per_token() + 4 * self.d_model * self.d_expert * self.options.cap

    def routing_flops_per_token(self) -> int:
        return 2 * self.d_model * self.n_experts

    def active_parameters(self) -> int:
        """At the cap, as the FLOPs."""
        experts = self.up_EDF.numel() + self.down_EFD.numel()
        return self.router.weight.numel() + experts * self.options.cap // self.n_experts
