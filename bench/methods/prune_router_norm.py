"""Pruning by the change of the router's norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from isoflop.bench.methods.experts import Experts
from isoflop.bench.methods.method import Calibration, register
from isoflop.bench.methods.pruning import Pruning, PruningOptions
from isoflop.models import MoE, SharedMoE


@register("prune-router-norm")
class PruneRouterNorm(Pruning):
    """Drops the experts of the smallest Delta_j = ||w_j after|| - ||w_j before||, w_j the router's
    row of expert j (arXiv 2405.16646): the difference of norms, not the norm of a difference.

    The paper compares a pre-trained with a fine-tuned model: so it is here with `--continue`, where
    the kept model is trained on, on a second text. Without it the model before and after its only
    training are compared, a proxy. `largest` is a control: a small change also marks experts that
    need more bits (arXiv 2604.06515). `prune-random` is the other.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(PruningOptions):
        dropped: Literal["smallest", "largest"] = "smallest"  # changes, with their sign

    calibrated = False
    needs_initial = True
    note = "proxy: initial to final weights, not pre-trained to fine-tuned"

    def scores(self, index: int, layer: Experts, x_MD: Tensor, calibration: Calibration) -> Tensor:
        if calibration.initial is None:
            raise ValueError(f"method {self.name!r} needs the weights before training")
        before = calibration.initial.tested[index]
        assert isinstance(before, MoE | SharedMoE)
        change_E = layer.router.weight.norm(dim=1) - before.router.weight.norm(dim=1)
        return change_E if self.options.dropped == "smallest" else -change_E
