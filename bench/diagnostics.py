"""What explains how a layer does: its output at the start, how its router learns, and its load."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from isoflop.models import Decoder, Layer


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.square().mean().sqrt())


@contextmanager
def output_rms(model: Decoder) -> Iterator[list[float]]:
    """Root mean square of the output of each layer under test, filled in by a forward pass."""
    result: list[float] = []

    def measure(layer: Any, inputs: Any, output: Tensor) -> None:
        result.append(rms(output.float()))

    hooks = [layer.register_forward_hook(measure) for layer in model.tested]
    try:
        yield result
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def loads(model: Decoder) -> Iterator[dict[int, Tensor]]:
    """The load of the experts or slots of each layer under test, summed over forward passes.

    By the layer's place in `model.tested`, in float64; nothing for a layer that chooses nothing.
    """
    result: dict[int, Tensor] = {}

    places = {id(layer): place for place, layer in enumerate(model.tested)}

    def add(layer: Any, inputs: tuple[Tensor]) -> None:
        load, place = layer.load(*inputs), places[id(layer)]
        if load is not None:
            result[place] = result.get(place, 0) + load.double()

    hooks = [layer.register_forward_pre_hook(add) for layer in model.tested]
    try:
        yield result
    finally:
        for hook in hooks:
            hook.remove()


def load_figures(load: Tensor) -> dict[str, Any]:
    """Experts, the share of them that is used, and KL(load || uniform) in nats.

    The KL is 0 for an even load and ln(experts) if one expert has it all (arXiv 2407.04153, 4.3).
    """
    share = load / load.sum()
    used = share[share > 0]
    kl = math.log(len(load)) + float((used * used.log()).sum())
    return {"experts": len(load), "used": len(used) / len(load), "load_kl": max(0.0, kl)}


def routing_gradient(layer: Layer) -> float | None:
    """Gradient of the parameters that choose, over that of the layer's others, root mean squares.

    Call it after a backward pass of the cross-entropy alone: a router that learns from a balance
    loss only has a gradient of about 0. None if the layer chooses nothing, or has nothing else.
    """
    routing = {id(parameter) for parameter in layer.routing_parameters()}
    chosen: list[Tensor] = []
    rest: list[Tensor] = []
    for parameter in layer.parameters():
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        (chosen if id(parameter) in routing else rest).append(gradient.flatten())
    if not chosen or not rest:
        return None
    return rms(torch.cat(chosen)) / max(rms(torch.cat(rest)), 1e-300)
