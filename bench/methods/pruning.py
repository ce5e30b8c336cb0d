"""What the pruning methods share: the experts of the lowest scores leave each layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from isoflop.bench.methods.experts import Experts, UnfitError
from isoflop.bench.methods.method import Calibration, Method, rebuilt, with_layers
from isoflop.models import Decoder


@dataclass(frozen=True, kw_only=True)
class PruningOptions(Method.Options):
    """Options of every pruning method."""

    drop: float = 0.5  # share of each layer's experts to drop, rounded to a whole number

    def __post_init__(self) -> None:
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop must be at least 0 and below 1, not {self.drop}")


class Pruning(Method):
    """Drops the experts of the lowest scores, the same number in each layer, with their router
    rows: a softmax is then one over the rest. Memory falls; the work per token does not, since
    each token still uses K experts."""

    Options = PruningOptions
    identity = {"drop": 0.0}

    def scores(self, index: int, layer: Experts, x_MD: Tensor, calibration: Calibration) -> Tensor:
        """How much each expert of the layer is worth, [E].

        Args:
            index: of the layer under test.
            x_MD: its inputs on the calibration text.
        """
        raise NotImplementedError

    @torch.no_grad()
    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        layers = [experts_of(layer, self.name) for layer in rebuilt(model)]
        counts = [remaining(layer, self.options.drop) for layer in layers]
        inputs = calibration.inputs(model)
        for index, (layer, count) in enumerate(zip(layers, counts, strict=True)):
            score_E = self.scores(index, layer, inputs[index], calibration)
            best = score_E.sort(descending=True, stable=True).indices[:count]
            layer.keep(sorted(best.tolist()))
        return with_layers(model, layers)


def experts_of(layer: object, method: str) -> Experts:
    """The layer, if it has experts.

    Raises:
        UnfitError: it has none.
    """
    if not isinstance(layer, Experts):
        raise UnfitError(f"method {method!r} does not fit a dense layer: it has no experts")
    return layer


def remaining(layer: Experts, drop: float) -> int:
    """How many experts are left.

    Raises:
        ValueError: fewer than a token uses.
    """
    left = len(layer.up) - round(drop * len(layer.up))
    if left < layer.chosen:
        raise ValueError(
            f"drop: {drop:g} leaves {left} of {len(layer.up)} experts, and each token uses "
            f"{layer.chosen}"
        )
    return left
