"""A dense FFN cut into experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from isoflop.bench.methods.experts import FeedForward, UnfitError
from isoflop.bench.methods.matrices import Whole
from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.bench.methods.slices import Mask, Slices, coactive
from isoflop.models import Decoder


@register("factorise-dense")
class FactoriseDense(Method):
    """The hidden units in N slices, weights unchanged: y = (N / k) sum over the chosen E_i(x).

    FactorLLM (arXiv 2408.11855): all slices together are the dense FFN, and a router chooses k
    without a gate (see `slices.Slices`). It is untrained at first; recovery training (`--recover`)
    teaches it, with the paper's losses beside the cross-entropy, which the public code leaves out:
    `train = "router"` teaches it alone, `"experts"` the slices too, and nothing else of the model
    changes, as in the paper. The FLOPs of labels are counted, and those of a backward pass through
    the whole model, which is more than it takes.

    Controls: a mask at random, an oracle that takes the slices of least error and computes all, and
    a fixed slice, which is structured pruning. `split`: units at random, by the calibration seed;
    neighbours, as the public code has it; or clusters of units that are active together.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Method.Options):
        experts: int = 4  # N, which must divide the hidden width
        chosen: int = 2  # k per token
        mask: Mask = "router"  # which slices a token uses
        split: Literal["random", "neighbours", "clusters"] = "random"  # units of a slice
        train: Literal["router", "experts"] = "experts"  # what recovery training changes

        def __post_init__(self) -> None:
            if not 1 <= self.chosen <= self.experts:
                raise ValueError(f"chosen: 1 to experts = {self.experts}, not {self.chosen}")

    identity = {"experts": 4, "chosen": 4}

    @torch.no_grad()
    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        layers: list[Slices] = []
        generator = calibration.generator()
        for dense, x_MD in zip(rebuilt(model), calibration.inputs(model), strict=True):
            if not isinstance(dense, FeedForward):
                raise UnfitError(f"method {self.name!r} fits dense layers alone")
            layers.append(self.cut(dense, x_MD, generator))
        result = with_layers(model, layers)
        result.requires_grad_(False)
        for layer in result.tested:
            assert isinstance(layer, Slices)
            taught = layer.mask == "router"
            layer.router.requires_grad_(taught)
            if self.options.train == "experts" or not taught:  # else nothing would learn
                layer.up.requires_grad_(True)
                layer.down.requires_grad_(True)
        return result

    def cut(self, dense: FeedForward, x_MD: Tensor, generator: torch.Generator) -> Slices:
        """The slices, with a router at random.

        Raises:
            ValueError: they cannot be of equal width.
        """
        o = self.options
        down_FD = dense.down.of(0)
        width, d_model = down_FD.shape
        if width % o.experts:
            raise ValueError(f"experts: {o.experts} must divide the hidden width {width}")
        if o.split == "clusters":
            units = coactive(dense.hidden(0, x_MD), o.experts, generator)
        elif o.split == "random":
            units = torch.randperm(width, generator=generator).view(o.experts, -1)
        else:
            units = torch.arange(width).view(o.experts, -1)
        halves = dense.up.of(0).split(width, dim=1)  # two of SwiGLU
        up = torch.stack([torch.cat([half[:, part] for half in halves], 1) for part in units])
        down = torch.stack([down_FD[part] for part in units])
        router = nn.Linear(d_model, o.experts, bias=False)
        router.weight.copy_(torch.randn(o.experts, d_model, generator=generator) * d_model**-0.5)
        layer = Slices(router, Whole(up), Whole(down), o.chosen, o.mask, dense)
        if o.mask == "fixed":
            layer.keep(range(o.chosen))
        return layer
