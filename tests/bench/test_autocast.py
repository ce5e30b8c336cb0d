from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.bench import autocast as module
from isoflop.bench.autocast import PRODUCTS, autocast, multiply_in_float32

torch.manual_seed(0)
A, B, BIAS = torch.randn(8, 24, 40), torch.randn(8, 40, 16), torch.randn(16)
HEADS = torch.randn(2, 3, 24, 8)


def attend(x: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(x, x, x, is_causal=True)


CASES: dict[str, tuple[Callable[..., Tensor], tuple[Tensor, ...]]] = {
    "addmm": (torch.addmm, (BIAS, A[0], B[0])),
    "baddbmm": (torch.baddbmm, (BIAS, A, B)),
    "bmm": (torch.bmm, (A, B)),
    "conv1d": (F.conv1d, (A, torch.randn(5, 24, 3), torch.randn(5))),
    "conv2d": (F.conv2d, (A[None], torch.randn(5, 8, 3, 3))),
    "linear": (F.linear, (A, B[0].T, BIAS)),
    "matmul": (torch.matmul, (A, B[0])),
    "mm": (torch.mm, (A[0], B[0])),
    "scaled_dot_product_attention": (attend, (HEADS,)),
}


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on a CPU without bfloat16; torch's own rules come back afterwards."""
    monkeypatch.setattr(module, "multiply_in_float32", cache(multiply_in_float32.__wrapped__))
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: False)
    yield
    module.multiply_in_float32()._destroy()


def with_gradients(product: Callable[..., Tensor], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in inputs]
    result = product(*leaves)
    result.square().sum().backward()
    return [result, *(x.grad for x in leaves if x.grad is not None)]


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.usefixtures("no_bfloat16")
def test_products_of_rounded_operands_are_those_of_bfloat16(name: str) -> None:
    product, inputs = CASES[name]
    expected = with_gradients(product, tuple(x.bfloat16() for x in inputs))
    with autocast("cpu"):
        results = with_gradients(product, inputs)
    assert results[0].dtype == torch.bfloat16
    exact = with_gradients(product, inputs)
    # attention in bfloat16 rounds its probabilities, too
    tolerance = 2**-6 if name == "scaled_dot_product_attention" else 2**-7
    for result, reference, float32 in zip(results, expected, exact, strict=True):
        scale = float32.abs().max()
        assert (result.float() - reference.float()).abs().max() / scale < tolerance
        assert not torch.equal(result.float(), float32)  # rounded, indeed


@pytest.mark.usefixtures("no_bfloat16")
def test_products_outside_of_autocast_and_of_float64_are_left_alone() -> None:
    with autocast("cpu", enabled=False):
        assert torch.equal(A[0] @ B[0], torch.mm(A[0], B[0]))
        assert (A[0] @ B[0]).dtype == torch.float32
    with autocast("cpu"):
        assert (A[0].double() @ B[0].double()).dtype == torch.float64


@pytest.mark.usefixtures("no_bfloat16")
def test_what_reaches_a_cpu_without_bfloat16_is_float32() -> None:
    with Seen() as seen, autocast("cpu"):
        with_gradients(torch.mm, (A[0], B[0]))
    assert seen.dtypes == {torch.float32}


class Seen(TorchDispatchMode):
    """The types of the matrices that are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.mm.default:
            self.dtypes |= {x.dtype for x in args}
        return func(*args, **kwargs or {})
