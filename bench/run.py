"""Running a suite: every cell in its own process, as many at a time as there are CPU cores or GPUs.

In its own process a cell has a memory peak of its own, and a crash, or the kernel's out-of-memory
killer, does not end the suite. On a CPU a cell trains with one thread: with more, small models
waste time, and the result would depend on the number of cores.
"""

from __future__ import annotations

import datetime
import multiprocessing
import multiprocessing.connection
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import torch

from isoflop.bench.data import hash_of_windows, open_tokens, prepare
from isoflop.bench.flops import verify_flops
from isoflop.bench.machine import device_name, git_revision, versions
from isoflop.bench.plan import Cell, distinct_models
from isoflop.bench.train import (
    Hooks,
    Progress,
    StoppedError,
    checkpoint_path,
    describe,
    train_cell,
)
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Measured, Record, add_record, read_record

if TYPE_CHECKING:  # Windows has no ForkServerContext
    from multiprocessing.context import ForkServerContext, SpawnContext

# Freed blocks stay with the process: small steps otherwise spend a third of their time on the
# page faults of fresh memory. Read by glibc when a process starts; harmless elsewhere.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}


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
                        target=_work,
                        args=(cell, tokens.folder, device, scratch, limits.models, theirs),
                        daemon=True,
                    )
                    with _interrupt_afterwards():  # the first start waits for the server
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
                        message = _died(
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


@contextmanager
def workers() -> Iterator[ForkServerContext | SpawnContext]:
    """How to start a cell's process: where the system can, by a fork of a server that has imported
    torch and nothing else; on Windows anew."""
    before = {key: os.environ.get(key) for key in ALLOCATOR}
    for key, value in ALLOCATOR.items():
        os.environ.setdefault(key, value)
    try:
        if sys.platform == "win32":
            yield multiprocessing.get_context("spawn")
        else:
            context = multiprocessing.get_context("forkserver")
            # The optimiser imports torch._dynamo on first use, which takes more than a second.
            context.set_forkserver_preload(["isoflop.bench.train", "torch._dynamo"])
            with _interrupts(signal.SIG_IGN):  # inherited by every worker
                multiprocessing.forkserver.ensure_running()
            yield context
    finally:
        for key, old in before.items():
            if old is None:
                os.environ.pop(key, None)


@contextmanager
def _interrupts(handler: signal.Handlers | Callable[[int, Any], None]) -> Iterator[None]:
    """Handle Ctrl-C so within the block. It goes to all processes; the parent alone acts on it."""
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _interrupt_afterwards() -> Iterator[None]:
    """A Ctrl-C within the block takes effect at its end."""
    caught: list[int] = []
    with _interrupts(lambda number, frame: caught.append(number)):
        yield
    if caught:
        raise KeyboardInterrupt


def _work(
    cell: Cell,
    corpus: Path,
    device: torch.device,
    scratch: Path,
    models: Path | None,
    pipe: Connection,
) -> None:
    """Body of a worker: train, send progress, then the record, or why there is none.

    SIGTERM asks it to save its state and end. It ends, too, when the parent is gone.
    """
    stop: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stop.append(number))
    parent = multiprocessing.parent_process()
    if device.type == "cpu":
        torch.set_num_threads(1)

    def report(progress: Progress) -> None:
        if parent is not None and not parent.is_alive():
            os._exit(1)
        pipe.send(progress)

    hooks = Hooks(report, pipe.send, lambda: bool(stop))
    message: object
    try:
        try:
            message = train_cell(cell, open_tokens(corpus), device, scratch, hooks, models)
        except (StoppedError, IsoflopError) as error:
            message = error
        pipe.send(message)
    except BrokenPipeError:
        os._exit(1)


def _died(
    cell: Cell, device: torch.device, exit_code: int | None, tokens: int, validation_hash: str
) -> Record:
    """The record of a cell whose process ended without one."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        reason = f"its process was ended by {name}{hint}"
    else:
        reason = f"its process ended with exit code {exit_code}"
    now = datetime.datetime.now(datetime.UTC)
    return describe(
        cell,
        {"status": "failed", "message": reason, "loss": None, "bits_per_byte": None},
        tokens_in_corpus=tokens,
        validation_hash=validation_hash,
        curve=[],
        measured=Measured(
            device="cuda" if device.type == "cuda" else device_name(device),
            started=now.isoformat(timespec="seconds"),
            seconds=0.0,
            train_seconds=0.0,
            tokens_per_second=None,
            peak_memory_bytes=None,
            versions=versions(),
            git_revision=git_revision(),
        ),
    )
