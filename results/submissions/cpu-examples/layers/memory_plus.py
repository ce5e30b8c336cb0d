"""Memory+: a product-key memory whose output is gated by the input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import Layer, ParameterGroup
from isoflop.models.ops import value_sum
from isoflop.models.product_keys import ProductKeys, QueryNorm, check_product_keys


class MemoryPlus(Layer):
    """output = (y * silu(x W1)) W2, y the value sum of a product-key memory.

    Memory Layers at Scale (arXiv 2412.09764): y = sum over heads, over the k slots each retrieves,
    of softmax(score) * value (product keys: arXiv 1907.05242), then its gate and projection.

    Chosen here: a single memory, not three that share their values; sub-keys per head; LayerNorm on
    the query, whose statistics see no other token; W1 and W2 of d_model by d_model; a normal
    initialisation of variance 1 / d_model for values, W1 and W2; values at a learning rate that
    stays constant, as in the paper of product keys, without weight decay.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        n_slots: int = 64**2  # a square
        heads: int = 4
        top_k: int = 16  # slots per head
        d_key: int = 16  # query width per head, half of it for each set of sub-keys
        query_norm: QueryNorm = "layer"

        def __post_init__(self) -> None:
            check_product_keys(self.n_slots, self.top_k, self.d_key)

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        self.retrieval = ProductKeys(
            d_model,
            o.n_slots,
            o.heads,
            o.top_k,
            o.d_key,
            shared_keys=False,
            query_norm=o.query_norm,
        )
        self.values_ND = nn.Parameter(torch.empty(o.n_slots, d_model))
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.out = nn.Linear(d_model, d_model, bias=False)
        for weight in (self.values_ND, self.gate.weight, self.out.weight):
            nn.init.normal_(weight, std=d_model**-0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        gate_MP, index_MP = self.retrieval(x_MD)
        y_MD = value_sum(self.values_ND, index_MP, gate_MP)
        return self.out(y_MD * F.silu(self.gate(x_MD))).view_as(x_BTD)

    def flops_per_token(self) -> int:
        """Retrieval, the weighted sum of heads * k rows, and two square matrices."""
        pairs = self.options.heads * self.options.top_k
        return self.routing_flops_per_token() + 2 * pairs * self.d_model + 4 * self.d_model**2

    def routing_flops_per_token(self) -> int:
        return self.retrieval.flops_per_token()

    def active_parameters(self) -> int:
        pairs = self.options.heads * self.options.top_k
        return super().active_parameters() - self.values_ND.numel() + pairs * self.d_model

    def tables(self) -> list[nn.Parameter]:
        return [self.values_ND]

    def parameter_groups(self) -> list[ParameterGroup]:
        return [ParameterGroup(self.tables(), constant=True)]

    def routing_parameters(self) -> list[Tensor]:
        return self.retrieval.routing_parameters()

    def load(self, x_BTD: Tensor) -> Tensor:
        """Sum of the weights of each slot."""
        return self.retrieval.load(x_BTD.flatten(0, 1))
