"""The interface of a feed-forward layer, and the register of layers by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that the optimiser does not treat like the model's other matrices."""

    parameters: Sequence[nn.Parameter]
    rate: float = 1.0  # learning rate over the cell's, a multiplier
    decay: float = 0.0  # weight decay over the suite's, a multiplier
    constant: bool = False  # keeps the rate after the warm-up, instead of following the schedule


class Layer(nn.Module):
    """A feed-forward layer: maps each token's vector to a vector of the same width.

    A subclass writes `__init__(self, d_model, **options)` (calling this one first), `forward` and
    `flops_per_token`, and lists its options as typed fields of a nested `Options` dataclass.
    The block around it does the norm before and the residual after.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """None here. A subclass raises ValueError in `__post_init__` for a value it refuses."""

    name: ClassVar[str] = ""  # set by `register`
    mixes_batch: ClassVar[bool] = False  # an output depends on the batch's other sequences

    aux_loss: Tensor | None  # a scalar added to the training loss, set by `forward` in training

    def __init__(self, d_model: int, **options: Any) -> None:
        super().__init__()
        self.d_model = d_model
        self.options: Any = self.Options(**options)
        self.aux_loss = None

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[batch, time, d_model] -> [batch, time, d_model]."""
        raise NotImplementedError

    def see_tokens(self, tokens_BT: Tensor) -> None:
        """Called before the blocks with the ids of the tokens that `forward` will get.

        For a layer that looks something up by token; the others need not see them.
        """

    def flops_per_token(self) -> int:
        """Forward FLOPs per token of the reference path; 1 multiply-add = 2 FLOPs.

        Matrix products count; norms, activations, softmax and top-k do not.
        """
        raise NotImplementedError

    def measured_flops_per_token(self) -> float:
        """Forward FLOPs per token of all training so far; written where they depend on the data.

        `flops_per_token` is then what the layer aims at: a cell is planned by that, and charged
        this. `forward` counts in training, in buffers, which a checkpoint holds.
        """
        return float(self.flops_per_token())

    def routing_flops_per_token(self) -> int:
        """The part of `flops_per_token` spent on choosing experts or slots."""
        return 0

    def active_parameters(self) -> int:
        """Parameters that one token uses; all of them unless a subclass says otherwise."""
        return sum(parameter.numel() for parameter in self.parameters())

    def moved_per_token(self) -> int:
        """Values that a token's forward pass moves to and from experts that it shares with few.

        Each expert of a token reads its input, writes and reads its hidden values, and writes its
        output, which decides the time of thin experts: `isoflop plan` prices it. 0: nothing is
        moved but what a dense layer moves too; rows of `tables` are priced apart.
        """
        return 0

    def tables(self) -> list[nn.Parameter]:
        """Parameters read as rows by index. A suite's `table_rate` multiplies their rate."""
        return []

    def parameter_groups(self) -> list[ParameterGroup]:
        """Parameters with a learning rate or weight decay of their own: tables, not decayed.

        What is in no group has the cell's rate, and the suite's weight decay if it is a matrix.
        """
        return [ParameterGroup(self.tables())]

    def routing_parameters(self) -> list[Tensor]:
        """Parameters that serve to choose experts or slots; they must learn from the loss."""
        return []

    def load(self, x_BTD: Tensor) -> Tensor | None:
        """How much each expert or slot is used on these tokens: [experts], any scale.

        None if the layer chooses nothing.
        """
        return None

    def after_step(self) -> None:
        """Called once after every optimiser step, however many micro-batches it had.

        Where several processes train a cell, buffers hold the same in all of them by then. What
        `forward` added to a buffer is summed over processes: it must add, not assign.
        """


L = TypeVar("L", bound=type[Layer])
T = TypeVar("T", bound=type)

LAYERS: dict[str, type[Layer]] = {}


def register(name: str) -> Callable[[L], L]:
    """Class decorator that registers a layer under `name`.

    Raises:
        ValueError: the name is taken.
    """

    return registrar(LAYERS, name, "layer")


def registrar(registry: dict[str, type[Any]], name: str, kind: str) -> Callable[[T], T]:
    """Class decorator that enters a class into a registry, and the name into the class.

    Raises:
        ValueError: the name is taken.
    """

    def add(entry: T) -> T:
        if name in registry:
            raise ValueError(f"a {kind} named {name!r} is registered already")
        entry.name = name  # type: ignore[attr-defined]
        registry[name] = entry
        return entry

    return add


def measures_flops(layer: Layer | type[Layer]) -> bool:
    """Whether the work of a layer depends on the data: it writes `measured_flops_per_token`."""
    kind = layer if isinstance(layer, type) else type(layer)
    return kind.measured_flops_per_token is not Layer.measured_flops_per_token


def full_precision(x: Tensor) -> AbstractContextManager[object]:
    """A context without autocast on x's device, so that routers compute in float32.

    The meta device has no autocast to disable.
    """
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
