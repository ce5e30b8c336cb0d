"""The state of a cell in training, saved so that a later call goes on with the same result."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from isoflop.results.files import write_whole

PROGRESS = "progress.json"  # in the folder of a cell trained by several processes


def save_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` write a file, and put it at `path` once it is whole.

    The temporary name is unique: two processes that train the same cell must not meet in it.

    Raises:
        OSError: the folder is full or not writable. What was at `path` before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}"
    try:
        write(temporary)
        os.replace(temporary, path)
    except RuntimeError as error:  # torch's writer of archives has no other error for a full disk
        raise OSError(str(error).splitlines()[0]) from None
    finally:
        temporary.unlink(missing_ok=True)


def save(path: Path, state: dict[str, Any], device: torch.device) -> None:
    """Save a state and those of torch's generators, which a layer may draw from.

    Raises:
        OSError: see `save_whole`.
    """
    generators = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        generators["cuda"] = torch.cuda.get_rng_state(device)
    save_whole(path, lambda file: torch.save(state | {"generators": generators}, file))


def load(path: Path, device: torch.device) -> dict[str, Any] | None:
    """A saved state, having set torch's generators to theirs; None if there is none.

    Raises:
        ValueError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        generators = state["generators"]
        torch.set_rng_state(generators["cpu"].cpu())
        if device.type == "cuda" and "cuda" in generators:
            torch.cuda.set_rng_state(generators["cuda"].cpu(), device)
    except Exception as error:  # torch raises many kinds for a file that is cut or not its own
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: a damaged checkpoint: {reason}") from None
    return dict(state)


def shards_path(path: Path) -> Path:
    """The folder that stands for the checkpoint file of a cell trained by one process."""
    return path.with_suffix(".shards")


def read_state(path: Path) -> dict[str, bytes]:
    """The files of a checkpoint, by their paths in its folder; empty if there is none.

    Args:
        path: of the checkpoint if one process trains the cell.
    """
    files = [path, *sorted(shards_path(path).glob("*"))]
    return {
        str(file.relative_to(path.parent)): file.read_bytes() for file in files if file.exists()
    }


def write_state(path: Path, files: dict[str, bytes]) -> None:
    """Write what `read_state` gave, in place of what is there.

    Until all is written, a checkpoint of several processes counts as damaged.
    """
    if files:
        shutil.rmtree(shards_path(path), ignore_errors=True)
    for name in sorted(files, key=lambda name: name.endswith(PROGRESS)):  # last
        write_whole(path.parent / name, files[name])
