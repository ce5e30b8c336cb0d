"""Activation times gate in Triton: against float64, on a GPU or in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models.ops import expert_ffn
from isoflop.models.ops.expert_ffn.gated_activation import (
    gated_activation,
    gated_activation_backward,
)
from tests.models.ops.devices import DEVICE, runs_triton

ACTIVATIONS = ["gelu", "relu", "swiglu"]


def gated(h: Tensor, gate: Tensor, activation: str) -> Tensor:
    """What the kernels compute, in torch's own operators."""
    if activation == "swiglu":
        a, value = h.chunk(2, dim=-1)
        return F.silu(a) * value * gate[:, None]
    return getattr(F, activation)(h) * gate[:, None]


def operands(rows: int, width: int, activation: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """h, gate and dy, exact in `dtype`, gate in float32."""
    g = torch.Generator().manual_seed(rows + width)
    h = 2 * torch.randn(rows, width * (2 if activation == "swiglu" else 1), generator=g)
    gate, dy = torch.rand(rows, generator=g), torch.randn(rows, width, generator=g)
    return h.to(DEVICE, dtype), gate.to(DEVICE), dy.to(DEVICE, dtype)


@runs_triton
@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [64, 100, 256, 768])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_equals_float64(
    dtype: torch.dtype, width: int, activation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isoflop.models.ops.expert_ffn import triton

    monkeypatch.setattr(triton, "TILE", 512)  # so that 768 takes several tiles
    for rows in (5, 37):
        h, gate, dy = operands(rows, width, activation, dtype)
        leaves = [h.requires_grad_(), gate.requires_grad_()]
        y = gated_activation(*leaves, activation)
        actual = [y, *torch.autograd.grad(y, leaves, dy)]
        exact = [t.detach().double().requires_grad_() for t in leaves]
        y_exact = gated(*exact, activation)
        expected = [y_exact, *torch.autograd.grad(y_exact, exact, dy.double())]
        assert [t.dtype for t in actual] == [dtype, dtype, torch.float32]
        for place, (a, b) in enumerate(zip(actual, expected, strict=True)):
            error = (a.double() - b).norm() / b.norm()
            # sums are in float32: only results in bfloat16 are rounded to it
            tolerance = 2**-8 if a.dtype == torch.bfloat16 else 1e-6
            assert error < tolerance, f"output {place}: relative error {error:.1e}"


def experts(
    M: int, D: int, width: int, E: int, K: int, activation: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    """x, w_in, w_out and gate in float64, each token's experts, and dy."""
    g = torch.Generator().manual_seed(0)
    shapes = (M, D), (E, D, width * (2 if activation == "swiglu" else 1)), (E, width, D)
    gate, index = torch.randn(M, E, generator=g, dtype=torch.float64).softmax(1).topk(K)
    leaves = [torch.randn(s, generator=g, dtype=torch.float64) / s[-1] ** 0.5 for s in shapes]
    leaves = [t.to(DEVICE).requires_grad_() for t in (*leaves, gate)]
    return leaves, index.to(DEVICE), torch.randn(M, D, generator=g).to(DEVICE)


def y_and_gradients(
    backend: str, leaves: list[Tensor], index: Tensor, dy: Tensor, activation: str
) -> list[Tensor]:
    y = expert_ffn(*leaves[:3], index, leaves[3], activation, backend)
    return [y, *torch.autograd.grad(y, leaves, dy.to(y.dtype))]


@runs_triton
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_triton_experts_equal_the_float64_reference(activation: str) -> None:
    leaves, index, dy = experts(30, 24, 20, 6, 2, activation)
    expected = y_and_gradients("reference", leaves, index, dy, activation)
    leaves = [t.detach().float().requires_grad_() for t in leaves]
    with torch.profiler.profile() as profile:
        actual = y_and_gradients("grouped", leaves, index, dy, activation)
    assert "isoflop::gated_activation" in {event.name for event in profile.events()}
    for a, b in zip(actual, expected, strict=True):
        assert (a.double() - b).norm() / b.norm() < 1e-5


@runs_triton
def test_triton_is_bitwise_repeatable() -> None:
    h, gate, dy = operands(300, 96, "gelu", torch.float32)
    first, second = (gated_activation_backward(dy, h, gate, "gelu") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(
    DEVICE.type == "cpu" or torch.cuda.get_device_capability() < (9, 0),
    reason="no GPU here of compute capability 9, which F.grouped_mm has a kernel for",
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_triton_experts_step_in_a_cuda_graph(activation: str) -> None:
    """It gives what a plain step gives, digit for digit."""
    leaves, index, dy = experts(400, 100, 72, 12, 3, activation)

    def step() -> list[Tensor]:
        # Leaves of its own: autograd ties a leaf to the stream that it is first used on.
        own = [t.detach().bfloat16().requires_grad_() for t in leaves]
        return y_and_gradients("grouped", own, index, dy, activation)

    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        actual = step()
    for t in actual:
        t.zero_()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


@runs_triton
def test_triton_operator_keeps_the_rules_of_torch_library() -> None:
    h, gate, _ = operands(5, 16, "swiglu", torch.float32)
    arguments = h.requires_grad_(), gate.requires_grad_(), "swiglu"
    torch.library.opcheck(gated_activation, arguments)


def test_no_flops_are_counted() -> None:
    h, gate = torch.empty(5, 32, device="meta", requires_grad=True), torch.empty(5, device="meta")
    with FlopCounterMode(display=False) as counter:
        y = gated_activation(h, gate, "swiglu")
        y.sum().backward()
    assert (y.shape, h.grad.shape) == ((5, 16), h.shape)
    assert counter.get_total_flops() == 0
