"""Where the records behind a results directory are: its own, and those submitted to its suite."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from isoflop.results.manifest import submissions
from isoflop.results.record import Record, load_records


def sources(directory: Path) -> tuple[list[Record], list[Record]]:
    """The records of a results directory and those of its learning-rate sweeps, each by cell id.

    They come from every submission to the suite of the directory's name, in the folder
    `submissions` beside it, and from the directory itself. A cell that is in both is taken from the
    submission.

    Raises:
        RecordError: a record or a manifest is unreadable.
    """
    resolved = directory.resolve()
    submitted = submissions(resolved.parent / "submissions", resolved.name)
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
    records = [record for folder in submitted for record in load_records(folder / kind)]
    taken = {record.cell for record in records}
    local = [record for record in load_records(directory / kind) if record.cell not in taken]
    return sorted([*records, *local], key=lambda record: record.cell)
