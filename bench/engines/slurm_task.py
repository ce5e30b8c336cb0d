"""A task of a SLURM array: it trains the next cell of the shared queue until none is left.

Before its time limit SLURM sends USR1: the cells save their state, and the task is queued again.
On a task of several nodes the batch file gets the signal, and says so by a file; torchrun has
started this program on each of the nodes, and their first process takes the cells.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from isoflop.bench.data import open_tokens
from isoflop.bench.engines.contract import Limits
from isoflop.bench.engines.local import places, train_queue
from isoflop.bench.engines.shared_queue import SharedQueue
from isoflop.results.errors import IsoflopError


def main(folder: Path) -> int:
    """Train until nothing is left to take. Returns the exit code."""
    job = os.environ["SLURM_JOB_ID"]
    array = os.environ.get("SLURM_ARRAY_JOB_ID", job)
    queue = SharedQueue(folder, f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID', '0')}")
    caught: list[int] = []

    def catch(number: int, frame: Any) -> None:
        caught.append(number)

    for number in (signal.SIGUSR1, signal.SIGTERM):
        signal.signal(number, catch)
    shared = None
    if "TORCHELASTIC_RUN_ID" in os.environ:  # set by torchrun
        from isoflop.bench.engines.torchrun import Torchrun

        shared = Torchrun()  # which the first process alone gets
    near = near_limit(folder, job)

    def stop() -> bool:
        return bool(caught) or near.exists() or queue.asked_to_stop()

    queue.give_back_all()
    cells = queue.cells()
    settings = queue.settings
    corpus = Path(settings["corpus"])
    if not (corpus / "meta.json").exists():
        print(
            f"isoflop: {corpus}: no corpus on node {os.uname().nodename}: set ISOFLOP_CACHE to a "
            "folder that the nodes share",
            file=sys.stderr,
        )
        return 2
    tokens = open_tokens(corpus)
    limits = Limits(Path(settings["models"]) if settings["models"] else None)
    if shared is not None:
        events = shared.train_queue(queue, tokens, queue.records, limits, stop)
    else:
        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        here = places(int(cpus) if cpus else None)
        events = train_queue(queue, tokens, cells[0], queue.records, limits, here, stop)
    for event in events:
        queue.report(event)
    if (signal.SIGUSR1 in caught or near.exists()) and not queue.asked_to_stop():
        subprocess.run(["scontrol", "requeue", job], check=False)
    return 0


def near_limit(folder: Path, job: str) -> Path:
    """The file that says that the time limit of a task of several nodes is near.

    Args:
        folder: of the queue.
        job: SLURM's number of the task, or how the batch file writes it.
    """
    return folder / f"near-limit-{job}"


if __name__ == "__main__":
    try:
        code = main(Path(sys.argv[1]))
    except IsoflopError as error:
        print(f"isoflop: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    sys.exit(code)
