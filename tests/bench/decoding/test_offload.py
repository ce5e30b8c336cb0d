"""Decoding with experts from a file: the source model's logits where nothing is left out."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from isoflop.bench.decoding.decode import Engine
from isoflop.bench.decoding.expert_cache import Policy
from isoflop.bench.decoding.expert_file import ExpertFile, write_experts
from isoflop.bench.decoding.links import FileLink, SimulatedLink
from isoflop.bench.decoding.offload import OffloadedEngine
from isoflop.bench.decoding.routed import routed_blocks
from isoflop.bench.decoding.trace import record_trace, simulate
from isoflop.bench.methods import Calibration, PruneFrequency, Quantise
from isoflop.bench.quantisation import BITS, pack, unpack
from isoflop.models import Decoder
from tests.models.test_decoder import T, V, build

WINDOWS = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(4)).numpy()
MIXED = {"t1": 0.3, "t2": 0.6, "low": 4}


@pytest.fixture(params=["moe", "moe_shared"])
def model(request: pytest.FixtureRequest) -> Decoder:
    return build(request.param, granularity=4).eval()  # K is 4, or 3 and a shared one


@pytest.fixture
def file(model: Decoder, tmp_path: Path) -> Iterator[ExpertFile]:
    write_experts(tmp_path / "experts", routed_blocks(model), tuple(BITS))
    file = ExpertFile(tmp_path / "experts")
    yield file
    file.close()


def logits(engine: Engine) -> torch.Tensor:
    """Of all windows, [W, T, V]."""
    result = []
    for window in WINDOWS.tolist():
        engine.clear()
        result.append(torch.stack([engine.step(token) for token in window]))
    return torch.stack(result)


def make_calibration(model: Decoder) -> Calibration:
    windows = torch.from_numpy(WINDOWS)
    return Calibration(windows[:, :-1], windows[:, 1:], seed=0)


def offloaded(model: Decoder, file: ExpertFile, policy: Policy, **kwargs: str) -> OffloadedEngine:
    return OffloadedEngine(model, file, policy, FileLink(file, cold=False), **kwargs)


def test_with_both_thresholds_at_1_or_all_in_memory_it_is_the_source_model(
    model: Decoder, file: ExpertFile
) -> None:
    with torch.no_grad():
        source = model(torch.from_numpy(WINDOWS))
    every = file.layout.layers * file.layout.experts
    in_memory = logits(offloaded(model, file, Policy(high=every)))
    torch.testing.assert_close(in_memory, source, rtol=1e-5, atol=1e-5)
    weights = (0.25, 0.25, 0.25, 0.25)
    for policy in (
        Policy(high=6),
        Policy(high=6, weights=weights, depth=2),
        Policy(high=6, low=3, weights=weights),
        Policy(high=every, **MIXED),  # all in memory, whatever the thresholds
        Policy(high=file.layout.experts, load_all=True),
    ):
        engine = offloaded(model, file, policy)
        assert torch.equal(logits(engine), in_memory)
        assert engine.cache_of_experts.counts.low_uses == 0
    changed = logits(offloaded(model, file, Policy(high=6, **MIXED)))
    assert not torch.allclose(changed, source, atol=1e-3)


def test_the_model_s_own_experts_are_not_read(model: Decoder, file: ExpertFile) -> None:
    before = logits(offloaded(model, file, Policy(high=6)))
    with torch.no_grad():
        for block in routed_blocks(model):
            block.up_EDF.fill_(torch.nan)
    assert torch.equal(logits(offloaded(model, file, Policy(high=6))), before)


@pytest.mark.parametrize("low", ["fp16", "int8", "int4", "int2"])
def test_low_copies_are_what_is_computed_with(model: Decoder, file: ExpertFile, low: str) -> None:
    """t1 = 0: only the largest gate's expert is exact. Here every copy is of low precision."""
    engine = offloaded(model, file, Policy(high=6), high=low)
    with torch.no_grad():
        for block in routed_blocks(model):
            for weight in (block.up_EDF, block.down_EFD):
                for matrix in weight:
                    matrix.copy_(unpack(pack(matrix, low), low, *matrix.shape))
        source = model(torch.from_numpy(WINDOWS))
    torch.testing.assert_close(logits(engine), source, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("low", ["int8", "int4", "int2"])
def test_a_model_that_a_method_has_made_decodes_too(
    model: Decoder, low: str, tmp_path: Path
) -> None:
    """Quantised after training, its copies of as many bits are exact: one rule rounds both."""
    pruned = PruneFrequency(drop=0.25).apply(model, make_calibration(model))
    changed = Quantise(bits=BITS[low]).apply(pruned, make_calibration(model))
    write_experts(tmp_path / "changed", routed_blocks(changed), (low,))
    file = ExpertFile(tmp_path / "changed")
    engine = offloaded(changed, file, Policy(high=6), high=low)
    assert engine.routed[0].experts < routed_blocks(model)[0].experts
    with torch.no_grad():
        source = changed(torch.from_numpy(WINDOWS))
    torch.testing.assert_close(logits(engine), source, rtol=1e-5, atol=1e-5)
    file.close()


def test_skipped_and_low_experts_by_hand(model: Decoder, file: ExpertFile) -> None:
    """The first token of an empty cache, in the first block: every choice is written out."""
    t2 = 0.6 if model.tested[0].name == "moe_shared" else 0.75
    engine = offloaded(model, file, Policy(high=6, low=4, t1=0.3, t2=t2), low="int4")
    token, blocks = int(WINDOWS[0, 0]), routed_blocks(model)
    got: list[torch.Tensor] = []
    engine.feed_forward = lambda i, x: got.append(engine.from_cache(i, x)) or got[-1]
    engine.step(token)
    with torch.no_grad():
        block = model.blocks[0]
        x = model.embedding.weight[token].view(1, 1, -1)
        x = x + block.attention(block.attention_norm(x), model.cos_TK[:1], model.sin_TK[:1])
        normed = block.ffn_norm(x)[0]
        gates, index = blocks[0].route(normed)
        order = gates[0].argsort(descending=True)
        before, expected = 0.0, torch.zeros_like(normed)
        kinds = []
        for k in order.tolist():
            up, down = blocks[0].up_EDF[index[0, k]], blocks[0].down_EFD[index[0, k]]
            kinds.append("high" if before <= 0.3 else "low" if before <= t2 else "none")
            if kinds[-1] == "low":
                up, down = (unpack(pack(m, "int4"), "int4", *m.shape) for m in (up, down))
            if kinds[-1] != "none":
                y = torch.nn.functional.gelu(normed @ up) @ down
                expected = expected + gates[0, k] * y
            before += float(gates[0, k] / gates[0].sum())
        if getattr(blocks[0].layer, "shared", None) is not None:
            expected = expected + blocks[0].layer.shared(normed)
    assert set(kinds) == {"high", "low", "none"}
    torch.testing.assert_close(got[0][0], expected, rtol=1e-5, atol=1e-6)


def test_a_trace_run_through_a_cache_counts_what_decoding_counts(
    model: Decoder, file: ExpertFile
) -> None:
    trace = record_trace(model, WINDOWS)
    for policy in (
        Policy(high=6),
        Policy(high=7, weights=(0.1, 0.2, 0.3, 0.4), depth=1),
        Policy(high=file.layout.experts, load_all=True),
    ):
        engine = offloaded(model, file, policy)
        logits(engine)
        assert engine.cache_of_experts.counts == simulate(trace, policy)


def test_bytes_are_those_of_the_copies_read(model: Decoder, file: ExpertFile) -> None:
    engine = offloaded(model, file, Policy(high=6, depth=1, **MIXED), low="int2")
    logits(engine)
    counts = engine.cache_of_experts.counts
    high, low = file.layout.bytes_of("fp32"), file.layout.bytes_of("int2")
    assert counts.low_misses > 0
    assert counts.skips > 0
    at_least = counts.high_misses * high + counts.low_misses * low
    assert engine.link.bytes >= at_least + counts.prefetches * low
    assert engine.link.bytes <= at_least + counts.prefetches * high
    still = offloaded(model, file, Policy(high=6, **MIXED), low="int2")
    logits(still)
    counts = still.cache_of_experts.counts
    assert still.link.bytes == counts.high_misses * high + counts.low_misses * low


def test_a_simulated_link_takes_the_time_that_it_should(model: Decoder, file: ExpertFile) -> None:
    link = SimulatedLink(file, bandwidth=1e6, latency=0.5)
    engine = OffloadedEngine(model, file, Policy(high=6), link)
    start = link.now()
    logits(engine)
    passed = link.now() - start
    reads = engine.cache_of_experts.counts.high_misses
    a_read = 0.5 + file.layout.bytes_of("fp32") / 1e6
    assert link.waited == pytest.approx(reads * a_read, rel=1e-4)
    assert passed > link.waited
    # What is prefetched is read while the rest is computed, and is waited for only then.
    ahead = SimulatedLink(file, bandwidth=1e12, latency=1e-9)
    engine = OffloadedEngine(model, file, Policy(high=6, depth=1), ahead)
    logits(engine)
    counts = engine.cache_of_experts.counts
    assert ahead.waited < 2e-9 * (counts.high_misses + counts.prefetches) + 1e-6
    assert counts.prefetches_used > 0
