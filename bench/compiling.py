"""Compiling a model's blocks, and knowing beforehand whether the compiler can."""

from __future__ import annotations

from collections.abc import Callable

import torch

from isoflop.bench.autocast import autocast
from isoflop.bench.isolate import describe
from isoflop.bench.plan import Cell
from isoflop.models import Decoder

Backend = str | Callable[..., object]
BACKEND: Backend = "inductor"


def compile_blocks(model: Decoder) -> None:
    """Compile the blocks, not the model: blocks of one kind are equal and share what is compiled.

    A model has two kinds: with the dense FFN and with the layer under test. The head with the loss
    is compiled by itself: logits in float32 and their softmax are then never written. On an H200
    they took half of a step at width 768 and a vocabulary of 32,768.
    """
    for block in model.blocks:
        block.compile(backend=BACKEND, dynamic=False)
    compiled = torch.compile(model.cross_entropy, backend=BACKEND, dynamic=False)
    model.cross_entropy = compiled  # type: ignore[method-assign]


def problem_of_compiling(cell: Cell, device: torch.device) -> str:
    """What stands against compiling the blocks of a cell, in a line; empty if nothing does.

    It is tried on a model of its own, forward and backward at the cell's batch, so that a failure
    in the middle cannot change the one that is trained. That one then finds the code compiled.

    Raises:
        torch.OutOfMemoryError: the cell does not fit, compiled or not.
    """
    # In a process that trains several cells, earlier shapes would count against the limit of
    # compilations. What the compiler keeps on disk stays.
    torch.compiler.reset()
    training = cell.training
    sequences = training.micro_batch or training.batch
    try:
        with torch.device(device):
            model = Decoder(cell.config)
            tokens = torch.zeros(sequences, training.context + 1, dtype=torch.long)
        compile_blocks(model)
        with autocast(device.type):
            cross_entropy, auxiliary = model.loss(tokens[:, :-1], tokens[:, 1:])
        (cross_entropy + auxiliary).backward()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler, and a layer's code under it, raise many kinds
        return describe(getattr(error, "inner_exception", error))  # what the compiler met
    return ""
