"""Running a suite: what has no record yet is verified, then trained by an engine."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from isoflop.bench.engines.contract import Engine, Event, Limits
from isoflop.bench.engines.local import Local
from isoflop.bench.flops import verify_flops
from isoflop.bench.plan import Cell, distinct_models
from isoflop.results.record import Record, read_record

FREE = Limits()


def stored_record(cell: Cell, records: Path) -> Record | None:
    """A cell's record, unless it is yet to be trained: it has none, or its process failed.

    Raises:
        RecordError: the record is unreadable.
    """
    path = records / f"{cell.id}.json"
    record = read_record(path) if path.exists() else None
    return None if record is None or record.status == "failed" else record


def missing(cells: list[Cell], records: Path) -> list[Cell]:
    """The cells that are yet to be trained.

    Raises:
        RecordError: a record is unreadable.
    """
    return [cell for cell in cells if stored_record(cell, records) is None]


def run_suite(
    cells: list[Cell], records: Path, limits: Limits = FREE, engine: Engine | None = None
) -> Generator[Event, None, None]:
    """Train the cells without a record, having verified their FLOP formulas.

    Args:
        engine: `Local` if None.
    Yields:
        first an event for every cell, in order: its record, `stored`, or neither record nor
        progress if it is to be trained; then progress and records of those that are trained.
    Raises:
        RecordError: a stored record is unreadable; nothing is overwritten.
        FlopError: a layer's formula differs from the trace; nothing is trained.
        RunError, EngineError, DataError: see `contract.Engine`.
    """
    waiting = []
    for record, cell in [(stored_record(cell, records), cell) for cell in cells]:
        yield Event(cell, record=record, stored=record is not None)
        if record is None:
            waiting.append(cell)
    for cell in distinct_models(waiting):
        verify_flops(cell.config, cell.training.micro_batch or cell.training.batch)
    # An engine trains cells alike in these; the choices of an ablation may have several.
    groups: dict[str, list[Cell]] = {}
    for cell in waiting:
        training = cell.training
        key = f"{training.validation_tokens} {training.context} {training.gpus_per_cell}"
        groups.setdefault(f"{cell.corpus} {key}", []).append(cell)
    for group in groups.values():
        yield from (engine or Local()).train(group, records, limits)
