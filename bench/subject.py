"""The layer that is being checked, as the checks get it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isoflop.models import Config, Layer

WIDTHS = (32, 48)  # at which FLOPs are counted; all else is at the first
BATCH, TIME, VOCABULARY = 8, 12, 40  # the batch suits expert choice with an expansion of 1, 2, 4, 8


@dataclass
class Subject:
    """The layer that is being checked. The check `builds` fills `layer` and `options`."""

    name: str  # registered, or path/to/file.py:Class
    given: dict[str, Any]  # options as given
    source: str | None = None  # of the file, if not what it holds now
    layer: type[Layer] = Layer
    options: dict[str, Any] = field(default_factory=dict)  # defaults included
    note: str = ""  # of a check that passes, on what it found

    def build(self, seed: int = 0, width: int = WIDTHS[0]) -> Layer:
        """The layer alone, with noise on constant parameters: a gate that starts at zero would
        hide a fault."""
        torch.manual_seed(seed)
        module = self.layer(width, **self.options)
        stir(module)
        if type(module).see_tokens is not Layer.see_tokens:  # in a model the decoder calls it
            module.register_forward_pre_hook(lambda layer, x: layer.see_tokens(tokens_of(*x)))
        return module

    def config(self, width: int) -> Config:
        return Config(self.layer, self.options, "all", width, 2, 2, VOCABULARY, TIME)


def stir(module: torch.nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(0.2 * torch.randn_like(parameter))


def tokens_of(x_BTD: Tensor) -> Tensor:
    """Token ids below 32 that depend on the input of the same position alone."""
    signs = (x_BTD[..., :5] > 0).long()
    return (signs * 2 ** torch.arange(signs.shape[-1], device=x_BTD.device)).sum(-1)


def random_input(dtype: torch.dtype = torch.float32, time: int = TIME) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(BATCH, time, WIDTHS[0], generator=generator, dtype=dtype)
