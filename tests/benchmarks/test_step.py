"""Speed of a training step: shares and ratios within one process, medians over repeats.

Run alone on a quiet machine: `python -m tox run -e benchmarks -- -k step`.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from isoflop.bench import autocast
from isoflop.bench.cost import DEVICES
from isoflop.bench.data import prepare
from isoflop.bench.plan import Cell, plan
from isoflop.bench.step import Trainer
from isoflop.bench.suite import Suite, load_suite
from isoflop.bench.train import train_cell
from isoflop.bench.worker import workers
from isoflop.models import decoder, ops
from isoflop.models.ops.backends import cpu_has_bfloat16
from tests.benchmarks.machine import DEVICE, GPU, matmul_rate, seconds

CPU = torch.device("cpu")
ROUNDS = 15


def wide_cell() -> Cell:
    """Dense, d 256, 4 layers, 4096 tokens a step."""
    return plan(
        Suite.model_validate(
            {
                "name": "wide",
                "corpus": {"vocabulary": 8192},
                "training": {"context": 256, "batch": 16},
                "sizes": {"s": {"width": 256, "depth": 4, "heads": 4}},
                "budgets": [{"flops": 1e14}],
                "transfer": {"width": 256},
                "variants": {"dense": {"layer": "dense", "learning_rate": 1e-3}},
            }
        ),
        "wide",
    )[0]


def test_step_reaches_a_third_of_the_matmul_rate(benchmark: Any) -> None:
    """A dense step at 35% or more of the rate of the same process's products under autocast."""
    cell = wide_cell()
    trainer = Trainer(cell, CPU)
    windows = np.random.default_rng(0).integers(0, 8192, (16, 257))
    a, b = torch.randn(4096, 256).bfloat16(), torch.randn(256, 1024).bfloat16()

    def products(count: int) -> None:
        with autocast.autocast("cpu"):
            for _ in range(count):
                a @ b

    for _ in range(3):
        trainer.step(0, windows)
        products(1)
    ratios = []
    for _ in range(ROUNDS):
        step = seconds(lambda: trainer.step(1, windows))
        product = seconds(partial(products, 50)) / 50
        flops = cell.flops_per_token.training * 4096
        ratios.append((flops / step) / (2 * 4096 * 256 * 1024 / product))
    benchmark.pedantic(lambda: trainer.step(1, windows), rounds=3)
    benchmark.extra_info["share_of_matmul_rate"] = median(ratios)
    assert median(ratios) >= 0.35


@pytest.mark.skipif(cpu_has_bfloat16(), reason="this CPU multiplies bfloat16 itself")
@pytest.mark.parametrize("variant", ["dense", "peer"])
def test_step_on_a_cpu_without_bfloat16(benchmark: Any, variant: str) -> None:
    """Torch's own products of bfloat16 take two and a half times as long or longer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cell = next(c for c in plan(load_suite("quick"), "quick") if c.variant == variant)
    trainer = Trainer(cell, CPU)
    shape = cell.training.batch, cell.training.context + 1
    windows = np.random.default_rng(0).integers(0, cell.corpus.vocabulary, shape)
    times: dict[str, list[float]] = {"torch's": [], "ours": []}
    for _ in range(ROUNDS):
        autocast.multiply_in_float32()._destroy()  # gone, which the step does not know
        times["torch's"].append(seconds(lambda: trainer.step(1, windows)))
        autocast.multiply_in_float32.cache_clear()
        autocast.multiply_in_float32()
        times["ours"].append(seconds(lambda: trainer.step(1, windows)))
    benchmark.pedantic(lambda: trainer.step(1, windows), rounds=3)
    torch.set_num_threads(threads)
    ratio = median(a / b for a, b in zip(times["torch's"], times["ours"], strict=True))
    benchmark.extra_info["torch_s_over_ours"] = ratio
    assert ratio > 2.5


@pytest.mark.skipif(not GPU, reason="no GPU here")
@pytest.mark.parametrize("variant", ["dense", "moe-g1", "moe-g8", "pkm", "peer"])
def test_step_on_a_gpu(benchmark: Any, variant: str) -> None:
    """The largest size of the `h100` suite, width 768: dense at 40% or more of the bf16 peak.

    The peak is the manufacturer's figure or, for a GPU unknown to `bench.cost`, a large product's.
    """
    cell = next(
        c for c in plan(load_suite("h100"), "h100") if (c.variant, c.size.name) == (variant, "xl")
    )
    trainer = Trainer(cell, DEVICE, compiled=True)
    shape = cell.training.batch, cell.training.context + 1
    windows = np.random.default_rng(0).integers(0, cell.corpus.vocabulary, shape)
    losses = [trainer.step(step, windows) for step in range(5)]  # compiles, and warms up
    times = [seconds(lambda: trainer.step(5, windows)) for _ in range(ROUNDS)]
    benchmark.pedantic(lambda: seconds(lambda: trainer.step(5, windows)), rounds=1)
    tokens = cell.training.batch * cell.training.context
    name = torch.cuda.get_device_name().lower()
    peak = next((known.flops for key, known in DEVICES.items() if key in name), matmul_rate())
    share = cell.flops_per_token.training * tokens / median(times) / peak
    benchmark.extra_info |= {
        "what": "share of the bf16 peak that a training step reaches, h100 suite, width 768",
        "ratios": {variant: share},
    }
    assert torch.stack(losses).isfinite().all()
    if variant == "dense":
        assert share >= 0.4


@pytest.mark.parametrize("variant", ["dense", "peer"])
def test_step_is_nearly_all_of_a_quick_cell(benchmark: Any, tmp_path: Path, variant: str) -> None:
    """Data, logging, evaluation and bookkeeping take under 5% of a quick cell's time.

    At the middle budget of the suite: evaluation costs the same at every budget, so its share is
    larger in the smallest cells (8% for dense) and smaller in those that take most of the time.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    suite = load_suite("quick")
    budget = sorted(budget.flops for budget in suite.budgets)[len(suite.budgets) // 2]
    cell = next(
        c
        for c in plan(suite, "quick")
        if (c.variant, c.size.name, c.budget) == (variant, "m", budget)
    )
    tokens = prepare(cell.corpus)
    spent: list[float] = []
    step = Trainer.step

    def timed(self: Trainer, *arguments: Any) -> Any:
        begin = perf_counter()
        loss = step(self, *arguments)
        spent.append(perf_counter() - begin)
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", timed)
        record = benchmark.pedantic(train_cell, args=(cell, tokens, CPU, tmp_path), rounds=1)
    torch.set_num_threads(threads)
    around = 1 - sum(spent) / record.measured.seconds
    benchmark.extra_info["share_around_the_step"] = around
    assert around < 0.05


def plain_operators(patch: pytest.MonkeyPatch) -> None:
    """Make the layers run the references: gather, einsum, and topk of all scores."""
    for module, name in (
        ("moe", "expert_ffn"),
        ("peer", "expert_mix"),
        ("pkm", "value_sum"),
        ("product_keys", "product_key_topk"),
    ):
        reference = partial(getattr(ops, name), backend="reference")
        patch.setattr(f"isoflop.models.{module}.{name}", reference)


def plain(patch: pytest.MonkeyPatch) -> None:
    """The straightforward implementation: the references, and torch's attention."""
    plain_operators(patch)
    patch.setattr("isoflop.models.decoder.causal_attention", fused)


IMPLEMENTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "plain": plain,
    "plain operators": plain_operators,
    "ours": lambda patch: None,
}


def time_the_quick_suite() -> dict[str, dict[str, float]]:
    """Seconds of training by implementation and variant: one step of every size times its steps."""
    torch.set_num_threads(1)  # as the suite trains
    steps: dict[tuple[str, str], int] = {}
    cells = {}
    for cell in plan(load_suite("quick"), "quick"):
        key = cell.variant, cell.size.name
        steps[key] = steps.get(key, 0) + cell.steps
        cells[key] = cell
    total = {name: dict.fromkeys(sorted({v for v, _ in cells}), 0.0) for name in IMPLEMENTATIONS}
    for (variant, size), cell in cells.items():
        shape = cell.training.batch, cell.training.context + 1
        windows = np.random.default_rng(0).integers(0, cell.corpus.vocabulary, shape)
        trainers = {name: Trainer(cell, CPU) for name in IMPLEMENTATIONS}
        times: dict[str, list[float]] = {name: [] for name in IMPLEMENTATIONS}
        for turn in range(ROUNDS):
            for name in sorted(IMPLEMENTATIONS, reverse=turn % 2 == 0):
                with pytest.MonkeyPatch.context() as patch:
                    IMPLEMENTATIONS[name](patch)
                    times[name].append(seconds(partial(trainers[name].step, 1, windows)))
        for name, measured in times.items():
            total[name][variant] += steps[variant, size] * median(measured)
    return total


def test_step_of_the_quick_suite_against_the_plain_one(
    benchmark: Any, request: pytest.FixtureRequest
) -> None:
    """Training the whole suite takes 1.5 times as long or longer with plain implementations.

    In a worker process like the suite's own, which keeps freed memory: without that the plain
    implementation, with its large tensors, is slower still.
    """
    with workers() as context, context.Pool(1) as pool:
        total = benchmark.pedantic(pool.apply, args=(time_the_quick_suite,), rounds=1)

    def ratio(name: str, *chosen: str) -> float:
        return sum(total[name][v] for v in chosen) / sum(total["ours"][v] for v in chosen)

    variants = list(total["ours"])
    ratios = {variant: ratio("plain", variant) for variant in variants}
    ratios |= {
        "whole suite": ratio("plain", *variants),
        "of plain operators alone": ratio("plain operators", *variants),
    }
    ratios |= {
        f"minutes on two cores, {name}": sum(total[name].values()) / 60 / 2
        for name in ("ours", "plain")
    }
    benchmark.extra_info |= {
        "what": "training the quick suite, time with plain operators and torch's attention over "
        "ours, one thread; and minutes",
        "ratios": ratios,
    }
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        print("\nquick suite, plain over ours:", {k: round(r, 2) for k, r in ratios.items()})
    assert ratios["whole suite"] > 1.5
    assert ratios["of plain operators alone"] > 1.3


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("context", [64, 128, 256, 512])
def test_step_attention_is_the_faster_of_two(
    benchmark: Any, context: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out or torch's, on a CPU at short contexts, forward and backward."""
    shape = (2048 // context, 4, context, 32)
    operands = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
    gradient = torch.randn(shape).bfloat16()

    def attend(written_out: bool) -> None:
        monkeypatch.setattr(decoder, "CPU_HAS_BFLOAT16", written_out)
        with autocast.autocast("cpu"):
            y = decoder.causal_attention(*operands)
        y.backward(gradient)

    chosen = cpu_has_bfloat16()
    ratios = [
        seconds(partial(attend, not chosen)) / seconds(partial(attend, chosen))
        for _ in range(ROUNDS)
    ]
    benchmark.pedantic(partial(attend, chosen), rounds=3)
    benchmark.extra_info["other_over_chosen"] = median(ratios)
    assert median(ratios) > 1
