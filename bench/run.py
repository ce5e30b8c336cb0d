"""Running a suite: every cell in its own process, as many at a time as there are CPU cores or GPUs.

In its own process a cell has a memory peak of its own, and a crash, or the kernel's out-of-memory
killer, does not end the suite. On a CPU a cell trains with one thread: with more, small models
waste time, and the result would depend on the number of cores.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic

import torch

from isoflop.bench.data import hash_of_windows, prepare
from isoflop.bench.flops import verify_flops
from isoflop.bench.plan import Cell, distinct_models
from isoflop.bench.train import Progress, StoppedError, checkpoint_path
from isoflop.bench.worker import died, interrupt_afterwards, work, workers
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Record, add_record, read_record

STOP_SECONDS = 30  # in which a worker that is asked to stop saves its state and ends


class RunError(IsoflopError):
    """The suite cannot go on, for a reason outside the cells: a full disk, an unwritable folder."""


@dataclass(frozen=True)
class Event:
    """News of a cell: it waits to be trained, has made progress, met trouble, or has a record."""

    cell: Cell
    progress: Progress | None = None
    record: Record | None = None
    stored: bool = False  # the record was there before this one, or before the run
    warning: str = ""  # trouble that does not end the cell
    stopped: bool = False  # its state is saved; a later run goes on from it


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


@dataclass(frozen=True)
class Limits:
    """What a run keeps, and when it stops."""

    models: Path | None = None  # folder for trained weights; they are dropped if None
    deadline: float | None = None  # of `time.monotonic`, at which running cells save and stop


def run_suite(
    cells: list[Cell], records: Path, limits: Limits = Limits()
) -> Generator[Event, None, None]:
    """Train the cells without a record, having verified their FLOP formulas.

    Yields:
        first an event for every cell, in order: its record, `stored`, or neither record nor
        progress if it is to be trained; then progress and records of those that are trained.
    Raises:
        RecordError: a stored record is unreadable; nothing is overwritten.
        FlopError: a layer's formula differs from the trace; nothing is trained.
        RunError, DataError: see `run_cells`.
    """
    waiting = []
    for record, cell in [(stored_record(cell, records), cell) for cell in cells]:
        yield Event(cell, record=record, stored=record is not None)
        if record is None:
            waiting.append(cell)
    for cell in distinct_models(waiting):
        verify_flops(cell.config, cell.training.micro_batch or cell.training.batch)
    yield from run_cells(waiting, records, limits)


def devices() -> list[torch.device]:
    """One entry per cell that can train at a time: every GPU, or every CPU core."""
    if torch.cuda.is_available():
        return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [torch.device("cpu")] * (cores or 1)


def run_cells(
    cells: list[Cell], records: Path, limits: Limits = Limits()
) -> Generator[Event, None, None]:
    """Train cells, and write `records/<cell>.json` when a cell ends, unless it is there by then.

    Yields:
        progress and records of the cells, as they come.
    Raises:
        RunError: a record cannot be written. Records written before stay whole.
        DataError: the corpus cannot be used.
    """
    if not cells:
        return
    tokens = prepare(cells[0].corpus)
    windows = tokens.validation_windows(
        cells[0].training.validation_tokens, cells[0].training.context
    )
    scratch = records.parent / "checkpoints"
    with workers() as context:
        waiting = list(cells)
        free = devices()
        running: dict[Connection, tuple[BaseProcess, Cell, torch.device]] = {}
        stopping = False
        try:
            while waiting or running:
                if limits.deadline is not None and monotonic() > limits.deadline and not stopping:
                    stopping = True
                    waiting.clear()
                    for process, _, _ in running.values():
                        process.terminate()
                while waiting and free:
                    cell, device = waiting.pop(0), free.pop()
                    ours, theirs = context.Pipe(duplex=False)
                    process = context.Process(
                        target=work,
                        args=(cell, tokens.folder, device, scratch, limits.models, theirs),
                        daemon=True,
                    )
                    with interrupt_afterwards():  # the first start waits for the server
                        process.start()
                        theirs.close()
                        running[ours] = (process, cell, device)
                for ready in multiprocessing.connection.wait(list(running), timeout=1.0):
                    assert isinstance(ready, Connection)
                    process, cell, device = running[ready]
                    try:
                        message = ready.recv()
                    except EOFError:  # the process died without a record
                        process.join()
                        message = died(
                            cell,
                            device,
                            process.exitcode,
                            len(tokens.train),
                            hash_of_windows(windows),
                        )
                        if stopping and process.exitcode == -signal.SIGTERM:
                            message = StoppedError()  # before it could be asked
                    if isinstance(message, Progress):
                        yield Event(cell, progress=message)
                        continue
                    if isinstance(message, str):
                        yield Event(cell, warning=message)
                        continue
                    if isinstance(message, IsoflopError):
                        raise message
                    process.join()
                    del running[ready]
                    ready.close()
                    free.append(device)
                    if isinstance(message, StoppedError):
                        yield Event(cell, stopped=True)
                        continue
                    yield _store(cell, message, records, scratch)
        finally:
            for process, _, _ in running.values():
                process.terminate()
            end = monotonic() + STOP_SECONDS
            for process, _, _ in running.values():
                process.join(max(0.0, end - monotonic()))
                process.kill()
    with suppress(OSError):  # not there, or in use by another machine
        scratch.rmdir()


def _store(cell: Cell, record: Record, records: Path, scratch: Path) -> Event:
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
        checkpoint_path(scratch, cell).unlink(missing_ok=True)
    return Event(cell, record=record, stored=not written)
