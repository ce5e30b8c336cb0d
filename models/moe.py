"""Mixtures of experts of any granularity: token choice `moe` and expert choice `moe_ec`.

Dimensions in names: M tokens, E experts, K experts per token, C tokens per expert, F expert width.
In formulas G is the granularity and E the expansion, so that there are G * E experts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.dense import init_linear
from isoflop.models.layer import Layer, ParameterGroup, full_precision, register
from isoflop.models.ops import expert_ffn


@dataclass(frozen=True, kw_only=True)
class MoEOptions(Layer.Options):
    """Options of both, in the terms of the fine-grained MoE paper (arXiv 2402.07871)."""

    granularity: int = 1  # G = d_ff / d_expert; each token uses G experts
    expansion: int = 8  # E = expert parameters over those of the dense FFN; there are G * E experts
    ratio: float = 4.0  # d_ff over d_model of the dense FFN whose active size this keeps
    decay: bool = True  # weight decay on the experts, like on the dense FFN's matrices

    def __post_init__(self) -> None:
        if self.granularity < 1 or self.expansion < 1 or self.ratio <= 0:
            raise ValueError(
                "granularity and expansion must be at least 1 and ratio positive, not "
                f"{self.granularity}, {self.expansion} and {self.ratio}"
            )


class RoutedExperts(Layer):
    """What MoEs of granularity G share: experts of width d_ff / G, chosen by a linear router.

    A subclass sets `n_experts` and `router`.
    """

    router: nn.Linear
    n_experts: int

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        d_ff = round(o.ratio * d_model)
        if d_ff % o.granularity:
            raise ValueError(f"granularity {o.granularity} must divide the FFN width {d_ff}")
        self.d_expert = d_ff // o.granularity

    def routing_parameters(self) -> list[Tensor]:
        return [self.router.weight]

    def flops_per_token(self) -> int:
        """Router 2 D E, and G experts of 4 D d_ff / G: the experts' part does not depend on G."""
        experts = 4 * self.d_model * self.d_expert * self.options.granularity
        return self.routing_flops_per_token() + experts

    def routing_flops_per_token(self) -> int:
        return 2 * self.d_model * self.n_experts


class MoEBase(RoutedExperts):
    """The router and the experts of both and of ReMoE: GELU experts."""

    Options = MoEOptions

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.n_experts = self.options.granularity * self.options.expansion
        self.router = nn.Linear(d_model, self.n_experts, bias=False)
        self.up_EDF = nn.Parameter(torch.empty(self.n_experts, d_model, self.d_expert))
        self.down_EFD = nn.Parameter(torch.empty(self.n_experts, self.d_expert, d_model))
        init_linear(self.router.weight)
        nn.init.normal_(self.up_EDF, std=d_model**-0.5)
        nn.init.normal_(self.down_EFD, std=self.d_expert**-0.5)

    def route(self, x_XD: Tensor) -> Tensor:
        """Router probabilities, [..., n_experts], in float32 under autocast too."""
        with full_precision(x_XD):
            return self.router(x_XD.to(self.router.weight.dtype)).softmax(dim=-1)

    def parameter_groups(self) -> list[ParameterGroup]:
        return [] if self.options.decay else [ParameterGroup([self.up_EDF, self.down_EFD])]

    def moved_per_token(self) -> int:
        """2 G (D + d_ff / G): grows with G, while the experts' FLOPs do not."""
        return 2 * self.options.granularity * (self.d_model + self.d_expert)

    def active_parameters(self) -> int:
        experts = self.up_EDF.numel() + self.down_EFD.numel()
        return super().active_parameters() - experts + experts // self.options.expansion


def gate_norm(experts: int, chosen: int) -> float:
    """Root of the sum of the squared gates at the start, where the router's logits are normal.

    Each logit is taken at its expected rank (Blom's scores of normal order statistics).
    """
    rank = range(1, experts + 1)
    odds = [math.exp(NormalDist().inv_cdf((i - 0.375) / (experts + 0.25))) for i in rank]
    return math.hypot(*odds[-chosen:]) / sum(odds)


@register("moe")
class MoE(MoEBase):
    """Token choice, dropless: y = sum over the token's top G experts of p_e FFN_e(x).

    p is the softmax over all experts, not renormalised over the chosen, as in Switch Transformer
    (arXiv 2101.03961): the router learns from the loss through p alone. No norm follows, since
    norm(p f) = norm(f) for one expert. In training a load-balancing loss E * G * sum_e f_e P_e is
    added, where f_e is the share of choices that went to expert e and P_e its mean probability
    (eq. 4 there).

    The experts' second matrices start larger by 1 / `gate_norm`, so that the output starts at the
    scale of the dense FFN's whatever E and G: gates below 1 would make it several times smaller.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(MoEOptions):
        balance: float = 0.01  # coefficient of the load-balancing loss

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        with torch.no_grad():
            self.down_EFD.div_(gate_norm(self.n_experts, self.options.granularity))

    def load(self, x_BTD: Tensor) -> Tensor:
        """Choices of each expert."""
        index = self.route(x_BTD).topk(self.options.granularity, dim=-1).indices
        return index.flatten().bincount(minlength=self.n_experts)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        p_ME = self.route(x_MD)
        gate_MK, index_MK = p_ME.topk(self.options.granularity, dim=-1)
        if self.training:
            chosen_E = torch.zeros_like(p_ME[0]).index_add_(
                0, index_MK.flatten(), torch.ones_like(gate_MK).flatten()
            )
            share_E = chosen_E / index_MK.numel()
            self.aux_loss = self.options.balance * self.n_experts * (share_E * p_ME.mean(0)).sum()
        y_MD = expert_ffn(x_MD, self.up_EDF, self.down_EFD, index_MK, gate_MK)
        return y_MD.view_as(x_BTD)


@register("moe_ec")
class ExpertChoiceMoE(MoEBase):
    """Expert choice (arXiv 2202.09368): each expert takes the tokens that score it highest.

    Tokens compete only with those at the same position of the batch's other sequences, as in the
    fine-grained MoE paper, so nothing leaks from the future: a token's output depends on the
    other sequences up to its position. Each expert takes batch / E of every such group, so
    the batch must be a multiple of the expansion, in evaluation too.
    """

    mixes_batch = True

    @dataclass(frozen=True, kw_only=True)
    class Options(MoEOptions):
        output_norm: bool = True  # LayerNorm on the output, as in the fine-grained MoE paper

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        norm = self.options.output_norm
        self.norm = nn.LayerNorm(d_model, bias=False) if norm else nn.Identity()

    def forward(self, x_BTD: Tensor) -> Tensor:
        B, T, D = x_BTD.shape
        if B % self.options.expansion:
            raise ValueError(
                f"a batch of {B} sequences must be a multiple of expansion "
                f"{self.options.expansion}: each expert takes batch / expansion of them"
            )
        x_TBD = x_BTD.transpose(0, 1)
        p_TEB = self.route(x_TBD).transpose(1, 2)
        gate_TEC, index_TEC = p_TEB.topk(B // self.options.expansion, dim=-1)
        row_ER = (
            (index_TEC + B * torch.arange(T, device=x_BTD.device)[:, None, None])
            .transpose(0, 1)
            .flatten(1)
        )
        flat_MD = x_TBD.reshape(T * B, D)
        h_ERF = F.gelu(torch.bmm(F.embedding(row_ER, flat_MD), self.up_EDF))
        y_ERD = torch.bmm(h_ERF, self.down_EFD) * gate_TEC.transpose(0, 1).flatten(1)[..., None]
        y_MD = torch.zeros(T * B, D, dtype=y_ERD.dtype, device=x_BTD.device).index_add(
            0, row_ER.flatten(), y_ERD.flatten(0, 1)
        )
        return self.norm(y_MD).view(T, B, D).transpose(0, 1)
