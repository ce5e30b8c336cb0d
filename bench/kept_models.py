"""Weights that a run keeps, by cell: the trained ones, and those before the first step."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from isoflop.bench import checkpoint
from isoflop.bench.isolate import describe
from isoflop.bench.plan import Cell
from isoflop.models import Decoder
from isoflop.results.errors import IsoflopError


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


def load_model(path: Path, cell: Cell) -> Decoder:
    """A cell's model with weights that were kept, on the CPU.

    Raises:
        IsoflopError: they cannot be read, or are not of this model.
    """
    model = Decoder(cell.config)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        raise IsoflopError(
            f"{path}: cannot be loaded as weights of {cell.variant}, size {cell.size.name}: "
            f"{describe(error)}"
        ) from None
    return model
