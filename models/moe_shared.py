"""DeepSeek's mixture of experts: shared experts, sigmoid gates, and balance by a bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.models.dense import Dense, init_linear
from isoflop.models.layer import Layer, full_precision, register
from isoflop.models.moe import RoutedExperts
from isoflop.models.ops import expert_ffn


@register("moe_shared")
class SharedMoE(RoutedExperts):
    """y = FFN_shared(x) + sum over the chosen of g_i E_i(x) (DeepSeekMoE, arXiv 2401.06066).

    s = sigmoid(W x); the experts of the largest s + b are chosen, and g_i = s_i / sum of the chosen
    s (DeepSeek-V3, arXiv 2412.19437, section 2.1.2). b keeps the load even without a loss: after
    every step it rises by `bias_rate` for an expert with less than the mean load and falls for one
    with more (arXiv 2408.15664). The authors stop that shortly before the end of training; here it
    goes on.

    Experts are GELU FFNs of width d_ff / G without biases, of which each token uses G, the shared
    ones included: active size and FLOPs are those of the dense FFN and the router. The second
    matrices of the chosen experts start larger by the root of their number, which makes up for
    gates that sum to 1.
    """

    bias_E: Tensor
    counts_E: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        granularity: int = 4  # G = d_ff / d_expert; each token uses G experts
        expansion: int = 8  # expert parameters over those of the dense FFN
        shared: int = 1  # of the G, the experts that all tokens use
        ratio: float = 4.0  # d_ff over d_model
        bias_rate: float = 1e-3  # step of the bias

        def __post_init__(self) -> None:
            if self.expansion < 1 or self.ratio <= 0 or self.bias_rate < 0:
                raise ValueError(
                    "expansion must be at least 1, ratio positive and bias_rate 0 or more, not "
                    f"{self.expansion}, {self.ratio} and {self.bias_rate}"
                )
            if not 0 <= self.shared < self.granularity:
                raise ValueError(
                    f"shared must be 0 to granularity - 1 = {self.granularity - 1}, not "
                    f"{self.shared}"
                )

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        self.n_experts = (o.granularity * o.expansion - o.shared) * self.reduction
        self.chosen = (o.granularity - o.shared) * self.reduction
        d_in = d_model // self.reduction
        self.router = nn.Linear(d_model, self.n_experts, bias=False)
        self.up_EDF = nn.Parameter(torch.empty(self.n_experts, d_in, self.d_expert))
        self.down_EFD = nn.Parameter(torch.empty(self.n_experts, self.d_expert, d_in))
        share = o.shared / o.granularity * o.ratio
        self.shared = Dense(d_model, ratio=share) if o.shared else None
        self.register_buffer("bias_E", torch.zeros(self.n_experts))
        self.register_buffer("counts_E", torch.zeros(self.n_experts))  # since the last step
        init_linear(self.router.weight)
        nn.init.normal_(self.up_EDF, std=d_in**-0.5)
        nn.init.normal_(self.down_EFD, std=(self.chosen / self.d_expert) ** 0.5)

    @property
    def reduction(self) -> int:
        """Width of the model over that of an expert's input and output; as many times the experts
        there are, and are chosen."""
        return 1

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and indices of the chosen experts, [M, chosen] each."""
        with full_precision(x_MD):
            score_ME = self.router(x_MD.to(self.router.weight.dtype)).sigmoid()
            index_MK = (score_ME + self.bias_E).topk(self.chosen, dim=-1).indices
            gate_MK = score_ME.gather(-1, index_MK)
            return gate_MK / gate_MK.sum(-1, keepdim=True), index_MK

    def chosen_experts(self, x_MD: Tensor, index_MK: Tensor, gate_MK: Tensor) -> Tensor:
        """The sum of g_i E_i(x) over the chosen, [M, D]."""
        return expert_ffn(x_MD, self.up_EDF, self.down_EFD, index_MK, gate_MK)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        gate_MK, index_MK = self.route(x_MD)
        if self.training:
            with torch.no_grad():
                self.counts_E.index_add_(0, index_MK.flatten(), torch.ones_like(gate_MK).flatten())
        y_MD = self.chosen_experts(x_MD, index_MK, gate_MK)
        if self.shared is not None:
            y_MD = y_MD + self.shared(x_MD)
        return y_MD.to(x_BTD.dtype).view_as(x_BTD)

    @torch.no_grad()
    def after_step(self) -> None:
        self.bias_E += self.options.bias_rate * (self.counts_E.mean() - self.counts_E).sign()
        self.counts_E.zero_()

    def load(self, x_BTD: Tensor) -> Tensor:
        """Choices of each expert that is not shared."""
        index_MK = self.route(x_BTD.flatten(0, 1))[1]
        return index_MK.flatten().bincount(minlength=self.n_experts)

    def moved_per_token(self) -> int:
        return 2 * self.chosen * sum(self.up_EDF.shape[1:])

    def active_parameters(self) -> int:
        experts = self.up_EDF.numel() + self.down_EFD.numel()
        return super().active_parameters() - experts + experts * self.chosen // self.n_experts
