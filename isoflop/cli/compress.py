"""The verb `compress`: kept models, made smaller after training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from isoflop.cli.console import Json, app, show
from isoflop.cli.evaluate import cells_of, tokens_of
from isoflop.cli.options import described, options_of
from isoflop.results.compressed import FOLDER, Compressed
from isoflop.results.errors import IsoflopError, did_you_mean
from isoflop.results.record import Record, load_records


@app.command()
def compress(
    suite: Annotated[
        str, typer.Argument(help="A suite that was run with --keep-models, or the run's folder.")
    ],
    method: Annotated[
        str, typer.Option("--method", help="A method's name, or path/to/file.py:Class.")
    ],
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="Of the method, in TOML or a word; values between commas: each.",
        ),
    ] = None,
    recover: Annotated[
        str, typer.Option("--recover", help="Training after it, in shares of a cell's FLOPs.")
    ] = "0",
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="Only this variant; may be repeated.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option("--size", help="Only this size; may be repeated.")
    ] = None,
    budget: Annotated[float | None, typer.Option("--budget", help="Only this budget.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Calibration seeds.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Calibration tokens.")] = 16384,
    calibration: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Text to calibrate on; else the training text."),
    ] = None,
    second: Annotated[
        str | None,
        typer.Option(
            "--continue",
            metavar="PATH",
            help="Text to train on before the method, which it scores.",
        ),
    ] = None,
    second_share: Annotated[
        str, typer.Option("--continue-share", help="Of a cell's FLOPs, for --continue.")
    ] = "20%",
    data: Annotated[
        list[str] | None,
        typer.Option("--data", metavar="PATH", help="A further text to score; may be repeated."),
    ] = None,
    text: Annotated[
        str, typer.Option("--text", help="Column that holds the text, in files of rows.")
    ] = "text",
    as_json: Json = False,
) -> None:
    """Make kept models smaller by a method, and record what that costs in loss."""
    from isoflop.bench.evaluate import check_path, read_set
    from isoflop.bench.kept_models import model_path
    from isoflop.bench.methods.compress import Kept, Request
    from isoflop.bench.methods.further import Continuation
    from isoflop.bench.methods.parallel import Unfit, compress_all

    choices, shares = options_of(option or []), shares_of(recover)
    further = shares_of(second_share, "--continue-share")
    if len(further) != 1 or not further[0]:
        raise IsoflopError(f"--continue-share: {second_share}: give one share such as 20%")
    for path in data or []:
        check_path(path)
    for given, name in ((calibration, "--calibration"), (second, "--continue")):
        if given:
            check_path(given, name)
    folder = folder_of(suite)
    models = folder / "models"
    records = [
        record
        for record in chosen(load_records(folder / "records"), variant, size, budget)
        if model_path(models, record.cell).exists()
    ]
    if not records:
        raise IsoflopError(
            f"{models}: no weights of such a cell: `isoflop run SUITE --out {folder} "
            "--keep-models` trains and keeps them, in a folder without records"
        )
    cells = cells_of(folder, records)
    corpus = tokens_of(folder, cells[0], records[0])
    context = cells[0].training.context
    others = [read_set(path, text, corpus, context, None) for path in data or []]
    own = None
    if calibration:
        own = read_set(calibration, text, corpus, context, None, option="--calibration")
    continuation = None
    if second:
        read = read_set(second, text, corpus, context, None, option="--continue")
        continuation = Continuation(read, further[0])
    request = Request(method, choices, seeds, tokens, shares, own)
    made: list[Compressed] = []
    unfit: dict[str, str] = {}
    sources = [
        Kept(cell, record, models, corpus.folder, others, continuation)
        for cell, record in zip(cells, records, strict=True)
    ]
    for item in compress_all(sources, request, folder / FOLDER):
        if isinstance(item, Unfit):
            if variant:
                raise IsoflopError(f"{item.variant}: {item.why}")
            unfit[item.variant] = item.why
            continue
        made.append(item)
        done = f"{item.variant} {item.size.name}: {item.method}, loss {item.scored[0]:.4f}"
        print(done, file=sys.stderr, flush=True)
    made.sort(key=lambda item: (item.budget, item.variant, item.size.width, item.seed))
    if not made:
        raise IsoflopError("; ".join(f"{name}: {why}" for name, why in unfit.items()))
    for name, why in unfit.items():
        print(f"note: {name} is left out: {why}", file=sys.stderr)
    show([row(item) for item in made], f"{made[0].method}, from {folder}", as_json)
    if not as_json:
        print(f"`isoflop report {folder}` sets them beside smaller models of the suite")


@app.command()
def methods(as_json: Json = False) -> None:
    """List the methods of `compress`, with options and their defaults."""
    from isoflop.bench.methods import METHODS

    rows = []
    for name in sorted(METHODS):
        what, options = described(METHODS[name])
        rows.append({"method": name, "what": what, "options": options})
    show(rows, "Methods", as_json)


def row(item: Compressed) -> dict[str, Any]:
    """A record as a row of the table."""
    return {
        "variant": item.variant,
        "size": item.size.name,
        "budget": item.budget,
        "seed": item.seed,
        "method": item.method,
        "options": ", ".join(f"{key} {value}" for key, value in item.options.items()),
        "calibration_seed": item.calibration.seed,
        "recovery": item.recovery.share,
        "loss": item.scored[0],
        "change": item.scored[0] - item.scored[1],
        "parameters": item.parameters.total,
        "stored_bytes": item.stored_bytes,
        "flops_per_token": item.measured_flops_per_token,
    }


def folder_of(suite: str) -> Path:
    """The folder of a run: the argument, or that of the suite's name under runs/.

    Raises:
        IsoflopError: there is none, or no such suite.
    """
    from isoflop.bench.suite import load_suite

    given = Path(suite)
    folder = given if given.is_dir() else Path("runs") / load_suite(suite).name
    if not (folder / "records").is_dir():
        raise IsoflopError(f"{folder}: no records there: `isoflop run {suite} --keep-models` first")
    return folder


def chosen(
    records: list[Record], variants: list[str] | None, sizes: list[str] | None,
    budget: float | None,
) -> list[Record]:  # fmt: skip
    """The finished records that were asked for; choices of an ablation are left out.

    Raises:
        IsoflopError: there is no such variant, size or budget.
    """
    for name, asked, known in (
        ("--variant", variants, sorted({record.variant for record in records})),
        ("--size", sizes, sorted({record.size.name for record in records})),
    ):
        for value in asked or []:
            if value not in known:
                raise IsoflopError(
                    f"{name}: no {value!r} here{did_you_mean(value, known)}; "
                    f"there are: {', '.join(known)}"
                )
    budgets = sorted({record.budget for record in records})
    if budget is not None and budget not in budgets:
        listed = ", ".join(f"{value:g}" for value in budgets)
        raise IsoflopError(f"--budget: no {budget:g} here; there are: {listed}")
    return [
        record
        for record in records
        if record.status == "finished"
        and record.ablation is None
        and (not variants or record.variant in variants)
        and (not sizes or record.size.name in sizes)
        and budget in (None, record.budget)
    ]


def shares_of(text: str, option: str = "--recover") -> list[float]:
    """`0,1%,5%` or `0,0.01,0.05` as shares, each once.

    Args:
        option: that gave them, for messages.
    Raises:
        IsoflopError: one is no number from 0 to 100%.
    """
    shares = []
    for part in text.split(","):
        try:
            share = float(part.strip().removesuffix("%")) / (100 if "%" in part else 1)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise IsoflopError(f"{option}: {part.strip()!r}: give shares such as 0,1%,5%")
        if share not in shares:
            shares.append(share)
    return shares
