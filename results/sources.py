"""Where the records behind a results directory are: its own, and those submitted to its suite."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from isoflop.results.manifest import submissions
from isoflop.results.record import Record, read_records


def sources(directory: Path) -> tuple[list[Record], list[Record]]:
    """The records and the learning-rate brackets that `directory` reports, each by cell id.

    They are those of every submission to the suite of the directory's name, in the folder
    `submissions` beside it, and its own. Of a cell that was submitted, the submission counts.

    Raises:
        RecordError: a record or a manifest is unreadable.
    """
    here = directory.resolve()
    submitted = submissions(here.parent / "submissions", here.name)
    return _gather(directory, submitted, "records"), _gather(directory, submitted, "tune")


def directories() -> list[Path]:
    """Every directory under runs/ and results/ that has records, or submissions to its suite."""
    parents = {
        path.parent.parent
        for top in ("runs", "results")
        for path in Path(top).glob("*/records/*.json")
    }
    suites = {manifest.suite for manifest in submissions(Path("results/submissions")).values()}
    return sorted(parents | {Path("results") / suite for suite in suites})


def _gather(directory: Path, submitted: Iterable[Path], kind: str) -> list[Record]:
    found = [record for folder in submitted for record in read_records(folder / kind)]
    there = {record.cell for record in found}
    own = [record for record in read_records(directory / kind) if record.cell not in there]
    return sorted([*found, *own], key=lambda record: record.cell)
