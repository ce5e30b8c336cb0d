"""Autocast to bfloat16, in which every cell trains; fast on CPUs that cannot multiply it, too."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from isoflop.models.ops.backends import cpu_has_bfloat16

# What autocast computes in bfloat16, of what layers use
PRODUCTS = (
    "addmm", "baddbmm", "bmm", "conv1d", "conv2d", "linear", "matmul", "mm",
    "scaled_dot_product_attention",
)  # fmt: skip


def autocast(device_type: str, enabled: bool = True) -> torch.autocast:
    """A context of autocast to bfloat16.

    On a CPU without instructions for bfloat16, a step with torch's own products takes 2.6 to 4.3
    times as long (`tests/benchmarks/test_step.py`). There the products of autocast round their
    operands to bfloat16, multiply in float32, and round the result: what such instructions do, so
    the same numbers up to the order of sums, and to the roundings inside attention.
    """
    if device_type == "cpu" and not cpu_has_bfloat16():
        multiply_in_float32()
    return torch.autocast(device_type, dtype=torch.bfloat16, enabled=enabled)


@cache
def multiply_in_float32() -> torch.library.Library:
    """Let the products of autocast on the CPU be float32 ones of rounded operands.

    Returns:
        the rules, which hold as long as it exists.
    """
    rules = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its own rule is overridden
        for name in PRODUCTS:
            rules.impl(name, _rounding(getattr(torch.ops.aten, name).default), "AutocastCPU")
    return rules


def _rounding(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def rounded(value: Any) -> Any:
        """A tensor with the precision of bfloat16, in float32; all else as it is."""
        eligible = isinstance(value, Tensor) and value.is_floating_point()
        if not eligible or value.dtype == torch.float64:  # autocast leaves those alone
            return value
        return value.bfloat16().float()

    def kernel(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            result = product(
                *(rounded(value) for value in args),
                **{key: rounded(value) for key, value in kwargs.items()},
            )
        return result.bfloat16() if result.dtype == torch.float32 else result

    return kernel
