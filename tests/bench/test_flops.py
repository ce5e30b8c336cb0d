import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from isoflop.bench.flops import FlopError, backward_ratio, build_on_meta, traced_flops, verify_flops
from isoflop.models import LAYERS, Config, Layer

# Every registered layer, each option that changes its FLOPs at least once.
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("dense", {}),
    ("dense", {"activation": "swiglu"}),
    ("engram", {}),
    ("engram", {"table_size": 1, "heads": 4, "longest": 4, "memory_ratio": 0.25, "ratio": 2.0}),
    ("moe", {"granularity": 1}),
    ("moe", {"granularity": 4, "expansion": 4}),
    ("moe_ec", {"granularity": 4, "expansion": 8}),
    ("moe_shared", {"granularity": 4, "expansion": 8}),
    ("moe_latent", {"granularity": 4, "expansion": 8, "latent_norm": True}),
    ("moe_latent", {"granularity": 2, "shared": 0, "reduction": 2}),
    ("remoe", {"granularity": 4, "expansion": 8}),
    ("pkm", {"n_slots": 128**2}),
    ("pkm", {"n_slots": 64**2, "shared_keys": True, "heads": 2, "top_k": 8}),
    ("peer", {"n_experts": 128**2}),
    ("peer", {"n_experts": 64**2, "shared_keys": False, "query_norm": "layer"}),
    ("omnimoe", {"n_experts": 64**2}),
    ("omnimoe", {"n_experts": 32**2, "top_k": 40, "ratio": 2.0, "logit_norm": "layer"}),
    ("monet", {"n_experts": 64**2, "heads": 4, "top_k": 4}),
    ("monet", {"n_experts": 16**2, "heads": 1, "top_k": 3, "ratio": 2.0, "logit_norm": "layer"}),
    ("ultramem", {"n_slots": 64**2}),
    ("ultramem", {"n_slots": 32**2, "top_k": 8, "rank": 3, "d_key": 32, "ratio": 0.0}),
]
SIZES = [(64, 2, 2, 512, 32), (192, 3, 3, 1000, 48), (256, 4, 4, 8192, 512)]
BATCH = 8


def config_of(layer: str, options: dict[str, Any], size: tuple[int, ...], placement: Any) -> Config:
    width, depth, heads, vocabulary, context = size
    return Config(LAYERS[layer], options, placement, width, depth, heads, vocabulary, context)


def test_every_registered_layer_is_counted_here() -> None:
    assert {layer for layer, _ in VARIANTS} == set(LAYERS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("layer", "options"), VARIANTS)
def test_formula_and_trace_are_equal_to_the_integer(
    layer: str, options: dict[str, Any], size: tuple[int, ...]
) -> None:
    for placement in ("middle", "all"):
        verify_flops(config_of(layer, options, size, placement), BATCH)


def test_a_million_experts_are_counted_in_seconds_without_their_memory() -> None:
    begin = time.perf_counter()
    parts = verify_flops(config_of("peer", {}, (1024, 2, 16, 32000, 2048), "middle"), 1)
    assert time.perf_counter() - begin < 20
    # Query 2 d h d_key, sub-keys 2 h sqrt(N) d_key, h k = 128 experts of 4 d.
    assert parts["routing"] == 2 * 1024 * 8 * 128 + 2 * 8 * 1024 * 128
    assert parts["ffn"] == 4 * 128 * 1024 + 16 * 1024**2


@pytest.mark.parametrize(("layer", "options"), VARIANTS)
def test_torch_counts_the_same(layer: str, options: dict[str, Any]) -> None:
    """FlopCounterMode can count every reference path on the meta device, attention included.

    On a CPU it counts attention and embedding_bag as 0, so there it cannot be compared.
    """
    config = config_of(layer, options, SIZES[1], "all")
    model = build_on_meta(config)
    tokens = torch.zeros(BATCH, config.context, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(tokens)
    assert counter.get_total_flops() == sum(traced_flops(model, BATCH).values())


@pytest.mark.parametrize(("layer", "options"), VARIANTS)
def test_counted_backward_agrees_with_the_convention(layer: str, options: dict[str, Any]) -> None:
    ratio = backward_ratio(config_of(layer, options, SIZES[1], "all"), BATCH)
    assert ratio == pytest.approx(3, abs=1e-9)


class Liar(Layer):
    """States one FLOP too few."""

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        self.map = nn.Linear(d_model, d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.map(x_BTD)

    def flops_per_token(self) -> int:
        return 2 * self.d_model**2 - 1


class Honest(Liar):
    def flops_per_token(self) -> int:
        return 2 * self.d_model**2


class Hidden(Honest):
    """Multiplies by an op that nobody counts."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.fft.rfft(self.map(x_BTD)).real[..., :1] + x_BTD


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x @ x.transpose(-1, -2) @ x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Opaque(Honest):
    """Hides a product in an autograd.Function."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        return _Function.apply(self.map(x_BTD))


class InLoss(Honest):
    """Spends FLOPs on an auxiliary loss and forgets them."""

    def forward(self, x_BTD: Tensor) -> Tensor:
        self.aux_loss = self.map(x_BTD).sum()
        return self.map(x_BTD)


SMALL = Config(Honest, width=16, depth=1, heads=2, vocabulary=20, context=8)


def test_an_honest_layer_passes() -> None:
    verify_flops(SMALL, 2)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (Liar, "ffn has 511 FLOPs per token by formula, 512 in the trace"),
        (Hidden, "cannot count aten::fft_rfft"),
        (Opaque, "cannot count prim::PythonOp"),
        (InLoss, "ffn has 512 FLOPs per token by formula, 1024 in the trace"),
    ],
)
def test_a_layer_that_miscounts_is_refused(layer: type[Layer], message: str) -> None:
    with pytest.raises(FlopError, match=message):
        verify_flops(replace(SMALL, layer=layer), 2)


class Contraction(Layer):
    equation = "btd,de->bte"

    def forward(self, x_BTD: Tensor) -> Tensor:
        square = x_BTD.new_zeros(self.d_model, self.d_model)
        return torch.einsum(self.equation, x_BTD, square)

    def flops_per_token(self) -> int:
        return 2 * self.d_model**2


def test_einsum_is_counted_exactly() -> None:
    verify_flops(replace(SMALL, layer=Contraction), 2)


def test_an_einsum_that_cannot_be_counted_says_so() -> None:
    layer = type("Ellipsis", (Contraction,), {"equation": "...d,de->...e"})
    with pytest.raises(FlopError, match="only two operands"):
        verify_flops(replace(SMALL, layer=layer), 2)
