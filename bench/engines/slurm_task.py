"""A task of a SLURM array: it trains the next cell of the shared queue until none is left.

Before its time limit SLURM sends USR1: the cells save their state, and the task is queued again.
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
    models = Path(settings["models"]) if settings["models"] else None
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    events = train_queue(
        queue,
        open_tokens(corpus),
        cells[0],
        queue.records,
        Limits(models),
        places(int(cpus) if cpus else None),
        lambda: bool(caught) or queue.asked_to_stop(),
    )
    for event in events:
        queue.report(event)
    if signal.SIGUSR1 in caught and not queue.asked_to_stop():
        subprocess.run(["scontrol", "requeue", job], check=False)
    return 0


if __name__ == "__main__":
    try:
        code = main(Path(sys.argv[1]))
    except IsoflopError as error:
        print(f"isoflop: {' '.join(str(error).split())}", file=sys.stderr)
        code = 2
    sys.exit(code)
