"""TensorBoard scalars of a run, a folder for each cell."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.analysis.report.format import flops
from isoflop.results.errors import IsoflopError

if TYPE_CHECKING:  # the option is checked before torch is loaded
    from isoflop.bench.engines.contract import Event
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


def run_name(cell: Cell) -> str:
    """The cell's folder below the directory, which TensorBoard shows as the run's name."""
    rate = f"lr{cell.learning_rate:.3g}"
    name = f"{cell.size.name}-{flops(cell.budget)}-{rate}-seed{cell.seed}-{cell.id}"
    return f"{cell.variant}/{name}"


def scalars(events: Iterable[Event], directory: Path) -> Generator[Event, None, None]:
    """Pass events on, having written what they say. Close it, or its last seconds may be lost.

    Raises:
        TensorBoardError: a folder cannot be written.
    """
    runs: dict[str, _Run] = {}
    try:
        for event in events:
            name = run_name(event.cell)
            try:
                if name not in runs:
                    runs[name] = _Run(event.cell, directory / name)
                runs[name].write(event)
                if event.record is not None:
                    runs.pop(name).close()
            except OSError as error:
                raise TensorBoardError(
                    f"--tensorboard: {directory}: {error.strerror}; finished records are whole"
                ) from None
            yield event
    finally:
        for run in runs.values():
            run.close()


class _Run:
    """The event file of one cell.

    A cell that is trained again, anew or from a checkpoint, starts its folder over: its first
    report holds the curve from the beginning, so no entry is there twice and none is missing.
    """

    def __init__(self, cell: Cell, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in folder.glob("events.out.tfevents.*"):
            os.truncate(old, 0)  # a TensorBoard that reads a file would stop where it is gone
        self.cell, self.step = cell, 0
        # `purge_step` makes one that has read the former file forget it.
        self.writer = SummaryWriter(str(folder), purge_step=0, flush_secs=5)
        self.close = self.writer.close

    def write(self, event: Event) -> None:
        """Every entry of the loss curve once, in order; the validation loss at the end."""
        if event.progress is not None:
            self._curve(event.progress.curve)
            speed = event.progress.tokens_per_second
            self.writer.add_scalar("train/tokens_per_second", speed, event.progress.step)
        record = event.record
        if record is not None:
            self._curve(record.curve)
            if record.loss is not None:
                self.writer.add_scalar("validation/loss", record.loss, record.steps)
                self.writer.add_scalar(
                    "validation/bits_per_byte", record.bits_per_byte, record.steps
                )

    def _curve(self, points: list[tuple[int, float]]) -> None:
        from isoflop.bench.step import learning_rate_at

        cell = self.cell
        for step, loss in points:
            if step > self.step:
                rate = learning_rate_at(step - 1, cell.steps, cell.learning_rate, cell.training)
                self.writer.add_scalar("train/loss", loss, step)
                self.writer.add_scalar("train/learning_rate", rate, step)
                self.step = step
