"""MoE experts by grouped products: against each token's own matrices, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models.ops import expert_ffn
from isoflop.models.ops.expert_ffn import grouped
from tests.models.ops.cases import assert_near

ACTIVATIONS = ["gelu", "relu", "swiglu"]


def ffn_case(
    M: int, D: int, width: int, E: int, K: int, activation: str, skew: float = 0.0, seed: int = 0
) -> tuple[Tensor, ...]:
    """x, w_in, w_out, gate and dy in float64, and the experts of each token, all different."""
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    w_in = normal(E, D, width * (2 if activation == "swiglu" else 1)) * D**-0.5
    logits = normal(M, E) - skew * torch.arange(E)
    gate, index = logits.softmax(1).topk(K)
    return normal(M, D), w_in, normal(E, width, D) * width**-0.5, gate, normal(M, D), index


def run(
    case: tuple[Tensor, ...], backend: str, dtype: torch.dtype, activation: str = "gelu"
) -> list[Tensor]:
    """[y, and the gradients of x, w_in, w_out and gate]."""
    *operands, dy, index = case
    leaves = [t.to(dtype).requires_grad_() for t in operands]
    y = expert_ffn(*leaves[:3], index, leaves[3], activation, backend)
    return [y, *torch.autograd.grad(y, leaves, dy.to(dtype))]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("width", [16, 5])  # 5: rows that grouped_mm refuses, padded
@pytest.mark.parametrize("d", [64, 100, 30])
@pytest.mark.parametrize("skew", [0.0, 3.0])  # 3: one hot expert, most others empty
def test_equals_the_float64_reference(activation: str, width: int, d: int, skew: float) -> None:
    for k in (1, 4):
        case = ffn_case(50, d, width, 12, k, activation, skew, seed=k)
        expected = run(case, "reference", torch.float64, activation)
        assert_near(run(case, "grouped", torch.float32, activation), expected, 1e-6)
        assert_near(run(case, "grouped", torch.float64, activation), expected, 1e-14)


def test_reference_is_the_sum_it_states() -> None:
    x, w_in, w_out, gate, _, index = ffn_case(5, 6, 3, 4, 2, "swiglu")
    y = expert_ffn(x, w_in, w_out, index, gate, "swiglu", "reference")
    for m in range(5):
        expected = torch.zeros(6, dtype=torch.float64)
        for p, e in zip(gate[m], index[m], strict=True):
            h = x[m] @ w_in[e]
            expected += p * ((F.silu(h[:3]) * h[3:]) @ w_out[e])
        torch.testing.assert_close(y[m], expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradcheck(activation: str) -> None:
    *operands, _, index = ffn_case(6, 4, 3, 5, 2, activation)
    leaves = [t.requires_grad_() for t in operands]
    for backend in ("reference", "grouped"):
        assert torch.autograd.gradcheck(
            lambda x, w_in, w_out, gate, backend=backend: expert_ffn(
                x, w_in, w_out, index, gate, activation, backend
            ),
            leaves,
        )


@pytest.mark.parametrize("bf16_from", [0.0, float("inf")])
def test_autocast(bf16_from: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16, or in float32 where a CPU is faster in it: the output has x's dtype."""
    monkeypatch.setattr(grouped, "CPU_BF16_FROM", bf16_from)
    case = ffn_case(200, 32, 16, 8, 2, "gelu")
    with torch.autocast("cpu", torch.bfloat16):
        actual = run(case, "auto", torch.float32)
    assert actual[0].dtype == torch.float32
    expected = run(case, "reference", torch.float64)
    assert_near(actual, expected, 1e-2 if bf16_from == 0 else 1e-6)


def test_is_bitwise_repeatable() -> None:
    case = ffn_case(300, 32, 16, 8, 4, "gelu", skew=0.3)
    first, second = (run(case, "grouped", torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_flops_are_counted_exactly(device: str) -> None:
    """By the fast path on a CPU, backward too; by the reference on the meta device."""
    M, D, width, E, K = 6, 8, 4, 5, 2
    for activation, products in (("gelu", 2), ("swiglu", 3)):
        sizes = (M, D), (E, D, width * (products - 1)), (E, width, D)
        leaves = [torch.ones(size, device=device, requires_grad=True) for size in sizes]
        index = torch.zeros(M, K, dtype=torch.int64, device=device)
        gate = torch.ones(M, K, device=device)
        with FlopCounterMode(display=False) as counter:
            y = expert_ffn(*leaves, index, gate, activation)
        assert counter.get_total_flops() == products * 2 * M * K * D * width
        if device == "cpu":
            with FlopCounterMode(display=False) as counter:
                torch.autograd.grad(y, leaves, torch.ones_like(y))
            assert counter.get_total_flops() == 2 * products * 2 * M * K * D * width


def test_compiles_whole_in_float32() -> None:
    case = ffn_case(20, 16, 8, 4, 2, "gelu")
    *operands, dy, index = case
    leaves = [t.float().requires_grad_() for t in operands]
    compiled = torch.compile(
        lambda x, w_in, w_out, gate: expert_ffn(x, w_in, w_out, index, gate),
        fullgraph=True,
        backend="aot_eager",
    )
    y = compiled(*leaves)
    # an expanded gradient, which grouped_mm itself refuses
    actual = [y, *torch.autograd.grad(y.sum(), leaves)]
    expected = run((*operands, torch.ones_like(dy), index), "reference", torch.float64)
    assert_near(actual, expected, 1e-6)


def test_grouped_mm_keeps_the_rules_of_torch_library() -> None:
    a, b = torch.randn(10, 8, requires_grad=True), torch.randn(3, 8, 4, requires_grad=True)
    ends = torch.tensor([4, 4, 10], dtype=torch.int32)
    torch.library.opcheck(torch.ops.isoflop.grouped_mm.default, (a, b, ends))


def test_bad_input_is_refused() -> None:
    x, w_in, w_out, gate, _, index = ffn_case(5, 6, 3, 4, 2, "gelu")
    with pytest.raises(ValueError, match="activation 'tanh' is unknown: one of gelu, relu, swiglu"):
        expert_ffn(x, w_in, w_out, index, gate, "tanh")
    with pytest.raises(ValueError, match="back end 'cpu' is unknown: one of auto, reference"):
        expert_ffn(x, w_in, w_out, index, gate, "gelu", "cpu")
    with pytest.raises(ValueError, match="do not fit 'swiglu' experts"):
        expert_ffn(x, w_in, w_out, index, gate, "swiglu")
    with pytest.raises(ValueError, match=r"must both be \[M, K\]"):
        expert_ffn(x, w_in, w_out, index, gate[:, :1])
