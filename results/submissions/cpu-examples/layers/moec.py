"""MoEC: clusters of experts, separated by a variance loss, with dropout inside each cluster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoflop import Layer, full_precision
from isoflop.models.ops import expert_ffn


class MoEC(Layer):
    """y = p_e FFN_e(x), e the most probable expert (Mixture of Expert Clusters, arXiv 2207.09094).

    Experts form clusters of equal size. The paper adds:

    - a loss on the variance of routing probabilities, small within a cluster and large between
      clusters (`variances`), beside the load-balancing loss of Switch (arXiv 2101.03961, eq. 4);
    - cluster-level expert dropout: in training a share of the experts of every cluster, the same
      number in each, cannot be chosen, so that a token can still use an expert of its cluster.

    Chosen here: the loss is the variance within minus the variance between, both times the square
    of the number of experts, so that they do not depend on it (the paper's expression was not
    compared). Dropped experts are drawn in every step, by the authors every 250 steps. The router
    is linear, not cosine; no capacity; GELU, no biases.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        clusters: int = 4
        cluster_size: int = 4  # experts per cluster
        dropout: float = 0.25  # share of each cluster's experts that a training step leaves out
        variance: float = 0.01  # coefficient of the variance loss
        balance: float = 0.01  # coefficient of the load-balancing loss
        ratio: float = 4.0  # hidden width of an expert over d_model

        def __post_init__(self) -> None:
            if self.clusters < 1 or self.cluster_size < 1 or self.ratio <= 0:
                raise ValueError("clusters and cluster_size must be at least 1, ratio positive")
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.n_experts = self.options.clusters * self.options.cluster_size
        self.d_ff = round(self.options.ratio * d_model)
        self.router = nn.Linear(d_model, self.n_experts, bias=False)
        self.up_EDF = nn.Parameter(torch.empty(self.n_experts, d_model, self.d_ff))
        self.down_EFD = nn.Parameter(torch.empty(self.n_experts, self.d_ff, d_model))
        nn.init.normal_(self.router.weight, std=d_model**-0.5)
        nn.init.normal_(self.up_EDF, std=d_model**-0.5)
        nn.init.normal_(self.down_EFD, std=self.d_ff**-0.5)

    def variances(self, p_ME: Tensor) -> tuple[Tensor, Tensor]:
        """Variance of [tokens, experts] probabilities within clusters and between their means.

        Both are means over tokens; their sum is the variance over all experts.
        """
        p_MCS = p_ME.unflatten(-1, (self.options.clusters, self.options.cluster_size))
        mean_MC = p_MCS.mean(-1)
        within = (p_MCS - mean_MC.unsqueeze(-1)).square().mean()
        between = (mean_MC - 1 / self.n_experts).square().mean()
        return within, between

    def dropped(self, device: torch.device) -> Tensor:
        """A random mask [experts]: True for round(dropout * size), not all, of each cluster."""
        o = self.options
        count = min(round(o.dropout * o.cluster_size), o.cluster_size - 1)
        chosen_CK = torch.rand(o.clusters, o.cluster_size, device=device).topk(count).indices
        mask_CS = torch.zeros(o.clusters, o.cluster_size, device=device)
        return mask_CS.scatter_(1, chosen_CK, 1.0).flatten() > 0

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        with full_precision(x_MD):
            logits_ME = self.router(x_MD.to(self.router.weight.dtype))
            masked_ME = logits_ME
            if self.training:
                masked_ME = logits_ME.masked_fill(self.dropped(x_MD.device), -torch.inf)
            p_ME = masked_ME.softmax(dim=-1)
            gate_M1, index_M1 = p_ME.topk(1, dim=-1)
            if self.training:
                self.aux_loss = self._auxiliary(logits_ME, p_ME, index_M1[:, 0])
        return expert_ffn(x_MD, self.up_EDF, self.down_EFD, index_M1, gate_M1).view_as(x_BTD)

    def _auxiliary(self, logits_ME: Tensor, p_ME: Tensor, index_M: Tensor) -> Tensor:
        """Balance among the experts that could be chosen, variance among all."""
        o, n = self.options, self.n_experts
        counts_E = torch.zeros_like(p_ME[0]).index_add_(0, index_M, torch.ones_like(p_ME[:, 0]))
        balance = n * (counts_E / index_M.numel() * p_ME.mean(0)).sum()
        within, between = self.variances(logits_ME.softmax(dim=-1))
        return o.balance * balance + o.variance * n**2 * (within - between)

    def routing_parameters(self) -> list[Tensor]:
        return [self.router.weight]

    def load(self, x_BTD: Tensor) -> Tensor:
        """Choices of each expert."""
        return self.router(x_BTD).argmax(-1).flatten().bincount(minlength=self.n_experts)

    def flops_per_token(self) -> int:
        """The router, and one expert of two products."""
        return self.routing_flops_per_token() + 4 * self.d_model * self.d_ff

    def routing_flops_per_token(self) -> int:
        return 2 * self.d_model * self.n_experts

    def active_parameters(self) -> int:
        experts = self.up_EDF.numel() + self.down_EFD.numel()
        return self.router.weight.numel() + experts // self.n_experts
