"""Weights that a run keeps, by cell: the trained ones, and those before the first step."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from isoflop.bench import checkpoint
from isoflop.bench.plan import Cell


def model_path(models: Path, cell: str) -> Path:
    """Where the trained weights of a cell are kept, by its id."""
    return models / f"{cell}.safetensors"


def initial_path(models: Path, cell: str) -> Path:
    """Where the weights of a cell before training are kept, by its id."""
    return models / f"{cell}.initial.safetensors"


def keep_model(path: Path, cell: Cell, state: dict[str, Tensor]) -> None:
    """Store weights and buffers, whole or not at all.

    Raises:
        OSError: the folder is full or not writable.
    """
    metadata = {"cell": cell.id, "variant": cell.variant}
    state = {name: tensor.contiguous() for name, tensor in state.items()}
    checkpoint.save_whole(path, lambda file: save_file(state, file, metadata=metadata))
