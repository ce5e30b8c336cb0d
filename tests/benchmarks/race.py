"""Implementations of one problem, timed in turns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from isoflop.bench.gate.stopwatch import peak_bytes
from tests.benchmarks.machine import GPU, seconds

ROUNDS = 10 if GPU else 5


@dataclass
class Implementation:
    """`forward`, the leaves that it has gradients of, and the times measured, in seconds."""

    forward: Callable[[], Tensor]
    leaves: list[Tensor]
    dy: Tensor
    times: dict[str, list[float]] = field(default_factory=lambda: {"forward": [], "step": []})
    peak: float = 0.0

    def step(self) -> None:
        y = self.forward()
        torch.autograd.grad(y, self.leaves, self.dy.to(y.dtype))

    @torch.no_grad()
    def infer(self) -> None:
        self.forward()

    def warm_up(self) -> None:
        """Compile, and measure the memory that a step adds to what is in use, in bytes."""
        self.step()
        self.infer()
        self.peak = peak_bytes(self.step)

    def measure(self) -> None:
        self.times["forward"].append(seconds(self.infer))
        self.times["step"].append(seconds(self.step))

    def medians(self, name: str) -> dict[str, Any]:
        """`isoflop.analysis.report.benchmarks.Times`."""
        return {
            "side": name,
            "forward_seconds": median(self.times["forward"]),
            "step_seconds": median(self.times["step"]),
            "peak_bytes": self.peak,
        }


def race(
    benchmark: Any,
    problems: list[dict[str, Any]],
    problem: str,
    implementations: dict[str, Implementation],
    bytes_forward: float,
    flops_forward: float = 0.0,
) -> dict[str, float]:
    """Time all implementations, the first of them ours; return their step times over ours."""
    ours = next(iter(implementations.values()))
    failed = {}
    for name, implementation in implementations.items():
        try:
            implementation.warm_up()
        except Exception as error:  # a rival's failure is a result, and no reason to lose ours
            if implementation is ours:
                raise
            memory = isinstance(error, torch.OutOfMemoryError)
            failed[name] = "out of memory" if memory else type(error).__name__
    timed = {name: rival for name, rival in implementations.items() if name not in failed}

    def time_rivals() -> None:
        for rival in timed.values():
            if rival is not ours:
                rival.measure()
        ours.times["forward"].append(seconds(ours.infer))

    def timed_step() -> None:
        ours.times["step"].append(seconds(ours.step))

    benchmark.pedantic(timed_step, setup=time_rivals, rounds=ROUNDS)
    benchmark.extra_info |= {
        "problem": problem,
        "bytes_forward": bytes_forward,
        "flops_forward": flops_forward,
        "ours": ours.medians("ours"),
        "others": [
            {"side": name, "failed": failed[name]} if name in failed else rival.medians(name)
            for name, rival in implementations.items()
            if rival is not ours
        ],
    }
    problems.append(dict(benchmark.extra_info))
    step = median(ours.times["step"])
    return {name: median(rival.times["step"]) / step for name, rival in timed.items()}
