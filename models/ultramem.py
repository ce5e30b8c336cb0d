"""UltraMemV2's memory: slots chosen by scores of low rank, each an expert of a single neuron."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.models.dense import Dense, init_linear
from isoflop.models.layer import Layer, ParameterGroup, full_precision, register
from isoflop.models.ops import value_sum
from isoflop.models.product_keys import check_product_keys

GELU_SQUARE = 0.425  # mean square of GELU of normal input: the scale of the dense FFN's output
SECOND_SINGULAR_VALUE = 0.15  # above it the core is penalised


@register("ultramem")
class UltraMem(Layer):
    """y = FFN(x) + W_out sum over the k chosen slots of s (u . W_in x) v (arXiv 2508.18756).

    Slots lie on a grid of n x n. Slot (i, j) has the score s = a_i^T C b_j, with r numbers a_i and
    b_j that compare halves of a query with row i's and column j's r sub-keys, and a core C of r x r
    that is learned. Candidates are the k rows and the k columns that are best under the first
    singular pair of C; the k best of their k^2 exact scores are chosen (UltraMem, arXiv
    2411.12364). Scores are not normalised. Queries and sub-keys have a LayerNorm with scales that
    start at width^-0.4. The candidates do not see what C has beyond its first singular pair: in
    training `rank_penalty` * mean relu(sigma - 0.15)^2 over its other singular values is added to
    the loss. The singular vectors are computed anew after every optimiser step.

    u and v are of widths of their own, and a slot has no activation. They train at 4 times the
    cell's rate, on its schedule, without weight decay, as UltraMem's values do. They start with one
    variance, such that the memory's output starts at the scale of a dense FFN's (2508.18756,
    appendix A).

    Chosen here: one memory and its own table in each layer; one core, divided by its first singular
    value at the start; no virtual copies of the values; a GELU FFN like the other blocks' beside
    the memory. The paper keeps an FFN in every block; with `ratio` 0 the memory stands alone, as
    PKM's does.
    """

    left_RR: Tensor
    right_RR: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        n_slots: int = 256**2  # a square
        top_k: int = 32  # slots per token
        d_key: int = 128  # query width, half of it for each set of sub-keys
        rank: int = 2  # r, the size of the core
        in_ratio: float = 1 / 8  # width of u over d_model
        value_ratio: float = 3 / 8  # width of v over d_model
        ratio: float = 4.0  # hidden width over d_model of the FFN beside the memory; 0: none
        rank_penalty: float = 1e-3
        rate: float = 4.0  # learning rate of the tables over the cell's
        decay: bool = False  # weight decay on the tables

        def __post_init__(self) -> None:
            n_sub = check_product_keys(self.n_slots, self.top_k, self.d_key)
            if self.top_k > n_sub:
                raise ValueError(f"top_k must be at most {n_sub}, the rows, not {self.top_k}")
            if self.rank < 1 or min(self.in_ratio, self.value_ratio, self.rate) <= 0:
                raise ValueError(
                    "rank must be at least 1, in_ratio, value_ratio and rate positive, not "
                    f"{self.rank}, {self.in_ratio}, {self.value_ratio} and {self.rate}"
                )

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        o = self.options
        self.n_sub, half = math.isqrt(o.n_slots), o.d_key // 2
        d_in, d_value = max(1, round(o.in_ratio * d_model)), max(1, round(o.value_ratio * d_model))
        self.ffn = Dense(d_model, ratio=o.ratio) if o.ratio else None
        self.query = nn.Linear(d_model, o.d_key, bias=False)
        self.query_norm = nn.LayerNorm(half, bias=False)
        self.keys = nn.Parameter(torch.empty(2, o.rank, self.n_sub, half))
        self.key_norm = nn.LayerNorm(half, bias=False)
        self.core_RR = nn.Parameter(torch.empty(o.rank, o.rank))
        self.into = nn.Linear(d_model, d_in, bias=False)
        self.up_NU = nn.Parameter(torch.empty(o.n_slots, d_in))
        self.values_NV = nn.Parameter(torch.empty(o.n_slots, d_value))
        self.out = nn.Linear(d_value, d_model, bias=False)
        self.register_buffer("left_RR", torch.ones(o.rank, o.rank))
        self.register_buffer("right_RR", torch.ones(o.rank, o.rank))
        for weight in (self.query.weight, self.keys, self.into.weight, self.out.weight):
            init_linear(weight)
        for norm in (self.query_norm, self.key_norm):
            nn.init.constant_(norm.weight, half**-0.4)
        nn.init.uniform_(self.core_RR)
        with torch.no_grad():
            self.core_RR.div_(torch.linalg.svdvals(self.core_RR)[0])
        self.after_step()
        scores = score_norm(self.n_sub, o.top_k) * half**-0.6  # q . k of half**-0.4 each, squared
        std = (GELU_SQUARE / d_in) ** 0.25 / scores**0.5
        nn.init.normal_(self.up_NU, std=std)
        nn.init.normal_(self.values_NV, std=std)

    @torch.no_grad()
    def after_step(self) -> None:
        """The core's singular vectors, the first pair with the sign nearest to what it was."""
        left, _, right = torch.linalg.svd(self.core_RR)
        change = left[:, 0] * self.left_RR[:, 0] + right[0] * self.right_RR[:, 0]
        sign = torch.where(change.sum() < 0, -1.0, 1.0)
        self.left_RR.copy_(left * sign)
        self.right_RR.copy_(right.t() * sign)

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Scores and indices of the chosen slots, [M, k] each."""
        o, n = self.options, self.n_sub
        query_MC = self.query(x_MD)
        with full_precision(x_MD):
            query_SMC = query_MC.to(self.keys.dtype).unflatten(1, (2, -1)).transpose(0, 1)
            keys_SCN = self.key_norm(self.keys).flatten(1, 2).transpose(1, 2)
            part_SMRN = (self.query_norm(query_SMC) @ keys_SCN).unflatten(2, (o.rank, n))
            first_SR = torch.stack((self.left_RR[:, 0], self.right_RR[:, 0]))
            rough_SMN = (part_SMRN * first_SR[:, None, :, None]).sum(2)
            best_SMK = rough_SMN.topk(o.top_k, dim=-1).indices
            index_SMRK = best_SMK.unsqueeze(2).expand(-1, -1, o.rank, -1)
            row_MRK, column_MRK = part_SMRN.gather(-1, index_SMRK).unbind(0)
            row_MRK = torch.einsum("mrk,rs->msk", row_MRK, self.core_RR)
            score_MKL = torch.einsum("mrk,mrl->mkl", row_MRK, column_MRK)
            score_MK, chosen_MK = score_MKL.flatten(1).topk(o.top_k, dim=-1)
            row_MK = best_SMK[0].gather(1, chosen_MK.div(o.top_k, rounding_mode="floor"))
            column_MK = best_SMK[1].gather(1, chosen_MK % o.top_k)
            return score_MK, row_MK * n + column_MK

    def singular_values(self) -> Tensor:
        """Those of the core, [rank], by its singular vectors as of the last step.

        So they have their exact gradient without that of a decomposition.
        """
        product_RRR = self.left_RR[:, None] * self.core_RR[:, :, None] * self.right_RR[None]
        return product_RRR.sum((0, 1))

    def forward(self, x_BTD: Tensor) -> Tensor:
        self.aux_loss = None
        if self.training and self.options.rank > 1:
            excess = (self.singular_values()[1:] - SECOND_SINGULAR_VALUE).relu()
            self.aux_loss = self.options.rank_penalty * excess.square().mean()
        x_MD = x_BTD.flatten(0, 1)
        score_MK, index_MK = self.route(x_MD)
        hidden_MK = torch.einsum("mu,mku->mk", self.into(x_MD), F.embedding(index_MK, self.up_NU))
        y_MV = value_sum(self.values_NV, index_MK, score_MK * hidden_MK)
        y_BTD = self.out(y_MV).to(x_BTD.dtype).view_as(x_BTD)
        return y_BTD if self.ffn is None else y_BTD + self.ffn(x_BTD)

    def flops_per_token(self) -> int:
        """FFN, choice, W_in and W_out, and 2 for each element of the k slots' two rows."""
        d_in, d_value = self.up_NU.shape[1], self.values_NV.shape[1]
        projections = 2 * self.d_model * (d_in + d_value)
        ffn = 0 if self.ffn is None else self.ffn.flops_per_token()
        slots = 2 * self.options.top_k * (d_in + d_value)
        return ffn + self.routing_flops_per_token() + projections + slots

    def routing_flops_per_token(self) -> int:
        """Query, 2 n r comparisons of width d_key / 2, and k^2 exact scores by the core."""
        o = self.options
        exact = 2 * o.top_k * o.rank**2 + 2 * o.top_k**2 * o.rank
        return 2 * self.d_model * o.d_key + 2 * self.n_sub * o.rank * o.d_key + exact

    def active_parameters(self) -> int:
        """All but the tables, and the two rows of each of the k slots."""
        row = self.up_NU.shape[1] + self.values_NV.shape[1]
        return super().active_parameters() - (self.options.n_slots - self.options.top_k) * row

    def tables(self) -> list[nn.Parameter]:
        return [self.up_NU, self.values_NV]

    def parameter_groups(self) -> list[ParameterGroup]:
        o = self.options
        return [ParameterGroup(self.tables(), rate=o.rate, decay=float(o.decay))]

    def routing_parameters(self) -> list[Tensor]:
        return [self.query.weight, self.keys, self.core_RR]

    def load(self, x_BTD: Tensor) -> Tensor:
        """Choices of each slot; scores may be negative."""
        index_MK = self.route(x_BTD.flatten(0, 1))[1]
        return index_MK.flatten().bincount(minlength=self.options.n_slots)


def score_norm(n: int, k: int) -> float:
    """Root of the sum of the squares of the k highest of the n^2 products of two sets of normals.

    The normals are taken at their expected ranks (Blom's scores of normal order statistics).
    """
    best = [NormalDist().inv_cdf((n - i - 0.375) / (n + 0.25)) for i in range(k)]
    return math.hypot(*sorted(max(a, 0) * b for a in best for b in best)[-k:])
