"""Checks of a layer at the context, batch and width of cells, under autocast as they train.

At small shapes alone, a layer could leak or work more wherever a sequence is longer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isoflop.bench.autocast import autocast
from isoflop.bench.checks import CAUSAL, alone, real_flops
from isoflop.bench.flops import FlopError, verify_flops
from isoflop.bench.subject import VOCABULARY, Subject
from isoflop.models import Config

if TYPE_CHECKING:
    from isoflop.bench.plan import Cell
    from isoflop.bench.suite import Suite

LARGEST = 5e10  # FLOPs of one forward pass: a larger shape is reduced
ROUNDED = 0.02  # relative change of an output under bfloat16 that rounding may explain


@dataclass(frozen=True, order=True)
class Shape:
    """What `forward` gets: [batch, context, width]."""

    width: int
    context: int
    batch: int  # sequences per backward pass

    def __str__(self) -> str:
        return f"batch {self.batch}, context {self.context}, width {self.width}"


def shape_of(cell: Cell) -> Shape:
    training = cell.training
    return Shape(cell.size.width, training.context, training.micro_batch or training.batch)


def shapes_of(suite: Suite) -> list[Shape]:
    """The shapes of a suite's sizes, each once."""
    training = suite.training
    return sorted(
        {
            Shape(
                size.width,
                training.context,
                training.micro_batch or size.batch or training.batch,
            )
            for size in suite.sizes.values()
        }
    )


def halved(shape: Shape, mixes_batch: bool) -> Shape:
    """A smaller shape, or the same if it is small already.

    Sequences are left out first, then tokens; not sequences of a layer that mixes them, which may
    need a certain number.
    """
    if shape.batch > 2 and shape.batch % 2 == 0 and not mixes_batch:
        return replace(shape, batch=shape.batch // 2)
    return replace(shape, context=shape.context // 2) if shape.context > 64 else shape


def reduced(shape: Shape, flops_per_token: int, mixes_batch: bool) -> Shape:
    """A shape whose forward pass has at most LARGEST FLOPs, if `halved` leads there."""
    while shape.batch * shape.context * flops_per_token > LARGEST:
        smaller = halved(shape, mixes_batch)
        if smaller == shape:
            break
        shape = smaller
    return shape


def at_shape(check: str, subject: Subject, shape: Shape, notes: list[str]) -> str:
    """A check at a shape, reduced to what takes seconds and fits the memory.

    Args:
        notes: a note on what was not asked is added.
    """
    with torch.device("meta"):
        layer = subject.layer(shape.width, **subject.options)
    asked = reduced(shape, layer.flops_per_token(), layer.mixes_batch)
    while True:
        try:
            fix = AT_SHAPES[check](subject, asked)
            break
        except (MemoryError, RuntimeError) as error:
            smaller = halved(asked, layer.mixes_batch)
            memory = isinstance(error, MemoryError) or "allocate memory" in str(error)
            if not memory or smaller == asked:
                raise
            asked = smaller
    note = f"asked at {asked}, not at {shape}, which is too large here"
    if asked != shape and note not in notes:
        notes.append(note)
    return f"at {asked}: {fix}" if fix else ""


def _input(shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(shape.batch, shape.context, shape.width, generator=generator)


def _causality(subject: Subject, shape: Shape) -> str:
    """Later inputs change no earlier output, in full precision and under autocast.

    Rounding under autocast may change the choice of an expert, in some sequence: there a position
    fails if it changes in half of the sequences.
    """
    module, x_BTD = subject.build(width=shape.width).eval(), _input(shape)
    for rounded in (False, True):
        with torch.no_grad(), autocast("cpu", enabled=rounded):
            y_BTD = module(x_BTD).float()
            for position in sorted({1, shape.context // 2, shape.context - 1} - {0}):
                changed_BTD = x_BTD.clone()
                changed_BTD[:, position:] = x_BTD[:, position:].roll(1, -1) + 1
                earlier_BTD = y_BTD[:, :position]
                change_BTD = module(changed_BTD).float()[:, :position] - earlier_BTD
                if rounded:
                    change_BT = change_BTD.norm(dim=-1) / earlier_BTD.norm(dim=-1)
                    change, most = float(change_BT.nan_to_num(0).median(0).values.max()), ROUNDED
                else:
                    change, most = float(change_BTD.abs().max() / y_BTD.abs().max()), CAUSAL
                if not change <= most:
                    return (
                        f"inputs from position {position} on change earlier outputs (by "
                        f"{change:.2g} of them) in evaluation{' under autocast' * rounded}"
                    )
    return ""


def _batch(subject: Subject, shape: Shape) -> str:
    return alone(subject.build(width=shape.width).eval(), _input(shape), share=0.01)


def _flops(subject: Subject, shape: Shape) -> str:
    config = Config(
        subject.layer, subject.options, "all", shape.width, 1, 1, VOCABULARY, shape.context
    )
    try:
        verify_flops(config, shape.batch)
    except FlopError as error:
        return str(error)
    with autocast("cpu"):
        return real_flops(subject.build(width=shape.width), _input(shape))


AT_SHAPES: dict[str, Callable[[Subject, Shape], str]] = {
    "causality": _causality,
    "batch": _batch,
    "flops": _flops,
}
