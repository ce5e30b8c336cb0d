"""Monet: n^2 experts made of n first and n second layers, all computed and mixed by two routers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoflop.models.dense import init_linear
from isoflop.models.layer import Layer, ParameterGroup, full_precision, register
from isoflop.models.product_keys import check_product_keys

GELU_SQUARE = 0.425  # mean square of GELU of normal input: the scale of the dense FFN's output


@register("monet")
class Monet(Layer):
    """y = sum over heads, i and j of p_i q_j E_ij(x), E_ij(x) = V_j relu(U_i x + a_i)^2 + b_j.

    Monet with horizontal decomposition (arXiv 2412.04139): expert (i, j) has the first layer i and
    the second layer j, of width m. So the sum needs each of the 2 n layers once: with
    t_h = sum_i p_hi relu(U_i x + a_i)^2 it is sum_j V_j (sum_h q_hj t_h) + b_j sum_h q_hj. That is
    a dense FFN of width n m whose hidden vectors are mixed.

    p and q are softmaxes of linear maps of x over the layers that a head keeps: those whose
    normalised logit is above the normal quantile that `top_k` of n exceed, or the highest alone.
    The logits are normalised for this choice alone, by a BatchNorm with one mean and variance for
    each head and side. In training it sees the whole batch, later tokens included; in evaluation it
    has its running statistics and nothing leaks. In training `balance` * (uniformity + ambiguity)
    is added to the loss: the mean of -log(n p) at the batch's mean p, and the mean of 1 - max p.

    Chosen here: m = `ratio` * d_model / n, so that the FFN is as large as the dense one; a router
    in each layer, where the authors' code has one for four; second layers that start at a scale
    that gives the output that of a dense FFN.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        n_experts: int = 512**2  # a square: n first and n second layers
        heads: int = 8
        top_k: int = 32  # layers that a head keeps on each side, if logits are normal
        ratio: float = 4.0  # n m over d_model; m is rounded, and at least 1
        logit_norm: Literal["batch", "layer"] = "batch"
        balance: float = 1e-3  # coefficient of both auxiliary losses

        def __post_init__(self) -> None:
            n = check_product_keys(self.n_experts, self.top_k)
            if self.top_k >= n:
                raise ValueError(f"top_k must be less than {n}, the layers, not {self.top_k}")
            if self.heads < 1 or self.ratio <= 0 or self.balance < 0:
                raise ValueError(
                    "heads must be at least 1, ratio positive and balance 0 or more, not "
                    f"{self.heads}, {self.ratio} and {self.balance}"
                )

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        self.n = n = math.isqrt(o.n_experts)
        self.d_expert = max(1, round(o.ratio * d_model / n))
        self.threshold = NormalDist().inv_cdf(1 - o.top_k / n)
        self.router = nn.Linear(d_model, 2 * o.heads * n, bias=False)
        self.norm: nn.Module = {
            "batch": lambda: nn.BatchNorm1d(2 * o.heads, affine=False),
            "layer": lambda: nn.LayerNorm(n, elementwise_affine=False),
        }[o.logit_norm]()
        self.up = nn.Linear(d_model, n * self.d_expert)
        self.down = nn.Linear(n * self.d_expert, d_model, bias=False)
        self.bias_ND = nn.Parameter(torch.zeros(n, d_model))
        init_linear(self.router.weight)
        init_linear(self.up.weight)
        nn.init.zeros_(self.up.bias)
        hidden = self.d_expert * hidden_square(n, o.top_k, o.heads)
        nn.init.normal_(self.down.weight, std=(GELU_SQUARE / hidden) ** 0.5)

    def route(self, x_MD: Tensor) -> Tensor:
        """The weights p and q of each head, [M, 2, heads, n]."""
        with full_precision(x_MD):
            logit_MSN = self.router(x_MD.to(self.router.weight.dtype)).unflatten(1, (-1, self.n))
            normed_MSN = self.norm(logit_MSN)
            least_MS = normed_MSN.amax(-1, keepdim=True).clamp_max(self.threshold)
            kept_MSN = torch.where(normed_MSN >= least_MS, logit_MSN, -torch.inf)
            return kept_MSN.softmax(dim=-1).unflatten(1, (2, self.options.heads))

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        weight_MSHN = self.route(x_MD)
        self.aux_loss = None
        if self.training:
            # kept by no token: no gradient, and no infinite loss
            mean_SHN = weight_MSHN.mean(0).clamp_min(1e-9)
            uniformity = -mean_SHN.log().mean() - math.log(self.n)
            ambiguity = 1 - weight_MSHN.amax(-1).mean()
            self.aux_loss = self.options.balance * (uniformity + ambiguity)
        hidden_MNF = self.up(x_MD).relu().square().unflatten(1, (self.n, self.d_expert))
        first_MHN, second_MHN = weight_MSHN.to(hidden_MNF.dtype).unbind(1)
        mixed_MHF = first_MHN @ hidden_MNF
        mixed_MNF = second_MHN.transpose(1, 2) @ mixed_MHF
        y_MD = self.down(mixed_MNF.flatten(1)) + second_MHN.sum(1) @ self.bias_ND
        return y_MD.to(x_BTD.dtype).view_as(x_BTD)

    def flops_per_token(self) -> int:
        """Routers, the two layers 4 D n m, their mixing 4 heads n m, and the biases 2 D n."""
        width = self.n * self.d_expert
        ffn = 4 * self.d_model * width + 4 * self.options.heads * width
        return self.routing_flops_per_token() + ffn + 2 * self.d_model * self.n

    def routing_flops_per_token(self) -> int:
        return 4 * self.d_model * self.options.heads * self.n

    def parameter_groups(self) -> list[ParameterGroup]:
        """The biases of the second layers have no weight decay."""
        return [ParameterGroup([self.bias_ND])]

    def routing_parameters(self) -> list[Tensor]:
        return [self.router.weight]

    def load(self, x_BTD: Tensor) -> Tensor:
        """Sum over tokens and heads of p_i q_j of each expert."""
        first_MHN, second_MHN = self.route(x_BTD.flatten(0, 1)).unbind(1)
        return torch.einsum("mhi,mhj->ij", first_MHN, second_MHN).flatten()


def hidden_square(n: int, k: int, heads: int) -> float:
    """The expected square of the mixed hidden vector at the start, over its m places each.

    Logits are normal, and the k kept ones at their expected ranks (Blom's scores). relu(a)^2 of a
    normal a has the mean 1/2 and the variance 5/4. Two heads meet in a layer with chance 1 / n.
    """
    odds = [math.exp(NormalDist().inv_cdf((n - i - 0.375) / (n + 0.25))) for i in range(k)]
    gates = math.hypot(*odds) ** 2 / sum(odds) ** 2
    return heads * gates * (0.25 + 1.25 * gates) + heads * (heads - 1) / n * 0.25
