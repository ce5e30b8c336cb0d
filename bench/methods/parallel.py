"""Methods on several kept models at a time, each in a process of its own, like cells."""

from __future__ import annotations

import multiprocessing.connection
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from isoflop.bench.engines.local import places
from isoflop.bench.methods.compress import Kept, Request, Source, compress
from isoflop.bench.methods.experts import UnfitError
from isoflop.bench.methods.method import find_choices
from isoflop.bench.worker import ending, interrupt_afterwards, workers
from isoflop.results.compressed import Compressed
from isoflop.results.errors import IsoflopError


@dataclass(frozen=True)
class Unfit:
    """A variant whose layers a method does not fit."""

    variant: str
    why: str


def compress_all(
    sources: Sequence[Kept], request: Request, folder: Path
) -> Iterator[Compressed | Unfit]:
    """The records that were asked for, as they are stored: a source per core, or per GPU.

    On a CPU a process has one thread, as in training: a record does not depend on the cores. A kill
    loses the records in work alone.

    Raises:
        IsoflopError: see `compress`; or a process ended without its records.
    """
    # What is asked wrongly is told before anything starts.
    find_choices(request.method, request.options)
    waiting, free = list(sources), [place.device for place in places()]
    running: dict[Connection, tuple[BaseProcess, Kept, torch.device]] = {}
    with workers() as context:
        try:
            while waiting or running:
                while waiting and free:
                    source, device = waiting.pop(0), free.pop(0)
                    with interrupt_afterwards():  # every process that started is known here
                        pipe, theirs = context.Pipe(duplex=False)
                        arguments = (source, request, folder, device, theirs)
                        process: BaseProcess = context.Process(
                            target=_work, args=arguments, daemon=True
                        )
                        process.start()
                        theirs.close()
                        running[pipe] = process, source, device
                for ready in multiprocessing.connection.wait(list(running)):
                    assert isinstance(ready, Connection)
                    worker, source, device = running[ready]
                    try:
                        message = ready.recv()
                    except (EOFError, ConnectionResetError):
                        worker.join()
                        raise IsoflopError(
                            f"{source.name}: {ending(worker.exitcode)}; what it stored is whole, "
                            "the same command goes on from there"
                        ) from None
                    if isinstance(message, IsoflopError):
                        raise message
                    if message is not None:
                        yield message
                        continue
                    worker.join()
                    del running[ready]
                    free.append(device)
        finally:
            for worker, _, _ in running.values():
                worker.kill()
            for worker, _, _ in running.values():
                worker.join()


def _work(
    kept: Kept, request: Request, folder: Path, device: torch.device, pipe: Connection
) -> None:
    """Body of a process: send every record, then None; or why there is none."""
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        try:
            for item in compress(Source(kept, device), request, folder):
                pipe.send(item)
        except UnfitError as error:
            pipe.send(Unfit(kept.cell.variant, str(error)))
        except IsoflopError as error:
            pipe.send(error)
        pipe.send(None)
    except (BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the parent is gone
