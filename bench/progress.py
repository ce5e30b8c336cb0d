"""Progress of a run: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from bench.plan import Cell
from bench.record import Record
from bench.run import Event


def name_of(cell: Cell) -> str:
    return f"{cell.variant} {cell.size.name} {cell.budget:.2g} FLOPs, seed {cell.seed}"


def outcome_of(record: Record) -> str:
    """What came out of a cell, in a few words."""
    if record.loss is None or record.bits_per_byte is None:
        return f"{record.status}: {record.message}"
    return (
        f"loss {record.loss:.4f} nats, {record.bits_per_byte:.3f} bits per byte, "
        f"{record.measured.tokens_per_second or 0:,.0f} tokens/s"
    )


def watch(events: Iterable[Event], cells: list[Cell], console: Console) -> list[Record]:
    """Show a run as it goes and return the records it made.

    On a terminal: one bar for the suite's FLOPs with the time left, one for each running cell.
    Elsewhere: a line for each finished cell.
    """
    total = sum(cell.flops for cell in cells)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[note]}"),
        TimeRemainingColumn(compact=True),
    )
    records: list[Record] = []
    begin, done = monotonic(), 0
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        suite = progress.add_task("suite", total=total, note=f"0 of {total:.2g} FLOPs")
        bars: dict[str, TaskID] = {}
        spent: dict[str, int] = {}
        for event in events:
            cell = event.cell
            if cell.id not in bars:
                bars[cell.id] = progress.add_task(name_of(cell), total=cell.steps, note="")
            if event.progress is not None:
                step = event.progress
                spent[cell.id] = cell.flops * step.step // cell.steps
                progress.update(
                    bars[cell.id],
                    completed=step.step,
                    note=f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s",
                )
            if event.record is not None:
                spent.pop(cell.id, None)
                done += cell.flops
                records.append(event.record)
                progress.remove_task(bars[cell.id])
                left = (monotonic() - begin) * (total / done - 1)
                line = f"[{len(records)}/{len(cells)}] {name_of(cell)}: {outcome_of(event.record)}"
                if not console.is_terminal:
                    line += f"; {done:.2g} of {total:.2g} FLOPs, about {left / 60:.0f} min left"
                progress.console.print(line, highlight=False, markup=False, soft_wrap=True)
            so_far = done + sum(spent.values())
            progress.update(suite, completed=so_far, note=f"{so_far:.2g} of {total:.2g} FLOPs")
    return records
