"""The verbs for those who bring a layer: `layers`, `new`, `lint`, `compare`, `submit`."""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.console import Json, app, show
from isoflop.cli.engines import EngineOptions, On, find_engine
from isoflop.cli.options import described, single_options
from isoflop.cli.tensorboard import TensorBoard
from isoflop.cli.time_limit import TimeLimit
from isoflop.cli.wandb import Wandb
from isoflop.results.errors import printable

if TYPE_CHECKING:
    from isoflop.bench.compare import Comparison

LayerArgument = Annotated[
    str, typer.Argument(help="path/to/file.py, or path/to/file.py:Class, or a registered name.")
]
Options = Annotated[
    list[str] | None,
    typer.Option("--option", help="NAME=VALUE of the layer, in TOML or a word; may be repeated."),
]


@app.command()
def layers(as_json: Json = False) -> None:
    """List registered and installed layers, with options and their defaults."""
    from isoflop.bench.layers import find_layer, plugins
    from isoflop.models import LAYERS

    sources = dict.fromkeys(sorted(LAYERS), "isoflop")
    for name, point in sorted(plugins().items()):
        sources.setdefault(name, f"{point.dist.name} {point.dist.version}" if point.dist else "?")
    rows = []
    for name, source in sources.items():
        try:
            what, options = described(find_layer(name))
        except ValueError as error:  # another package's fault must not hide the other layers
            what, options = str(error), ""
        rows.append({"layer": name, "from": source, "what": what, "options": options})
    show(rows, "Layers", as_json)


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to write, such as my_layer.py.")],
) -> None:
    """Write a commented layer to start from, which runs as it is."""
    from isoflop.bench.lint import LintError

    name = class_name(path)
    template = (files("isoflop.bench") / "template.py").read_text(encoding="utf-8")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(template.replace("MyLayer", name))
    except FileExistsError:
        raise LintError(f"{path}: exists already; give another name") from None
    except OSError as error:
        raise LintError(f"{path}: {error.strerror}") from None
    print(f"{path}: class {name}; next, `isoflop lint {path}`, then `isoflop compare {path}`")


def class_name(path: Path) -> str:
    """my_layer.py -> MyLayer.

    Raises:
        LintError: that is no Python class name.
    """
    from isoflop.bench.lint import LintError

    name = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^0-9A-Za-z]+", path.stem))
    if path.suffix != ".py" or not name.isidentifier():
        raise LintError(f"{path}: the name must end in .py and begin with a letter: my_layer.py")
    return name


@app.command()
def lint(
    layer: LayerArgument,
    option: Options = None,
    suite: Annotated[
        str | None,
        typer.Option(help="Check at the context, batch and widths of this suite too."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a layer before training it, or a method. Exit code 1 if a check fails."""
    from isoflop.bench.checks import ESSENTIAL
    from isoflop.bench.lint import BrokenFileError, Finding, check_options, with_class
    from isoflop.bench.lint import lint as run_checks
    from isoflop.bench.methods.lint import lint as lint_method
    from isoflop.bench.methods.lint import names_method
    from isoflop.bench.shape_checks import shapes_of
    from isoflop.bench.suite import load_suite

    shapes = shapes_of(load_suite(suite)) if suite else []
    options, use = single_options(option or []), "trained"
    try:
        if names_method(layer):
            name, use = layer, "used"
            findings = lint_method(name, options)
        else:
            name = with_class(layer)
            check_options(name, options)
            findings = run_checks(name, options, shapes)
    except BrokenFileError as error:
        name, findings = layer, [Finding("builds", False, str(error))]
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            text = finding.fix or finding.note
            line = f"{'ok' if finding.ok else 'FAIL':5}{finding.check:13}{printable(text)}"
            print(line.rstrip())
    failed = [finding.check for finding in findings if not finding.ok]
    if failed:
        if not as_json:
            refused = "refused" if set(failed) & set(ESSENTIAL) else "not refused"
            end = f"; training is {refused}" if use == "trained" else ""
            print(f"{name}: to fix: {', '.join(failed)}{end}")
        raise typer.Exit(1)
    if not as_json:
        print(f"{name}: fit to be {use}")


@app.command()
def compare(
    layer: LayerArgument,
    suite: Annotated[str, typer.Option(help="A suite's name, or a TOML file.")] = "quick",
    option: Options = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=1e-9, max=1e3, help="Peak; that of dense in the suite if not given."),
    ] = None,
    table_rate: Annotated[
        float, typer.Option(min=1e-9, max=1e6, help="Rate of the layer's tables over that.")
    ] = 1.0,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="Seeds per cell of the new layer.")
    ] = 1,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the new variant; the layer with its options if not given."),
    ] = None,
    rate_check: Annotated[
        bool,
        typer.Option(help="Also train a small cell at half and at double the learning rate."),
    ] = True,
    tensorboard: TensorBoard = None,
    wandb: Wandb = None,
    time_limit: TimeLimit = None,
    on: On = "local",
    engine_options: EngineOptions = None,
    as_json: Json = False,
) -> None:
    """Train a new layer's cells beside a suite's stored records: is it better than dense?"""
    from isoflop.analysis.report.derive import COMPARISON, read_comparison, report
    from isoflop.bench.compare import prepare
    from isoflop.bench.lint import check_options, refuse, with_class
    from isoflop.bench.run import missing
    from isoflop.bench.shape_checks import shapes_of
    from isoflop.bench.suite import load_suite
    from isoflop.cli.training import train
    from isoflop.results.files import write_whole

    engine = find_engine(on, engine_options)
    layer = with_class(layer)
    options = single_options(option or [])
    check_options(layer, options)
    note = refuse(layer, options, shapes_of(load_suite(suite)))
    if note:
        print(printable(f"{layer}: {note}"), file=sys.stderr)
    plan = prepare(layer, suite, learning_rate, seeds, options, name, table_rate)
    print(f"compared with the records in {plan.source}", file=sys.stderr)
    few = {cell.seed for cell in plan.cells} - {cell.seed for cell in plan.baseline}
    if few:
        print(
            f"note: {plan.baseline[0].variant} has no records of seeds {sorted(few)}; `isoflop run "
            f"{suite} --seeds {seeds}` trains them",
            file=sys.stderr,
        )
    plan.collect()
    plan.check_text()
    command = ["isoflop", "compare", layer, "--suite", suite, "--seeds", str(seeds)]
    for key, value in (("--learning-rate", learning_rate), ("--name", name)):
        command += [key, str(value)] if value is not None else []
    command += ["--table-rate", str(table_rate)] if table_rate != 1 else []
    for text in option or []:
        command += ["--option", text]
    asked = plan.asked() | {
        "learning_rate_given": learning_rate is not None,
        "command": shlex.join(command),
    }
    write_whole(plan.directory / COMPARISON, json.dumps(asked, indent=1) + "\n")
    train(
        plan.cells,
        plan.directory,
        plan.records,
        str(plan.suite_file),
        tensorboard=tensorboard,
        wandb=wandb,
        time_limit=time_limit,
        engine=engine,
    )
    if rate_check and not missing(plan.cells, plan.records):
        asked["rate_check"] = checked_rates(plan)
        write_whole(plan.directory / COMPARISON, json.dumps(asked, indent=1) + "\n")
    rows = report(plan.directory)
    result = read_comparison(plan.directory / COMPARISON)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    show(
        [{key: row[key] for key in ("rank", "variant", "multiplier")} for row in rows], suite, False
    )
    print(printable(result["sentence"]))
    for row in rows:  # a fault of the baseline matters as much
        if row["variant"] in (result["variant"], result["baseline"]):
            for flag in row["flags"]:
                print(printable(f"note: {row['variant']}: {flag}"))
    if "rate_check" in result:
        print(f"note: {result['rate_check']['sentence']}")
    elif learning_rate is None:
        print(
            f"note: learning rate {plan.learning_rate:g} is the suite's for {result['baseline']}, "
            "not tuned for this layer; try --learning-rate"
        )
    print(f"figures and tables are in {plan.directory}")


def checked_rates(plan: Comparison) -> dict[str, object]:
    """Train the cells of a comparison's check of the learning rate, and what they say."""
    from isoflop.cli.rates import rate_check
    from isoflop.cli.training import train
    from isoflop.results.files import write_whole
    from isoflop.results.record import load_records

    folder, cells = plan.directory / "rates", plan.rate_cells
    for cell in cells:  # the one that the comparison has trained is not trained again
        path = plan.records / f"{cell.id}.json"
        if path.exists():
            write_whole(folder / path.name, path.read_bytes())
    train(cells, plan.directory, folder, str(plan.suite_file))
    ids = {cell.id for cell in cells}
    records = [record for record in load_records(folder) if record.cell in ids]
    transfer = plan.suite.transfer
    return rate_check(records, plan.learning_rate, transfer.width, transfer.exponent)


@app.command()
def submit(
    name: Annotated[str, typer.Argument(help="Name of the new folder in results/submissions.")],
    source: Annotated[
        Path, typer.Option("--from", help="Results directory, such as runs/compare-MyLayer.")
    ],
    variant: Annotated[
        list[str] | None,
        typer.Option(help="A variant, may be repeated; all not yet submitted if not given."),
    ] = None,
) -> None:
    """Bundle records, layer file, versions and hashes for the leaderboard."""
    from isoflop.bench.submissions.bundle import submit as bundle
    from isoflop.results.manifest import read_manifest

    folder = bundle(name, source, variant or ())
    manifest = read_manifest(folder)
    print(
        f"{folder}: {', '.join(manifest.variants)} for suite {manifest.suite}; "
        f"`isoflop report results/{manifest.suite}` puts it on the leaderboard"
    )
