"""Traces of routers, caches run on them, and the fit of the eviction weights."""

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from isoflop.bench.decoding.expert_cache import Policy
from isoflop.bench.decoding.routed import routed_blocks, scores
from isoflop.bench.decoding.trace import (
    Trace,
    best_hit_rate,
    fit_weights,
    recall_by_depth,
    record_trace,
    simplex,
    simulate,
)
from isoflop.models import LAYERS, Config, Decoder
from tests.models.test_decoder import V

WINDOWS = np.random.default_rng(5).integers(V, size=(2, 10))


def deep_model(**options: Any) -> Decoder:
    """Four blocks, of which the second is dense."""
    torch.manual_seed(1)
    config = Config(
        layer=LAYERS["moe"],
        options={"granularity": 2, "expansion": 2} | options,
        placement=[0, 2, 3],
        width=16,
        depth=4,
        heads=2,
        vocabulary=V,
        context=10,
    )
    return Decoder(config).eval()


def trace_of(chosen: list[list[list[int]]], experts: int = 4) -> Trace:
    """A trace of one window, from [tokens][layers][K]."""
    index = np.array(chosen)[None]
    score = np.broadcast_to(np.linspace(0, 0.9, index.shape[-1]), index.shape)
    guess = np.full((*index.shape[:3], 3, index.shape[3]), -1)
    for ahead in range(1, index.shape[2]):
        guess[:, :, :-ahead, ahead - 1] = index[:, :, ahead:]  # an oracle
    guess_score = np.broadcast_to(score[..., None, :], guess.shape)
    return Trace(experts, index, score, guess, guess_score)


def test_a_trace_holds_what_the_routers_see() -> None:
    """By hooks on the routers' own inputs, in a forward pass of the model."""
    model = deep_model()
    trace = record_trace(model, WINDOWS)
    seen: list[torch.Tensor] = []
    blocks = routed_blocks(model)
    for block in blocks:
        block.block.ffn.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(torch.from_numpy(WINDOWS))
        for layer, block in enumerate(blocks):
            gates, index = block.route(seen[layer].flatten(0, 1))
            assert np.array_equal(index.numpy().reshape(2, 10, 2), trace.index_WTLK[:, :, layer])
            assert np.allclose(scores(gates).reshape(2, 10, 2), trace.score_WTLK[:, :, layer])
    assert trace.tokens == 20


def test_guesses_are_right_where_the_blocks_between_add_nothing() -> None:
    model = deep_model()
    assert all(0 < recall < 1 for recall in recall_by_depth(record_trace(model, WINDOWS))[:2])
    with torch.no_grad():
        for block in model.blocks:
            block.attention.out.weight.zero_()
            (
                block.ffn.down_EFD if hasattr(block.ffn, "down_EFD") else block.ffn.down.weight
            ).zero_()
    assert recall_by_depth(record_trace(model, WINDOWS)) == [1, 1, None]


def test_an_oracle_prefetches_all_but_the_first_layer() -> None:
    chance = np.random.default_rng(0)
    chosen = [[chance.permutation(4)[:2].tolist() for _ in range(3)] for _ in range(60)]
    trace = trace_of(chosen)
    assert recall_by_depth(trace) == [1, 1, None]
    with_it, without = (simulate(trace, Policy(high=6, depth=depth)) for depth in (1, 0))
    assert without.prefetches == 0
    assert with_it.prefetches_used == with_it.prefetches > 0
    # Only the first layer's experts, which nothing foresees, are still missed.
    assert with_it.high_misses <= 2 * len(chosen)
    assert with_it.hit_rate > 0.66 > without.hit_rate


def best_by_trying(keys: list[list[int]], slots: int) -> float:
    """The most hits of any choice of what goes, tried out."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for group in keys:
        after: dict[frozenset[int], int] = {}
        for cached, hits in states.items():
            now, gained = cached | set(group), len(cached & set(group))
            others = sorted(now - set(group))
            most = max(0, len(now) - slots)
            for gone in product(*[others] * most):
                if len(set(gone)) == most:
                    kept = frozenset(now - set(gone))
                    after[kept] = max(after.get(kept, 0), hits + gained)
        states = after
    return max(states.values()) / sum(map(len, keys))


@pytest.mark.parametrize("seed", range(4))
def test_the_best_hit_rate_is_that_of_the_best_choice(seed: int) -> None:
    chance = np.random.default_rng(seed)
    chosen = [[chance.permutation(4)[:2].tolist() for _ in range(2)] for _ in range(8)]
    keys = [[layer * 4 + e for e in token[layer]] for token in chosen for layer in range(2)]
    trace = trace_of(chosen)
    best = best_hit_rate(trace, 5)
    assert best == pytest.approx(best_by_trying(keys, 5))
    assert best >= simulate(trace, Policy(high=5)).hit_rate


def test_the_fit_finds_what_a_trace_rewards() -> None:
    """Expert 0 is used every other token, the others in turn: uses should decide, not recency."""
    turns = [[[0, 1 + number % 5]] if number % 2 else [[6, 1 + number % 5]] for number in range(80)]
    trace = trace_of(turns, experts=8)
    fit = fit_weights(trace, Policy(high=3), low_over_high=0.25, steps=2)
    assert fit.cost < fit.lru_cost
    assert fit.weights[1] + fit.weights[2] > 0  # all uses are of high precision
    counts = simulate(trace, Policy(high=3, weights=fit.weights))
    assert fit.cost == counts.high_misses + 0.25 * counts.low_misses


def test_the_weights_tried_sum_to_1() -> None:
    weights = list(simplex(4))
    assert len(set(weights)) == len(weights) == 35
    assert all(sum(w) == pytest.approx(1) for w in weights)
