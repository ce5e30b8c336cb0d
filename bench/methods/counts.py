"""Counts of a changed model by formula, held against what the model has and executes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from isoflop.bench.executed import executed_flops
from isoflop.bench.methods.experts import Rebuilt
from isoflop.bench.methods.matrices import BYTES
from isoflop.models import Decoder
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Flops, Parameters


class CountError(IsoflopError):
    """A formula that differs from the model."""


@dataclass(frozen=True)
class Counts:
    """What a model holds and costs."""

    parameters: Parameters
    flops: Flops  # forward, per token; at most, where the work depends on the data
    measured: float  # forward FLOPs per token that a text took
    stored_bytes: int
    read_bytes: int


def stored_bytes(model: Decoder) -> int:
    """Bytes of all weights on disk: bfloat16, but for quantised matrices with their scales."""
    layers = sum(
        layer.stored_bytes()
        if isinstance(layer, Rebuilt)
        else BYTES * sum(parameter.numel() for parameter in layer.parameters())
        for layer in model.tested
    )
    parts = model.parameter_counts()
    return layers + BYTES * (parts["embedding"] + parts["head"] + parts["backbone"])


def read_bytes(model: Decoder) -> int:
    """Stored bytes of the weights that a token is multiplied with, at most."""
    layers = sum(
        layer.read_bytes() if isinstance(layer, Rebuilt) else BYTES * layer.active_parameters()
        for layer in model.tested
    )
    parts = model.parameter_counts()
    return layers + BYTES * (parts["head"] + parts["backbone"])


def counts(model: Decoder, tokens_BT: torch.Tensor, method: str) -> Counts:
    """The counts of a model, checked.

    Args:
        tokens_BT: ids, [batch, config.context], on which the work is measured.
        method: that made the model, for messages.
    Raises:
        CountError: a formula differs from the model.
    """
    even = True
    for layer in model.tested:
        if isinstance(layer, Rebuilt):
            even = even and layer.even_cost()
            held = sum(parameter.numel() for parameter in layer.parameters())
            if held != layer.total_parameters():
                raise CountError(
                    f"method {method!r}: {layer.total_parameters():,} parameters by formula, the "
                    f"layer has {held:,}"
                )
    parts = Parameters(**model.parameter_counts())
    flops = Flops(**model.flops_per_token())
    was_training = model.training
    model.eval()
    with torch.no_grad():
        spent = executed_flops(lambda: model(tokens_BT), method) / tokens_BT.numel()
    model.train(was_training)
    if spent != flops.forward if even else spent > flops.forward:
        raise CountError(
            f"method {method!r}: {flops.forward:,} forward FLOPs per token by formula, "
            f"{spent:,.10g} executed"
        )
    return Counts(parts, flops, spent, stored_bytes(model), read_bytes(model))
