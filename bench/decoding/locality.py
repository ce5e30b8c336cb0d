"""Routing locality: how often a token uses the last one's experts, and what a cache gains."""

from __future__ import annotations

from typing import Any

import numpy as np

from isoflop.bench.decoding.expert_cache import Policy
from isoflop.bench.decoding.trace import Trace, best_hit_rate, recall_by_depth, simulate

CACHES = (1, 2, 3)  # memory, over that of the experts that a token uses


def reuse(trace: Trace) -> tuple[float, float]:
    """The share of a token's experts that the token before it used too, and what it would be if
    tokens chose independently, each expert as often as it was chosen."""
    W, T, L, K = trace.index_WTLK.shape
    now, before = trace.index_WTLK[:, 1:, :, :, None], trace.index_WTLK[:, :-1, :, None, :]
    share = float((now == before).any(-1).mean())
    chance = 0.0
    for layer in range(L):
        counts = np.bincount(trace.index_WTLK[:, :, layer].ravel(), minlength=trace.experts)
        chance += float(np.square(counts / (W * T)).sum()) / K / L
    return share, chance


def locality(trace: Trace, expert_bytes: int) -> dict[str, Any]:
    """What a trace says of caching: reuse, and hit rates of LRU and of the best possible choice.

    A cache of c times the experts that a token uses has the same bytes at every granularity of one
    expansion, so that rows of equal size and budget compare.

    Args:
        expert_bytes: of one expert.
    """
    layers, chosen = trace.index_WTLK.shape[2:]
    share, chance = reuse(trace)
    row: dict[str, Any] = {
        "experts": trace.experts,
        "experts_per_token": chosen,
        "tokens": trace.tokens,
        "reuse": share,
        "reuse_by_chance": chance,
        "next_layer_recall": recall_by_depth(trace)[0],
    }
    for times in CACHES:
        slots = min(times * chosen, trace.experts) * layers
        counts = simulate(trace, Policy(high=slots))
        row[f"lru_hits_{times}x"] = counts.hit_rate
        row[f"best_hits_{times}x"] = best_hit_rate(trace, slots)
        row[f"bytes_per_token_{times}x"] = counts.high_misses * expert_bytes / trace.tokens
    return row
