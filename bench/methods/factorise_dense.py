"""A dense FFN cut into experts, without training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.bench.methods.experts import Experts, FeedForward, UnfitError
from isoflop.bench.methods.matrices import Whole
from isoflop.bench.methods.method import Calibration, Method, rebuilt, register, with_layers
from isoflop.models import Decoder

ROUTER_STEPS = 300  # of Adam on the calibration text
ROUTER_RATE = 1e-2
TOKENS = 512  # per step


@register("factorise-dense")
class FactoriseDense(Method):
    """The hidden units in N slices, weights unchanged: y = (N / k) sum over the chosen E_i(x).

    FactorLLM (arXiv 2408.11855): all slices together are the dense FFN, and a router chooses k
    without a gate. Its router is taught by the labels of the paper: of each token, the k slices of
    the least mean squared error between E_i(x) and FFN(x) k / N, by KL between label softmax and
    router softmax; the paper's label softmax is taken as even over the k. `taught`: by the router,
    on the calibration text alone, the FFN unchanged. Controls: `none`, the router at random;
    `fixed`, the first k slices for every token, which is structured pruning.

    Shuffled, since slices of neighbours are as arbitrary: by the calibration seed.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options(Method.Options):
        experts: int = 4  # N, which must divide the hidden width
        chosen: int = 2  # k per token
        router: Literal["taught", "none", "fixed"] = "taught"

        def __post_init__(self) -> None:
            if not 1 <= self.chosen <= self.experts:
                raise ValueError(f"chosen: 1 to experts = {self.experts}, not {self.chosen}")

    identity = {"experts": 4, "chosen": 4}

    def apply(self, model: Decoder, calibration: Calibration) -> Decoder:
        o, layers = self.options, []
        inputs = calibration.inputs(model)
        generator = calibration.generator()
        for dense, x_MD in zip(rebuilt(model), inputs, strict=True):
            if not isinstance(dense, FeedForward):
                raise UnfitError(f"method {self.name!r} fits dense layers alone")
            layer = cut(dense, o.experts, o.chosen, generator)
            if o.router == "fixed":
                layer.keep(range(o.chosen))
            elif o.router == "taught" and o.chosen < o.experts:
                teach(layer, dense, x_MD, generator)
            layers.append(layer)
        return with_layers(model, layers)


@torch.no_grad()
def cut(dense: FeedForward, experts: int, chosen: int, generator: torch.Generator) -> Experts:
    """The slices, with a router at random.

    Raises:
        ValueError: they cannot be of equal width.
    """
    down_FD = dense.down.of(0)
    width, d_model = down_FD.shape
    if width % experts:
        raise ValueError(f"experts: {experts} must divide the hidden width {width}")
    order = torch.randperm(width, generator=generator).view(experts, -1)
    halves = dense.up.of(0).split(width, dim=1)  # two of SwiGLU
    up = torch.stack([torch.cat([half[:, rows] for half in halves], 1) for rows in order])
    down = torch.stack([down_FD[rows] for rows in order])
    router = nn.Linear(d_model, experts, bias=False)
    router.weight.copy_(torch.randn(experts, d_model, generator=generator) * d_model**-0.5)
    layer = Experts(router, Whole(up), Whole(down), chosen, "even", dense.activation)
    layer.scale = experts / chosen
    return layer


@torch.no_grad()
def labels(layer: Experts, dense: FeedForward, x_MD: Tensor) -> Tensor:
    """Of each token the k slices of the least error, [M, k]."""
    goal_MD = dense(x_MD) * layer.chosen / len(layer.up)
    experts = range(len(layer.up))
    error_ME = torch.stack([(layer.expert(e, x_MD) - goal_MD).square().mean(1) for e in experts], 1)
    return error_ME.topk(layer.chosen, largest=False).indices


@torch.enable_grad()
def teach(layer: Experts, dense: FeedForward, x_MD: Tensor, generator: torch.Generator) -> None:
    """Teach the router the labels, by Adam on random tokens of the text."""
    label_MK = labels(layer, dense, x_MD)
    optimizer = torch.optim.Adam(layer.router.parameters(), lr=ROUTER_RATE)
    for _ in range(ROUTER_STEPS):
        rows = torch.randint(len(x_MD), (min(TOKENS, len(x_MD)),), generator=generator)
        goal = F.one_hot(label_MK[rows], len(layer.up)).sum(1) / layer.chosen
        loss = F.cross_entropy(layer.router(x_MD[rows]), goal)  # KL but for the label's entropy
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
