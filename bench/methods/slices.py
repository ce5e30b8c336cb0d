"""A dense FFN in slices of its hidden units, of which each token uses some: FactorLLM's layer.

Sizes: M tokens, D width, F hidden units, N slices, K of them per token.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.bench.methods.experts import Experts, FeedForward, activated
from isoflop.bench.methods.matrices import Whole
from isoflop.models import full_precision

Mask = Literal["router", "random", "oracle", "fixed"]
ROUTE, BALANCE = 0.05, 0.01  # coefficients of the router's losses beside the cross-entropy
CHAOS = 1e4  # turns the angle of a score so often that nothing of the score is left
STEPS = 20  # of the clustering, at most


class Slices(Experts):
    """y = (N / K) sum over the chosen E_i(x), a hard mask without gates (arXiv 2408.11855).

    The mask is the router's K best; or at random, by a hash of the token's vector; or the K slices
    of least error, an oracle that computes all of them; or the same for every token.

    In training the router is taught by the dense FFN, whose weights stay as they were: of each
    token the label is the K slices of the least mean squared error between E_i(x) and
    FFN(x) K / N. 0.05 KL(softmax of the label || softmax of the router) and 0.01 times the mean of
    mask times softmax are added to the cross-entropy, which gives the router no gradient itself.
    """

    teacher_up_DF: Tensor
    teacher_down_FD: Tensor

    def __init__(
        self, router: nn.Linear, up: Whole, down: Whole, chosen: int, mask: Mask, dense: FeedForward
    ) -> None:
        super().__init__(router, up, down, chosen, "even", dense.activation)
        self.scale = len(up) / chosen
        self.mask = mask
        # Buffers: they are no part of the model that comes out.
        self.register_buffer("teacher_up_DF", dense.up.of(0).clone(), persistent=False)
        self.register_buffer("teacher_down_FD", dense.down.of(0).clone(), persistent=False)

    def score(self, x_MD: Tensor) -> Tensor:
        score_MN = super().score(x_MD)
        return (CHAOS * score_MN.log()).sin() if self.mask == "random" else score_MN

    def forward(self, x_BTD: Tensor) -> Tensor:
        x_MD = x_BTD.flatten(0, 1)
        if self.mask == "oracle":
            y_MND = self.outputs(x_MD)
            index_MK = self.best(y_MND, y_MND.sum(1))
            y_MKD = y_MND.gather(1, index_MK[..., None].expand(-1, -1, self.d_model))
            return (self.scale * y_MKD.sum(1)).to(x_BTD.dtype).view_as(x_BTD)
        y_BTD = super().forward(x_BTD)
        if self.training and self.mask == "router":
            self.aux_loss = self.teaching_loss(x_MD)
        return y_BTD

    def outputs(self, x_MD: Tensor) -> Tensor:
        """Of all slices, [M, N, D]."""
        return torch.stack([self.expert(e, x_MD) for e in range(len(self.up))], 1)

    def best(self, y_MND: Tensor, dense_MD: Tensor) -> Tensor:
        """The labels: of each token the K slices of the least error, [M, K]."""
        goal_M1D = dense_MD[:, None] * self.chosen / len(self.up)
        error_MN = (y_MND - goal_M1D).square().mean(-1)
        return error_MN.topk(self.chosen, largest=False).indices

    @torch.no_grad()
    def labels(self, x_MD: Tensor) -> Tensor:
        """By the dense FFN as it was, [M, K]."""
        h_MF = activated(self.activation, x_MD @ self.teacher_up_DF)
        return self.best(self.outputs(x_MD), h_MF @ self.teacher_down_FD)

    def teaching_loss(self, x_MD: Tensor) -> Tensor:
        """What is added to the cross-entropy in training, a scalar."""
        slices = len(self.up)
        label_MN = F.one_hot(self.labels(x_MD), slices).sum(1)
        with full_precision(x_MD):
            logits_MN = self.router(x_MD.detach().to(self.router.weight.dtype))
            log_MN = logits_MN.log_softmax(-1)
            goal_MN = label_MN.to(log_MN.dtype).softmax(-1)
            mask_MN = F.one_hot(log_MN.topk(self.chosen).indices, slices).sum(1)
            route = F.kl_div(log_MN, goal_MN, reduction="batchmean")
            return ROUTE * route + BALANCE * (mask_MN * log_MN.exp()).mean()

    def flops_per_token(self) -> int:
        """The oracle computes every slice, and no router."""
        return 2 * sum(self.costs()) if self.mask == "oracle" else super().flops_per_token()

    def routing_flops_per_token(self) -> int:
        return 0 if self.mask == "oracle" else super().routing_flops_per_token()

    def active_parameters(self) -> int:
        return sum(self.costs()) if self.mask == "oracle" else super().active_parameters()

    def teaching_flops_per_token(self) -> int:
        """The dense FFN and every slice, for the labels."""
        if self.mask != "router":
            return 0
        return 2 * (self.teacher_up_DF.numel() + self.teacher_down_FD.numel() + sum(self.costs()))


def coactive(h_MF: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` groups of equal size of the units that are active together, [count, F / count].

    After MoEfication (arXiv 2110.01786), which cuts the graph of co-activations into equal parts;
    here k-means with parts of equal size, on the units' positive values over the text, each
    unit's scaled to norm 1.
    """
    from scipy.optimize import linear_sum_assignment  # takes long to import

    width = h_MF.shape[1] // count
    value_MF = F.normalize(h_MF.double().clamp(min=0), dim=0)
    similar_FF = value_MF.T @ value_MF
    part_F = torch.randperm(width * count, generator=generator) % count
    for _ in range(STEPS):
        member_FN = F.one_hot(part_F, count).double()
        mean_FN = similar_FF @ member_FN / width
        distance_FN = (member_FN * mean_FN).sum(0) / width - 2 * mean_FN  # but for the unit's own
        _, place_F = linear_sum_assignment(distance_FN.repeat_interleave(width, 1).numpy())
        before, part_F = part_F, torch.from_numpy(place_F) // width
        if torch.equal(before, part_F):
            break
    return torch.stack([(part_F == number).nonzero()[:, 0] for number in range(count)])
