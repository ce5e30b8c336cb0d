"""The verb `check`: for continuous integration, and before a pull request."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from isoflop.cli.console import Json, app
from isoflop.results.manifest import MANIFEST

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
    as_json: Json = False,
) -> None:
    """Check submissions, generated files and counts. Exit code 1 if a check fails."""
    from isoflop.bench.gate import baseline as gate
    from isoflop.bench.plan import plan
    from isoflop.bench.suite import load_suite, suite_path
    from isoflop.cli.summary import markdown

    described = load_suite(suite)
    stored = Path("results") / described.name / "baseline.json"
    if accept:
        seeds = described.model_copy(update={"seeds": list(range(SEEDS))})
        records = trained(plan(seeds, str(suite_path(suite))), suite)
        baseline = gate.write_baseline(stored, records)
        print(f"{stored}: {len(baseline.cells)} cells, {SEEDS} seeds")
        return
    checks = submitted(directory)
    is_submission = directory is not None and (directory / MANIFEST).exists()
    if all(check.ok for check in checks) and not is_submission:
        checks.append(generated(directory))
    if stored.exists() or losses:
        baseline = gate.read_baseline(stored)
        cells = plan(described, str(suite_path(suite)))
        checks.append(gate.counts(baseline, cells))
        if losses:
            checks.append(gate.losses(baseline, trained(cells, suite)))
    if base:
        checks += timed(base, suite)
    if summary:
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(markdown(checks), encoding="utf-8")
    if as_json:
        print(json.dumps(gate.as_json(checks), indent=1))
    else:
        for check in checks:
            print(f"{'ok' if check.ok else 'FAIL':5}{check.name}: {check.text}")
            for line in gate.shown(check):
                print(f"     {line}")
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def submitted(directory: Path | None) -> list[Check]:
    """Does every submission agree with what is recomputed from it? No check where there is none."""
    from isoflop.bench.gate.baseline import Check
    from isoflop.bench.submissions.verify import problems

    folders = [path for path in sorted(Path("results/submissions").glob("[!.]*")) if path.is_dir()]
    if directory:
        folders = [directory] if (directory / MANIFEST).exists() else []
    if not folders:
        return []
    lines = [line for folder in folders for line in problems(folder)]
    text = f"every hash and count of {', '.join(map(str, folders))} agrees"
    if lines:
        text = f"{len(lines)} disagreements; generated files are not judged"
    return [Check("submissions", not lines, text, lines)]


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
    from isoflop.cli.progress import train
    from isoflop.results.record import load_records

    with tempfile.TemporaryDirectory(prefix="isoflop-check-") as folder:
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
