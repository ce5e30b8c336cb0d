"""What every engine takes and gives: cells in, events out, records in a folder.

A cell is done when its record exists. An engine may train a cell twice and never loses one; the
first record wins.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from isoflop.bench.checkpoint import shards_path
from isoflop.bench.plan import Cell
from isoflop.bench.train import Progress, checkpoint_path
from isoflop.results.errors import IsoflopError, did_you_mean
from isoflop.results.record import Record, add_record, read_record


class RunError(IsoflopError):
    """The suite cannot go on, for a reason outside the cells: a full disk, an unwritable folder."""


class EngineError(IsoflopError):
    """An engine cannot be used here, or not with these options."""


@dataclass(frozen=True)
class Event:
    """News of a cell: it waits to be trained, has made progress, met trouble, or has a record."""

    cell: Cell
    progress: Progress | None = None
    record: Record | None = None
    stored: bool = False  # the record was there before this one, or before the run
    warning: str = ""  # trouble that does not end the cell
    stopped: bool = False  # its state is saved; a later run goes on from it


@dataclass(frozen=True)
class Limits:
    """What a run keeps, and when it stops."""

    models: Path | None = None  # folder for trained weights; they are dropped if None
    deadline: float | None = None  # of `time.monotonic`, at which running cells save and stop


class Engine(Protocol):
    """A place where cells run."""

    def train(
        self, cells: list[Cell], records: Path, limits: Limits
    ) -> Generator[Event, None, None]:
        """Train cells; write `records/<cell>.json` when one ends, unless it is there by then.

        Yields:
            progress and records of the cells, as they come.
        Raises:
            RunError: a record cannot be written. Records written before stay whole.
            EngineError: the engine cannot do it.
            DataError: the corpus cannot be used.
        """

    def dry_run(self, cells: list[Cell], records: Path, limits: Limits) -> str:
        """What would be submitted, if the engine's options ask for that alone; empty if not."""

    @property
    def left_running(self) -> str:
        """What goes on after the command was interrupted, in a line; empty if nothing does."""


def store(cell: Cell, record: Record, records: Path, scratch: Path) -> Event:
    """Write a record, and remove the checkpoint that it makes useless.

    Raises:
        RunError: it cannot be written.
    """
    try:
        written = add_record(records, record)
    except OSError as error:
        raise RunError(
            f"{records}: cannot write a record: {error.strerror}; finished records are whole, the "
            "same command goes on from them"
        ) from None
    if not written:
        record = read_record(records / f"{cell.id}.json")
    if record.status != "failed":
        path = checkpoint_path(scratch, cell)
        path.unlink(missing_ok=True)
        shutil.rmtree(shards_path(path), ignore_errors=True)
    return Event(cell, record=record, stored=not written)


def scratch_of(records: Path) -> Path:
    """Where the states of cells in training are kept."""
    return records.parent / "checkpoints"


def remove_scratch(records: Path) -> None:
    """Remove the folder of checkpoints once it is empty."""
    with suppress(OSError):  # not there, or in use by another machine
        scratch_of(records).rmdir()


def read_options(engine: str, given: list[str], known: dict[str, str]) -> dict[str, str]:
    """Options of an engine, from key=value.

    Args:
        known: a default for every key.
    Raises:
        EngineError: a text is not key=value, or the key is unknown or given twice.
    """
    options: dict[str, str] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not value:
            raise EngineError(f"--engine-options: {text!r} is not key=value")
        if key not in known:
            names = f"known: {', '.join(known)}" if known else "it has none"
            raise EngineError(
                f"--engine-options: {engine} has no option {key!r}"
                f"{did_you_mean(key, list(known))}; {names}"
            )
        if key in options:
            raise EngineError(f"--engine-options: {key} is given twice")
        if not value.isprintable():
            raise EngineError(f"--engine-options: {key}: {value!r} has unprintable characters")
        options[key] = value
    return known | options


def refuse_gpus(engine: str, gpus: int, cells: list[Cell], remedy: str = "") -> None:
    """Ask that a task of several GPUs, or one, has all that its cells take together.

    Raises:
        EngineError: it has fewer.
    """
    ranks = max((cell.training.gpus_per_cell for cell in cells), default=1)
    if gpus < ranks:
        raise EngineError(
            f"--engine-options: {engine}'s gpus: {gpus} are fewer than the {ranks} of "
            f"training.gpus_per_cell{remedy}"
        )


def whole_number(engine: str, key: str, text: str, least: int = 1) -> int:
    """A whole number given as an engine's option.

    Raises:
        EngineError: it is none, or below `least`.
    """
    if not (text.isascii() and text.isdigit()) or len(text) > 6 or int(text) < least:
        raise EngineError(
            f"--engine-options: {engine}'s {key}: {text!r} is no whole number from {least} on"
        )
    return int(text)
