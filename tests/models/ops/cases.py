"""Operands of the operators on (token, row) pairs, and comparisons with a float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.models.ops.devices import DEVICE

SPLIT = 20  # pairs of one expert per program in these tests, so that small cases split


def routing(kind: str, M: int, P: int, N: int, generator: torch.Generator) -> Tensor:
    """Expert indices [M, P]: "uniform", "zipf" (skewed, repeats within a token), "single" (one hot
    expert), "few" (three experts, all others empty) or "brim" (one pair more than Triton's
    kernels sum in one program, as the fixture `split` sets it)."""
    if kind == "brim":
        return (torch.arange(M * P) // (SPLIT + 1)).view(M, P)
    if kind == "single":
        return torch.full((M, P), N - 1)
    if kind == "few":
        return torch.randint(3, (M, P), generator=generator)
    weight = torch.ones(N) if kind == "uniform" else 1 / torch.arange(1, N + 1)
    return torch.multinomial(weight, M * P, replacement=True, generator=generator).view(M, P)


def pair_case(kind: str, M: int, P: int, D: int, N: int, seed: int) -> tuple[Tensor, ...]:
    """x, up, down, gate, and dy, in float64, and the index. The value sum takes down for values."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    x, up, down, gate, dy = (
        normal(M, D),
        normal(N, D) * D**-0.5,
        normal(N, D) * D**-0.5,
        normal(M, P),
        normal(M, D),
    )
    return x, up, down, gate, dy, routing(kind, M, P, N, g)


def rounded(case: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The case with values that bfloat16 holds exactly, but for the gate and the index."""
    return tuple(t if place in (3, 5) else t.bfloat16().double() for place, t in enumerate(case))


def on_device(case: tuple[Tensor, ...], backend: str) -> tuple[Tensor, ...]:
    return tuple(t.to(DEVICE) for t in case) if backend == "triton" else case


def gradients(
    function: Callable[..., Tensor], operands: list[Tensor], dy: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """[y, one gradient per operand]. `dtype` is that of all operands but the last, the gate."""
    *leaves, gate = operands
    leaves = [t.to(dtype).requires_grad_() for t in leaves]
    leaves.append(gate.to(torch.promote_types(dtype, torch.float32)).requires_grad_())
    y = function(*leaves)
    return [t.cpu() for t in (y, *torch.autograd.grad(y, leaves, dy.to(y.dtype)))]


def assert_near(actual: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Equal up to `tolerance` of each tensor's own size (root mean square)."""
    for place, (a, b) in enumerate(zip(actual, expected, strict=True)):
        error = (a.cpu().double() - b).norm() / b.norm()
        assert error < tolerance, f"output {place}: relative error {error:.1e}"


def most_bytes_of_one_operator(function: Callable[[], object]) -> int:
    """The most memory that any single call of an operator allocated, its callees left out."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    return max(event.self_cpu_memory_usage for event in profile.events())


def with_other_threads(function: Callable[[], list[Tensor]]) -> list[Tensor]:
    """The result on another number of threads than is set."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3 - min(threads, 2))
    try:
        return function()
    finally:
        torch.set_num_threads(threads)
