"""PEER, parameter-efficient expert retrieval (Mixture of A Million Experts, arXiv 2407.04153)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoflop.models.layer import Layer, register
from isoflop.models.ops import expert_mix
from isoflop.models.product_keys import ProductKeyLayer, ProductKeys, QueryNorm, check_product_keys


@register("peer")
class PEER(ProductKeyLayer):
    """f(x) = sum over heads, over the k experts each retrieves, of g_i(x) act(u_i . x) v_i.

    Each head has its own query; all heads share the experts and, by default, the sub-keys. g is a
    softmax over the k experts that a head retrieves; the query has a BatchNorm.

    Not stated in the paper and chosen here: GELU; a key width of 128; u and v normal with variance
    1 / d_model, without weight decay, and trained as PKM's authors train its values, at a learning
    rate of their own (the suite's `table_rate`) that stays constant after the warm-up. The output
    starts small; `initial_output` "dense" starts it at the scale of a dense FFN's, by a variance of
    v of k / heads, which makes up for gates of about 1 / k. Rows are updated too seldom to unlearn
    so large a start: on the quick suite's cells it costs 0.1 nats.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        n_experts: int = 1024**2  # a square
        heads: int = 8
        top_k: int = 16  # experts per head
        d_key: int = 128  # query width per head, half of it for each set of sub-keys
        activation: Literal["gelu", "relu"] = "gelu"
        shared_keys: bool = True  # one set of sub-keys for all heads; False gives each its own
        query_norm: QueryNorm = "batch"
        initial_output: Literal["small", "dense"] = "small"  # scale of the output at the start
        constant_rate: bool = True  # experts keep their peak learning rate, as PKM's values do
        decay: bool = False  # weight decay on the experts

        def __post_init__(self) -> None:
            check_product_keys(self.n_experts, self.top_k, self.d_key)

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        self.retrieval = ProductKeys(
            d_model, o.n_experts, o.heads, o.top_k, o.d_key, o.shared_keys, o.query_norm
        )
        self.up_ND = nn.Parameter(torch.empty(o.n_experts, d_model))
        self.down_ND = nn.Parameter(torch.empty(o.n_experts, d_model))
        nn.init.normal_(self.up_ND, std=d_model**-0.5)
        dense = (o.top_k / o.heads) ** 0.5  # makes up for gates of about 1 / k
        std = dense if o.initial_output == "dense" else d_model**-0.5
        nn.init.normal_(self.down_ND, std=std)
        self.expert_mix = expert_mix  # another one where the tables are split: see `columns`

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        gate_MP, index_MP = self.retrieval(x_MD)
        y_MD = self.expert_mix(
            x_MD, self.up_ND, self.down_ND, index_MP, gate_MP, self.options.activation
        )
        return y_MD.view_as(x_BTD)

    def flops_per_token(self) -> int:
        """Retrieval, then u . x and the sum of v for heads * k single-neuron experts."""
        pairs = self.options.heads * self.options.top_k
        return self.routing_flops_per_token() + 4 * pairs * self.d_model

    def active_parameters(self) -> int:
        """Retrieval, and the two rows of each of the heads * k experts."""
        tables = self.up_ND.numel() + self.down_ND.numel()
        pairs = self.options.heads * self.options.top_k
        return super().active_parameters() - tables + 2 * pairs * self.d_model

    def tables(self) -> list[nn.Parameter]:
        return [self.up_ND, self.down_ND]
