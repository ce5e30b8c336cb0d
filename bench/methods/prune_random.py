"""Random pruning: the control of every other."""

from __future__ import annotations

import torch
from torch import Tensor

from isoflop.bench.methods.experts import Experts
from isoflop.bench.methods.method import Calibration, register
from isoflop.bench.methods.pruning import Pruning


@register("prune-random")
class PruneRandom(Pruning):
    """Drops experts at random, by the calibration seed."""

    def scores(self, index: int, layer: Experts, x_MD: Tensor, calibration: Calibration) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * calibration.seed + index)
        return torch.rand(len(layer.up), generator=generator)
