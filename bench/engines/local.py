"""The engine `local`: cells in processes of this machine, as many at a time as it has room for.

On a CPU every cell has a process of its own and one thread: its memory peak is its own, a crash,
or the kernel's out-of-memory killer, does not end the suite, and the result does not depend on the
number of cores. On a GPU a process trains one cell after another, since its start costs as much as
a small cell; several share a GPU where `policy` says that they fit.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import torch

from isoflop.bench.cost import Device, local_cpu
from isoflop.bench.data import Tokens, hash_of_windows
from isoflop.bench.data import prepare as prepare_tokens
from isoflop.bench.engines.contract import (
    EngineError,
    Event,
    Limits,
    remove_scratch,
    scratch_of,
    store,
)
from isoflop.bench.plan import Cell
from isoflop.bench.policy import Need, card, fits, longest_first, need
from isoflop.bench.train import Progress, StoppedError
from isoflop.bench.worker import Order, died, interrupt_afterwards, work, workers
from isoflop.results.errors import IsoflopError

STOP_SECONDS = 30  # in which a worker that is asked to stop saves its state and ends


@dataclass(frozen=True)
class Place:
    """A GPU, or a core."""

    device: torch.device
    like: Device  # what it can do, for predictions
    cores: int  # of the host, for its processes
    warm: bool  # a process trains one cell after another
    others: tuple[torch.device, ...] = ()  # that train the same cell, each by a process


class Queue(Protocol):
    """Cells that wait. Other machines may take from the same ones."""

    def take(self, suits: Callable[[Cell], bool]) -> Cell | None:
        """The first that suits, which is then this machine's; None if there is none now."""

    def give_back(self, cell: Cell) -> None:
        """Let it be taken again, later or by others."""


class Waiting:
    """A queue of this process alone."""

    def __init__(self, cells: list[Cell]) -> None:
        self.cells = list(cells)

    def take(self, suits: Callable[[Cell], bool]) -> Cell | None:
        for cell in self.cells:
            if suits(cell):
                self.cells.remove(cell)
                return cell
        return None

    def give_back(self, cell: Cell) -> None:
        self.cells.insert(0, cell)


def cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def places(core_count: int | None = None) -> list[Place]:
    """Every GPU, or every core where there is no GPU.

    Args:
        core_count: of the host, that may be used; all if None.
    """
    count = min(core_count or cores(), cores())
    if not torch.cuda.is_available():
        return [Place(torch.device("cpu"), local_cpu(), 1, warm=False)] * count
    gpus = torch.cuda.device_count()
    known = [torch.cuda.get_device_properties(index) for index in range(gpus)]
    return [
        Place(
            torch.device("cuda", index),
            card(gpu.name, gpu.total_memory),
            max(1, count // gpus),
            warm=True,
        )
        for index, gpu in enumerate(known)
    ]


def starting_order(cells: list[Cell], limits: Limits) -> list[Cell]:
    """The order in which every engine starts cells, priced on a device like those here."""
    return longest_first(cells, places()[0].like, limited=limits.deadline is not None)


def grouped(here: list[Place], ranks: int) -> list[Place]:
    """Places of `ranks` devices. Cores may be fewer: the processes then take turns.

    Raises:
        EngineError: there are fewer GPUs.
    """
    if ranks == 1:
        return here
    if here[0].device.type == "cpu":
        place = replace(here[0], others=(here[0].device,) * (ranks - 1))
        return [place] * max(1, len(here) // ranks)
    if len(here) < ranks:
        raise EngineError(
            f"training.gpus_per_cell: {ranks}, and there are {len(here)} GPUs here; over several "
            "machines a cell is trained by torchrun, or by --on slurm with nodes=N"
        )
    groups = [here[n : n + ranks] for n in range(0, len(here) - ranks + 1, ranks)]
    return [
        replace(first, cores=ranks * first.cores, others=tuple(place.device for place in rest))
        for first, *rest in groups
    ]


class Local:
    """The engine."""

    left_running = ""

    def train(
        self, cells: list[Cell], records: Path, limits: Limits
    ) -> Generator[Event, None, None]:
        """See `contract.Engine`."""
        if not cells:
            return
        queue = Waiting(starting_order(cells, limits))
        yield from train_queue(
            queue, prepare_tokens(cells[0].corpus), cells[0], records, limits, places()
        )
        remove_scratch(records)

    def dry_run(self, cells: list[Cell], records: Path, limits: Limits) -> str:
        """Nothing is submitted."""
        return ""


@dataclass
class _Worker:
    """A process, and the cell that it trains."""

    process: BaseProcess
    place: int
    cell: Cell
    need: Need
    shared: bool = False  # others ran beside it


def train_queue(
    queue: Queue,
    tokens: Tokens,
    any_cell: Cell,
    records: Path,
    limits: Limits,
    here: list[Place],
    asked_to_stop: Callable[[], bool] = lambda: False,
) -> Generator[Event, None, None]:
    """Train what the queue gives, until it gives nothing more, and store the records.

    Args:
        any_cell: of those in the queue; they share text and the number of processes for a cell.
        asked_to_stop: running cells save their state and end, and no other begins.
    Raises:
        RunError, EngineError, DataError: see `contract.Engine`.
    """
    training = any_cell.training
    windows = tokens.validation_windows(training.validation_tokens, training.context)
    scratch = scratch_of(records)
    running: dict[Connection, _Worker] = {}
    idle: dict[int, list[tuple[Connection, BaseProcess]]] = {n: [] for n in range(len(here))}
    alone: set[str] = set()  # cells that found no memory beside others
    stopping = False
    here = grouped(here, training.gpus_per_cell)

    def needs(cell: Cell, place: Place) -> Need:
        result = need(cell, place.like)
        return replace(result, load=1.0) if cell.id in alone or place.others else result

    def room(cell: Cell) -> list[int]:
        """Places where it fits, those with the fewest cells first."""
        beside = [[w.need for w in running.values() if w.place == n] for n in range(len(here))]
        suited = [
            n
            for n, place in enumerate(here)
            if fits(needs(cell, place), beside[n], place.like, place.cores)
        ]
        return sorted(suited, key=lambda n: len(beside[n]))

    def start(context: Any, cell: Cell) -> None:
        number = room(cell)[0]
        place = here[number]
        with interrupt_afterwards():  # every process that started is known here, and has an order
            # A user's layer may leave a process in any state.
            if idle[number] and cell.source is None:
                pipe, process = idle[number].pop()
            else:
                pipe, theirs = context.Pipe()
                process = context.Process(
                    target=work,
                    args=(tokens.folder, place.device, scratch, limits.models, theirs),
                    daemon=True,
                )
                process.start()
                theirs.close()
            worker = _Worker(process, number, cell, needs(cell, place))
            running[pipe] = worker
            pipe.send(Order(cell, worker.need.compiled, place.others))
        for other in (other for other in running.values() if other is not worker):
            if other.place == number:
                other.shared = worker.shared = True

    def end(pipe: Connection, worker: _Worker, keep: bool) -> None:
        del running[pipe]
        if keep and here[worker.place].warm and worker.cell.source is None:
            idle[worker.place].append((pipe, worker.process))
            return
        pipe.close()
        worker.process.join()

    with workers() as context:
        try:
            while True:
                late = limits.deadline is not None and monotonic() > limits.deadline
                if (late or asked_to_stop()) and not stopping:
                    stopping = True
                    for worker in running.values():
                        worker.process.terminate()
                while not stopping and (cell := queue.take(lambda cell: bool(room(cell)))):
                    start(context, cell)
                if not running:
                    return
                for ready in multiprocessing.connection.wait(list(running), timeout=1.0):
                    assert isinstance(ready, Connection)
                    worker = running[ready]
                    cell = worker.cell
                    try:
                        message = ready.recv()
                    except (EOFError, ConnectionResetError):  # it died without a record
                        worker.process.join()
                        code = worker.process.exitcode
                        message = died(
                            cell,
                            here[worker.place].device,
                            code,
                            len(tokens.train),
                            hash_of_windows(windows),
                        )
                        if stopping and code == -signal.SIGTERM:
                            message = StoppedError()  # before it could be asked
                    if isinstance(message, Progress):
                        yield Event(cell, progress=message)
                        continue
                    if isinstance(message, str):
                        yield Event(cell, warning=message)
                        continue
                    if isinstance(message, IsoflopError):
                        raise message
                    if isinstance(message, StoppedError):
                        end(ready, worker, keep=False)
                        queue.give_back(cell)
                        yield Event(cell, stopped=True)
                        continue
                    end(ready, worker, keep=message.status != "failed")
                    if worker.shared and (message.message or "").startswith("out of memory"):
                        alone.add(cell.id)
                        queue.give_back(cell)
                        yield Event(
                            cell, warning="out of memory beside other cells; again, by itself"
                        )
                        continue
                    yield store(cell, message, records, scratch)
        finally:
            everyone = [worker.process for worker in running.values()]
            for process in everyone:
                process.terminate()
            for pipe, process in (entry for entries in idle.values() for entry in entries):
                pipe.close()
                everyone.append(process)
            last = monotonic() + STOP_SECONDS
            for process in everyone:
                process.join(max(0.0, last - monotonic()))
                process.kill()
