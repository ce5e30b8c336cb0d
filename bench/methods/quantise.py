"""Weights of experts in 8, 4 or 2 bits, in groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from isoflop.bench.methods.matrices import Whole
from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.models import Decoder


@register("quantise")
class Quantise(Method):
    """Rounds the matrices of experts, or of a dense FFN, to `bits` bits; the router stays.

    Groups of `group` weights along the inputs of each output share a scale in float16, the largest
    weight over the largest code: codes are signed and symmetric, -2^(b-1) + 1 to 2^(b-1) - 1 (in 2
    bits -1, 0 and 1). The model computes with the rounded values; the bytes are those of the packed
    codes (`decoding.quantise.pack_codes`) and the scales.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Method.Options):
        bits: Literal[8, 4, 2] = 4  # of a weight
        group: int = 32  # weights with a scale in common

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


def quantise(weight_EIO: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Codes [E, I, O] in int8, and scales [E, ceil(I / group), O] in float16."""
    largest = 2 ** (bits - 1) - 1
    parts = weight_EIO.split(group, dim=1)
    scales = torch.stack([part.abs().amax(1) for part in parts], 1) / largest
    # A scale rounded down to float16 would put the largest weight beyond the largest code.
    scales = scales.clamp(min=2.0**-24).half()
    wide = scales.float().repeat_interleave(group, 1)[:, : weight_EIO.shape[1]]
    codes = (weight_EIO / wide).round().clamp(-largest, largest)
    return codes.to(torch.int8), scales


def dequantise(codes_EIO: Tensor, scales: Tensor, group: int) -> Tensor:
    """The values of codes, in float32."""
    wide = scales.float().repeat_interleave(group, 1)[:, : codes_EIO.shape[1]]
    return codes_EIO.float() * wide
