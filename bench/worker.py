"""The process in which a cell is trained: how it starts, what it does, how it ends."""

from __future__ import annotations

import datetime
import multiprocessing
import multiprocessing.forkserver
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from isoflop.bench.data import open_tokens
from isoflop.bench.machine import device_name, measured
from isoflop.bench.plan import Cell
from isoflop.bench.ranks import Job, together
from isoflop.bench.train import Hooks, Progress, StoppedError, describe, train_cell
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Record

if TYPE_CHECKING:  # Windows has no ForkServerContext
    from multiprocessing.context import ForkServerContext, SpawnContext

# Freed blocks stay with the process: small steps otherwise spend a third of their time on the
# page faults of fresh memory. Read by glibc when a process starts; harmless elsewhere.
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**26),
}


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
            # Ctrl-C goes to all processes; the parent alone acts on it. Inherited by every worker.
            before_interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
            try:
                multiprocessing.forkserver.ensure_running()
            finally:
                signal.signal(signal.SIGINT, before_interrupt)
            yield context
    finally:
        for key, old in before.items():
            if old is None:
                os.environ.pop(key, None)


@contextmanager
def interrupt_afterwards() -> Iterator[None]:
    """A Ctrl-C or a SIGTERM within the block takes effect at its end."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: caught.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if caught:
        signal.raise_signal(caught[0])


@dataclass(frozen=True)
class Order:
    """A cell to train."""

    cell: Cell
    compiled: bool
    others: tuple[torch.device, ...] = ()  # devices that train it too, each by a process


def work(
    corpus: Path, device: torch.device, scratch: Path, models: Path | None, pipe: Connection
) -> None:
    """Body of a worker: train each cell that comes; send progress, then the record, or why none.

    SIGTERM asks it to save its state. It ends when the parent closes the pipe, or is gone.
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
    message: Record | Exception
    try:
        tokens = None
        while True:
            order: Order = pipe.recv()
            try:
                tokens = tokens or open_tokens(corpus)
                job = Job(order.cell, corpus, scratch, models, order.compiled)
                with together([device, *order.others], job) as trouble:
                    message = train_cell(
                        order.cell, tokens, device, scratch, hooks, models, order.compiled
                    )
                    if message.status == "failed" and (reason := trouble()):
                        message = message.model_copy(update={"message": reason})
            except (StoppedError, IsoflopError) as error:
                message = error
            pipe.send(message)
            if stop:  # the parent waits for the end, and sends no more
                return
    except EOFError:
        return
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)


def ending(exit_code: int | None) -> str:
    """What a process that sent no result says by its end."""
    if exit_code is not None and exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}"
    return f"its process ended with exit code {exit_code}"


def died(
    cell: Cell, device: torch.device, exit_code: int | None, tokens: int, validation_hash: str
) -> Record:
    """The record of a cell whose process ended without one."""
    return describe(
        cell,
        {"status": "failed", "message": ending(exit_code), "loss": None, "bits_per_byte": None},
        tokens_in_corpus=tokens,
        validation_hash=validation_hash,
        curve=[],
        measured=measured(
            "cuda" if device.type == "cuda" else device_name(device),
            datetime.datetime.now(datetime.UTC),
            seconds=0.0,
        ),
    )
