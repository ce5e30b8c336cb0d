"""Bundling a results directory's finished cells as a submission."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from isoflop.bench.plan import plan, sweep_cells
from isoflop.bench.seeds import first_seeds, with_seeds
from isoflop.bench.submissions.compared import only
from isoflop.bench.submissions.verify import manifest_of, options_of, problems, read_folder
from isoflop.bench.suite import Suite, Variant, load_suite, to_toml
from isoflop.results.errors import IsoflopError, did_you_mean
from isoflop.results.files import write_whole
from isoflop.results.manifest import MANIFEST, submissions
from isoflop.results.record import Record, load_records

SUBMISSIONS = Path("results/submissions")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")


class SubmissionError(IsoflopError):
    """Nothing was submitted; one line says why and what to do."""


def submit(name: str, source: Path, variants: Sequence[str] = (), top: Path = SUBMISSIONS) -> Path:
    """Bundle the records of some variants, their suite and layer files, as `top/name`.

    Args:
        name: of the submission.
        source: a results directory of `run` or `compare`.
        variants: which; all of the directory that no submission to the suite has, if none.
    Returns:
        the new folder, whole, or not there at all if anything is raised or the process is killed.
    Raises:
        SubmissionError: it is incomplete, exists already, or would not pass `problems`.
        SuiteError, RecordError, LintError, AnalysisError: something in it cannot be read or used.
    """
    target = top / name
    if not NAME.fullmatch(name):
        raise SubmissionError(
            f"{name!r}: the name of a submission is that of a folder in {top}: letters, digits, "
            "'.', '-' and '_', and no dot first"
        )
    if os.path.lexists(target):
        raise SubmissionError(f"{target} exists already: give another name")
    suite, records = _chosen(source, variants, top)
    where = str(source / "suite.toml")
    cells = plan(suite, where)
    _complete(source / "records", records, {cell.id for cell in cells})
    tune = [one for one in load_records(source / "tune") if one.variant in suite.variants]
    rates = sweep_cells(suite, where) if tune else []
    tuned = {record.variant for record in tune}
    within = {cell.id for cell in rates if cell.variant in tuned}
    tune = [record for record in tune if record.cell in within]  # others are of another sweep
    _complete(source / "tune", tune, within)

    top.mkdir(parents=True, exist_ok=True)
    # One folder deeper than a submission, so that what a kill leaves is not taken for one.
    with tempfile.TemporaryDirectory(dir=top, prefix=f".{name}.") as scratch:
        folder = Path(scratch) / name
        for kind, some in (("records", records), ("tune", tune)):
            for record in some:
                (folder / kind).mkdir(parents=True, exist_ok=True)
                file = f"{record.cell}.json"
                shutil.copyfile(source / kind / file, folder / kind / file)
        write_whole(folder / "suite.toml", to_toml(_with_layers(suite, folder / "layers")))
        bundled = read_folder(folder)[0]
        manifest = manifest_of(bundled, options_of(bundled))
        write_whole(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")
        lines = problems(folder, beside=top)
        if lines:
            more = f" (and {len(lines) - 1} more)" if lines[1:] else ""
            raise SubmissionError(lines[0].replace(str(folder), str(source)) + more)
        folder.rename(target)
    return target


def _chosen(source: Path, variants: Sequence[str], top: Path) -> tuple[Suite, list[Record]]:
    """The suite with the chosen variants and their seeds alone, and their records."""
    records = load_records(source / "records")
    if not records:
        raise SubmissionError(f"{source / 'records'}: no records here; run a suite first")
    suite = load_suite(str(source / "suite.toml"))
    present = {record.of_variant for record in records}
    known = [name for name in suite.variants if name in present]
    for variant in variants:
        if variant not in known:
            raise SubmissionError(
                f"--variant: {source} has no records of a variant {variant!r} of its suite.toml"
                f"{did_you_mean(variant, known)}; it has them of: {', '.join(known)}"
            )
    of = _suite_of(source, [r for r in records if r.of_variant in (variants or known)])
    chosen = set(_open_variants(source, variants or known, of, top, asked=bool(variants)))
    records = [record for record in records if record.of_variant in chosen]
    suite = _with_seeds_of(only(suite, chosen), records)
    return suite.model_copy(update={"name": of}), records


def _with_seeds_of(suite: Suite, records: Sequence[Record]) -> Suite:
    """The suite as it is, or with more seeds at every budget where the records have more."""
    runs = {(record.budget, record.variant, record.seed) for record in records}
    counts = Counter((budget, variant) for budget, variant, _ in runs)
    planned = {budget.flops: len(suite.seeds_at(budget)) for budget in suite.budgets}
    if all(count <= planned.get(budget, 0) for (budget, _), count in counts.items()):
        return suite
    return with_seeds(suite, first_seeds(suite.seeds, max(counts.values())))


def _suite_of(source: Path, records: Sequence[Record]) -> str:
    """The suite that all these records name."""
    names = sorted({record.suite for record in records})
    if len(names) != 1:
        raise SubmissionError(f"{source}: records of suites {', '.join(names)}")
    return names[0]


def _open_variants(
    source: Path, names: Sequence[str], suite: str, top: Path, *, asked: bool
) -> list[str]:
    """Those of the variants that no submission to the suite has.

    Args:
        asked: whether the user named them; then one that is taken is an error.
    """
    taken = {name: where for where, m in submissions(top, suite).items() for name in m.variants}
    for name in names:
        if asked and name in taken:
            raise SubmissionError(f"{taken[name]} has variant {name} of suite {suite} already")
    left = [name for name in names if name not in taken]
    if not left:
        raise SubmissionError(f"{source}: {top} has every variant of it already")
    return left


def _complete(where: Path, records: Sequence[Record], wanted: set[str]) -> None:
    """Every record is of a wanted cell, and every wanted cell has one."""
    others = [record for record in records if record.cell not in wanted]
    if others:
        raise SubmissionError(
            f"{where}: {len(others)} records, such as {others[0].cell}.json of "
            f"{others[0].variant}, are of no cell that suite.toml and the layer's file give now: "
            "undo what was edited since, or train anew and remove them"
        )
    missing = wanted - {record.cell for record in records}
    if missing:
        raise SubmissionError(
            f"{where}: {len(missing)} of {len(wanted)} cells have no record yet: train them first, "
            "or choose complete variants with --variant"
        )


def _with_layers(suite: Suite, folder: Path) -> Suite:
    """Copy layer files to `folder`; the suite names them there."""
    variants: dict[str, Variant] = {}
    sources: dict[str, str] = {}
    for name, variant in suite.variants.items():
        path, _, attribute = variant.layer.rpartition(":")
        if path:
            file = Path(path).name
            if sources.setdefault(file, path) != path:
                raise SubmissionError(f"two layer files are called {file}: submit them apart")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / file)
            variant = variant.model_copy(update={"layer": f"layers/{file}:{attribute}"})
        variants[name] = variant
    return suite.model_copy(update={"variants": variants})
