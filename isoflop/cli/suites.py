"""The verbs about suites: `suites`, `flops`, `plan`, `run`, `tune`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.analysis.report.format import flops as show_flops
from isoflop.bench.seeds import first_seeds, with_seeds
from isoflop.bench.suite import Suite, load_suite, shipped_suites, suite_path
from isoflop.cli.console import Json, app, show
from isoflop.cli.engines import EngineOptions, On, find_engine
from isoflop.cli.fields import suite_fields
from isoflop.cli.power import Noise, Power, show_power
from isoflop.cli.price import DeviceOption, Price, Workers, check_price, find_device, show_price
from isoflop.cli.ready import ready
from isoflop.cli.reports import report
from isoflop.cli.tensorboard import TensorBoard
from isoflop.cli.time_limit import TimeLimit
from isoflop.cli.wandb import Wandb

if TYPE_CHECKING:
    from isoflop.bench.cost import Device
    from isoflop.bench.plan import Cell

SuiteArgument = Annotated[str, typer.Argument(help="A shipped suite's name, or a TOML file.")]
Out = Annotated[
    Path | None, typer.Option("--out", help="Results directory; runs/<suite> if not given.")
]
Shard = Annotated[
    str | None, typer.Option(metavar="K/N", help="Only this machine's share of the cells.")
]
Seeds = Annotated[
    int | None,
    typer.Option(
        min=1, max=1000, show_default="its", help="Seeds per cell, those of the suite first."
    ),
]


@app.command()
def suites(
    device: DeviceOption = "cpu",
    fields: Annotated[
        bool, typer.Option("--fields", help="List the keys of a suite file instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the suites that come with isoflop, and what they cost. Trains nothing."""
    if fields:
        show(suite_fields(), "Keys of a suite file", as_json)
        return
    target = find_device(device)
    rows = []
    for name in shipped_suites():
        suite, cells = load_cells(name)
        rows.append(
            {
                "suite": suite.name,
                "description": suite.description,
                "variants": list(suite.variants),
                "budgets": [budget.flops for budget in suite.budgets],
                "cells": len(cells),
                "flops": sum(cell.flops for cell in cells),
                "minutes": minutes(cells, target),
            }
        )
    show(rows, f"Suites; minutes are a rough figure for {target.name}", as_json)


@app.command()
def flops(suite: SuiteArgument = "quick", as_json: Json = False) -> None:
    """Show forward FLOPs per token of every variant and size, by formula and by fvcore's trace."""
    from isoflop.bench.flops import backward_ratio, verify_flops

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
    device: DeviceOption = "cpu",
    seeds: Seeds = None,
    on: On = "local",
    workers: Workers = None,
    price: Price = None,
    power: Power = False,
    noise: Noise = None,
    as_json: Json = False,
) -> None:
    """Show the cells of a suite and what they cost. Trains nothing."""
    check_price(on, workers, price)
    if power:
        show_power(*load_cells(suite, seeds), str(suite_path(suite)), noise, as_json)
        return
    from isoflop.bench.plan import sweep_cells
    from isoflop.bench.policy import PROCESS_BYTES, need, schedule
    from isoflop.bench.preflight import check, epochs_note

    target = find_device(device)
    described, cells = load_cells(suite, seeds)
    # A local corpus is tokenised now; a hub corpus is only looked up in the cache.
    tokens = check(described, cells, str(suite_path(suite)), fetch=False)
    sweep = sweep_cells(described, str(suite_path(suite))) if described.tune else []
    needs = [(cell, need(cell, target)) for cell in cells]
    if (most := max(needed.bytes for _, needed in needs)) > target.memory:
        print(
            f"a cell takes {most / 1e9:.0f} GB, more than the {target.memory / 1e9:.0f} GB there: "
            "set training.micro_batch",
            file=sys.stderr,
        )
    if workers:
        show_price(
            described.name, {"tune": sweep, "run": cells}, target, on, workers, price, as_json
        )
        return
    rows = [
        {
            "variant": cell.variant,
            "size": cell.size.name,
            "budget": cell.budget,
            "seed": cell.seed,
            "tokens": cell.tokens,
            "steps": cell.steps,
            "epochs": cell.tokens / len(tokens.train)
            if tokens and cell.corpus == described.corpus
            else None,
            "active_parameters": cell.parameters.active,
            "total_parameters": cell.parameters.total,
            "seconds": needed.seconds,
            "memory_bytes": needed.bytes,
            "compiled": needed.compiled,
        }
        for cell, needed in needs
    ]
    show(rows, f"{described.name} on {target.name}", as_json)
    if tokens is None:
        note = f"epochs are not known: {described.corpus.source} is not in the cache yet"
    else:
        note = epochs_note([cell for cell in cells if cell.corpus == described.corpus], tokens)
    if note:
        print(note, file=sys.stderr)
    if as_json:
        return
    how = schedule(cells, target, places(target, cells))
    ranks = described.training.gpus_per_cell
    largest = sorted((needed.bytes for _, needed in needs), reverse=True)
    memory = ranks * sum(largest[: how.at_a_time])
    where = target.name if ranks == 1 or target.name == "cpu" else f"{ranks} x {target.name}"
    print(
        f"{len(cells)} cells, {show_flops(sum(cell.flops for cell in cells))} FLOPs, about "
        f"{how.seconds / 60:.0f} min on {where} with {how.at_a_time} at a time (a rough figure), "
        f"{memory / 2**30:.1f} GiB at most"
    )
    if target.name != "cpu":
        print(
            f"{how.compiled} of {len(cells)} cells compiled: those whose training time repays it; "
            f"each process takes {PROCESS_BYTES / 2**30:.1f} GiB more"
        )
    if sweep:
        print(
            f"its learning-rate sweep (isoflop tune): {len(sweep)} cells, "
            f"{show_flops(sum(cell.flops for cell in sweep))} FLOPs, about "
            f"{minutes(sweep, target):.0f} min"
        )


@app.command()
def run(
    suite: SuiteArgument = "quick",
    out: Out = None,
    seeds: Seeds = None,
    shard: Shard = None,
    tensorboard: TensorBoard = None,
    wandb: Wandb = None,
    time_limit: TimeLimit = None,
    on: On = "local",
    engine_options: EngineOptions = None,
    keep_models: Annotated[
        bool, typer.Option("--keep-models", help="Store trained weights in models/, by cell.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train the cells that have no record yet, then report."""
    from isoflop.cli.training import train

    engine = find_engine(on, engine_options)
    described, cells = load_cells(suite, seeds)
    directory = out or Path("runs") / described.name
    mine = ready(described, cells, suite, directory / "records", shard)
    train(
        mine,
        directory,
        directory / "records",
        suite,
        tensorboard=tensorboard,
        wandb=wandb,
        time_limit=time_limit,
        keep_models=keep_models,
        engine=engine,
    )
    report(directory, as_json)
    say_missing(cells, directory / "records")


@app.command()
def tune(
    suite: SuiteArgument = "quick",
    out: Out = None,
    shard: Shard = None,
    tensorboard: TensorBoard = None,
    wandb: Wandb = None,
    time_limit: TimeLimit = None,
    on: On = "local",
    engine_options: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Train the learning-rate sweep of the suite: one cell of every variant, at several rates."""
    from isoflop.bench.plan import sweep_cells
    from isoflop.cli.rates import best_rates
    from isoflop.cli.training import train
    from isoflop.results.record import read_record

    engine = find_engine(on, engine_options)
    described = load_suite(suite)
    directory = out or Path("runs") / described.name
    cells = sweep_cells(described, str(suite_path(suite)))
    mine = ready(described, cells, suite, directory / "tune", shard, sweep=True)
    train(
        mine,
        directory,
        directory / "tune",
        suite,
        tensorboard=tensorboard,
        wandb=wandb,
        time_limit=time_limit,
        engine=engine,
    )
    records = []
    losses: dict[tuple[str, str, float, float], list[float | None]] = {}
    for cell in cells:
        path = directory / "tune" / f"{cell.id}.json"
        if path.exists():
            record = read_record(path)
            records.append(record)
            key = (cell.variant, cell.size.name, cell.learning_rate, cell.table_rate)
            losses.setdefault(key, []).append(record.loss)
    rows = []
    for (variant, size, rate, table_rate), by_seed in losses.items():
        finished = [loss for loss in by_seed if loss is not None]
        mean = sum(finished) / len(finished) if finished else None
        row = {"variant": variant, "size": size, "learning_rate": rate, "table_rate": table_rate}
        rows.append(
            row | {"mean_loss": mean, "seeds_finished": f"{len(finished)} of {len(by_seed)}"}
        )
    show(rows, f"Learning-rate sweeps of {described.name}", as_json)
    if not as_json:
        transfer = described.transfer
        print("\n".join(best_rates(records, transfer.width, transfer.exponent)))
        print(f"`isoflop report {directory}` draws them beside the suite's records")
    say_missing(cells, directory / "tune")


def say_missing(cells: list[Cell], records: Path) -> None:
    """Print on stderr how many cells have no record: other machines may still train theirs."""
    absent = sum(not (records / f"{cell.id}.json").exists() for cell in cells)
    if absent:
        print(f"{absent} of {len(cells)} cells have no record in {records} yet", file=sys.stderr)


def places(device: Device, cells: list[Cell]) -> int:
    """Devices like this one that a plan counts with: this machine's cores, or a cell's GPUs."""
    from isoflop.bench.engines.local import cores

    return cores() if device.name == "cpu" else cells[0].training.gpus_per_cell


def minutes(cells: list[Cell], device: Device) -> float:
    """The predicted time of cells on a device; a rough figure."""
    from isoflop.bench.policy import schedule

    return schedule(cells, device, places(device, cells)).seconds / 60


def load_cells(name: str, seeds: int | None = None) -> tuple[Suite, list[Cell]]:
    """A suite and its cells, with the first `seeds` of `first_seeds` at every budget, if given."""
    from isoflop.bench.plan import plan

    suite = load_suite(name)
    if seeds:
        suite = with_seeds(suite, first_seeds(suite.seeds, seeds))
    return suite, plan(suite, str(suite_path(name)))
