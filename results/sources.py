"""Where the records behind a results directory are: in it, or in the submissions to its suite."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from isoflop.results.manifest import submissions
from isoflop.results.record import Record, load_records


def submissions_to(directory: Path) -> list[Path] | None:
    """The submissions that a leaderboard shows, those to the suite of the directory's name.

    A leaderboard is a directory with a folder `submissions` beside it; of any other, such as one
    under runs/, this is None.

    Raises:
        RecordError: a manifest is unreadable.
    """
    place = Path(os.path.abspath(directory))  # a link is not followed: its name is what counts
    top = place.parent / "submissions"
    if not top.is_dir() or (top / "records").is_dir():  # a run may be called so
        return None
    return list(submissions(top, place.name))


def sources(directory: Path) -> tuple[list[Record], list[Record]]:
    """The records of a results directory and those of its learning-rate sweeps, each by cell id.

    Those of a leaderboard are in the submissions to its suite, and nowhere else. Any other
    directory has its own.

    Raises:
        RecordError: a record or a manifest is unreadable.
    """
    submitted = submissions_to(directory)
    folders = [directory] if submitted is None else submitted
    return _gather(folders, "records"), _gather(folders, "tune")


def directories() -> list[Path]:
    """Every directory under runs/ that has records, and every leaderboard under results/."""
    with_records = {
        path.parent.parent
        for top in ("runs", "results")
        for path in Path(top).glob("[!.]*/records/*.json")
    }
    own = {folder for folder in with_records if submissions_to(folder) is None}
    suites = {manifest.suite for manifest in submissions(Path("results/submissions")).values()}
    return sorted(own | {Path("results") / suite for suite in suites})


def _gather(folders: Iterable[Path], kind: str) -> list[Record]:
    records = [record for folder in folders for record in load_records(folder / kind)]
    return sorted(records, key=lambda record: record.cell)
