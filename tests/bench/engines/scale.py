"""A suite on a real SLURM of many nodes on this machine, some of which are lost; stored.

    python -m tests.bench.engines.scale --nodes 64 --workers 24 --cells 200 --lose 8

As root, with SLURM's packages. The command is killed once, and started again. Each worker takes
about 0.6 GB; cells mostly sleep, so that the cores do not decide. Then the same cells run locally
without sleep, and the run is played through by the simulator, with the seconds that cells took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from isoflop import bench
from isoflop.bench.engines.contract import Limits
from isoflop.bench.engines.local import Local
from isoflop.bench.engines.simulated_run import Cluster, Run
from isoflop.bench.suite import to_toml
from isoflop.results.code import hash_of
from isoflop.results.files import write_whole
from isoflop.results.record import load_records
from tests.bench.cells import TINY, tiny_cells, tiny_suite
from tests.bench.engines import slurm_cluster
from tests.bench.engines.slurm_cluster import SLURMD_TIMEOUT, wait_for

STORED = Path("results/simulations/slurm.json")
DECISIVE = ("contract", "shared_queue", "simulated_run", "slurm", "slurm_task")  # modules
NOTICED = SLURMD_TIMEOUT + 5.0  # seconds until SLURM counts a node as lost, and the command knows
# Every step notes its time, in a file for each process that trains a cell.
SLEEPY = """
import os, time
from isoflop.models import LAYERS

class Sleepy(LAYERS["dense"]):
    def after_step(self):
        if "SLURM_JOB_ID" in os.environ:
            name = os.environ["SLURM_ARRAY_TASK_ID"] + f"-{{os.getpid()}}"
            with open({noted!r} + "/" + name, "a") as file:
                file.write(f"{{time.time()}}\\n")
            time.sleep({seconds})
"""


def code() -> str:
    """A hash of the engine and the simulator."""
    folder = Path(bench.__file__).resolve().parent / "engines"
    return hash_of(folder / f"{module}.py" for module in DECISIVE)


def suite(folder: Path, cells: int, seconds: float) -> dict[str, Any]:
    """Changes of the tiny suite: as many cells, of two lengths.

    Args:
        seconds: that a step sleeps on SLURM.
    """
    (folder / "steps").mkdir()
    file = folder / "sleepy.py"
    file.write_text(SLEEPY.format(noted=str(folder / "steps"), seconds=seconds))
    return {
        "variants": {"sleepy": {"layer": f"{file}:Sleepy", "learning_rate": 1e-2}},
        "budgets": [{"flops": 3e8}, {"flops": 5e8}],
        "seeds": list(range(cells // 2)),
        "training": TINY["training"] | {"warmup": 0.1},
    }


def comparable(records: Path) -> dict[str, str]:
    """What must be equal, by cell."""
    return {r.cell: r.model_dump_json(exclude={"measured"}) for r in load_records(records)}


def simulated(stored: dict[str, Any]) -> float:
    """Makespan of the stored run, by the simulator: each worker is a node."""
    cluster = Cluster(
        stored["workers"],
        losses=0.0,
        checkpoint=float("inf"),
        noticed=NOTICED,
        away=stored["away"],
        unseen=0.0,
        slow=0.0,
    )
    run = Run(stored["seconds"], [list(range(stored["cells"]))], cluster, "0")
    for after, worker in stored["losses"]:
        run._later(after - stored["start"], "lose", worker)
    return float(stored["start"] + run.play().makespan)


def spans(folder: Path) -> dict[int, list[tuple[float, float]]]:
    """When each process of a task took its first and its last step, by the task's number."""
    result = defaultdict(list)
    for path in folder.iterdir():
        times = [float(line) for line in path.read_text().split()]
        result[int(path.name.split("-")[0])].append((times[0], times[-1]))
    return {task: sorted(spans_) for task, spans_ in result.items()}


def main() -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("nodes", 64), ("workers", 24), ("cells", 200), ("lose", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--sleep", type=float, default=0.1, help="seconds of a step")
    parser.add_argument("--store", type=Path, default=STORED)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="isoflop-scale-") as name:
        result = measure(Path(name), given)
    write_whole(given.store, json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "seconds"}))
    return 0 if result["equal"] == given.cells else 1


def measure(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Run the suite both ways; what is stored."""
    changes = suite(folder, given.cells, given.sleep)
    (folder / "suite.toml").write_text(to_toml(tiny_suite(**changes)))
    cells, records = tiny_cells(**changes), folder / "out" / "records"
    steps = folder / "steps"
    losses: list[tuple[float, int]] = []

    def done() -> int:
        return len(list(records.glob("[!.]*.json")))

    with slurm_cluster.slurm(folder / "slurm", given.nodes) as cluster:
        command = start(folder, cluster.environment, given.workers)
        jobs = folder / "out" / "slurm-records" / "jobs"
        wait_for(jobs.exists, 600)
        begun = time.time()
        wait_for(lambda: done() >= given.cells // 10, 1800)
        lost: set[str] = set()
        for _ in range(given.lose):
            wait_for(lambda: bool(busy(steps) - lost), 600)
            task = min(busy(steps) - lost)
            lost.add(task)
            cluster.lose(cluster.tasks()[task][1])
            losses.append((time.time() - begun, int(task) - 1))
        command.kill()
        command.wait()
        command = start(folder, cluster.environment, given.workers)
        wait_for(lambda: done() == given.cells or command.poll() is not None, 3600)
        ended = max(path.stat().st_mtime for path in records.glob("[!.]*.json"))
        command.wait(300)
    processes = spans(steps)
    gaps = [b[0] - a[1] for spans_ in processes.values() for a, b in pairwise(spans_)]
    gap = median(gaps)
    local = folder / "local" / "records"
    list(Local().train(cells, local, Limits()))
    expected, found = comparable(local), comparable(records)
    back = [
        min((first for first, _ in processes[worker + 1] if first > begun + after), default=1e9)
        - (begun + after + gap)
        for after, worker in losses
    ]
    lengths = sorted(
        (last - first + gap for spans_ in processes.values() for first, last in spans_),
        reverse=True,
    )[: given.cells]
    result: dict[str, Any] = {
        "code": code(),
        "nodes": given.nodes,
        "workers": given.workers,
        "cells": given.cells,
        "losses": losses,
        "commands": 2,
        "records": done(),
        "equal": sum(found.get(cell) == text for cell, text in expected.items()),
        "begun_again": sum(map(len, processes.values())) - given.cells,
        "start": median(spans_[0][0] for spans_ in processes.values()) - begun - gap,
        "away": median(back),
        "makespan": ended - begun,
        "seconds": [round(length, 2) for length in lengths],
    }
    return result | {"simulated": simulated(result)}


def start(folder: Path, environment: dict[str, str], workers: int) -> subprocess.Popen[bytes]:
    """The command."""
    options = ("--out", "out", "--on", "slurm", "--engine-options", f"workers={workers}")
    with (folder / "command.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "isoflop", "run", "suite.toml", *options],
            cwd=folder,
            env=environment | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"},
            stdout=log,
            stderr=log,
        )


def busy(steps: Path) -> set[str]:
    """Tasks that are in the first half of a cell."""
    return {
        path.name.split("-")[0]
        for path in steps.iterdir()
        if time.time() - path.stat().st_mtime < 1 and 5 <= len(path.read_text().split()) <= 30
    }


if __name__ == "__main__":
    sys.exit(main())
