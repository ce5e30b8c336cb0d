"""LatentMoE: experts that work in a space narrower than the model, and more of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from isoflop.models.dense import init_linear
from isoflop.models.layer import register
from isoflop.models.moe_shared import SharedMoE


@register("moe_latent")
class LatentMoE(SharedMoE):
    """y = FFN_shared(x) + W_up sum over the chosen of g_i E_i(W_down x) (arXiv 2601.18089).

    W_down maps the model's width d to l = d / a, a being the `reduction`; experts map l to d_ff / G
    and back to l, so that each costs a times less than one of `moe_shared`. a times as many exist
    and are chosen: the form that the paper names after its accuracy. The router and the shared FFN
    read the whole x. W_down and W_up come on top of the dense FFN's size, 4 d l FLOPs.

    The gates, the balance by a bias and the shared FFN are those of `moe_shared`.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(SharedMoE.Options):
        reduction: int = 4  # a = d_model over the width of the latent space
        latent_norm: bool = False  # an RMSNorm before W_up, as Kimi K3 has

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.reduction < 1:
                raise ValueError(f"reduction must be at least 1, not {self.reduction}")

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)
        if d_model % self.reduction:
            raise ValueError(f"reduction {self.reduction} must divide the width {d_model}")
        latent = d_model // self.reduction
        self.compress = nn.Linear(d_model, latent, bias=False)
        self.expand = nn.Linear(latent, d_model, bias=False)
        self.norm = nn.RMSNorm(latent) if self.options.latent_norm else nn.Identity()
        init_linear(self.compress.weight)
        init_linear(self.expand.weight)

    @property
    def reduction(self) -> int:
        return int(self.options.reduction)

    def chosen_experts(self, x_MD: Tensor, index_MK: Tensor, gate_MK: Tensor) -> Tensor:
        y_ML = super().chosen_experts(self.compress(x_MD), index_MK, gate_MK)
        return self.expand(self.norm(y_ML))

    def flops_per_token(self) -> int:
        """Those of `moe_shared` with a times its router, and 2 D D / a for each of both maps."""
        return super().flops_per_token() + 4 * self.d_model * (self.d_model // self.reduction)
