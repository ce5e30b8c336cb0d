"""Traces of routers on text, caches run on them, and the weights of the eviction score.

Dimensions in names: W windows, T time, L layers with experts, K experts per token, A layers ahead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from isoflop.bench.decoding.expert_cache import Counts, ExpertCache, Policy
from isoflop.bench.decoding.routed import routed_blocks, scores
from isoflop.models import Decoder
from isoflop.models.decoder import Block

AHEAD = 3  # layers whose choice is guessed, as in HOBBIT


@dataclass(frozen=True)
class Trace:
    """What each token chose in each layer, and what was guessed of the layers after it."""

    experts: int  # of each layer
    index_WTLK: np.ndarray
    score_WTLK: np.ndarray  # share of the gates that larger ones have
    # In layer l, of layer l + 1 + a; -1 past the last.
    guess_WTLAK: np.ndarray
    guess_score_WTLAK: np.ndarray

    @property
    def tokens(self) -> int:
        """Tokens of all windows."""
        return int(np.prod(self.index_WTLK.shape[:2]))


@torch.no_grad()
def record_trace(model: Decoder, windows: np.ndarray) -> Trace:
    """Route windows of text [W, T] through a model in evaluation mode, in float32.

    A layer's guess applies a later layer's norm and router to the stream that it reads itself.

    Raises:
        ValueError: the model has no such experts.
    """
    model.eval()
    blocks = routed_blocks(model)
    routed = {block.index: number for number, block in enumerate(blocks)}
    W, T = windows.shape
    shape = (W * T, len(blocks), blocks[0].chosen)
    index_MLK, score_MLK = np.zeros(shape, np.int64), np.zeros(shape)
    ahead = (*shape[:2], AHEAD, shape[2])
    guess_MLAK, guess_score_MLAK = np.full(ahead, -1, np.int64), np.zeros(ahead)
    x_BTD = model.embedding(torch.from_numpy(windows))
    model_blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
    for place, block in enumerate(model_blocks):
        x_BTD = x_BTD + block.attention(
            block.attention_norm(x_BTD), model.cos_TK[:T], model.sin_TK[:T]
        )
        if place in routed:
            here, x_MD = routed[place], x_BTD.flatten(0, 1)
            for later, target in enumerate(blocks[here : here + 1 + AHEAD]):
                gate_MK, chosen_MK = target.guess(x_MD)
                numbers = chosen_MK.numpy(), scores(gate_MK).numpy()
                if later == 0:
                    index_MLK[:, here], score_MLK[:, here] = numbers
                else:
                    guess_MLAK[:, here, later - 1] = numbers[0]
                    guess_score_MLAK[:, here, later - 1] = numbers[1]
        x_BTD = x_BTD + block.output_norm(block.ffn(block.ffn_norm(x_BTD)))
    arrays = (index_MLK, score_MLK, guess_MLAK, guess_score_MLAK)
    return Trace(blocks[0].experts, *(a.reshape(W, T, *a.shape[1:]) for a in arrays))


def recall_by_depth(trace: Trace) -> list[float | None]:
    """The share of the chosen experts that were guessed 1, 2 and 3 layers ahead; None where the
    model has no layer so far ahead."""
    layers = trace.index_WTLK.shape[2]
    result: list[float | None] = []
    for ahead in range(1, AHEAD + 1):
        if ahead >= layers:
            result.append(None)
            continue
        chosen = trace.index_WTLK[:, :, ahead:, :, None]
        guessed = trace.guess_WTLAK[:, :, :-ahead, ahead - 1, None, :]
        result.append(float((chosen == guessed).any(-1).mean()))
    return result


def simulate(trace: Trace, policy: Policy) -> Counts:
    """Run a cache, empty at first, on a trace.

    Raises:
        ValueError: see `Policy.check`.
    """
    layers, chosen = trace.index_WTLK.shape[2:]
    cache = ExpertCache(policy, layers, trace.experts, chosen)
    cache.fill()
    index, score = trace.index_WTLK.tolist(), trace.score_WTLK.tolist()
    guess, guess_score = trace.guess_WTLAK.tolist(), trace.guess_score_WTLAK.tolist()
    for window in range(len(index)):
        cache.begin_sequence()
        for token in range(len(index[window])):
            cache.begin_token()
            for layer in range(layers):
                cache.use(layer, index[window][token][layer], score[window][token][layer])
                ahead = min(policy.depth, layers - 1 - layer)
                if ahead > 0:
                    at = window, token, layer
                    pairs = zip(_at(guess, at)[:ahead], _at(guess_score, at)[:ahead], strict=True)
                    cache.prefetch(layer, list(pairs))
    return cache.counts


def _at(nested: list, place: tuple[int, int, int]) -> list:
    window, token, layer = place
    return nested[window][token][layer]


def best_hit_rate(trace: Trace, slots: int) -> float:
    """The hit rate of the cache that knows the future: what is used again last goes (Belady)."""
    layers, chosen = trace.index_WTLK.shape[2:]
    keys = (trace.index_WTLK + np.arange(layers)[:, None] * trace.experts).reshape(-1).tolist()
    following = [0] * len(keys)
    seen: dict[int, int] = {}
    for place in reversed(range(len(keys))):
        following[place] = seen.get(keys[place], len(keys))
        seen[keys[place]] = place
    cached: dict[int, int] = {}  # key -> place of its next use
    hits = 0
    for place, key in enumerate(keys):
        if key in cached:
            hits += 1
        elif len(cached) >= slots:
            group = keys[place // chosen * chosen : place // chosen * chosen + chosen]
            cached.pop(max((k for k in cached if k not in group), key=lambda k: cached[k]))
        cached[key] = following[place]
    return hits / len(keys)


@dataclass(frozen=True)
class Fit:
    """Weights of the eviction score, and what they cost on their trace."""

    weights: tuple[float, float, float, float]
    cost: float  # in reads of high precision; a read of low precision costs its share of the bytes
    lru_cost: float  # of the order of last use alone


def simplex(steps: int) -> Iterator[tuple[float, float, float, float]]:
    """All weights in steps of 1 / `steps` that sum to 1."""
    for a, b, c in product(range(steps + 1), repeat=3):
        if a + b + c <= steps:
            yield a / steps, b / steps, c / steps, (steps - a - b - c) / steps


def fit_weights(trace: Trace, policy: Policy, low_over_high: float, steps: int = 4) -> Fit:
    """The weights of least cost on a trace, of all in steps of 1 / `steps`; the first of equals.

    Args:
        policy: the cache that they are for; its own weights are not used.
        low_over_high: bytes of a copy of low precision over those of one of high precision.
    """

    def cost(weights: tuple[float, float, float, float] | None) -> float:
        counts = simulate(trace, replace(policy, weights=weights))
        return counts.high_misses + low_over_high * counts.low_misses

    costs = {weights: cost(weights) for weights in simplex(steps)}
    best = min(costs, key=lambda weights: costs[weights])
    return Fit(best, costs[best], cost(None))
