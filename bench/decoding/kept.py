"""Kept models, ready to decode."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file

from isoflop.bench.isolate import describe
from isoflop.bench.kept_models import model_path
from isoflop.bench.plan import Cell
from isoflop.models import Decoder
from isoflop.results.errors import IsoflopError


def load_decoder(cell: Cell, models: Path) -> Decoder:
    """A cell's kept model, on the CPU in evaluation mode.

    Raises:
        IsoflopError: the weights cannot be read, or are not of this model.
    """
    path = model_path(models, cell.id)
    model = Decoder(cell.config)
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        raise IsoflopError(
            f"{path}: cannot be loaded as weights of {cell.variant}, size {cell.size.name}: "
            f"{describe(error)}"
        ) from None
    return model.eval()
