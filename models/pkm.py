"""Product-key memory (Large Memory Layers with Product Keys, arXiv 1907.05242)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from isoflop.models.layer import Layer, register
from isoflop.models.ops import value_sum
from isoflop.models.product_keys import ProductKeyLayer, ProductKeys, QueryNorm, check_product_keys


@register("pkm")
class PKM(ProductKeyLayer):
    """y = sum over heads, over the k slots each retrieves, of softmax(score) * value.

    Values are initialised normal with variance 1 / d_model, as in the paper: the output starts at a
    10th to 20th of a dense FFN's. `initial_output` "dense" starts it at that scale, by a variance
    of 0.425 k / heads. The paper trains the values with Adam at a constant learning rate of 1e-3;
    here the cell's rate times the suite's `table_rate` stays constant after the warm-up. They have
    no weight decay.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        n_slots: int = 512**2  # a square
        heads: int = 4
        top_k: int = 32  # slots per head
        d_key: int = 128  # query width per head, half of it for each set of sub-keys
        shared_keys: bool = False  # one set of sub-keys for all heads, as in PEER
        query_norm: QueryNorm = "batch"
        initial_output: Literal["paper", "dense"] = "paper"  # scale of the output at the start
        constant_rate: bool = True  # values keep their peak learning rate, as in the paper
        decay: bool = False  # weight decay on the values

        def __post_init__(self) -> None:
            check_product_keys(self.n_slots, self.top_k, self.d_key)

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        self.retrieval = ProductKeys(
            d_model, o.n_slots, o.heads, o.top_k, o.d_key, o.shared_keys, o.query_norm
        )
        self.values_ND = nn.Parameter(torch.empty(o.n_slots, d_model))
        # GELU of normal input has the mean square 0.425: the scale of the dense FFN's output.
        dense = (0.425 * o.top_k / o.heads) ** 0.5
        std = dense if o.initial_output == "dense" else d_model**-0.5
        nn.init.normal_(self.values_ND, std=std)
        self.value_sum = value_sum  # another one where the table is split: see `columns`

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        gate_MP, index_MP = self.retrieval(x_MD)
        y_MD = self.value_sum(self.values_ND, index_MP, gate_MP)
        return y_MD.to(x_BTD.dtype).view_as(x_BTD)

    def flops_per_token(self) -> int:
        """Retrieval, and the weighted sum of heads * k rows."""
        pairs = self.options.heads * self.options.top_k
        return self.routing_flops_per_token() + 2 * pairs * self.d_model

    def active_parameters(self) -> int:
        pairs = self.options.heads * self.options.top_k
        return super().active_parameters() - self.values_ND.numel() + pairs * self.d_model

    def tables(self) -> list[nn.Parameter]:
        return [self.values_ND]
