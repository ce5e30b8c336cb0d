"""Pruning by router-weighted activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.bench.methods.experts import Experts
from isoflop.bench.methods.method import Calibration, register
from isoflop.bench.methods.pruning import Pruning, PruningOptions


@register("prune-reap")
class PruneREAP(Pruning):
    """Drops the experts of the least S_j = mean over the tokens routed to j of g_j ||E_j(x)||.

    REAP (arXiv 2510.13999), with the layer's own gates: those of `moe_shared` sum to 1 over the
    chosen, those of `moe` do not. Without the gate it is the score of arXiv 2606.15716. An expert
    that no token chose scores 0.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(PruningOptions):
        gate: bool = True  # weight the norms by the gates

    def scores(self, index: int, layer: Experts, x_MD: Tensor, calibration: Calibration) -> Tensor:
        gate_MK, index_MK = layer.route(x_MD)
        score_E = torch.zeros(len(layer.up))
        for expert in range(len(layer.up)):
            token, place = (index_MK == expert).nonzero(as_tuple=True)
            if len(token):
                norm_M = layer.expert(expert, x_MD[token]).norm(dim=-1)
                weight_M = gate_MK[token, place] if self.options.gate else 1.0
                score_E[expert] = (weight_M * norm_M).mean()
        return score_E
