"""Weights of experts in 8, 4 or 2 bits, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from isoflop.bench.methods.matrices import Whole
from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.bench.quantisation import GROUP, dequantise, quantise
from isoflop.models import Decoder


@register("quantise")
class Quantise(Method):
    """Rounds the matrices of experts, or of a dense FFN, to `bits` bits; the router stays.

    By the rule of `bench.quantisation`, which the copies of few bits in a file of experts follow
    too. The model computes with the rounded values; the bytes are those of the packed codes and the
    scales.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Method.Options):
        bits: Literal[8, 4, 2] = 4  # of a weight
        group: int = GROUP  # weights with a scale in common

        def __post_init__(self) -> None:
            if self.group < 1:
                raise ValueError(f"group must be at least 1, not {self.group}")

    calibrated = False

    @torch.no_grad()
    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        layers = rebuilt(model)
        for layer in layers:
            for matrices in (layer.up, layer.down):
                if not isinstance(matrices, Whole):
                    raise ValueError(f"method {self.name!r} takes whole matrices, not factors")
                codes, scales = quantise(matrices.weight, self.options.bits, self.options.group)
                matrices.weight.copy_(dequantise(codes, scales, self.options.group))
                # Recovery training would move them off the codes.
                matrices.weight.requires_grad_(False)
                matrices.bits, matrices.group = self.options.bits, self.options.group
        return with_layers(model, layers)
