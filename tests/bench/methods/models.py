"""What the tests of methods share: small models whose experts all matter, and a text."""

from __future__ import annotations

import copy
from typing import Any

import torch

from isoflop.bench.methods import METHODS, Calibration, Experts
from isoflop.bench.methods.method import make_method
from isoflop.models import LAYERS, Config, Decoder

OPTIONS: dict[str, dict[str, Any]] = {
    "moe": {"granularity": 2, "expansion": 4},
    "moe_shared": {"granularity": 4, "expansion": 2},
    "dense": {},
}
VOCABULARY, CONTEXT = 64, 16


def make_model(layer: str = "moe", seed: int = 0, **options: Any) -> Decoder:
    """Two blocks, both under test, with a head that is not zero and uneven biases."""
    torch.manual_seed(seed)
    config = Config(
        layer=LAYERS[layer],
        options=OPTIONS.get(layer, {}) | options,
        placement="all",
        width=16,
        depth=2,
        heads=2,
        vocabulary=VOCABULARY,
        context=CONTEXT,
    )
    model = Decoder(config).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    for tested in model.tested:
        if layer == "moe_shared":
            torch.nn.init.normal_(tested.bias_E, std=0.1)
    return model


def make_calibration(seed: int = 0, initial: Decoder | None = None) -> Calibration:
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(0, VOCABULARY, (24, CONTEXT + 1), generator=generator)
    return Calibration(windows[:, :-1], windows[:, 1:], seed, initial)


def apply(name: str, model: Decoder, calibration: Calibration | None = None, **options: Any) -> Any:
    """A method by name, on a model."""
    method, _ = make_method(METHODS[name], options)
    return method.apply(model, calibration or make_calibration(initial=initial_of(model)))


def initial_of(model: Decoder) -> Decoder:
    """The same model with other routers."""
    initial = copy.deepcopy(model)
    torch.manual_seed(1)
    for layer in initial.tested:
        for weight in layer.routing_parameters():
            torch.nn.init.normal_(weight, std=0.25)
    return initial


def layer_of(model: Decoder, index: int = 0) -> Experts:
    layer = model.tested[index]
    assert isinstance(layer, Experts)
    return layer
