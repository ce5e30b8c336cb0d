"""Checks of what decides how well a layer trains: does its router learn, and at which scale is its
output at the start?"""

from __future__ import annotations

import math

import torch

from isoflop.bench.diagnostics import rms, routing_gradient
from isoflop.bench.subject import BATCH, TIME, Subject, random_input, tokens_of
from isoflop.models import Dense

LEARNS = 1e-3  # gradient of what routes over that of the rest, root mean squares, at least
WIDTHS = (32, 64, 128)  # at which the output at the start is measured


def routing(subject: Subject) -> str:
    """What routes learns from the loss, not from an auxiliary loss alone; a load can be read."""
    module, x_BTD = subject.build().eval(), random_input()
    module.zero_grad()
    (module(x_BTD) * random_input().flip(0)).mean().backward()
    load = module.load(x_BTD)
    if load is not None and (
        load.dim() != 1 or not bool((load >= 0).all()) or not 0 < float(load.sum()) < math.inf
    ):
        return "load() must return how much each expert is used: [experts], 0 or more, not all 0"
    ratio = routing_gradient(module)
    if ratio is None:
        return ""
    if not ratio >= LEARNS:
        return (
            f"what routes gets {ratio:.2g} of the gradient of the other parameters from the loss: "
            "it cannot learn where to route; look for gates that a norm cancels, or a detach"
        )
    subject.note = f"gradient of what routes over that of the rest: {ratio:.2g}"
    return ""


def output_at_the_start(subject: Subject) -> str:
    """The scale of the output at the start beside that of the dense FFN, for the reader."""
    values = []
    for kind, options in ((subject.layer, subject.options), (Dense, {})):
        for width in WIDTHS:
            torch.manual_seed(0)
            layer = kind(width, **options).eval()
            generator = torch.Generator().manual_seed(1)
            x_BTD = torch.randn(BATCH, TIME, width, generator=generator)
            layer.see_tokens(tokens_of(x_BTD))
            with torch.no_grad():
                values.append(rms(layer(x_BTD)))
    mine, dense = (", ".join(f"{v:.2g}" for v in part) for part in (values[:3], values[3:]))
    widths = ", ".join(map(str, WIDTHS))
    subject.note = f"at the start {mine} at widths {widths}; dense {dense}"
    return ""
