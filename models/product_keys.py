"""Product-key retrieval: the best k of N keys for 2 sqrt(N) comparisons (arXiv 1907.05242)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from isoflop.models.layer import Layer, ParameterGroup, full_precision
from isoflop.models.ops import product_key_topk

QueryNorm = Literal["batch", "layer", "none"]


class ProductKeys(nn.Module):
    """Query network, two sets of sub-keys, and retrieval of the top k of n_keys keys per head.

    The query is a linear map, then a norm (BatchNorm in PKM and PEER). BatchNorm's statistics in
    training are those of the whole batch, later tokens included; in evaluation they are the running
    ones and nothing leaks. Scores and softmax are in float32, under autocast too.

    Sub-keys are initialised uniform in +-1 / sqrt(d_key / 2), as in PKM's code.

    Raises:
        ValueError: as `check_product_keys`.
    """

    def __init__(
        self,
        d_model: int,
        n_keys: int,
        heads: int,
        top_k: int,
        d_key: int,
        shared_keys: bool,
        query_norm: QueryNorm,
    ) -> None:
        super().__init__()
        self.n_sub = check_product_keys(n_keys, top_k, d_key)
        self.heads, self.top_k, self.d_key = heads, top_k, d_key
        self.query = nn.Linear(d_model, heads * d_key, bias=False)
        nn.init.normal_(self.query.weight, std=d_model**-0.5)
        self.norm: nn.Module = {
            "batch": lambda: nn.BatchNorm1d(heads * d_key),
            "layer": lambda: nn.LayerNorm(d_key),
            "none": nn.Identity,
        }[query_norm]()
        bound = (d_key // 2) ** -0.5
        key_sets = 1 if shared_keys else heads
        self.keys = nn.Parameter(torch.empty(2, key_sets, d_key // 2, self.n_sub))
        nn.init.uniform_(self.keys, -bound, bound)

    def forward(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """[M, d_model] -> gates, which sum to 1 per head, and indices: [M, heads * k] each."""
        M = x_MD.shape[0]
        query = self.query(x_MD)
        with full_precision(x_MD):
            query = query.to(self.keys.dtype)
            if isinstance(self.norm, nn.LayerNorm):
                query = self.norm(query.view(M, self.heads, self.d_key))
            else:
                query = self.norm(query)
            query_SHMK = query.view(M, self.heads, 2, self.d_key // 2).permute(2, 1, 0, 3)
            score_HMk, index_HMk = product_key_topk(query_SHMK, self.keys, self.top_k)
            gate_HMk = score_HMk.softmax(dim=-1)
        pairs = self.heads * self.top_k
        return (
            gate_HMk.transpose(0, 1).reshape(M, pairs),
            index_HMk.transpose(0, 1).reshape(M, pairs),
        )

    def routing_parameters(self) -> list[Tensor]:
        """Query network and sub-keys."""
        return [self.query.weight, self.keys]

    def load(self, x_MD: Tensor) -> Tensor:
        """Sum of the gates of each key over the tokens, [n_keys]."""
        gate_MP, index_MP = self(x_MD)
        return index_MP.flatten().bincount(gate_MP.flatten().double(), self.n_sub**2)

    def flops_per_token(self) -> int:
        """Query projection, and each head's two half-queries against their sub-keys."""
        d_model = self.query.in_features
        return 2 * d_model * self.heads * self.d_key + 2 * self.heads * self.n_sub * self.d_key


class ProductKeyLayer(Layer):
    """What layers of tables read by product keys share.

    A subclass sets `retrieval`, and has the options `constant_rate` and `decay`.
    """

    retrieval: ProductKeys

    def routing_flops_per_token(self) -> int:
        return self.retrieval.flops_per_token()

    def parameter_groups(self) -> list[ParameterGroup]:
        o = self.options
        return [ParameterGroup(self.tables(), decay=float(o.decay), constant=o.constant_rate)]

    def routing_parameters(self) -> list[Tensor]:
        return self.retrieval.routing_parameters()

    def load(self, x_BTD: Tensor) -> Tensor:
        """Sum of the gates of each row: z' in section 4.3 of PEER's paper."""
        return self.retrieval.load(x_BTD.flatten(0, 1))


def check_product_keys(n_keys: int, top_k: int, d_key: int = 2) -> int:
    """The number of sub-keys, sqrt(n_keys).

    Raises:
        ValueError: n_keys is not a square, top_k is more than n_keys, or d_key is odd.
    """
    n_sub = math.isqrt(n_keys)
    if n_sub**2 != n_keys:
        raise ValueError(f"{n_keys} keys are no square; {n_sub**2} and {(n_sub + 1) ** 2} are")
    if not 0 < top_k <= n_keys:
        raise ValueError(f"top_k must be 1 to {n_keys}, the number of keys, not {top_k}")
    if d_key < 2 or d_key % 2:
        raise ValueError(f"d_key must be even, not {d_key}: each half of a query has its own keys")
    return n_sub
