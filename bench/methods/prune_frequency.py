"""Pruning by frequency."""

from __future__ import annotations

from torch import Tensor

from isoflop.bench.methods.experts import Experts
from isoflop.bench.methods.method import Calibration, register
from isoflop.bench.methods.pruning import Pruning


@register("prune-frequency")
class PruneFrequency(Pruning):
    """Drops the experts that the fewest tokens choose."""

    def scores(self, index: int, layer: Experts, x_MD: Tensor, calibration: Calibration) -> Tensor:
        return layer.load(x_MD[None])
