"""A back end that does not agree with the definition is replaced by stock operators, said once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from isoflop.models.ops import expert_ffn, expert_mix, product_key_topk, value_sum, verify
from isoflop.models.ops.expert_mix import cpu as expert_mix_cpu
from isoflop.models.ops.verify import BackendWarning, works
from isoflop.models.ops.verify_cases import CASES
from tests.models.ops.devices import DEVICE, runs_triton

F32 = torch.float32
# for each operator, its sizes as its case takes them
SIZES: dict[str, Any] = {
    "expert_mix": (6, 24, "gelu"),
    "value_sum": (6, 24),
    "product_key_topk": (2, 1, 8, 20, 4),
    "expert_ffn": (16, 24, "swiglu"),
    "gated_activation": (24, "swiglu"),
}


@pytest.fixture(autouse=True)
def nothing_checked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("_problems", "_replaced", "_used"):
        monkeypatch.setattr(verify, name, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error", BackendWarning)  # one that is not expected
        yield


def mix(backend: str = "auto", width: int = 8, device: torch.device | str = "cpu") -> Tensor:
    g = torch.Generator().manual_seed(0)
    x, up = torch.randn(5, width, generator=g), torch.randn(99, width, generator=g)
    index, gate = torch.randint(99, (5, 3), generator=g), torch.rand(5, 3, generator=g)
    x, up, index, gate = (t.to(device) for t in (x, up, index, gate))
    return expert_mix(x, up, up, index, gate, "gelu", backend)


@pytest.mark.parametrize("dtype", [F32, torch.float64])
@pytest.mark.parametrize("operator", [name for name in CASES if name != "gated_activation"])
def test_the_back_ends_of_a_cpu_agree(operator: str, dtype: torch.dtype) -> None:
    backend = "grouped" if operator == "expert_ffn" else "cpu"
    assert works(operator, backend, torch.device("cpu"), dtype, SIZES[operator])


@runs_triton
@pytest.mark.parametrize("operator", [name for name in CASES if name != "expert_ffn"])
def test_triton_back_ends_agree(operator: str) -> None:
    for dtype in (F32, torch.bfloat16):
        if dtype == F32 or operator != "product_key_topk":  # which has float32 alone
            assert works(operator, "triton", DEVICE, dtype, SIZES[operator])


def wrong_forward(right: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any) -> Any:
        y, *rest = right(*args)
        return y * 1.001, *rest

    return forward


def wrong_backward(right: Callable[..., Any]) -> Callable[..., Any]:
    def backward(*args: Any) -> Any:
        *most, last = right(*args)
        return *most, last + 0.01 * last.abs().max()

    return backward


def not_a_number(right: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args: (right(*args)[0] * torch.nan, *right(*args)[1:])


def does_not_build(right: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any) -> Any:
        raise RuntimeError("no such instruction\nand a page of machine code")

    return forward


@pytest.mark.parametrize(
    ("function", "damage", "said"),
    [
        ("forward", wrong_forward, "y differs from the definition by 1.0e-03 of its norm"),
        ("backward", wrong_backward, "dgate differs from the definition by"),
        ("forward", not_a_number, "y differs from the definition by nan of its norm"),
        ("forward", does_not_build, "RuntimeError: no such instruction$"),
    ],
)
def test_a_broken_back_end_is_replaced_and_named_once(
    function: str,
    damage: Callable[..., Any],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(expert_mix_cpu, function, damage(getattr(expert_mix_cpu, function)))
    start = "expert_mix: the back end 'cpu' on cpu is replaced by stock operators, .*: "
    with pytest.warns(BackendWarning, match=start + ".*" + said):
        y = mix()
    assert torch.equal(mix(width=16), mix("reference", width=16))  # a second warning is an error
    assert torch.equal(y, mix("reference"))
    assert verify.backends_in_use() == {"expert_mix": "cpu+reference"}  # cpu: while checked


@runs_triton
def test_a_broken_triton_kernel_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU's back end cannot be taken the kernels come next, then the definition."""
    from isoflop.models.ops import pairs_triton

    monkeypatch.setattr("isoflop.models.ops.pairs.cpu_obstacle", lambda tensor: "not here")
    mix(device=DEVICE)
    assert verify.backends_in_use() == {"expert_mix": "reference+triton"}  # the first is the check
    verify.forget_use()
    mix(device=DEVICE)
    assert verify.backends_in_use() == {"expert_mix": "triton"}
    verify._problems.clear()
    tasks = pairs_triton.plan_tasks

    def in_another_order(*args: Any) -> Any:
        plan = tasks(*args)
        return plan._replace(order=plan.order.flip(0))

    monkeypatch.setattr(pairs_triton, "plan_tasks", in_another_order)
    with pytest.warns(BackendWarning, match="expert_mix: the back end 'triton' on"):
        assert torch.equal(mix(device=DEVICE), mix("reference", device=DEVICE))


def test_grouped_products_that_fail_become_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    g = torch.Generator().manual_seed(0)
    operands = [torch.randn(s, generator=g) for s in ((9, 8), (4, 8, 12), (4, 12, 8))]
    index = torch.randint(4, (9, 2), generator=g)
    gate = torch.rand(9, 2, generator=g)
    expected = expert_ffn(*operands, index, gate)
    verify._problems.clear()

    def fails(*args: Any, **options: Any) -> Tensor:
        raise RuntimeError("no kernel for this device")

    monkeypatch.setattr("torch.nn.functional.grouped_mm", fails)
    with pytest.warns(BackendWarning, match="expert_ffn: the back end 'grouped' on cpu"):
        actual = expert_ffn(*operands, index, gate)
    torch.testing.assert_close(actual, expected)
    assert "loop" in verify.backends_in_use()["expert_ffn"]


def test_what_surrounds_the_first_call_is_left_alone() -> None:
    """The check draws no random number, counts no FLOP, and runs under no_grad and autocast."""
    state = torch.get_rng_state()
    surroundings = torch.inference_mode(), torch.autocast("cpu", torch.bfloat16)
    with FlopCounterMode(display=False) as first, surroundings[0], surroundings[1]:
        mix()
    with FlopCounterMode(display=False) as second:
        mix()
    assert len(verify._problems) == 1
    assert first.get_total_flops() == second.get_total_flops() == 4 * 5 * 3 * 8
    assert torch.equal(torch.get_rng_state(), state)


def test_it_is_a_constant_to_the_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_mix_cpu, "forward", does_not_build(expert_mix_cpu.forward))
    operands = torch.randn(5, 8), torch.randn(99, 8), torch.randint(99, (5, 3)), torch.rand(5, 3)

    def function(x: Tensor, table: Tensor, index: Tensor, gate: Tensor) -> Tensor:
        return expert_mix(x, table, table, index, gate, "gelu")

    with pytest.warns(BackendWarning):
        y = torch.compile(function, fullgraph=True, backend="aot_eager")(*operands)
    torch.testing.assert_close(y, function(*operands))


def test_the_back_ends_in_use_are_known() -> None:
    assert verify.backends_in_use() == {}
    mix()
    value_sum(torch.randn(4, 8), torch.zeros(5, 3).long(), torch.rand(5, 3))
    product_key_topk(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 4, 9), 2)
    verify.forget_use()
    mix()
    value_sum(torch.randn(4, 8), torch.zeros(5, 3).long(), torch.rand(5, 3))
    product_key_topk(torch.randn(2, 1, 3, 4), torch.randn(2, 1, 4, 9), 2)
    assert verify.backends_in_use() == {
        "expert_mix": "cpu",
        "product_key_topk": "cpu",
        "value_sum": "dense",
    }
