"""Speed of a training step: shares and ratios within one process, medians over repeats.

Run alone on a quiet machine: `python -m tox run -e benchmarks -- -k step`.
"""

from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench.data import prepare
from bench.plan import Cell, plan
from bench.suite import Suite, load_suite
from bench.train import Trainer, train_cell
from models.decoder import causal_attention

CPU = torch.device("cpu")
ROUNDS = 15


def seconds(call: Any, repeats: int = 1) -> float:
    begin = perf_counter()
    for _ in range(repeats):
        call()
    return perf_counter() - begin


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
    """A dense step at 35% or more of the rate of the same process's bf16 matmuls."""
    cell = wide_cell()
    trainer = Trainer(cell, CPU)
    windows = np.random.default_rng(0).integers(0, 8192, (16, 257))
    a = torch.randn(4096, 256).bfloat16()
    b = torch.randn(256, 1024).bfloat16()
    for _ in range(3):
        trainer.step(0, windows)
        a @ b
    ratios = []
    for _ in range(ROUNDS):
        step = seconds(lambda: trainer.step(1, windows))
        product = seconds(lambda: a @ b, repeats=50) / 50
        flops = cell.flops_per_token.training * 4096
        ratios.append((flops / step) / (2 * 4096 * 256 * 1024 / product))
    benchmark.pedantic(lambda: trainer.step(1, windows), rounds=3)
    benchmark.extra_info["share_of_matmul_rate"] = median(ratios)
    assert median(ratios) >= 0.35


@pytest.mark.parametrize("variant", ["dense", "peer"])
def test_step_is_nearly_all_of_a_quick_cell(benchmark: Any, tmp_path: Path, variant: str) -> None:
    """Data, logging, evaluation and bookkeeping take under 5% of a quick cell's time.

    Of the middle of the suite's budgets: evaluation costs the same for all, so that its share is
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


def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("context", [64, 128, 256, 512])
def test_step_attention_written_out_beats_torch_s(benchmark: Any, context: int) -> None:
    """On a CPU at short contexts, forward and backward: the reason for `causal_attention`."""
    shape = (2048 // context, 4, context, 32)
    operands = [torch.randn(shape).bfloat16().requires_grad_() for _ in range(3)]
    gradient = torch.randn(shape).bfloat16()

    def theirs() -> None:
        fused(*operands).backward(gradient)

    def ours() -> None:
        causal_attention(*operands).backward(gradient)

    ratios = [seconds(theirs) / seconds(ours) for _ in range(ROUNDS)]
    benchmark.pedantic(ours, rounds=3)
    benchmark.extra_info["fused_over_written_out"] = median(ratios)
    assert median(ratios) > 1
