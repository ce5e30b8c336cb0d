"""The verbs `decode` and `locality`: kept mixtures of experts, one token at a time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isoflop.cli.console import Json, app, show
from isoflop.cli.evaluate import cells_of, choose, tokens_of
from isoflop.results.errors import IsoflopError, did_you_mean
from isoflop.results.record import Record, load_records

if TYPE_CHECKING:
    from isoflop.bench.plan import Cell

OFFLOADABLE = ("moe", "moe_shared")  # layers whose experts are read one by one


@app.command()
def decode(
    folder: Annotated[Path, typer.Argument(help="Folder of a run with --keep-models.")],
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="memory, load-all, lru or hobbit; may be repeated."),
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", help="Only this variant; may be repeated.")
    ] = None,
    cache: Annotated[
        float, typer.Option(help="Memory for experts, over that of what a token uses.")
    ] = 2.0,
    high: Annotated[str, typer.Option(help="Precision of exact copies: fp32 or fp16.")] = "fp32",
    low: Annotated[str, typer.Option(help="Of hobbit's low copies: int8, int4 or int2.")] = "int4",
    low_share: Annotated[
        float, typer.Option(min=0, max=1, help="Of the memory, for low copies (hobbit).")
    ] = 0.25,
    t1: Annotated[float, typer.Option(help="Largest score that is read exact (hobbit).")] = 0.6,
    t2: Annotated[float, typer.Option(help="Largest score that is read at all (hobbit).")] = 0.9,
    depth: Annotated[
        int, typer.Option(min=0, max=3, help="Layers ahead to prefetch (hobbit).")
    ] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Held-out tokens to decode.")] = 1024,
    bandwidth: Annotated[
        float, typer.Option(min=1e-6, help="Of the simulated link, GB per second.")
    ] = 1.0,
    latency: Annotated[
        float, typer.Option(min=0, help="Of the simulated link, milliseconds a read.")
    ] = 0.1,
    as_json: Json = False,
) -> None:
    """Decode with experts in a file: speed, bytes read and loss of offloading methods."""
    from isoflop.bench.decoding.measure import (
        METHODS,
        SINGLE,
        Setting,
        calibration_windows,
        held_out_windows,
        measure,
        objection,
    )
    from isoflop.bench.kept_models import load_model, model_path

    for name in method or ():
        if name not in METHODS:
            raise IsoflopError(
                f"--method: no method {name!r}{did_you_mean(name, METHODS)}; known: "
                f"{', '.join(METHODS)}"
            )
    setting = Setting(
        cache=cache,
        high=high,
        low=low,
        low_share=low_share,
        t1=t1,
        t2=t2,
        depth=depth,
        bandwidth=bandwidth * 1e9,
        latency=latency / 1e3,
    )
    rows: list[dict[str, Any]] = []
    for cell, record in best_cells(folder, variant):
        corpus, context = tokens_of(folder, cell, record), cell.training.context
        try:
            measured = measure(
                load_model(model_path(folder / "models", cell.id), cell).eval(),
                held_out_windows(corpus.validation, context, tokens),
                calibration_windows(corpus.train, context),
                folder,
                setting,
                method or METHODS,
            )
        except ValueError as error:
            raise IsoflopError(f"{cell.variant}, size {cell.size.name}: {error}") from None
        rows += [{"variant": cell.variant, "size": cell.size.name} | row for row in measured]
    show(rows, "Decoding at batch 1 on one thread", as_json)
    for name in {row["variant"]: None for row in rows if row["experts_per_token"] == 1}:
        print(f"note: {name}: {SINGLE}", file=sys.stderr)
    for reason in dict.fromkeys(filter(None, map(objection, rows))):
        print(f"note: no speed of reading from a disk is claimed: {reason}", file=sys.stderr)


def best_cells(folder: Path, variants: list[str] | None) -> list[tuple[Cell, Record]]:
    """For each variant whose experts can be read one by one, the first seed of the kept model
    nearest to its compute-optimal size.

    Raises:
        IsoflopError: there is none, or nothing is kept.
    """
    records = kept_records(folder)
    firsts = [choice.records[0] for choice in choose(records, folder / "models")]
    return offloadable(folder, [r for r in firsts if variants is None or r.variant in variants])


def kept_records(folder: Path) -> list[Record]:
    """The records of a run, ablations left out.

    Raises:
        IsoflopError: there are none.
    """
    records = [record for record in load_records(folder / "records") if record.ablation is None]
    if not records:
        raise IsoflopError(f"{folder / 'records'}: no records here; give the folder of a run")
    return records


def offloadable(folder: Path, records: list[Record]) -> list[tuple[Cell, Record]]:
    """The records, with their cells, of layers whose experts can be read one by one.

    Raises:
        IsoflopError: there is none.
    """
    pairs = zip(cells_of(folder, records), records, strict=True)
    result = [(cell, record) for cell, record in pairs if cell.layer in OFFLOADABLE]
    if not result:
        raise IsoflopError(
            f"{folder / 'models'}: no kept model of such a variant has experts that can be read "
            f"one by one: those of {' and '.join(OFFLOADABLE)} can"
        )
    return result


@app.command("locality")
def show_locality(
    folder: Annotated[Path, typer.Argument(help="Folder of a run with --keep-models.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for table and figure; FOLDER/locality if not given.")
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Held-out tokens to route.")] = 4096,
    as_json: Json = False,
) -> None:
    """Routing locality and cache hit rates of kept mixtures of experts, by granularity."""
    from isoflop.analysis.report.locality import documents
    from isoflop.bench.decoding.locality import locality
    from isoflop.bench.decoding.measure import held_out_windows
    from isoflop.bench.decoding.routed import routed_blocks
    from isoflop.bench.decoding.trace import record_trace
    from isoflop.bench.kept_models import load_model, model_path
    from isoflop.results.files import write_whole

    kept = [
        record
        for record in kept_records(folder)
        if record.status == "finished" and model_path(folder / "models", record.cell).exists()
    ]
    rows: list[dict[str, Any]] = []
    for cell, record in offloadable(folder, kept):
        corpus, context = tokens_of(folder, cell, record), cell.training.context
        model = load_model(model_path(folder / "models", cell.id), cell).eval()
        windows = held_out_windows(corpus.validation, context, tokens)
        trace, block = record_trace(model, windows[:, :-1]), routed_blocks(model)[0]
        expert_bytes = 4 * (block.up_EDF[0].numel() + block.down_EFD[0].numel())
        rows.append(
            {
                "variant": cell.variant,
                "size": cell.size.name,
                "budget": cell.budget,
                "seed": cell.seed,
                "loss": record.loss,
            }
            | locality(trace, expert_bytes)
        )
    rows.sort(key=lambda row: (row["budget"], row["size"], row["experts_per_token"], row["seed"]))
    folder_out = out or folder / "locality"
    folder_out.mkdir(parents=True, exist_ok=True)
    for name, content in documents(rows).items():
        write_whole(folder_out / name, content)
    if not as_json:  # the files have the rest, for which a terminal has no room
        rows = [{k: v for k, v in row.items() if not k.startswith("bytes")} for row in rows]
    show(rows, "Routing locality", as_json)
    if not as_json:
        print(f"table and figure: {folder_out}")
