"""Experts replaced by their mean output."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isoflop.bench.methods.experts import Experts
from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.bench.methods.pruning import PruningOptions, experts_of
from isoflop.models import Decoder


@register("mean-output")
class MeanOutput(Method):
    """The least chosen experts become constants: their mean output on the tokens routed to them.

    The idea of MoNE (arXiv 2507.00390), whose choice of experts also weighs how much an output
    varies: here frequency alone decides. The router keeps all rows, so that a token may choose
    constants alone: experts left need not be as many as a token uses, but one. FLOPs per token are
    stated at most, and measured.
    """

    Options = PruningOptions
    identity = {"drop": 0.0}

    @torch.no_grad()
    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        layers = [experts_of(layer, self.name) for layer in rebuilt(model)]
        for layer, x_MD in zip(layers, calibration.inputs(model), strict=True):
            count = round(self.options.drop * len(layer.up))
            if count == len(layer.up):
                raise ValueError(f"drop: {self.options.drop:g} leaves no expert of {count}")
            if count:
                replace(layer, x_MD, count)
        return with_layers(model, layers)


def replace(layer: Experts, x_MD: Tensor, count: int) -> None:
    """Replace the `count` experts of the lowest frequency."""
    order = layer.load(x_MD[None]).sort(descending=True, stable=True).indices.tolist()
    left, gone = sorted(order[: len(order) - count]), sorted(order[len(order) - count :])
    index_MK = layer.route(x_MD)[1]
    means = []
    for expert in gone:
        token = (index_MK == expert).nonzero(as_tuple=True)[0]
        chosen = x_MD[token] if len(token) else x_MD  # no token chose it: the mean over all
        means.append(layer.expert(expert, chosen).mean(0))
    layer.up, layer.down = layer.up.keep(left), layer.down.keep(left)
    layer.set_rows([*left, *gone])
    layer.constant_CD = nn.Parameter(torch.stack(means))
