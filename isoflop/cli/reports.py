"""The verbs that read records and run tables: `report`, `show`. They need no torch."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from isoflop.analysis.report.format import flops
from isoflop.cli.console import Json, app, readable, show
from isoflop.results.errors import IsoflopError, printable
from isoflop.results.record import Record, RecordError, read_record

# Where `show` looks for a record; the first folder that has it wins.
RECORD_FOLDERS = [
    f"{top}/{folder}"
    for top in ("runs/*", "results/*", "results/submissions/*")
    for folder in ("records", "tune")
]
CURVE_LINES = 12


@app.command()
def report(
    directory: Annotated[
        Path | None,
        typer.Argument(help="Results directory; all under runs/ and results/ if not given."),
    ] = None,
    as_json: Json = False,
    margin: Annotated[
        float,
        typer.Option(
            min=0.001, max=0.99, help="A layer within 1 +- this of dense's compute is equivalent."
        ),
    ] = 0.1,
) -> None:
    """Regenerate figures, tables and leaderboard from the records."""
    from isoflop.analysis.report import benchmarks as performance
    from isoflop.analysis.report import leaderboard
    from isoflop.analysis.report.derive import report as write
    from isoflop.results import sources

    directories = [directory] if directory else sources.directories()
    if not directories:
        raise IsoflopError("runs, results: no records there yet; `isoflop run quick` makes some")
    boards = {str(folder): write(folder, Path("README.md"), margin) for folder in directories}
    if directory is None:
        performance.report(performance.STORED, Path("README.md"))
    if as_json:
        print(json.dumps(boards, indent=1))
        return
    for where, rows in boards.items():
        if "axis" in rows[0]:
            show(rows, f"Ablation of {where}: difference from the suite as it is", False)
        else:
            show(leaderboard.brief(rows), f"Leaderboard of {where}", False)
        for row in rows:
            if row.get("flags"):
                print(printable(f"{row['variant']}: {'; '.join(row['flags'])}"))
        page = Path(where) / "index.html"
        print(f"figures, tables{' and a page (index.html)' * page.exists()} are in {where}")


@app.command("show")
def show_cell(
    cell: Annotated[str, typer.Argument(help="A cell's id, its beginning, or a record's file.")],
    as_json: Json = False,
) -> None:
    """Show a record, with its loss curve."""
    path = find_record(cell)
    record = read_record(path)
    if as_json:
        print(record.model_dump_json(indent=1))
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # dots are not in every encoding
    console = Console(highlight=False)
    finished = record.status == "finished"
    title = f"{record.variant}, size {record.size.name}, {flops(record.budget)} FLOPs, "
    console.print(printable(f"{title}seed {record.seed}"), style="bold", markup=False)
    console.print(printable(str(path)), style="dim", markup=False, soft_wrap=True)
    if not finished:
        outcome = printable(f"{record.status}: {record.message}")
        console.print(outcome, style="bold red", markup=False)
    table = Table.grid(padding=(0, 2))
    for group, rows in essentials(record).items():
        table.add_row()
        for index, (key, value) in enumerate(rows.items()):
            table.add_row("" if index else Text(group, style="bold"), key, Text(printable(value)))
    console.print(table)
    console.print()
    if len(record.curve) > 1:
        console.print(draw_curve(record.curve, console.width, CURVE_LINES), markup=False)
    else:
        console.print("no loss curve: it ended before the second entry")


def find_record(cell: str) -> Path:
    """The record's file, by path, id, or the beginning of an id that no other record shares.

    Raises:
        RecordError: there is none, or there are several.
    """
    if Path(cell).is_file():
        return Path(cell)
    if cell.endswith(".json") or "/" in cell:
        raise RecordError(f"{cell}: no such file")
    paths: dict[str, Path] = {}
    for folder in RECORD_FOLDERS:
        for path in sorted(Path().glob(f"{folder}/[!.]*.json")):
            if path.stem.startswith(cell):
                paths.setdefault(path.stem, path)
    if cell in paths:
        return paths[cell]
    if not paths:
        raise RecordError(f"no record of a cell {cell!r} in {', '.join(RECORD_FOLDERS)}")
    if len(paths) > 1:
        names = sorted(paths)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise RecordError(f"{cell!r} begins several cells: {', '.join(names[:8])}{more}")
    return next(iter(paths.values()))


def essentials(record: Record) -> dict[str, dict[str, str]]:
    """Group -> key -> value, in words."""
    size, parts, per_token, measured = (
        record.size,
        record.parameters,
        record.flops_per_token,
        record.measured,
    )
    options = ", ".join(f"{key} {value}" for key, value in record.options.items())
    memory = measured.peak_memory_bytes
    device = measured.device
    if measured.threads is not None:
        device += f", {measured.threads} thread{'s' if measured.threads > 1 else ''}"
    return {
        "asked": {
            "suite": record.suite,
            "layer": f"{record.layer}: {options or 'no options'}",
            "placement": str(record.placement),
            "size": f"width {size.width}, depth {size.depth}, {size.heads} heads",
            "corpus": f"{record.corpus}, vocabulary {record.vocabulary:,}",
            "batch": f"{record.batch} sequences of {record.context} tokens",
            "learning rate": f"{record.learning_rate:.4g} at its peak",
        },
        "spent": {
            "FLOPs": f"{record.flops:.4g}"
            + (f", {record.planned_flops:.4g} planned" if record.planned_flops else ""),
            "tokens": f"{record.tokens:,} in {record.steps:,} steps, {record.epochs:.3g} epochs",
            "time": f"{measured.seconds:,.1f} s, of which training {measured.train_seconds:,.1f} s",
        },
        "came out": {
            "status": record.status,
            "loss": "-" if record.loss is None else f"{record.loss:.4f} nats per token, validation",
            "bits per byte": readable(record.bits_per_byte),
            "validation text": record.validation_hash or "-",
        },
        "counts": {
            "parameters": f"{parts.active:,} active, {parts.total:,} in total",
            "of which layer": f"{parts.layer_active:,} active, {parts.layer_total:,} in total",
            "FLOPs per token": f"{per_token.forward:,} forward: attention "
            f"{per_token.attention:,}, FFN {per_token.ffn:,}, routing {per_token.routing:,}, head "
            f"{per_token.head:,}",
            "layer reads": f"{record.layer_bytes_per_token:,} bytes per token in bf16",
        },
        "measured": {
            "device": device,
            "tokens/s": "-"
            if measured.tokens_per_second is None
            else f"{measured.tokens_per_second:,.0f}",
            "peak memory": "-" if memory is None else f"{memory / 2**20:,.0f} MiB",
            "started": measured.started,
            "versions": ", ".join(
                f"{name} {version}" for name, version in measured.versions.items()
            ),
            "revision": measured.git_revision or "-",
        },
    }


def draw_curve(curve: list[tuple[int, float]], width: int, lines: int) -> str:
    """A loss curve in braille, two by four dots a character, with its axes.

    Args:
        curve: (step, loss) by step, two entries or more.
        width: columns in all.
        lines: of the drawing; title, axis and step numbers take three more.
    """
    steps, losses = np.array(curve).T
    low, high = losses.min(), losses.max()
    labels = {0: f"{high:.3f}", lines // 2: f"{(low + high) / 2:.3f}", lines - 1: f"{low:.3f}"}
    margin = max(map(len, labels.values()))
    columns = max(1, width - margin - 2)
    across = np.linspace(steps[0], steps[-1], 2 * columns)
    share = (high - np.interp(across, steps, losses)) / ((high - low) or 1)
    rows = np.rint(share * (4 * lines - 1)).astype(int)
    canvas = np.full((lines, columns), 0x2800)  # the empty pattern; a bit for each dot
    bits = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
    for x, (row, before) in enumerate(zip(rows, [rows[0], *rows], strict=False)):
        start = row if row == before else before + (1 if row > before else -1)
        for y in range(min(start, row), max(start, row) + 1):  # no gap where it is steep
            canvas[y // 4, x // 2] |= bits[x % 2][y % 4]
    drawn = [
        f"{labels.get(line, ''):>{margin}} {'┤' if line in labels else '│'}"
        + "".join(map(chr, canvas[line])).rstrip(chr(0x2800))
        for line in range(lines)
    ]
    first, last = f"{steps[0]:,.0f}", f"{steps[-1]:,.0f}"
    below = "steps".center(max(0, columns - len(first) - len(last)))
    return "\n".join(
        [
            "training loss, nats per token",
            *drawn,
            f"{'':{margin}} └{'─' * columns}",
            f"{'':{margin}}  {first}{below}{last}",
        ]
    )
