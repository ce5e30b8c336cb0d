"""The verbs for those who bring a layer: `new`, `lint`, `compare`."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from bench.console import Json, app, show, train
from bench.tensorboard import TensorBoard

LayerArgument = Annotated[
    str, typer.Argument(help="path/to/file.py, or path/to/file.py:Class, or a registered name.")
]


@app.command()
def new(
    path: Annotated[Path, typer.Argument(help="The file to write, such as my_layer.py.")],
) -> None:
    """Write a commented layer to start from, which runs as it is."""
    from bench.lint import LintError

    name = class_name(path)
    template = Path(__file__).with_name("template.py").read_text(encoding="utf-8")
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
    from bench.lint import LintError

    name = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^0-9A-Za-z]+", path.stem))
    if path.suffix != ".py" or not name.isidentifier():
        raise LintError(f"{path}: the name must end in .py and begin with a letter: my_layer.py")
    return name


@app.command()
def lint(layer: LayerArgument, as_json: Json = False) -> None:
    """Check a layer before training it. Exit code 1 if a check fails."""
    from bench.lint import lint as run_checks
    from bench.lint import with_class

    name = with_class(layer)
    findings = run_checks(name)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        for finding in findings:
            print(f"{'ok' if finding.ok else 'FAIL':5}{finding.check:13}{finding.fix}".rstrip())
    failed = [finding.check for finding in findings if not finding.ok]
    if failed:
        if not as_json:
            print(f"{name}: to fix: {', '.join(failed)}")
        raise typer.Exit(1)
    if not as_json:
        print(f"{name}: fit to be trained")


@app.command()
def compare(
    layer: LayerArgument,
    suite: Annotated[str, typer.Option(help="A suite's name, or a TOML file.")] = "quick",
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-9, help="Peak; the suite's for dense if not given.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds per cell of the new layer.")] = 1,
    tensorboard: TensorBoard = None,
    as_json: Json = False,
) -> None:
    """Train a new layer's cells beside a suite's stored records: is it better than dense?"""
    from analysis.parabola import Estimate
    from analysis.report import report
    from analysis.text import flops, interval
    from analysis.verdict import verdict
    from bench.compare import prepare
    from bench.lint import refuse, with_class

    name = with_class(layer)
    # With --json, what is said on the way goes to stderr.
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        refuse(name)
        plan = prepare(name, suite, learning_rate, seeds)
        print(f"compared with the records in {plan.source}")
        plan.collect()
        plan.check_text()
        train(plan.cells, plan.directory, plan.records, suite, tensorboard)
    rows = report(plan.directory)
    row = next(one for one in rows if one["variant"] == plan.variant)
    budget = max(cell.budget for cell in plan.cells)
    result: dict[str, Any] = {
        "variant": plan.variant,
        "suite": suite,
        "baseline": plan.baseline[0].variant,
        "baseline_records": str(plan.source),
        "learning_rate": plan.learning_rate,
        "learning_rate_given": learning_rate is not None,
        "seeds": seeds,
        "budget": budget,
        "multiplier": row["multiplier"],
        "low": row["multiplier_low"],
        "high": row["multiplier_high"],
        "verdict": "no multiplier",
        "more_seeds": None,
        "more_flops": None,
        "flags": row["flags"],
        "directory": str(plan.directory),
    }
    text = f"{plan.variant}: no compute multiplier at {flops(budget)} FLOPs"
    if row["multiplier"] is not None:
        ends = (row["multiplier_low"], row["multiplier_high"])  # None where the noise is unknown
        multiplier = Estimate(row["multiplier"], *(math.nan if e is None else e for e in ends))
        found = verdict(multiplier, seeds)
        result |= {"verdict": found.word, "more_seeds": found.more_seeds}
        text = (
            f"{plan.variant}: compute multiplier {interval(multiplier, unit='x')} at "
            f"{flops(budget)} FLOPs, 95% interval: "
        )
        if found.word != "not resolved":
            text += f"{found.word} than {result['baseline']}"
        else:
            text += "not resolved at this noise"
            if found.more_seeds:
                first = [cell for cell in plan.cells if cell.seed == plan.cells[0].seed]
                first += [cell for cell in plan.baseline if cell.seed == plan.baseline[0].seed]
                result["more_flops"] = found.more_seeds * sum(cell.flops for cell in first)
                text += (
                    f"; at least {found.more_seeds} more seeds, of it and of {result['baseline']} "
                    f"({flops(result['more_flops'])} FLOPs), would resolve a difference like this"
                )
    if as_json:
        print(json.dumps(result, indent=1))
        return
    show(
        [{key: row[key] for key in ("rank", "variant", "multiplier")} for row in rows], suite, False
    )
    print(text)
    for one in rows:  # what is wrong with the baseline matters as much
        if one["variant"] in (plan.variant, result["baseline"]):
            for flag in one["flags"]:
                print(f"note: {one['variant']}: {flag}")
    if learning_rate is None:
        print(
            f"note: learning rate {plan.learning_rate:g} is the suite's for {result['baseline']}, "
            "not tuned for this layer; try --learning-rate"
        )
    print(f"figures and tables are in {plan.directory}")
