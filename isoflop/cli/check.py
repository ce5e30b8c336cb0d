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
        Path | None, typer.Argument(help="Results directory; every one found if not given.")
    ] = None,
    suite: Annotated[str, typer.Option(help="The suite that the gate counts and trains.")] = "ci",
    losses: Annotated[
        bool,
        typer.Option("--losses", help="Also train that suite: are its losses the stored ones?"),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="Also time this revision or checkout beside the code that runs."),
    ] = None,
    summary: Annotated[
        Path | None, typer.Option(help="Write the outcome there, as Markdown.")
    ] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Store this code's counts and losses instead.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Do submissions agree, are derived files current, is the code no worse? Exit code 1 if not."""
    from isoflop.bench.gate import baseline as gate
    from isoflop.bench.plan import plan
    from isoflop.bench.suite import load_suite, suite_path

    described = load_suite(suite)
    stored = Path("results") / described.name / "baseline.json"
    if accept:
        seeds = described.model_copy(update={"seeds": list(range(SEEDS))})
        found = gate.write_baseline(stored, trained(plan(seeds, str(suite_path(suite))), suite))
        print(f"{stored}: {len(found.cells)} cells, {SEEDS} seeds")
        return
    checks = submitted(directory)
    if all(one.ok for one in checks) and not (directory and (directory / MANIFEST).exists()):
        checks.append(derived(directory))
    if stored.exists() or losses:
        baseline = gate.read_baseline(stored)
        cells = plan(described, str(suite_path(suite)))
        checks.append(gate.counts(baseline, cells))
        if losses:
            checks.append(gate.losses(baseline, trained(cells, suite)))
    if base:
        checks += raced(base, suite)
    if summary:
        summary.parent.mkdir(parents=True, exist_ok=True)
        summary.write_text(gate.markdown(checks), encoding="utf-8")
    if as_json:
        print(json.dumps(gate.as_json(checks), indent=1))
    else:
        for one in checks:
            print(f"{'ok' if one.ok else 'FAIL':5}{one.name}: {one.text}")
            for line in gate.shown(one):
                print(f"     {line}")
    if not all(one.ok for one in checks):
        raise typer.Exit(1)


def submitted(directory: Path | None) -> list[Check]:
    """Does every submission agree with what is recomputed from it? No check where there is none."""
    from isoflop.bench.gate.baseline import Check
    from isoflop.bench.submissions.verify import problems

    folders = [one for one in sorted(Path("results/submissions").glob("[!.]*")) if one.is_dir()]
    if directory:
        folders = [directory] if (directory / MANIFEST).exists() else []
    if not folders:
        return []
    lines = [line for folder in folders for line in problems(folder)]
    text = f"every hash and count of {', '.join(map(str, folders))} agrees"
    if lines:
        text = f"{len(lines)} disagreements; derived files are not judged"
    return [Check("submissions", not lines, text, lines)]


def derived(directory: Path | None) -> Check:
    """Is every derived file current?"""
    from isoflop.analysis.report import benchmarks as performance
    from isoflop.analysis.report.derive import stale
    from isoflop.bench.gate.baseline import Check
    from isoflop.results import sources

    found = [directory] if directory else sources.directories()
    old = [path for one in found for path in stale(one, Path("README.md"))]
    if directory is None:
        old += performance.stale(performance.STORED, Path("README.md"))
    text = f"every derived file of {', '.join(map(str, found)) or 'no directory'} is current"
    if old:
        text = f"{len(old)} stale; run `isoflop report`"
    return Check("derived files", not old, text, [str(path) for path in old])


def trained(cells: list[Cell], suite: str) -> list[Record]:
    """Records of cells, trained afresh: a record that is there does not tell of today's code."""
    from isoflop.cli.progress import train
    from isoflop.results.record import load_records

    with tempfile.TemporaryDirectory(prefix="isoflop-check-") as folder:
        train(cells, Path(folder), Path(folder) / "records", suite)
        return load_records(Path(folder) / "records")


def raced(base: str, suite: str) -> list[Check]:
    """Step time and peak memory of the code that runs, over those of `base`."""
    from isoflop.bench.gate import stopwatch
    from isoflop.bench.gate.baseline import ratios
    from isoflop.bench.suite import suite_path

    with stopwatch.checkout_of(base) as checkout:
        times, memory, new = stopwatch.race(checkout, stopwatch.ROOT, str(suite_path(suite)))
    return [
        ratios("step time", "ms", 1e3, times, new),
        ratios("peak memory", "MB", 1e-6, memory, new),
    ]
