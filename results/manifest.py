"""A submission's manifest: what its folder holds, and what was computed from it.

This module does not import torch: the leaderboard is rebuilt from submissions without it.
"""

from __future__ import annotations

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
    """Folder -> manifest of the submissions below `top`, by name: all, or those to one suite.

    Raises:
        RecordError: a manifest is unreadable.
    """
    folders = sorted(path.parent for path in top.glob(f"*/{MANIFEST}"))
    manifests = {folder: read_manifest(folder) for folder in folders}
    return {folder: m for folder, m in manifests.items() if suite in (None, m.suite)}
