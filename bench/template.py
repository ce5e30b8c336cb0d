"""What a layer is for: one line, shown by `isoflop layers`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import Layer


class MyLayer(Layer):
    """y = W2 (silu(Wg x) * W1 x): a gated network of `ratio * d_model` neurons, to start from.

    The block around the layer does the norm before and adds the residual after.
    """

    # Options are typed fields with defaults; a suite can set them, and a wrong one is refused with
    # the line raised here.
    @dataclass(frozen=True, kw_only=True)
    class Options(Layer.Options):
        ratio: float = 2.5  # neurons over d_model

        def __post_init__(self) -> None:
            if self.ratio <= 0:
                raise ValueError(f"ratio must be positive, not {self.ratio}")

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__(d_model, **options)  # sets self.d_model and self.options
        self.neurons = round(self.options.ratio * d_model)
        self.up = nn.Linear(d_model, 2 * self.neurons, bias=False)
        self.down = nn.Linear(self.neurons, d_model, bias=False)
        for linear in (self.up, self.down):  # variance 1 / fan-in
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[batch, time, d_model] -> the same shape.

        An output may depend on its own and earlier positions only. In training, `self.aux_loss`
        may be set to a scalar that is added to the loss, such as one that balances experts.
        """
        # A router's scores, and their softmax, are computed in float32 under autocast:
        #     from isoflop import full_precision
        #     with full_precision(x_BTD):
        #         scores = self.router(x_BTD.float()).softmax(dim=-1)
        gate_BTF, value_BTF = torch.chunk(self.up(x_BTD), 2, dim=-1)
        return self.down(F.silu(gate_BTF) * value_BTF)

    def flops_per_token(self) -> int:
        """Forward FLOPs per token: 2 per multiply-add of a matrix product, all else free.

        `isoflop lint` traces `forward` and compares to the integer.
        """
        return 2 * self.d_model * self.neurons * 3

    # Write these too if they apply:
    #
    # mixes_batch = True  in the class, if an output depends on the batch's other sequences
    # def routing_flops_per_token(self) -> int:  the part of the above spent on choosing experts
    # def active_parameters(self) -> int:        parameters one token uses, if not all
    # def tables(self) -> list[nn.Parameter]:    tables read by index
    # def parameter_groups(self):                ParameterGroup of those with another rate or decay
    # def routing_parameters(self):              what chooses experts; it must learn from the loss
    # def load(self, x_BTD) -> Tensor:           how much each expert is used, [experts]
    # def after_step(self) -> None:              called once after every optimiser step
