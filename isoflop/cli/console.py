"""What the verbs share: the typer application, tables, numbers as they are printed."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from isoflop.results.errors import printable

# Verbs import what they need when they run: `report` must not wait for torch.
app = typer.Typer(
    name="isoflop",
    help="At equal compute, is a feed-forward layer better, and does the gain hold?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

WIDTH = 200  # columns where the output is no terminal
NARROWEST = 9  # columns that an entry of a table needs, its frame included

Json = Annotated[bool, typer.Option("--json", help="Print only JSON.")]


def show(rows: list[dict[str, Any]], title: str, as_json: bool) -> None:
    """Print rows as a table, or as JSON alone; one entry a line where no table fits."""
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(printable(title), style="bold", highlight=False, markup=False)
    table = Table(header_style="bold")
    for key in rows[0] if rows else []:
        numeric = all(isinstance(row[key], int | float | None) for row in rows)
        table.add_column(key.replace("_", " "), justify="right" if numeric else "left")
    for row in rows:
        # As Text, since a string such as [red] would be taken for markup.
        table.add_row(*(Text(printable(readable(value))) for value in row.values()))
    columns = len(table.columns)
    if columns * NARROWEST > console.width:
        for row in rows:
            for key, value in row.items():
                text = f"{key.replace('_', ' ')}: {printable(readable(value))}"
                console.print(Text(text), soft_wrap=True)
            console.print()
        return
    console.print(table)


def readable(value: Any) -> str:
    """A table entry, of which JSON has every digit: three or four are enough to read."""
    if value is None:
        return "-"
    if isinstance(value, list):
        return ", ".join(readable(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value and (abs(value) >= 1e6 or abs(value) < 1e-2):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
