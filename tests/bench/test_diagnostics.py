"""The figures that explain a layer: load, what its router learns, the scale of its output."""

import math
from pathlib import Path

import pytest
import torch

from isoflop.bench.data import Tokens
from isoflop.bench.diagnostics import load_figures, loads, output_rms, routing_gradient
from isoflop.bench.train import train_cell
from isoflop.models import LAYERS, Config, Decoder
from tests.bench.cells import tiny_cells

CPU = torch.device("cpu")


def test_the_load_of_a_collapsed_router_and_of_an_even_one() -> None:
    collapsed = load_figures(torch.tensor([0.0, 0, 0, 640, 0, 0, 0, 0], dtype=torch.float64))
    assert collapsed == {"experts": 8, "used": 1 / 8, "load_kl": pytest.approx(math.log(8))}
    even = load_figures(torch.full((8,), 3.0, dtype=torch.float64))
    assert even == {"experts": 8, "used": 1.0, "load_kl": pytest.approx(0, abs=1e-12)}


def model_of(layer: str, **options: object) -> Decoder:
    torch.manual_seed(0)
    return Decoder(Config(LAYERS[layer], options, "all", 16, 2, 2, 40, 12)).eval()


def test_a_pushed_router_is_read_as_collapsed_from_a_whole_model() -> None:
    model = model_of("moe", granularity=1, expansion=8)
    tokens_BT = torch.randint(40, (4, 12))
    with torch.no_grad():
        for layer in model.tested:
            layer.router.weight.zero_()
            layer.route = lambda x_BTD: torch.eye(8)[3].expand(*x_BTD.shape[:-1], 8)  # type: ignore[method-assign]
        with loads(model) as result:
            model(tokens_BT)
            model(tokens_BT)
    assert list(result) == [0, 1]
    assert float(result[0].sum()) == 2 * 4 * 12
    figures = load_figures(result[1])
    assert (figures["used"], figures["load_kl"]) == (1 / 8, pytest.approx(2.079, abs=1e-3))
    with loads(model_of("dense")) as nothing:
        model(tokens_BT)
    assert not nothing
    assert not any(layer._forward_pre_hooks for layer in model.tested)


def test_the_output_is_measured_for_every_layer_under_test() -> None:
    model = model_of("dense")
    with torch.no_grad(), output_rms(model) as result:
        model(torch.randint(40, (4, 12)))
    assert len(result) == 2
    assert all(0.3 < value < 1.3 for value in result)


def test_a_router_that_learns_from_its_balance_loss_alone_has_no_gradient() -> None:
    torch.manual_seed(0)
    layer = LAYERS["moe"](16, granularity=1)
    x_BTD, target_BTD = torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    (layer(x_BTD) * target_BTD).sum().backward()
    learns = routing_gradient(layer)
    layer.zero_grad()
    y_BTD = layer(x_BTD)
    y_BTD = y_BTD / y_BTD.square().mean(-1, keepdim=True).sqrt()
    (y_BTD * target_BTD).sum().backward()
    assert learns > 0.1 > 1e-3 > routing_gradient(layer)
    assert routing_gradient(LAYERS["dense"](16)) is None


def test_a_record_carries_them_and_they_change_no_digit(
    tokens: Tokens, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = tiny_cells()[1]
    record = train_cell(cell, tokens, CPU, tmp_path)
    (figures,) = record.layers
    assert figures.block == 1
    assert figures.experts == 64
    assert 0 < figures.used <= 1
    assert 0 < figures.load_kl < math.log(64)
    assert figures.routing_gradient > 0
    assert figures.output_rms > 0
    monkeypatch.setattr("isoflop.bench.step.Trainer.output_rms", lambda self, windows: [1.0])
    assert train_cell(cell, tokens, CPU, tmp_path / "again").loss == record.loss
