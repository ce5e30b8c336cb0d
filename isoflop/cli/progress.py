"""Watching a run: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from threading import Lock
from time import monotonic
from typing import TypeVar

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text

from isoflop.analysis.report.format import flops
from isoflop.bench.engines.contract import Event
from isoflop.bench.plan import Cell
from isoflop.results.errors import printable
from isoflop.results.record import Record

T = TypeVar("T")
NAME_WIDTH = 10  # characters of a variant's name that are not given up for a column


def name_of(cell: Cell) -> str:
    return f"{cell.variant} {cell.size.name} {flops(cell.budget)} FLOPs, seed {cell.seed}"


def outcome_of(record: Record) -> str:
    """What came out of a cell, in a few words."""
    if record.loss is None or record.bits_per_byte is None:
        return f"{record.status}: {record.message}"
    return (
        f"loss {record.loss:.4f} nats, {record.bits_per_byte:.3f} bits per byte, "
        f"{record.measured.tokens_per_second or 0:,.0f} tokens/s"
    )


def watch(
    events: Iterable[Event], cells: list[Cell], before: list[Record], console: Console
) -> list[Record]:
    """Show a run as it goes and return the records it made.

    On a terminal: a table of all cells, a bar for each running cell and one for the FLOPs with the
    time left; a line for a cell that does not finish. Elsewhere: a line for each cell that ends.

    Args:
        cells: all of them.
        before: records of those that are not trained again.
    """
    view = _View(cells, before, console)
    records: list[Record] = []
    begin = monotonic()
    live = console.is_interactive
    with Live(get_renderable=view.draw, console=console) if live else nullcontext():
        for event in events:
            view.update(event)
            record = event.record
            note = event.warning
            if event.stored:
                note = "another process stored its record first; this one's is dropped"
            if note:
                text = printable(f"{name_of(event.cell)}: {note}")
                console.print(text, highlight=False, markup=False, soft_wrap=True)
            if record is None:
                continue
            records.append(record)
            line = f"[{len(records)}/{view.cells}] {name_of(event.cell)}: {outcome_of(record)}"
            if not live:
                left = (monotonic() - begin) * (view.total / view.done - 1)
                line += (
                    f"; {flops(view.done)} of {flops(view.total)} FLOPs, "
                    f"about {left / 60:.0f} min left"
                )
            if not live or record.status != "finished":
                style, line = "red" if live else "", printable(line)
                console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
    return records


@dataclass
class _Entry:
    """The cells of one variant at one budget."""

    cells: int = 0
    finished: int = 0
    bad: int = 0  # failed or diverged
    loss: float | None = None  # the lowest so far

    def add(self, record: Record) -> None:
        self.finished += record.status == "finished"
        self.bad += record.status != "finished"
        if record.loss is not None:
            self.loss = record.loss if self.loss is None else min(self.loss, record.loss)


class _View:
    """What is known of a run, and how it looks now.

    Attributes:
        cells, total: to be trained: their number, and their FLOPs.
        done: FLOPs of the cells that have ended.
    """

    def __init__(self, cells: list[Cell], before: list[Record], console: Console) -> None:
        self.console = console
        self.variants = list(dict.fromkeys(cell.variant for cell in cells))
        self.budgets = sorted({cell.budget for cell in cells})
        self.entries = {
            budget: {variant: _Entry() for variant in self.variants} for budget in self.budgets
        }
        there = {record.cell: record for record in before}
        for cell in cells:  # of a record, the id alone counts: a variant may have a new name
            entry = self.entries[cell.budget][cell.variant]
            entry.cells += 1
            if cell.id in there:
                entry.add(there[cell.id])
        todo = [cell for cell in cells if cell.id not in there]
        self.cells, self.total = len(todo), sum(cell.flops for cell in todo)
        self.done, self.ended = 0, 0
        self.spent: dict[str, int] = {}  # FLOPs of the running cells
        self.progress = Progress(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=36)),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[note]}", justify="right"),
            TimeRemainingColumn(compact=True),
            console=console,
            expand=True,
            speed_estimate_period=3600,  # of a long cell, minutes pass between two reports
        )
        self.suite = self.progress.add_task("", total=self.total, note="")
        self.bars: dict[str, TaskID] = {}  # of the running cells, the oldest first
        self.running: dict[str, Cell] = {}
        self.lock = Lock()  # a thread of rich's draws while ours updates
        self._update_suite()

    def update(self, event: Event) -> None:
        if event.warning:  # no more than a line, and of a cell that may have ended
            return
        with self.lock:
            cell = event.cell
            if cell.id not in self.bars:
                name = f"{cell.variant} {cell.size.name} {flops(cell.budget)} seed {cell.seed}"
                self.bars[cell.id] = self.progress.add_task(name, total=cell.steps, note="")
                self.running[cell.id] = cell
            if event.progress is not None:
                step = event.progress
                self.spent[cell.id] = cell.flops * step.step // cell.steps
                self.progress.update(
                    self.bars[cell.id],
                    completed=step.step,
                    note=f"loss {step.loss:.3f}, {step.tokens_per_second:,.0f} tokens/s",
                )
            if event.stopped:
                self.progress.remove_task(self.bars.pop(cell.id))
                self.running.pop(cell.id)
            if event.record is not None:
                self.entries[cell.budget][cell.variant].add(event.record)
                self.progress.remove_task(self.bars.pop(cell.id))
                self.running.pop(cell.id)
                self.spent.pop(cell.id, None)
                self.done += cell.flops
                self.ended += 1
            self._update_suite()

    def _update_suite(self) -> None:
        so_far = self.done + sum(self.spent.values())
        self.progress.update(
            self.suite,
            completed=so_far,
            description=f"{self.ended} of {self.cells} cells",
            note=f"{flops(so_far)} of {flops(self.total)} FLOPs",
        )

    def draw(self) -> RenderableType:
        """Table, bars and total, in the lines and columns there are."""
        with self.lock:
            lines = self.console.height - 1
            tasks = {task.id: task for task in self.progress.tasks}
            bars = [tasks[bar] for bar in list(self.bars.values())[: max(1, lines // 3)]]
            hidden = len(self.bars) - len(bars)
            note = [Text(f"and {hidden} more running", style="dim")] if hidden else []
            # Beside the rows: two lines of header, the caption, a blank line, the total.
            room = lines - len(bars) - len(note) - 5
            if not bars and self.ended < self.cells:
                note = [Text("starting", style="dim")]
            return Group(
                *self._table(max(1, room)),
                Text(),
                *([self.progress.make_tasks_table(bars)] if bars else []),
                *note,
                self.progress.make_tasks_table([tasks[self.suite]]),
            )

    def _table(self, room: int) -> list[RenderableType]:
        """The part of the table that fits, around what is running, and a caption."""
        entries = [entry for row in self.entries.values() for entry in row.values()]
        widths = [
            max(len(_bad(entry)) for entry in entries),
            max(len(f"{entry.finished}/{entry.cells}") for entry in entries),
            max(len(_loss(entry)) for entry in entries),
        ]
        width = sum(widths) + (2 if widths[0] else 1) + 2  # with the gap beside it
        name = self.console.width - width * len(self.budgets)
        name = min(max(name, NAME_WIDTH), max(map(len, ["variant", *self.variants])))
        columns = (self.console.width - name) // width
        oldest = next(iter(self.running.values()), None)
        budgets = _window(self.budgets, max(1, columns), oldest.budget if oldest else None)
        variants = _window(self.variants, room, oldest.variant if oldest else None)
        table = Table(
            box=box.SIMPLE_HEAD,
            show_edge=False,
            pad_edge=False,
            padding=(0, 1, 0, 0),
            header_style="bold",
        )
        table.add_column("variant", no_wrap=True, max_width=name)
        for budget in budgets:
            table.add_column(flops(budget), no_wrap=True, justify="right")
        for variant in variants:
            row = [_text(self.entries[budget][variant], widths) for budget in budgets]
            table.add_row(Text(variant), *row)
        caption = "finished/all, lowest loss in nats, ✗ failed or diverged"
        if len(budgets) < len(self.budgets):
            caption = f"{len(budgets)} of {len(self.budgets)} budgets; {caption}"
        if len(variants) < len(self.variants):
            caption = f"{len(variants)} of {len(self.variants)} variants, {caption}"
        return [table, Text(caption, style="dim", no_wrap=True, overflow="ellipsis")]


def _window(items: list[T], room: int, at: T | None) -> list[T]:
    """`room` consecutive items, around one of them."""
    middle = items.index(at) if at is not None else 0
    first = max(0, min(middle - room // 2, len(items) - room))
    return items[first : first + room]


def _text(entry: _Entry, widths: list[int]) -> Text:
    """Three parts of equal width in all entries; nothing where the suite has no such cells."""
    if not entry.cells:
        return Text("-", style="dim")
    complete = entry.finished + entry.bad == entry.cells
    return Text.assemble(
        (_bad(entry).rjust(widths[0]) + " " if widths[0] else "", "bold red"),
        (f"{entry.finished}/{entry.cells} ".rjust(widths[1] + 1), "green" if complete else "dim"),
        (_loss(entry).rjust(widths[2]), "" if entry.finished else "dim"),
    )


def _loss(entry: _Entry) -> str:
    return "-" if entry.loss is None else f"{entry.loss:.3f}"


def _bad(entry: _Entry) -> str:
    return f"✗{entry.bad}" if entry.bad else ""
