"""The processes that train a cell together: how they start, and how they hear of the next cell.

The first one is a worker of the local engine, which starts the others, or all are started by
torchrun. The others only train; the first one reports and stores as well.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from isoflop.bench.data import open_tokens
from isoflop.bench.plan import Cell
from isoflop.bench.train import StoppedError, train_cell
from isoflop.results.errors import IsoflopError

# Tensors of the host too, for what must not wait for a GPU.
BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
LOST_SECONDS = 10.0  # in which a process notices by itself that another one is gone
_BOOT = "import sys; from isoflop.bench.ranks import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class Job:
    """What every process must know to train a cell; see `train_cell`."""

    cell: Cell
    corpus: Path  # folder of tokens
    scratch: Path
    models: Path | None
    compiled: bool


def join(
    device: torch.device, store: dist.Store | None = None, rank: int = -1, world: int = -1
) -> None:
    """Make this process one of a group; by torchrun's environment if there is no store."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group(BACKENDS[device.type], store=store, rank=rank, world_size=world)


def tell(job: Job | None) -> None:
    """Say to the other processes what to train, or that nothing more comes."""
    dist.broadcast_object_list([job], src=0)


def follow(device: torch.device) -> None:
    """Train with the first process what it says, until nothing more comes.

    Raises:
        IsoflopError: a cell failed here. The processes are then no longer in step.
    """
    while True:
        message: list[Job | None] = [None]
        dist.broadcast_object_list(message, src=0)
        job = message[0]
        if job is None:
            return
        try:
            tokens = open_tokens(job.corpus)
            record = train_cell(
                job.cell, tokens, device, job.scratch, models=job.models, compiled=job.compiled
            )
        except StoppedError:
            continue
        if record.status == "failed":
            raise IsoflopError(f"process {dist.get_rank()}: {record.message}")


@contextmanager
def together(devices: Sequence[torch.device], job: Job) -> Iterator[Callable[[], str]]:
    """Within the block this process is the first of a group with one for each device.

    Yields:
        what happened to the others, in a line; empty if nothing did.
    """
    world = len(devices)
    if world == 1:
        yield lambda: ""
        return
    store = dist.TCPStore("127.0.0.1", 0, world, is_master=True, wait_for_workers=False)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _BOOT, str(store.port), str(rank), str(world), str(device)],
            stdin=subprocess.PIPE,  # which ends with this process
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        for rank, device in enumerate(devices[1:], 1)
    ]
    ended = threading.Event()

    def watch(process: subprocess.Popen[bytes]) -> None:
        process.wait()
        if not ended.wait(LOST_SECONDS):  # in a collective, for an answer that cannot come
            os._exit(1)

    def trouble() -> str:
        last = time.monotonic() + 1
        while time.monotonic() < last and all(process.poll() is None for process in processes):
            time.sleep(0.05)
        for rank, process in enumerate(processes, 1):
            if process.poll() is not None and process.stdout is not None:
                text = process.stdout.read().decode(errors="replace").strip()
                return text or f"process {rank}: ended with exit code {process.returncode}"
        return ""

    for process in processes:
        threading.Thread(target=watch, args=(process,), daemon=True).start()
    try:
        join(devices[0], store, 0, world)
        tell(job)
        yield trouble
    finally:
        ended.set()
        for process in processes:
            process.kill()
        if dist.is_initialized():
            dist.destroy_process_group()
        for process in processes:
            process.wait()


def main(arguments: list[str]) -> None:
    """Body of a process that `together` starts."""
    port, rank, world, name = arguments
    device = torch.device(name)
    threading.Thread(target=_end_with_the_first, daemon=True).start()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", int(port), int(world), is_master=False)
        join(device, store, int(rank), int(world))
        follow(device)
    except Exception as error:  # the first process says so in its record
        text = " ".join(str(error).split())
        print(text if isinstance(error, IsoflopError) else f"{type(error).__name__}: {text}")
        sys.stdout.flush()
        os._exit(1)


def _end_with_the_first() -> None:
    sys.stdin.buffer.read()
    os._exit(1)
