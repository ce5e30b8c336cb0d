"""What the verbs share: the typer application, tables, and training with progress."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from bench.record import write_whole
from bench.suite import suite_path

if TYPE_CHECKING:
    from bench.plan import Cell

# Verbs import what they need when they run: `report` must not wait for torch.
app = typer.Typer(
    name="isoflop",
    help="At equal compute, is a feed-forward layer better, and does the gain hold?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Json = Annotated[bool, typer.Option("--json", help="Print only JSON.")]


def show(rows: list[dict[str, Any]], title: str, as_json: bool) -> None:
    """Print rows as a table, or as JSON alone."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table(header_style="bold")
    for key in rows[0] if rows else []:
        numeric = all(isinstance(row[key], int | float | None) for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(readable(value) for value in row.values()))
    console = Console()
    if not console.is_terminal:
        console.width = 200
    console.print(title, style="bold", highlight=False)
    console.print(table)


def readable(value: Any) -> str:
    """A table entry: three or four digits are enough for eyes; JSON has them all."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value and (abs(value) >= 1e6 or abs(value) < 1e-2):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def short(value: float) -> str:
    """FLOPs in three digits, such as 4.5e11."""
    return f"{value:.3g}".replace("e+0", "e").replace("e+", "e")


def train(
    cells: list[Cell],
    directory: Path,
    records: Path,
    suite: str,
    tensorboard: Path | None = None,
) -> None:
    """Train what is missing under `directory`. Progress is on stderr: stdout is for results."""
    from bench.flops import verify_flops
    from bench.progress import outcome_of, watch
    from bench.record import read_record
    from bench.run import missing, run_cells
    from bench.tensorboard import scalars

    console = Console(stderr=True)
    say = functools.partial(print, file=sys.stderr, flush=True)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "suite.toml", suite_path(suite).read_text(encoding="utf-8"))
    todo = missing(cells, records)
    if not todo:
        say(f"nothing to train: all {len(cells)} cells have records in {records}")
        return
    say(f"{len(todo)} of {len(cells)} cells to train; records go to {records}")
    counted = set()
    for cell in todo:  # before any training: a wrong count would void every cell
        if (cell.variant, cell.size.name) not in counted:
            verify_flops(cell.config, cell.training.micro_batch or cell.training.batch)
            counted.add((cell.variant, cell.size.name))
    left = {cell.id for cell in todo}
    before = [read_record(records / f"{cell.id}.json") for cell in cells if cell.id not in left]
    events = run_cells(todo, records)
    try:
        with contextlib.closing(scalars(events, tensorboard) if tensorboard else events) as shown:
            made = watch(shown, cells, before, console)
    except KeyboardInterrupt:
        say("interrupted; finished records are whole, the same command goes on from them")
        raise typer.Exit(130) from None
    for record in (one for one in made if one.status != "finished"):
        say(f"not finished: {record.variant} {record.size.name}: {outcome_of(record)}")
