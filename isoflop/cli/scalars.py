"""What watchers are shown of a run: each cell's curves as scalars, on TensorBoard or W&B alike."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from typing import TYPE_CHECKING, Protocol

from isoflop.analysis.report.format import flops

if TYPE_CHECKING:  # the options are checked before torch is loaded
    from isoflop.bench.engines.contract import Event
    from isoflop.bench.plan import Cell


class Writer(Protocol):
    """Where the scalars of one cell go. What it cannot write is an OSError or its own error."""

    def add(self, tag: str, value: float, step: int) -> None:
        """Write a scalar."""

    def close(self, ended: bool) -> None:
        """Write what is left, and say whether the cell has its record."""


def run_name(cell: Cell) -> str:
    """The name that watchers show for a cell."""
    rate = f"lr{cell.learning_rate:.3g}"
    name = f"{cell.size.name}-{flops(cell.budget)}-{rate}-seed{cell.seed}-{cell.id}"
    return f"{cell.variant}/{name}"


def scalars(
    events: Iterable[Event], open_writer: Callable[[Cell], Writer]
) -> Generator[Event, None, None]:
    """Pass events on, having written what they say. Close it, or its last seconds may be lost.

    Args:
        open_writer: of a cell; raises an IsoflopError, as its writer does, if it cannot be.
    """
    runs: dict[str, _Run] = {}
    try:
        for event in events:
            cell = event.cell
            if cell.id not in runs:
                runs[cell.id] = _Run(cell, open_writer(cell))
            runs[cell.id].write(event)
            if event.record is not None:
                runs.pop(cell.id).writer.close(ended=True)
            yield event
    finally:
        for run in runs.values():
            run.writer.close(ended=False)


class _Run:
    """What has been written of one cell."""

    def __init__(self, cell: Cell, writer: Writer) -> None:
        self.cell, self.writer, self.step = cell, writer, 0

    def write(self, event: Event) -> None:
        """Every entry of the loss curve once, in order; the validation loss at the end."""
        if event.progress is not None:
            self._curve(event.progress.curve)
            speed = event.progress.tokens_per_second
            self.writer.add("train/tokens_per_second", speed, event.progress.step)
        record = event.record
        if record is not None:
            self._curve(record.curve)
            if record.loss is not None:
                self.writer.add("validation/loss", record.loss, record.steps)
            if record.bits_per_byte is not None:
                self.writer.add("validation/bits_per_byte", record.bits_per_byte, record.steps)

    def _curve(self, points: list[tuple[int, float]]) -> None:
        from isoflop.bench.step import learning_rate_at

        cell = self.cell
        for step, loss in points:
            if step > self.step:
                rate = learning_rate_at(step - 1, cell.steps, cell.learning_rate, cell.training)
                self.writer.add("train/loss", loss, step)
                self.writer.add("train/learning_rate", rate, step)
                self.step = step
