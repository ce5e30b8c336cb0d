"""A smaller k: fewer experts per token, none dropped."""

from __future__ import annotations

from dataclasses import dataclass

from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.bench.methods.pruning import experts_of
from isoflop.models import Decoder


@register("fewer-experts")
class FewerExperts(Method):
    """Each token uses the best `fewer` less than K of its experts. FLOPs fall, memory does not.

    The gates of those that stay are what they were: those of `moe_shared` are still divided by the
    sum of the trained K (arXiv 2609.04575), and those of `moe` were never normalised.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Method.Options):
        fewer: int = 1  # experts less per token

        def __post_init__(self) -> None:
            if self.fewer < 0:
                raise ValueError(f"fewer must be 0 or more, not {self.fewer}")

    calibrated = False
    identity = {"fewer": 0}

    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        layers = [experts_of(layer, self.name) for layer in rebuilt(model)]
        for layer in layers:
            if self.options.fewer >= layer.chosen:
                raise ValueError(
                    f"fewer: {self.options.fewer} leaves a token no expert: it uses {layer.chosen}"
                )
            layer.chosen -= self.options.fewer
        return with_layers(model, layers)
