"""TensorBoard scalars of a run, a folder for each cell."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.scalars import run_name
from isoflop.results.errors import IsoflopError

if TYPE_CHECKING:
    from isoflop.bench.plan import Cell


class TensorBoardError(IsoflopError):
    """No scalars can be written, for want of the package or of a folder."""


def require_tensorboard(directory: Path | None) -> Path | None:
    """Callback of the option: before anything else, could scalars be written?

    Raises:
        TensorBoardError: the package is missing, or the directory cannot be made.
    """
    if directory is None:
        return None
    if importlib.util.find_spec("tensorboard") is None:
        raise TensorBoardError(
            "--tensorboard: the tensorboard package is missing: `python -m pip install "
            "tensorboard`, or isoflop with its extra: isoflop[tensorboard]"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TensorBoardError(f"--tensorboard: {directory}: {error.strerror}") from None
    return directory


TensorBoard = Annotated[
    Path | None,
    typer.Option(callback=require_tensorboard, help="Write TensorBoard scalars below this folder."),
]


class EventFile:
    """The event file of one cell, in the folder that TensorBoard shows as the run's name.

    A cell that is trained again, anew or from a checkpoint, starts its folder over: its first
    report holds the curve from the beginning, so no entry is there twice and none is missing.

    Raises:
        TensorBoardError: here and later, the folder cannot be written.
    """

    def __init__(self, cell: Cell, directory: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.directory = directory
        folder = directory / run_name(cell)
        with self._errors():
            for old in folder.glob("events.out.tfevents.*"):
                os.truncate(old, 0)  # a TensorBoard that reads a file would stop where it is gone
            # `purge_step` makes one that has read the former file forget it.
            self.writer = SummaryWriter(str(folder), purge_step=0, flush_secs=5)

    def add(self, tag: str, value: float, step: int) -> None:
        """See `scalars.Writer`."""
        with self._errors():
            self.writer.add_scalar(tag, value, step)

    def close(self, ended: bool) -> None:
        """See `scalars.Writer`."""
        with self._errors():
            self.writer.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TensorBoardError(
                f"--tensorboard: {self.directory}: {error.strerror}; finished records are whole"
            ) from None
