"""The verb `check`: for continuous integration, and before a pull request."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.console import Json, app
from isoflop.results.errors import printable
from isoflop.results.files import write_whole
from isoflop.results.manifest import MANIFEST
from isoflop.results.record import RecordError

if TYPE_CHECKING:
    from isoflop.bench.gate.baseline import Check
    from isoflop.bench.plan import Cell
    from isoflop.results.record import Record

SEEDS = 8  # of a stored baseline


@app.command()
def check(
    directory: Annotated[
        Path | None,
        typer.Argument(help="Results directory; all under runs/ and results/ if not given."),
    ] = None,
    suite: Annotated[
        str, typer.Option(help="The suite whose cells are counted and trained.")
    ] = "ci",
    losses: Annotated[
        bool,
        typer.Option(
            "--losses", help="Also train that suite and compare its losses with the stored ones."
        ),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Also time this code against a baseline revision or checkout."),
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Write the result to this file, as Markdown.")
    ] = None,
    accept: Annotated[
        bool,
        typer.Option("--accept", help="Store this code's counts and losses as the new baseline."),
    ] = False,
    execute: Annotated[
        bool,
        typer.Option(
            " /--no-execute",
            help="Execute no layer file of a submission: recompute all that needs none.",
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Check submissions, generated files and counts. Exit code 1 if a check fails."""
    from isoflop.bench.gate import baseline as gate
    from isoflop.bench.gate import same_seed
    from isoflop.bench.plan import plan
    from isoflop.bench.seeds import with_seeds
    from isoflop.bench.suite import load_suite, suite_path
    from isoflop.cli.summary import markdown

    described = load_suite(suite)
    stored = Path("results") / described.name / "baseline.json"
    if accept:
        seeds = with_seeds(described, list(range(SEEDS)))
        cells = plan(seeds, str(suite_path(suite)))
        records = trained(cells, suite)
        smallest = min(cell.budget for cell in cells)
        few = [cell for cell in cells if (cell.seed, cell.budget) == (0, smallest)]
        shifts = same_seed.weight_shifts(few) if same_seed.capability() else {}
        baseline = gate.write_baseline(stored, records, shifts, same_seed.capability())
        print(f"{stored}: {len(baseline.cells)} cells, {SEEDS} seeds")
        return
    checks = submitted(directory, execute=execute)
    if all(check.ok for check in checks) and not is_submission(directory):
        checks.append(generated(directory))
    if stored.exists() or losses:
        baseline = gate.read_baseline(stored)
        cells = plan(described, str(suite_path(suite)))
        checks.append(gate.counts(baseline, cells))
        if losses:
            records = trained(cells, suite)
            checks.append(gate.losses(baseline, records, same_seed.capability()))
    if base:
        checks += timed(base, suite)
    if summary:
        if summary.exists() and not summary.is_file():  # such as /dev/stdout
            summary.write_text(markdown(checks), encoding="utf-8")
        else:
            write_whole(summary, markdown(checks))
    if as_json:
        print(json.dumps(gate.as_json(checks), indent=1))
    else:
        for check in checks:
            print(f"{'ok' if check.ok else 'FAIL':5}{check.name}: {printable(check.text)}")
            for line in gate.shown(check):
                print(f"     {printable(line)}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def submitted(directory: Path | None, *, execute: bool) -> list[Check]:
    """Does every submission agree with what is recomputed from it, and does nothing else count?

    No check where there is nothing to check.
    """
    from isoflop.bench.gate.baseline import Check
    from isoflop.bench.submissions.verify import not_executed, problems
    from isoflop.results.manifest import strays, submissions

    lines = []
    if directory:
        folders = [directory] if is_submission(directory) else []
    else:
        lines = strays(Path("results"))
        try:
            folders = list(submissions(Path("results/submissions")))
        except RecordError as error:
            return [Check("submissions", False, "a manifest is unreadable", [*lines, str(error)])]
    if not folders and not lines:
        return []
    lines += [line for folder in folders for line in problems(folder, execute=execute)]
    text = f"every hash and count of {', '.join(map(str, folders))} agrees"
    if lines:
        text = f"{len(lines)} disagreements; generated files are not judged"
    checks = [Check("submissions", not lines, text, lines)]
    skipped = [] if execute or lines else [s for folder in folders for s in not_executed(folder)]
    if skipped:
        text = "cells, FLOPs and parameters of these layers were not recomputed (--no-execute)"
        checks.append(Check("not executed", True, text, skipped))
    return checks


def is_submission(directory: Path | None) -> bool:
    """Whether it has a manifest."""
    return directory is not None and os.path.lexists(directory / MANIFEST)


def generated(directory: Path | None) -> Check:
    """Is every generated file current?"""
    from isoflop.analysis.report import benchmarks as performance
    from isoflop.analysis.report.derive import stale
    from isoflop.bench.gate.baseline import Check
    from isoflop.results import sources

    directories = [directory] if directory else sources.directories()
    old = [path for folder in directories for path in stale(folder, Path("README.md"))]
    if directory is None:
        old += performance.stale(performance.STORED, Path("README.md"))
    where = ", ".join(map(str, directories)) or "no directory"
    text = f"every generated file of {where} is current"
    if old:
        text = f"{len(old)} stale; run `isoflop report`"
    return Check("generated files", not old, text, [str(path) for path in old])


def trained(cells: list[Cell], suite: str) -> list[Record]:
    """Records of cells, trained anew: a stored record says nothing about today's code."""
    from isoflop.bench.gate.scratch import scratch
    from isoflop.cli.training import train
    from isoflop.results.record import load_records

    with scratch("check") as folder:
        train(cells, Path(folder), Path(folder) / "records", suite)
        return load_records(Path(folder) / "records")


def timed(base: str, suite: str) -> list[Check]:
    """Step time and peak memory of this code over those of the baseline revision `base`."""
    from isoflop.bench.gate import stopwatch
    from isoflop.bench.gate.baseline import ratios
    from isoflop.bench.suite import suite_path

    with stopwatch.checkout_of(base) as checkout:
        times, memory, new = stopwatch.race(checkout, stopwatch.ROOT, str(suite_path(suite)))
    return [
        ratios("step time", "ms", 1e3, times, new),
        ratios("peak memory", "MB", 1e-6, memory, new),
    ]
