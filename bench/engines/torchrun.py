"""The engine of a command that torchrun started: all its processes train each cell together.

The first process runs the command; the others do what it says.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Generator
from pathlib import Path
from queue import Empty, SimpleQueue
from time import monotonic

import torch
import torch.distributed as dist

from isoflop.bench.data import Tokens, prepare
from isoflop.bench.engines.contract import (
    EngineError,
    Event,
    Limits,
    RunError,
    remove_scratch,
    scratch_of,
    store,
)
from isoflop.bench.engines.local import Queue, Waiting, places, starting_order
from isoflop.bench.plan import Cell
from isoflop.bench.policy import need
from isoflop.bench.ranks import Job, follow, join, tell
from isoflop.bench.refusals import refuse_ranks
from isoflop.bench.train import Hooks, Progress, StoppedError, train_cell
from isoflop.results.record import Record


class Torchrun:
    """The engine, in the first process; in the others it never comes to be.

    Raises:
        SystemExit: in the others, once the first has nothing more for them.
    """

    left_running = ""

    def __init__(self) -> None:
        local = int(os.environ["LOCAL_RANK"])
        cuda = torch.cuda.is_available()
        self.device = torch.device("cuda", local) if cuda else torch.device("cpu")
        if not cuda:
            torch.set_num_threads(1)
        join(self.device)
        if dist.get_rank():
            follow(self.device)
            dist.destroy_process_group()
            raise SystemExit(0)
        self.in_step = True
        atexit.register(self._dismiss)

    def _dismiss(self) -> None:
        if self.in_step:
            tell(None)
            dist.destroy_process_group()

    def dry_run(self, cells: list[Cell], records: Path, limits: Limits) -> str:
        """Nothing is submitted.

        Raises:
            EngineError, SuiteError: the processes cannot share a cell.
        """
        world = dist.get_world_size()
        for cell in cells:
            if cell.training.gpus_per_cell == 1:
                raise EngineError(
                    f"torchrun: a cell of {cell.suite} is trained by one process: set "
                    "training.gpus_per_cell, or start isoflop without torchrun"
                )
            refuse_ranks(cell, world, "torchrun")
        return ""

    def train(
        self, cells: list[Cell], records: Path, limits: Limits
    ) -> Generator[Event, None, None]:
        """See `contract.Engine`.

        Raises:
            RunError: see `train_queue`.
        """
        if cells:
            waiting = Waiting(starting_order(cells, limits))
            yield from self.train_queue(waiting, prepare(cells[0].corpus), records, limits)
            remove_scratch(records)

    def train_queue(
        self,
        queue: Queue,
        tokens: Tokens,
        records: Path,
        limits: Limits,
        asked_to_stop: Callable[[], bool] = lambda: False,
    ) -> Generator[Event, None, None]:
        """Train what a queue gives, one cell after another; see `local.train_queue`.

        Raises:
            RunError: a cell failed: the processes are no longer in step.
        """
        like = places()[0].like

        def stop() -> bool:
            late = limits.deadline is not None and monotonic() > limits.deadline
            return late or asked_to_stop()

        while not stop() and (cell := queue.take(lambda cell: True)):
            compiled = need(cell, like).compiled
            job = Job(cell, tokens.folder, scratch_of(records), limits.models, compiled)
            for event in self._train_cell(job, tokens, records, stop):
                if event.stopped:
                    queue.give_back(cell)
                yield event

    def _train_cell(
        self, job: Job, tokens: Tokens, records: Path, stop: Callable[[], bool]
    ) -> Generator[Event, None, None]:
        news: SimpleQueue[Progress | str | Record | BaseException] = SimpleQueue()
        stopping = threading.Event()

        def train() -> None:
            try:
                if self.device.type == "cuda":
                    torch.cuda.set_device(self.device)  # of this thread
                tell(job)
                hooks = Hooks(news.put, news.put, stopping.is_set)
                news.put(
                    train_cell(
                        job.cell,
                        tokens,
                        self.device,
                        job.scratch,
                        hooks,
                        job.models,
                        job.compiled,
                    )
                )
            except BaseException as error:
                news.put(error)

        self.in_step = False
        threading.Thread(target=train, daemon=True).start()
        while True:
            if stop():
                stopping.set()
            try:
                message = news.get(timeout=1.0)
            except Empty:
                continue
            if isinstance(message, Progress):
                yield Event(job.cell, progress=message)
            elif isinstance(message, str):
                yield Event(job.cell, warning=message)
            else:
                break
        if isinstance(message, StoppedError):
            self.in_step = True
            yield Event(job.cell, stopped=True)
            return
        if isinstance(message, BaseException):
            raise message
        self.in_step = message.status != "failed"
        yield store(job.cell, message, records, job.scratch)
        if not self.in_step:
            raise RunError(f"{message.message}; the same command goes on with the other cells")
