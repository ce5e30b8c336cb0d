"""What an operator does, by hand, is what the trace and the run on real tensors count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.bench.executed import executed_flops
from isoflop.bench.flops import build_on_meta, traced_flops
from isoflop.models import Config, Layer

B, T, D = 2, 8, 16


class Plain(Layer):
    """Does one thing with the input; `weight` has what that needs."""

    shape: tuple[int, ...] = ()
    function: Callable[[Tensor, Tensor], Tensor]

    def __init__(self, d_model: int) -> None:
        super().__init__(d_model)
        self.weight = nn.Parameter(torch.ones(self.shape))

    def forward(self, x_BTD: Tensor) -> Tensor:
        y = type(self).function(x_BTD, self.weight)
        return x_BTD + y.sum()

    def flops_per_token(self) -> int:
        return 0  # each test counts by hand


def over_time(x_BTD: Tensor) -> Tensor:
    """[B, D, T + 2], for causal convolutions of width 3."""
    return F.pad(x_BTD.transpose(1, 2), (2, 0))


# weight's shape, what is computed, FLOPs of the batch by hand: 2 for each multiply-add
CASES: dict[str, tuple[tuple[int, ...], Callable[[Tensor, Tensor], Tensor], int]] = {
    "depthwise convolution": (
        (D, 1, 3),
        lambda x, w: F.conv1d(over_time(x), w, groups=D),
        2 * 3 * D * B * T,
    ),
    "convolution": ((5, D, 3), lambda x, w: F.conv1d(over_time(x), w), 2 * 3 * D * 5 * B * T),
    "two groups": (
        (6, D // 2, 3),
        lambda x, w: F.conv1d(over_time(x), w, groups=2),
        2 * 3 * (D // 2) * 6 * B * T,
    ),
    "strided": (
        (5, D, 2),
        lambda x, w: F.conv1d(x.transpose(1, 2), w, None, 2),
        2 * 2 * D * 5 * B * (T // 2),
    ),
    "dilated and padded": (
        (5, D, 3),
        lambda x, w: F.conv1d(x.transpose(1, 2), w, padding=1, dilation=2),
        2 * 3 * D * 5 * B * (T - 2),
    ),
    "padded to the same length": (
        (5, D, 3),
        lambda x, w: F.conv1d(x.transpose(1, 2), w, padding="same"),
        2 * 3 * D * 5 * B * T,
    ),
    "two dimensions": (
        (4, 1, 3, 5),
        lambda x, w: F.conv2d(x[:, None], w),
        2 * 3 * 5 * 4 * B * (T - 2) * (D - 4),
    ),
    "transposed": (
        (D, 4, 3),
        lambda x, w: F.conv_transpose1d(x.transpose(1, 2), w, None, 2),
        2 * 3 * 4 * D * B * T,
    ),
    "matrix and vector": ((D,), lambda x, w: torch.mv(x.flatten(0, 1), w), 2 * B * T * D),
    "two vectors": ((B * T * D,), lambda x, w: torch.dot(x.flatten(), w), 2 * B * T * D),
    "added product": (
        (D, 3),
        lambda x, w: torch.addmm(w.new_ones(B * T, 3), x.flatten(0, 1), w),
        2 * B * T * D * 3,
    ),
    "added batch of products": (
        (B, D, 3),
        lambda x, w: torch.baddbmm(w.new_ones(B, T, 3), x, w),
        2 * B * T * D * 3,
    ),
    "attention": (
        (B, 1, 5, D),
        lambda x, w: F.scaled_dot_product_attention(x[:, None], w, w[..., :3]),
        2 * B * T * 5 * (D + 3),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_by_hand(name: str) -> None:
    shape, function, flops = CASES[name]
    layer = type("Plain", (Plain,), {"shape": shape, "function": staticmethod(function)})
    config = replace(
        Config(Plain, width=D, depth=1, heads=2, vocabulary=20, context=T), layer=layer
    )
    assert traced_flops(build_on_meta(config), B)["ffn"] == flops
    real = layer(D)
    assert executed_flops(lambda: real(torch.ones(B, T, D)), "plain") == flops
