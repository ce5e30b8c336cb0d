"""What methods leave of a layer: its experts in any number, rank and precision.

Sizes: M tokens, D width, E experts, R router rows, K experts per token, C constant outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.bench.methods.matrices import BYTES, Matrices, Whole
from isoflop.models import Dense, Layer, MoE, SharedMoE, full_precision
from isoflop.models.ops import expert_ffn


def activated(activation: str, h_MF: Tensor) -> Tensor:
    """Hidden values, [M, F], or [M, F / 2] of SwiGLU; activations are named as `dense` has them."""
    if activation == "swiglu":
        gate_MF, h_MF = torch.chunk(h_MF, 2, dim=-1)
        return F.silu(gate_MF) * h_MF
    return F.relu(h_MF).square() if activation == "relu2" else F.gelu(h_MF)


class UnfitError(ValueError):
    """A method cannot change a layer of this kind, whatever its options."""


class Rebuilt(Layer):
    """A layer with counts by formula for what methods change.

    Not registered: a method makes it from a trained layer.
    """

    up: Matrices
    down: Matrices
    activation: str  # as `dense` has it

    def hidden(self, expert: int, x_MD: Tensor) -> Tensor:
        """What an expert's second matrix reads."""
        return activated(self.activation, self.up(expert, x_MD))

    def expert(self, expert: int, x_MD: Tensor) -> Tensor:
        """An expert's output, before its gate."""
        return self.down(expert, self.hidden(expert, x_MD))

    def costs(self) -> list[int]:
        """Parameters of each expert."""
        return [self.up.parameters_of(e) + self.down.parameters_of(e) for e in range(len(self.up))]

    def other_parameters(self) -> int:
        """Parameters outside of the experts' matrices, by formula."""
        return 0

    def total_parameters(self) -> int:
        return sum(self.costs()) + self.other_parameters()

    def stored_bytes(self) -> int:
        """Bytes on disk: bfloat16, but for quantised matrices."""
        experts = range(len(self.up))
        matrices = sum(self.up.bytes_of(e) + self.down.bytes_of(e) for e in experts)
        return matrices + BYTES * self.other_parameters()

    def experts_per_token(self) -> int:
        """Experts whose matrices a token reads."""
        return len(self.up)

    def read_bytes(self) -> int:
        """Stored bytes of what a token reads: at most, with the largest experts."""
        count = self.experts_per_token()
        sizes = [self.up.bytes_of(e) + self.down.bytes_of(e) for e in range(len(self.up))]
        others = self.active_parameters() - sum(sorted(self.costs())[-count:])
        return sum(sorted(sizes)[-count:]) + BYTES * others

    def teaching_flops_per_token(self) -> int:
        """Forward FLOPs that training takes beside those of the model: of a teacher, if it has."""
        return 0

    def even_cost(self) -> bool:
        """Whether every token costs the same, so that `flops_per_token` is exact."""
        return True


class FeedForward(Rebuilt):
    """A dense FFN whose matrices a method may replace."""

    def __init__(self, source: Dense) -> None:
        super().__init__(source.d_model)
        self.activation = source.options.activation
        self.up: Matrices = Whole(source.up.weight.T[None])
        self.down: Matrices = Whole(source.down.weight.T[None])

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.expert(0, x_BTD)

    def flops_per_token(self) -> int:
        return 2 * sum(self.costs())


class Experts(Rebuilt):
    """Token choice: y = sum over the chosen of g_e E_e(x), and the shared expert if there is one.

    `moe` and `moe_shared` become one without any change of their output. Router rows from
    `len(up)` on stand for experts whose output is a constant, a row of `constant_CD`.

    Attributes:
        gates: "softmax" over all rows; "sigmoid", over their sum for the `summed` best; or "even",
            where every chosen expert has the gate `scale`.
        chosen: experts per token, K.
    """

    bias_R: Tensor
    counts_R: Tensor

    def __init__(
        self,
        router: nn.Linear,
        up: Matrices,
        down: Matrices,
        chosen: int,
        gates: Literal["softmax", "sigmoid", "even"],
        activation: str = "gelu",
    ) -> None:
        super().__init__(router.in_features)
        self.router, self.up, self.down = router, up, down
        self.chosen, self.summed, self.gates, self.scale = chosen, chosen, gates, 1.0
        self.activation = activation
        self.shared: Dense | None = None
        self.constant_CD: nn.Parameter | None = None
        self.balance = 0.0  # coefficient of the load-balancing loss of `moe`
        self.bias_rate = 0.0  # step of the bias of `moe_shared`
        self.register_buffer("bias_R", torch.zeros(router.out_features))
        self.register_buffer("counts_R", torch.zeros(router.out_features))

    @classmethod
    def of(cls, source: MoE | SharedMoE) -> Experts:
        """A trained layer, whose weights it shares."""
        router = source.router
        up, down = Whole(source.up_EDF), Whole(source.down_EFD)
        if isinstance(source, MoE):
            result = cls(router, up, down, source.options.granularity, "softmax")
            result.balance = source.options.balance
            return result
        result = cls(router, up, down, source.chosen, "sigmoid")
        result.bias_rate = source.options.bias_rate
        result.shared = source.shared
        result.bias_R = source.bias_E
        return result

    @property
    def rows(self) -> int:
        return self.router.out_features

    def score(self, x_MD: Tensor) -> Tensor:
        """Router scores in float32, [M, R]."""
        with full_precision(x_MD):
            logits = self.router(x_MD.to(self.router.weight.dtype))
            return logits.sigmoid() if self.gates == "sigmoid" else logits.softmax(dim=-1)

    def route(self, x_MD: Tensor) -> tuple[Tensor, Tensor]:
        """Gates and router rows of the chosen, [M, K] each."""
        return self.choose(self.score(x_MD))

    def choose(self, score_MR: Tensor, bias_R: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gates and rows of the chosen by their scores; of some rows alone, with their biases."""
        bias_R = self.bias_R if bias_R is None else bias_R
        with full_precision(score_MR):
            count = min(self.summed, score_MR.shape[-1])
            index = (score_MR + bias_R).topk(count, dim=-1).indices
            gate = score_MR.gather(-1, index)
            if self.gates == "sigmoid":
                gate = gate / gate.sum(-1, keepdim=True)
            elif self.gates == "even":
                gate = torch.full_like(gate, self.scale)
            return gate[:, : self.chosen], index[:, : self.chosen]

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        score_MR = self.score(x_MD)
        gate_MK, index_MK = self.choose(score_MR)
        if self.training:
            self._count(score_MR, index_MK)
        y_MD = self._mixed(x_MD, gate_MK, index_MK)
        if self.shared is not None:
            y_MD = y_MD + self.shared(x_MD)
        return y_MD.to(x_BTD.dtype).view_as(x_BTD)

    def _mixed(self, x_MD: Tensor, gate_MK: Tensor, index_MK: Tensor) -> Tensor:
        grouped = self.constant_CD is None and self.activation == "gelu"
        if grouped and isinstance(self.up, Whole) and isinstance(self.down, Whole):
            return expert_ffn(x_MD, self.up.weight, self.down.weight, index_MK, gate_MK)
        y_MD = torch.zeros_like(x_MD)
        for expert in range(len(self.up)):
            token, place = (index_MK == expert).nonzero(as_tuple=True)
            part = self.expert(expert, x_MD[token]) * gate_MK[token, place, None]
            y_MD = y_MD.index_add(0, token, part.to(y_MD.dtype))
        if self.constant_CD is None:
            return y_MD
        which_MK = index_MK - len(self.up)
        weight_MK = torch.where(which_MK >= 0, gate_MK, 0)
        constant_MKD = F.embedding(which_MK.clamp(min=0), self.constant_CD)
        return y_MD + (weight_MK[..., None] * constant_MKD).sum(1).to(y_MD.dtype)

    def _count(self, score_MR: Tensor, index_MK: Tensor) -> None:
        """The balance of training goes on as the source's: a loss, or a bias after the step."""
        with torch.no_grad():
            chosen_R = index_MK.flatten().bincount(minlength=self.rows).to(score_MR.dtype)
            self.counts_R += chosen_R
        if self.balance:
            share_R = chosen_R / index_MK.numel()
            self.aux_loss = self.balance * self.rows * (share_R * score_MR.mean(0)).sum()

    @torch.no_grad()
    def after_step(self) -> None:
        self.bias_R += self.bias_rate * (self.counts_R.mean() - self.counts_R).sign()
        self.counts_R.zero_()

    def load(self, x_BTD: Tensor) -> Tensor:
        """Choices of each router row."""
        return self.route(x_BTD.flatten(0, 1))[1].flatten().bincount(minlength=self.rows)

    def routing_parameters(self) -> list[Tensor]:
        return [self.router.weight]

    def keep(self, experts: Sequence[int]) -> None:
        """Leave these experts, in this order, and their router rows."""
        rows = list(experts)
        self.up, self.down = self.up.keep(rows), self.down.keep(rows)
        self.set_rows(rows)

    def set_rows(self, rows: Sequence[int]) -> None:
        """Leave these router rows, in this order."""
        router = nn.Linear(self.d_model, len(rows), bias=False)
        router.weight.data.copy_(self.router.weight.data[list(rows)])
        self.router = router
        self.bias_R, self.counts_R = self.bias_R[list(rows)], self.counts_R[list(rows)]

    def even_cost(self) -> bool:
        return self.constant_CD is None and len(set(self.costs())) == 1

    def _shared_parameters(self) -> int:
        return 0 if self.shared is None else self.shared.flops_per_token() // 2

    def other_parameters(self) -> int:
        constants = 0 if self.constant_CD is None else self.constant_CD.numel()
        return self.rows * self.d_model + constants + self._shared_parameters()

    def experts_per_token(self) -> int:
        return self.chosen

    def active_parameters(self) -> int:
        """At most: the K dearest experts."""
        dearest = sum(sorted(self.costs())[-self.chosen :])
        return dearest + self.rows * self.d_model + self._shared_parameters()

    def flops_per_token(self) -> int:
        """2 a parameter, at most: where experts differ, of the K dearest."""
        return 2 * self.active_parameters()

    def routing_flops_per_token(self) -> int:
        return 2 * self.d_model * self.rows


def rebuild(layer: Layer, shared: bool = False) -> Rebuilt:
    """A trained layer in the form that methods change, and that decoding takes apart.

    Args:
        shared: with the layer's own weights, to read; a copy else, to change.
    Raises:
        UnfitError: it is of another kind than `dense`, `moe` and `moe_shared`.
    """
    if isinstance(layer, Rebuilt):
        result = layer
    elif type(layer) is Dense:
        result = FeedForward(layer)
    elif type(layer) is MoE or type(layer) is SharedMoE:
        result = Experts.of(layer)
    else:
        raise UnfitError(f"layer {layer.name!r}: only dense, moe and moe_shared can be changed")
    return result if shared else copy.deepcopy(result)
