"""ReMoE: a mixture of experts whose router is a ReLU, so that routing is differentiable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isoflop.models.layer import full_precision, register
from isoflop.models.moe import MoEBase, MoEOptions
from isoflop.models.ops import expert_ffn

LARGEST = 100.0  # coefficient: there the gradients are all but those of the added loss


@register("remoe")
class ReMoE(MoEBase):
    """y = sum over the experts with g_e > 0 of g_e FFN_e(x), g = ReLU(W x) (arXiv 2412.14711).

    How many experts a token uses is learned. In training a loss coefficient * E / k * sum_e f_e g_e
    is added (eq. 8 and 9 there), where E is the number of experts, f_e the share of tokens that use
    expert e and g_e its mean gate. After every step the coefficient is multiplied by
    `coefficient_step` if tokens used more than k experts on average, divided by it if fewer
    (eq. 7): k, the granularity, is what a cell is planned at. At first half of the experts run,
    until the coefficient has grown: that takes about a hundred steps, and the cell is charged for
    it. The paper has one coefficient for the model; here each layer has its own, for its own k, and
    it stays between where it started and 100: out of these bounds it would need hundreds of steps
    to come back. Where the other loss alone leads to fewer than k experts, there are fewer.

    Experts are those of `moe`. Their second matrices start smaller by the root of E / 2, which
    makes up for E gates of mean square 1 / 2: the output starts at the scale of the dense FFN's.
    """

    coefficient: Tensor
    counts: Tensor
    step_counts: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Options(MoEOptions):
        coefficient_start: float = 1e-8  # of the loss that keeps gates at zero; also its least
        coefficient_step: float = 1.2  # factor by which it changes after every step

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.coefficient_start <= LARGEST or self.coefficient_step < 1:
                raise ValueError(
                    f"coefficient_start must be positive and {LARGEST:g} at most, "
                    "coefficient_step at least 1, not "
                    f"{self.coefficient_start} and {self.coefficient_step}"
                )

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        with torch.no_grad():
            self.down_EFD.mul_((2 / self.n_experts) ** 0.5)
        self.register_buffer("coefficient", torch.tensor(self.options.coefficient_start))
        # Uses of experts, and tokens: since the last step, and before it.
        self.register_buffer("step_counts", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    def route(self, x_XD: Tensor) -> Tensor:
        """Gates, [..., n_experts], in float32 under autocast too."""
        with full_precision(x_XD):
            return self.router(x_XD.to(self.router.weight.dtype)).relu()

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        gate_ME = self.route(x_MD)
        if self.training:
            used_ME = gate_ME.detach() > 0
            with torch.no_grad():
                tokens = torch.full_like(self.step_counts[1], len(x_MD))
                self.step_counts.add_(torch.stack((used_ME.sum(), tokens)))
            share_E = used_ME.to(gate_ME.dtype).mean(0)
            penalty = (share_E * gate_ME.mean(0)).sum() * self.options.expansion
            self.aux_loss = self.coefficient * penalty
        if x_MD.is_meta:  # without data there is no choice: k experts, as planned
            gate_MK, index_MK = gate_ME.topk(self.options.granularity, dim=-1)
            y_MD = expert_ffn(x_MD, self.up_EDF, self.down_EFD, index_MK, gate_MK)
        else:
            # The number of rows is data: every step would compile anew. The decorator's place is
            # here since it imports the compiler, which takes a second or two.
            compiling = torch.compiler.is_compiling()
            mixed = torch.compiler.disable(used_experts) if compiling else used_experts
            y_MD = mixed(x_MD, self.up_EDF, self.down_EFD, gate_ME)
        return y_MD.view_as(x_BTD)

    @torch.no_grad()
    def after_step(self) -> None:
        uses, tokens = self.step_counts
        direction = (uses - self.options.granularity * tokens).sign()
        self.coefficient *= self.options.coefficient_step ** direction.to(self.coefficient.dtype)
        self.coefficient.clamp_(self.options.coefficient_start, LARGEST)
        self.counts += self.step_counts
        self.step_counts.zero_()

    def load(self, x_BTD: Tensor) -> Tensor:
        """Tokens that use each expert."""
        return (self.route(x_BTD) > 0).flatten(0, -2).sum(0)

    def measured_flops_per_token(self) -> float:
        """As `flops_per_token`, at the mean number of experts of the training tokens."""
        uses, tokens = (self.counts + self.step_counts).tolist()
        experts = 4 * self.d_model * self.d_expert * uses
        return self.routing_flops_per_token() + experts / max(1, tokens)


def used_experts(x_MD: Tensor, up_EDF: Tensor, down_EFD: Tensor, gate_ME: Tensor) -> Tensor:
    """The sum over experts with a positive gate of gate * expert(x), [M, D].

    Each pair of a token and an expert that it uses is a row with one expert.
    """
    token_R, expert_R = gate_ME.nonzero(as_tuple=True)
    gate_R1 = gate_ME[token_R, expert_R].unsqueeze(1)
    x_RD = x_MD.index_select(0, token_R)
    y_RD = expert_ffn(x_RD, up_EDF, down_EFD, expert_R.unsqueeze(1), gate_R1)
    return torch.zeros_like(x_MD).index_add(0, token_R, y_RD)
