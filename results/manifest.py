"""A submission's manifest: what its folder holds, and what was computed from it.

This module does not import torch: the leaderboard is rebuilt from submissions without it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from isoflop.results.record import Frozen, read_stored

MANIFEST = "submission.json"


class Entry(Frozen):
    """A submitted variant."""

    layer: str  # a registered name, or layers/file.py:Class in the folder
    options: dict[str, Any]  # defaults included
    learning_rate: float  # peak, at the suite's transfer width


class Manifest(Frozen):
    """Everything here is recomputed from the folder by `bench.submissions.verify`."""

    schema_version: Literal[1] = 1
    name: str  # also the folder's
    suite: str
    variants: dict[str, Entry]
    versions: dict[str, list[str]]  # of python, torch, isoflop and others, in the records
    devices: list[str]  # on which the cells trained
    validation_hash: str | None
    flop_convention: str
    files: dict[str, str]  # SHA-256 of every other file, by path in the folder


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a submission.

    Raises:
        RecordError: it is unreadable or does not follow the schema.
    """
    return read_stored(folder / MANIFEST, Manifest)


def submissions(top: Path, suite: str | None = None) -> dict[Path, Manifest]:
    """Folder -> manifest of what is on a leaderboard, by name: all, or those to one suite.

    `report`, `check` and `submit` all take this list. A submission is a folder in `top` that has a
    manifest, is not hidden and is no link; `strays` names whatever else lies there.

    Raises:
        RecordError: a manifest is unreadable.
    """
    folders = [path for path in _entries(top) if path.is_dir() and not _not_listed(path)]
    manifests = {folder: read_manifest(folder) for folder in folders}
    return {folder: m for folder, m in manifests.items() if suite in (None, m.suite)}


def strays(results: Path) -> list[str]:
    """A line for everything in a folder `results` that looks like results and counts nowhere.

    Only submissions count there: not records beside the generated files of a suite, nor anything
    that is hidden, linked or without a manifest.
    """
    top = results / "submissions"
    lines = [f"{path}: {why}" for path in _entries(top) if (why := _not_listed(path))]
    for path in (results, *_entries(results)):
        if path.is_symlink():
            lines.append(f"{path}: a link; put the folder itself here")
        elif path not in (results, top) and path.is_dir():
            for kind in ("records", "tune"):
                if os.path.lexists(path / kind):
                    lines.append(
                        f"{path / kind}: counts nowhere: here only submissions do; `isoflop "
                        "submit` makes one from records in runs/"
                    )
    return lines


def out_of_place(folder: Path) -> Iterator[str]:
    """A line for everything in a submission that is not to be there: whatever is hidden, linked,
    no plain file, or below the records."""
    if folder.is_symlink():
        yield f"{folder}: a link; a submission is a folder of its own"
        return
    for where, folders, files in os.walk(folder, onerror=_raise):
        for name in sorted([*folders, *files]):
            path = Path(where, name)
            if path.is_symlink():
                yield f"{path}: a link; a submission holds its files themselves"
            elif name.startswith("."):
                yield f"{path}: hidden; remove it"
            elif name in folders and Path(where).name in ("records", "tune"):
                yield f"{path}: a folder among the records; remove it"
            elif name not in folders and not path.is_file():
                yield f"{path}: no plain file; remove it"


def _raise(error: OSError) -> None:
    raise error


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _not_listed(path: Path) -> str | None:
    """Why this entry of the folder of submissions is not on a leaderboard; None if it is."""
    if path.is_symlink():
        return "a link; a submission is a folder of its own"
    if not path.is_dir():
        return None if path.name == "README.md" else "not a submission; remove it"
    if path.name.startswith("."):
        return "hidden, so on no leaderboard: what a killed `submit` left, or worse; remove it"
    if not os.path.lexists(path / MANIFEST):
        return f"has no {MANIFEST}, so on no leaderboard; `isoflop submit` writes it"
    return None
