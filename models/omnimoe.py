"""OmniMoE: single-neuron experts by a product of two routers, beside a dense FFN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.models.dense import Dense, init_linear
from isoflop.models.layer import Layer, ParameterGroup, full_precision, register
from isoflop.models.ops import expert_mix
from isoflop.models.ops.product_key_topk.reference import best_sums
from isoflop.models.product_keys import QueryNorm, check_product_keys


@register("omnimoe")
class OmniMoE(Layer):
    """y = SwiGLU(x) + sum over the k chosen of p_i q_j silu(u_ij . x) v_ij (arXiv 2602.05711).

    Experts lie on a grid of n x n. p and q are softmaxes over its rows and columns, each of a
    linear map of x whose logits have a BatchNorm without scale and offset. The k experts of the
    highest p_i q_j are chosen; the gates are not renormalised. There are no queries, keys or
    heads. In training the BatchNorm sees the whole batch, later tokens included; in evaluation it
    has its running statistics and nothing leaks.

    The dense FFN is what `dense` with `activation` "swiglu" is: that variant, at equal FLOPs, is
    the control that tells what the experts add.

    The paper states no initialisation. Here it is PEER's: u and v normal with variance 1 / d_model,
    without weight decay. The gates are small, so the output starts as the dense FFN's.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        n_experts: int = 64**2  # a square
        top_k: int = 16  # experts per token
        ratio: float = 4.0  # of the dense FFN, as `dense` has it
        logit_norm: QueryNorm = "batch"
        decay: bool = False  # weight decay on the experts

        def __post_init__(self) -> None:
            check_product_keys(self.n_experts, self.top_k)

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        self.n_sub = check_product_keys(o.n_experts, o.top_k)
        self.shared = Dense(d_model, activation="swiglu", ratio=o.ratio)
        self.router = nn.Linear(d_model, 2 * self.n_sub, bias=False)
        self.norm: nn.Module = {
            "batch": lambda: nn.BatchNorm1d(2 * self.n_sub, affine=False),
            "layer": lambda: nn.LayerNorm(self.n_sub, elementwise_affine=False),
            "none": nn.Identity,
        }[o.logit_norm]()
        self.up_ND = nn.Parameter(torch.empty(o.n_experts, d_model))
        self.down_ND = nn.Parameter(torch.empty(o.n_experts, d_model))
        for weight in (self.router.weight, self.up_ND, self.down_ND):
            init_linear(weight)

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and indices of the chosen experts, [M, k] each."""
        with full_precision(x_MD):
            logit_MN = self.router(x_MD.to(self.router.weight.dtype))
            if isinstance(self.norm, nn.LayerNorm):
                logit_MSN = self.norm(logit_MN.unflatten(1, (2, self.n_sub)))
            else:
                logit_MSN = self.norm(logit_MN).unflatten(1, (2, self.n_sub))
            score_SHMN = logit_MSN.log_softmax(dim=-1).transpose(0, 1).unsqueeze(1)
            score_HMK, index_HMK = best_sums(score_SHMN, self.options.top_k)
            return score_HMK.squeeze(0).exp(), index_HMK.squeeze(0)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        gate_MK, index_MK = self.route(x_MD)
        routed_MD = expert_mix(x_MD, self.up_ND, self.down_ND, index_MK, gate_MK, "silu")
        return self.shared(x_BTD) + routed_MD.view_as(x_BTD)

    def flops_per_token(self) -> int:
        """The dense FFN, the router, and 4 D for each of the k experts."""
        experts = 4 * self.options.top_k * self.d_model
        return self.shared.flops_per_token() + self.routing_flops_per_token() + experts

    def routing_flops_per_token(self) -> int:
        """Two linear maps, 4 D n."""
        return 4 * self.d_model * self.n_sub

    def active_parameters(self) -> int:
        """All but the experts, and the two rows of each of the k chosen."""
        tables = self.up_ND.numel() + self.down_ND.numel()
        return super().active_parameters() - tables + 2 * self.options.top_k * self.d_model

    def tables(self) -> list[nn.Parameter]:
        return [self.up_ND, self.down_ND]

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.tables(), decay=float(self.options.decay))]

    def routing_parameters(self) -> list[Tensor]:
        return [self.router.weight]

    def load(self, x_BTD: Tensor) -> Tensor:
        """Sum of the gates of each expert."""
        gate_MK, index_MK = self.route(x_BTD.flatten(0, 1))
        return index_MK.flatten().bincount(gate_MK.flatten().double(), self.options.n_experts)
