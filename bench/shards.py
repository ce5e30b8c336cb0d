"""The state of a cell that several processes train: a folder, which any number of them can read."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from isoflop.bench.checkpoint import PROGRESS


def save_shards(
    folder: Path,
    state: dict[str, Tensor],
    progress: dict[str, Any],
    first: bool,
    agree: Callable[[bool], bool],
) -> None:
    """Save tensors, each once, and the progress; what was there before stays until all is written.

    Args:
        state: this process's tensors; a DTensor where it has a part.
        first: whether this is the first process, which does what only one may.
        agree: whether any process says so.
    Raises:
        OSError: in every process, if one of them could not write.
    """
    new = folder.with_name(f".{folder.name}.new")
    old = folder.with_name(f".{folder.name}.old")

    def alone(action: Callable[[], None]) -> None:
        problem = ""
        try:
            if first:
                action()
        except OSError as error:
            problem = error.strerror or str(error)
        if agree(bool(problem)):
            raise OSError(problem or "the first process cannot write it")

    def clear() -> None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)

    def replace() -> None:
        (new / PROGRESS).write_text(json.dumps(progress), encoding="utf-8")
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)

    alone(clear)
    try:
        dcp.save(state, checkpoint_id=new)
    except CheckpointException as error:  # in all processes, if one fails
        raise OSError(_reason(error)) from None
    alone(replace)


def load_shards(folder: Path, place: Callable[[str, torch.dtype], Tensor]) -> dict[str, Any]:
    """Load the tensors that were saved; returns the progress.

    Args:
        place: gives for a tensor's name and dtype where it belongs; a DTensor where this process
            has a part.
    Raises:
        ValueError: it is damaged. Part of it may have been loaded.
    """
    try:
        progress = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        saved = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        state = {name: place(name, entry.properties.dtype) for name, entry in saved.items()}  # type: ignore[union-attr]
        dcp.load(state, checkpoint_id=folder)
    except CheckpointException as error:
        raise ValueError(f"{folder}: a damaged checkpoint: {_reason(error)}") from None
    except Exception as error:  # a file that is cut gives many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{folder}: a damaged checkpoint: {reason}") from None
    return dict(progress)


def _reason(error: CheckpointException) -> str:
    """The first process's failure, in a line."""
    first, *_ = error.failures.values()
    return (str(first[0]).strip().splitlines() or [type(first[0]).__name__])[0]
