"""The bookkeeping of HOBBIT's cache, against its rules written out."""

import random
from dataclasses import replace

import pytest
import torch

from isoflop.bench.decoding.expert_cache import HIGH, LOW, ExpertCache, Policy
from isoflop.bench.decoding.routed import scores

L, E, K = 3, 6, 2


def test_a_score_is_the_share_of_the_larger_gates() -> None:
    gates = torch.rand(50, 4, generator=torch.Generator().manual_seed(0))
    got = scores(gates)
    for row, of_row in zip(gates.tolist(), got.tolist(), strict=True):
        for gate, score in zip(row, of_row, strict=True):
            expected = sum(other for other in row if other > gate) / sum(row)
            assert score == pytest.approx(expected, abs=1e-6)
    assert got.min() == 0
    assert got.max() <= 1
    assert torch.equal(scores(torch.tensor([[0.3]])), torch.zeros(1, 1))  # K = 1: always 0
    assert scores(torch.tensor([[0.25, 0.25]])).tolist() == [[0, 0.5]]  # not 0.5 and 1
    assert scores(torch.tensor([[0.1] * 9 + [0.0]])).max() <= 1


def steps(count: int, seed: int = 0) -> list[tuple[int, list[int], list[float]]]:
    """(layer, experts, scores) of tokens that pass through the layers."""
    chance = random.Random(seed)
    result = []
    for place in range(count * L):
        experts = chance.sample(range(E), K)
        result.append((place % L, experts, [0.0, chance.uniform(0.3, 1)]))
    return result


def test_lru_is_the_order_of_last_use() -> None:
    cache, order, hits = ExpertCache(Policy(high=5), L, E, K), [], 0
    for layer, experts, score in steps(200):
        if layer == 0:
            cache.begin_token()
        before = list(order)
        cache.use(layer, experts, score)
        keys = [(layer, expert) for expert in experts]
        hits += sum(key in before for key in keys)
        for key in keys:
            if key not in order and len(order) == 5:
                order.remove(next(k for k in order if k not in keys))
            order = [k for k in order if k != key] + [key]
        assert list(cache.levels[HIGH].slots) == order
    assert cache.counts.hits == hits
    assert 0 < hits < 200 * L * K
    assert cache.counts.evictions == cache.counts.high_misses - 5


@pytest.mark.parametrize("weights", [(1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1),
                                     (0.4, 0.3, 0.2, 0.1)])  # fmt: skip
def test_the_least_priority_goes(weights: tuple[float, float, float, float]) -> None:
    """R, F, H and the distance of the layer, kept here by hand."""
    policy = Policy(high=6, low=4, t1=0.5, t2=0.8, weights=weights)
    cache = ExpertCache(policy, L, E, K)
    last, count, high, token = {}, {}, {}, 0
    evicted = 0
    for number, (layer, experts, score) in enumerate(steps(150)):
        if number % (40 * L) == 0:  # a new sequence
            cache.begin_sequence()
            last, count, high, token = {}, {}, {}, 0
        if layer == 0:
            cache.begin_token()
            token += 1

        # With one expert at a time the counts between two evictions are known.
        for expert, s in zip(experts, score, strict=True):
            key = (layer, expert)
            before = [list(level.slots) for level in cache.levels]
            _, places = cache.use(layer, [expert], [s])
            for level, old in enumerate(before):
                gone = set(old) - set(cache.levels[level].slots)
                if gone:
                    evicted += 1
                    assert len(gone) == 1
                    priority = {
                        k: weights[0] * last.get(k, 0) / token
                        + weights[1] * count.get(k, 0) / token
                        + weights[2] * high.get(k, 0) / token
                        + weights[3] * (1 - ((k[0] - layer + L) % L) / L)
                        for k in old
                    }
                    least = min(priority.values())
                    tied = [k for k in old if priority[k] == pytest.approx(least, abs=1e-12)]
                    # Rounding may decide between sums; of a single term the oldest goes.
                    assert gone <= set(tied if sum(w > 0 for w in weights) > 1 else tied[:1])
            if places[0] is not None:
                last[key], count[key] = token, count.get(key, 0) + 1
                high[key] = high.get(key, 0) + (s <= 0.5)
    assert evicted == cache.counts.evictions > 50


def place(cache: ExpertCache, score: float, expert: int = 0) -> tuple[int | None, bool]:
    """The level that serves an expert, and whether it is read."""
    reads, places = cache.use(0, [expert], [score])
    return (places[0].level if places[0] else None), bool(reads)


def test_thresholds_decide_only_what_is_missing() -> None:
    cache = ExpertCache(Policy(high=2, low=2, t1=0.6, t2=0.9), L, E, K)
    assert place(cache, 0.9001) == (None, False)
    assert place(cache, 0.9) == (LOW, True)
    assert place(cache, 0.95) == (LOW, False)  # in memory: used although it would be left out
    assert place(cache, 0.6) == (HIGH, True)  # a low copy does not serve
    assert place(cache, 1.0) == (HIGH, False)  # the better copy
    assert place(cache, 0.7) == (HIGH, False)
    counts = cache.counts
    assert (counts.uses, counts.hits, counts.high_misses, counts.low_misses) == (6, 3, 1, 1)
    assert (counts.skips, counts.low_uses) == (1, 2)


def test_what_a_layer_uses_does_not_push_itself_out() -> None:
    cache = ExpertCache(Policy(high=K), L, E, K)
    cache.use(0, [1, 2], [0, 0.5])
    reads, places = cache.use(0, [3, 1], [0, 0.5])
    assert [read.key for read in reads] == [(0, 3)]
    assert {p.slot for p in places if p} == {0, 1}
    assert set(cache.levels[HIGH].slots) == {(0, 1), (0, 3)}


def test_prefetch_reads_the_nearest_layer_that_lacks_a_guess() -> None:
    cache = ExpertCache(Policy(high=6, depth=2, weights=(1, 0, 0, 0)), L, E, K)
    cache.begin_token()
    cache.use(0, [0, 1], [0, 0.5])
    cache.use(1, [2, 3], [0, 0.5])
    guesses = [([2, 3], [0, 0.5]), ([4, 5], [0, 0.5])]
    assert [p.key for p in cache.prefetch(0, guesses)] == [(2, 4), (2, 5)]  # layer 1 has its own
    assert cache.prefetch(0, guesses) == []
    # Prefetched experts stay although they are the least used.
    cache.use(0, [4, 5], [0, 0.5])
    assert {(2, 4), (2, 5)} <= set(cache.levels[HIGH].slots)
    reads, _ = cache.use(2, [4, 0], [0, 0.5])
    assert [read.key for read in reads] == [(2, 0)]
    assert (cache.counts.prefetches, cache.counts.prefetches_used) == (2, 1)
    shallow = ExpertCache(Policy(high=6, depth=1), L, E, K)
    shallow.use(1, [2, 3], [0, 0.5])
    assert shallow.prefetch(0, guesses) == []


def test_prefetch_never_takes_the_place_of_what_is_in_use_but_gives_way() -> None:
    cache = ExpertCache(Policy(high=3, depth=1), L, E, K)
    cache.begin_token()
    cache.use(0, [0, 1], [0, 0.5])
    assert [p.key for p in cache.prefetch(0, [([2, 3], [0, 0.5])])] == [(1, 2)]  # room for one
    cache.use(1, [4, 5], [0, 0.5])  # the guess was wrong
    assert {(1, 4), (1, 5)} <= set(cache.levels[HIGH].slots)


def test_prefetch_in_low_precision_where_the_score_says_so() -> None:
    cache = ExpertCache(Policy(high=4, low=2, t1=0.4, t2=0.8, depth=1), L, E, 3)
    read = cache.prefetch(0, [([1, 2, 3], [0, 0.5, 0.9])])
    assert [(p.key, p.level) for p in read] == [((1, 1), HIGH), ((1, 2), LOW)]


def test_all_experts_where_all_have_room() -> None:
    full = ExpertCache(Policy(high=L * E), L, E, K)
    assert len(full.fill()) == L * E
    assert full.use(2, [5, 0], [0, 0.9])[0] == []
    assert ExpertCache(Policy(high=L * E - 1), L, E, K).fill() == []


def test_load_all_reads_a_layer_each_time() -> None:
    cache = ExpertCache(Policy(high=E, load_all=True), L, E, K)
    for _ in range(2):
        reads, places = cache.use(1, [4, 2], [0, 0.5])
        assert [read.key for read in reads] == [(1, e) for e in range(E)]
        assert [p.key for p in places if p] == [(1, 4), (1, 2)]
    assert cache.counts.hit_rate == 0


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (Policy(high=1), "1 slots of high precision are too few: a layer needs 2"),
        (Policy(high=5, load_all=True), "needs 6"),
        (Policy(high=2, t1=0.5), "0 slots of low precision"),
        (Policy(high=2, low=2, t1=0.9, t2=0.5), "thresholds"),
        (Policy(high=2, low=2, t1=-0.1, t2=0.5), "thresholds"),
        (Policy(high=2, low=2, t1=0.1, t2=1.5), "thresholds"),
    ],
)
def test_a_cache_that_cannot_serve_is_refused(policy: Policy, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        ExpertCache(policy, L, E, K)
    replace(policy, high=6, low=1, t1=0.5, t2=0.5).check(E, K)
