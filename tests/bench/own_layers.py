"""Layers of one's own, which do what those of the project do not."""

import torch
from torch import Tensor, nn

from isoflop.models import LAYERS, Layer
from isoflop.models.layer import ParameterGroup


class Choosy(Layer):
    """A step uses some parameters in one process alone, or in none.

    The first expert has all tokens of some micro-batches, the second of others, the third none.

    After a step it writes to its parameters.
    """

    def __init__(self, d_model: int, **options: object) -> None:
        super().__init__(d_model, **options)
        self.experts = nn.ModuleList(LAYERS["dense"](d_model) for _ in range(3))

    def forward(self, x_BTD: Tensor) -> Tensor:
        choosing = self.training and not x_BTD.is_meta
        return self.experts[int(choosing and x_BTD[0, 0, 0] > 0)](x_BTD)

    @torch.no_grad()
    def after_step(self) -> None:
        for parameter in self.parameters():
            parameter.mul_(1 - parameter.square().mean())

    def flops_per_token(self) -> int:
        return int(self.experts[0].flops_per_token())


class Ungrouped(LAYERS["peer"]):  # type: ignore[misc]
    """Its tables are in one group of the optimiser with what is not split by columns."""

    def parameter_groups(self) -> list[ParameterGroup]:
        return []
