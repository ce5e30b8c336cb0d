"""The searches of MoE-I^2: which experts leave a layer, and which of such sets go together.

Sizes: B sequences, T time, M tokens, E experts, K experts per token, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from math import comb

import torch
from torch import Tensor

from isoflop.bench.methods.experts import Experts
from isoflop.models import Decoder, Layer
from isoflop.models.decoder import Block

MUTATION = 0.2  # share of the children in which one expert is exchanged for another

Leaving = tuple[int, ...]  # experts that leave a layer, in order


class OutputChange:
    """How much a layer's output changes on a batch if experts leave: the norm of the difference.

    Every set is evaluated once; `evaluations` counts them.
    """

    def __init__(self, layer: Experts, x_MD: Tensor) -> None:
        self.layer = layer
        self.score_ME = layer.score(x_MD)
        self.y_MED = torch.stack([layer.expert(e, x_MD) for e in range(len(layer.up))], 1)
        self.source_MD = self.output(())
        self.known: dict[Leaving, float] = {}

    @property
    def evaluations(self) -> int:
        return len(self.known)

    def __call__(self, leaving: Leaving) -> float:
        if leaving not in self.known:
            self.known[leaving] = float((self.output(leaving) - self.source_MD).norm())
        return self.known[leaving]

    def output(self, leaving: Leaving) -> Tensor:
        """The sum over the chosen of the experts left, [M, D]."""
        rows = torch.tensor([e for e in range(self.score_ME.shape[1]) if e not in leaving])
        score_ME = self.score_ME[:, rows]
        if self.layer.gates == "softmax":  # it is one over the rest
            score_ME = score_ME / score_ME.sum(-1, keepdim=True)
        gate_MK, index_MK = self.layer.choose(score_ME, self.layer.bias_R[rows])
        place_MKD = rows[index_MK][..., None].expand(-1, -1, self.y_MED.shape[-1])
        return (gate_MK[..., None] * self.y_MED.gather(1, place_MKD)).sum(1)


def genetic(
    error: Callable[[Leaving], float],
    experts: int,
    count: int,
    generator: torch.Generator,
    population: int = 100,
    generations: int = 50,
    best: int = 3,
) -> list[Leaving]:
    """The `best` sets of `count` experts of the least error that a genetic search comes upon.

    A child is a random set from the union of two of the better half; in some, one expert is then
    exchanged for one outside. The best of parents and children live on. Where there are no more
    sets than a population, all are tried.
    """

    def rank(leaving: Leaving) -> tuple[float, Leaving]:
        return error(leaving), leaving

    def pick(pool: Sequence[int]) -> Leaving:
        order = torch.randperm(len(pool), generator=generator)[:count].tolist()
        return tuple(sorted(pool[place] for place in order))

    def below(number: int) -> int:
        return int(torch.randint(number, (), generator=generator))

    if comb(experts, count) <= population:
        return sorted(combinations(range(experts), count), key=rank)[:best]
    living = sorted({pick(range(experts)) for _ in range(population)}, key=rank)
    for _ in range(generations):
        parents = living[: max(2, len(living) // 2)]
        children = []
        for _ in range(population):
            first, second = parents[below(len(parents))], parents[below(len(parents))]
            child = pick(sorted({*first, *second}))
            if float(torch.rand((), generator=generator)) < MUTATION:
                others = [e for e in range(experts) if e not in child]
                gone, new = child[below(count)], others[below(len(others))]
                child = tuple(sorted({*child, new} - {gone}))
            children.append(child)
        living = sorted({*living, *children}, key=rank)[:population]
    return living[:best]


def together(
    model: Decoder, layers: Sequence[Experts], candidates: Sequence[Sequence[Leaving]],
    tokens_BT: Tensor, size: int,
) -> tuple[list[Leaving], int]:  # fmt: skip
    """Of each layer's candidate sets, those that go together best; and how many choices were tried.

    Layers are taken in groups of `size`, from the first on. Of all choices of one candidate for
    each layer of a group, the one is taken after which the stream behind the group's last block
    differs least, in norm, from that of the whole model; earlier groups are pruned as chosen.

    Args:
        layers: the layers under test, whole.
    """
    tested = {id(layer) for layer in model.tested}
    blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
    place = [index for index, block in enumerate(blocks) if id(block.ffn) in tested]
    pruned = [
        {leaving: _with_ffn(blocks[at], without(layer, leaving)) for leaving in sets}
        for at, layer, sets in zip(place, layers, candidates, strict=True)
    ]
    source = stream = model.embedding(tokens_BT)
    chosen: list[Leaving] = []
    tried = begin = 0
    for start in range(0, len(layers), size):
        numbers = range(start, min(start + size, len(layers)))
        span = range(begin, place[numbers[-1]] + 1)
        source = through(model, span, {}, source)
        results = {}
        for choice in product(*(candidates[number] for number in numbers)):
            others = {
                place[n]: pruned[n][leaving] for n, leaving in zip(numbers, choice, strict=True)
            }
            results[choice] = through(model, span, others, stream)
        tried += len(results) if len(results) > 1 else 0
        taken = min(results, key=lambda choice: (float((results[choice] - source).norm()), choice))
        chosen += taken
        stream, begin = results[taken], span.stop
    return chosen, tried


def through(model: Decoder, span: range, others: Mapping[int, Block], x_BTD: Tensor) -> Tensor:
    """The stream after some blocks, of which these replace those of the model."""
    time = x_BTD.shape[1]
    for index in span:
        block = others.get(index, model.blocks[index])
        x_BTD = block(x_BTD, model.cos_TK[:time], model.sin_TK[:time])
    return x_BTD


def _with_ffn(block: Block, ffn: Layer) -> Block:
    """A copy of a block with another feed-forward layer, which is not copied."""
    return copy.deepcopy(block, {id(block.ffn): ffn})


def without(layer: Experts, leaving: Leaving) -> Experts:
    """A layer that lacks these experts; the rest of its weights is shared."""
    result = Experts(
        layer.router, layer.up, layer.down, layer.chosen, layer.gates, layer.activation
    )
    result.summed, result.scale, result.shared = layer.summed, layer.scale, layer.shared
    result.bias_R, result.counts_R = layer.bias_R, layer.counts_R
    result.keep([e for e in range(len(layer.up)) if e not in leaving])
    return result.eval()
