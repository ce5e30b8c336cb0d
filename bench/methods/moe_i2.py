"""MoE-I^2: experts pruned by importance, more in unimportant layers, the rest of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from isoflop.bench.methods.experts import Experts
from isoflop.bench.methods.low_rank import factorise, rank_within
from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.bench.methods.pruning import PruningOptions, experts_of
from isoflop.models import Decoder

POWER = 0.15  # of the importance, in the ranks
EPSILON = 1e-6  # added to it


@register("moe-i2")
class MoEI2(Method):
    """Importance I_ij: the calibration loss without expert j of layer i, less that with it.

    MoE-I^2 (arXiv 2411.01016). A layer's importance is the sum of its experts'. Of all experts
    `drop` leave; layers lose numbers proportional to 1 / importance, by largest remainder, and keep
    at least as many as a token uses. With `keep` below 1, importance is computed again and the
    experts left get ranks proportional to (I_ij + eps)^0.15, of which the mean keeps that share of
    a layer's numbers; FLOPs per token are then stated at most, of the dearest experts.

    Not of the paper here: which experts leave a layer is decided by importance alone, not by a
    genetic search; no block search over layers; the exact map from layers' importance to numbers
    is not published.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(PruningOptions):
        keep: float = 1.0  # share of the numbers of the matrices left, at most; 1: no low rank
        whiten: bool = True  # weigh errors by the inputs on the calibration text

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.keep <= 1:
                raise ValueError(f"keep must be above 0 and at most 1, not {self.keep}")

    identity = {"drop": 0.0}

    def __init__(self, **options: object) -> None:
        super().__init__(**options)
        self._searched = 0

    def searched(self) -> int:
        return self._searched

    @torch.no_grad()
    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        self._searched = 0
        layers = [experts_of(layer, self.name) for layer in rebuilt(model)]
        if self.options.drop:
            scores = self.importance(with_layers(model, layers), calibration)
            losing = allocate(
                round(self.options.drop * sum(len(score) for score in scores)),
                [sum(score) for score in scores],
                [len(layer.up) - layer.chosen for layer in layers],
            )
            for layer, score, count in zip(layers, scores, losing, strict=True):
                order = sorted(range(len(score)), key=lambda e: -score[e])
                layer.keep(sorted(order[: len(order) - count]))
        pruned = with_layers(model, layers)
        if self.options.keep == 1:
            return pruned
        scores = self.importance(pruned, calibration)
        inputs = calibration.inputs(pruned)
        for layer, score, x_MD in zip(layers, scores, inputs, strict=True):
            factorise(
                layer, ranks(layer, score, self.options.keep), x_MD if self.options.whiten else None
            )
        return with_layers(model, layers)

    def importance(self, model: Decoder, calibration: Calibration) -> list[list[float]]:
        """I_ij by layer and expert: one removal and one evaluation each."""
        base = calibration.loss(model)
        result = []
        layers = [experts_of(layer, self.name) for layer in model.tested]
        for index, layer in enumerate(layers):
            scores = []
            for expert in range(len(layer.up)):
                scores.append(calibration.loss(without(model, index, expert)) - base)
                self._searched += 1
            result.append(scores)
        return result


def without(model: Decoder, index: int, expert: int) -> Decoder:
    """A copy of a model that lacks an expert of one layer."""
    layers = [experts_of(layer, "moe-i2") for layer in rebuilt(model)]
    layers[index].keep([e for e in range(len(layers[index].up)) if e != expert])
    return with_layers(model, layers)


def allocate(total: int, importance: Sequence[float], most: Sequence[int]) -> list[int]:
    """Share `total` among layers in proportion to 1 / importance, no layer above its most.

    By largest remainder; what a full layer cannot take goes to the others.

    Raises:
        ValueError: there is no room for so many.
    """
    if total > sum(most):
        raise ValueError(
            f"drop: {total} experts are to go, and {sum(most)} may: each layer keeps as many as a "
            "token uses"
        )
    # A sum of loss changes may be 0 or below: such a layer is the least important.
    floor = 1e-3 * max(*(abs(value) for value in importance), 1e-9)
    weight = [1 / max(value, floor) for value in importance]
    full: list[int] = []
    while True:
        free = [i for i in range(len(most)) if i not in full]
        left, mass = total - sum(most[i] for i in full), sum(weight[i] for i in free)
        exact = {i: left * weight[i] / mass for i in free}
        over = [i for i in free if exact[i] > most[i]]
        if not over:
            break
        full += over
    shares = [most[i] if i in full else int(exact[i]) for i in range(len(most))]
    rest = sorted(free, key=lambda i: shares[i] - exact[i])
    for i in rest[: total - sum(shares)]:
        shares[i] += 1
    return shares


def ranks(layer: Experts, score: Sequence[float], keep: float) -> list[list[int]]:
    """Of the first and the second matrix of every expert: proportional to (I + eps)^0.15, from 1
    to the largest that saves."""
    weight = [(max(value, 0.0) + EPSILON) ** POWER for value in score]
    mean = sum(weight) / len(weight)
    result = []
    for value in weight:
        pair = []
        for matrices in (layer.up, layer.down):
            inputs, outputs = matrices.shape
            saves = -(-inputs * outputs // (inputs + outputs)) - 1
            rank = int(value / mean * rank_within(matrices, keep))
            pair.append(max(1, min(rank, saves)))
        result.append(pair)
    return result
