"""Routing locality, against its definition."""

import numpy as np
import pytest

from isoflop.bench.decoding.expert_cache import Policy
from isoflop.bench.decoding.locality import locality, reuse
from isoflop.bench.decoding.trace import simulate
from tests.bench.decoding.test_trace import trace_of


def test_reuse_is_counted_token_by_token() -> None:
    chance = np.random.default_rng(0)
    chosen = [[chance.permutation(4)[:2].tolist() for _ in range(3)] for _ in range(40)]
    again = sum(
        expert in chosen[t - 1][layer]
        for t in range(1, 40)
        for layer in range(3)
        for expert in chosen[t][layer]
    )
    share, by_chance = reuse(trace_of(chosen))
    assert share == pytest.approx(again / (39 * 3 * 2))
    assert by_chance == pytest.approx(0.5, abs=0.03)  # 2 of 4, about evenly


def test_a_token_that_repeats_the_last_reuses_all() -> None:
    share, by_chance = reuse(trace_of([[[0, 1]]] * 10))
    assert share == by_chance == 1
    # Experts 0 and 1 in turn: each is chosen half the time, and never twice in a row.
    assert reuse(trace_of([[[n % 2]] for n in range(10)])) == (0, 0.5)


def test_the_caches_have_the_bytes_of_what_a_token_uses() -> None:
    chance = np.random.default_rng(1)
    chosen = [[chance.permutation(8)[:2].tolist() for _ in range(3)] for _ in range(50)]
    trace = trace_of(chosen, experts=8)
    row = locality(trace, expert_bytes=100)
    assert (row["experts"], row["experts_per_token"], row["tokens"]) == (8, 2, 50)
    assert row["next_layer_recall"] == 1  # the guesses of this trace are an oracle's
    for times in (1, 2, 3):
        counts = simulate(trace, Policy(high=times * 2 * 3))
        assert row[f"lru_hits_{times}x"] == counts.hit_rate
        assert row[f"best_hits_{times}x"] >= counts.hit_rate
        assert row[f"bytes_per_token_{times}x"] == counts.high_misses * 100 / 50
    assert row["lru_hits_1x"] < row["lru_hits_2x"] < row["lru_hits_3x"] < 1
