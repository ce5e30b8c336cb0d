"""MoE-I^2: experts pruned by importance, more in unimportant layers, the rest of low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from isoflop.bench.methods.experts import Experts
from isoflop.bench.methods.low_rank import factorise, rank_within
from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.bench.methods.moe_i2_search import Leaving, OutputChange, genetic, together, without
from isoflop.bench.methods.pruning import PruningOptions, experts_of
from isoflop.models import Decoder

POWER = 0.15  # of the importance, in the ranks
EPSILON = 1e-6  # added to it
SEARCH_TOKENS = 1024  # of the calibration text, on which outputs are compared
MOST_TOGETHER = 10_000  # choices of the search over layers


@register("moe-i2")
class MoEI2(Method):
    """Importance I_ij: the calibration loss without expert j of layer i, less that with it.

    MoE-I^2 (arXiv 2411.01016). A layer's importance is the sum of its experts'. Of all experts
    `drop` leave; layers lose numbers proportional to 1 / importance, by largest remainder, and keep
    at least as many as a token uses; the paper's exact map is not published. Which ones leave a
    layer is found by a genetic search for the least change of its output (Frobenius norm, on a
    batch of the calibration text); of every layer's `candidates` best sets, `group` layers at a
    time, those are taken that together change the last block's output least. `search =
    "importance"` is the control: the least important leave.

    With `keep` below 1, importance is computed again and the experts left get ranks proportional to
    (I_ij + eps)^0.15, of which the mean keeps that share of a layer's numbers; FLOPs per token are
    then stated at most, of the dearest experts. The paper then trains adapters of low rank; here
    recovery training (`--recover`) trains the factors themselves and all else.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(PruningOptions):
        search: Literal["genetic", "importance"] = "genetic"  # decides which experts leave a layer
        population: int = 100  # sets in a generation
        generations: int = 50
        candidates: int = 3  # sets of each layer in the search over layers
        group: int = 3  # layers that are searched together
        keep: float = 1.0  # share of the numbers of the matrices left, at most; 1: no low rank
        whiten: bool = True  # weigh errors by the inputs on the calibration text

        def __post_init__(self) -> None:
            super().__post_init__()
            if not 0 < self.keep <= 1:
                raise ValueError(f"keep must be above 0 and at most 1, not {self.keep}")
            if min(self.population, self.candidates, self.group) < 1 or self.generations < 0:
                raise ValueError(
                    "population, candidates and group must be at least 1 and generations 0 or "
                    f"more, not {self.population}, {self.candidates}, {self.group} and "
                    f"{self.generations}"
                )
            if self.candidates**self.group > MOST_TOGETHER:
                raise ValueError(
                    f"group: {self.candidates} candidates in {self.group} layers make more than "
                    f"{MOST_TOGETHER:,} choices"
                )

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
            if self.options.search == "genetic":
                leaving = self.search(model, layers, losing, calibration)
            else:
                leaving = [
                    tuple(sorted(range(len(score)), key=lambda e: (score[e], -e))[:count])
                    for score, count in zip(scores, losing, strict=True)
                ]
            for layer, gone in zip(layers, leaving, strict=True):
                layer.keep([e for e in range(len(layer.up)) if e not in gone])
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

    def search(
        self,
        model: Decoder,
        layers: Sequence[Experts],
        losing: Sequence[int],
        calibration: Calibration,
    ) -> list[Leaving]:
        """Which experts leave each layer, by the genetic search and that over layers."""
        o, generator = self.options, calibration.generator()
        tokens_BT = calibration.tokens[: -(-SEARCH_TOKENS // calibration.tokens.shape[1])]
        batch = replace(calibration, tokens=tokens_BT)
        candidates = []
        for layer, count, x_MD in zip(layers, losing, batch.inputs(model), strict=True):
            change = OutputChange(layer, x_MD)
            settings = (o.population, o.generations, o.candidates)
            candidates.append(genetic(change, len(layer.up), count, generator, *settings))
            self._searched += change.evaluations
        was_training = model.training
        leaving, tried = together(model.eval(), layers, candidates, tokens_BT, o.group)
        model.train(was_training)
        self._searched += tried
        return leaving

    def importance(self, model: Decoder, calibration: Calibration) -> list[list[float]]:
        """I_ij by layer and expert: one removal and one evaluation each."""
        base = calibration.loss(model)
        result = []
        layers = [experts_of(layer, self.name) for layer in model.tested]
        for index, layer in enumerate(layers):
            scores = []
            for expert in range(len(layer.up)):
                less = without(layer, (expert,))
                parts = [less if place == index else part for place, part in enumerate(layers)]
                scores.append(calibration.loss(with_layers(model, parts)) - base)
                self._searched += 1
            result.append(scores)
        return result


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
