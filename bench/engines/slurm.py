"""The engine `slurm`: an array of tasks, each of which takes the next cell until none is left.

Everything goes through a folder that the nodes share, `slurm` beside the records: the queue
(`queue.py`), and the events of every task. A plain `sbatch` array is enough: what a job scheduler's
Python library would add is a second way to send results, and the records are there already.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from isoflop.bench.data import prepare as prepare_tokens
from isoflop.bench.engines.contract import (
    EngineError,
    Event,
    Limits,
    read_options,
    refuse_gpus,
    remove_scratch,
    whole_number,
)
from isoflop.bench.engines.local import starting_order
from isoflop.bench.engines.shared_queue import SharedQueue
from isoflop.bench.engines.slurm_task import near_limit
from isoflop.bench.plan import Cell
from isoflop.results.errors import did_you_mean

POLL_SECONDS = 1.0  # between two looks at the folder
SQUEUE_SECONDS = 5.0  # between two questions to SLURM
STOP_SECONDS = 120.0  # in which tasks that are asked to stop save their cells and end
SUBMISSIONS = 3  # arrays that are submitted without a single record between them
SIGNAL_SECONDS = (
    120  # before a task's time limit, at which it saves its cells; SLURM is early by 60
)
OPTIONS = {
    "workers": "8",  # tasks of the array
    "nodes": "1",  # of a task: several where a cell takes more GPUs than a node has
    "cpus": "1",  # of a task, on each of its nodes
    "gpus": "",  # likewise, as sbatch takes it: 1, h100:1
    "memory": "",
    "time": "",
    "partition": "",
    "account": "",
    "qos": "",
    "constraint": "",
    "dry-run": "no",
}
PASSED_ON = {
    "memory": "mem",
    "time": "time",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
}
# The body of a batch file whose tasks have several nodes. The shell gets the signals, and waits on.
# A cell that fails leaves its processes out of step: they are started anew, for the other cells.
SEVERAL_NODES = """\
near={near}
over=
rm -f "$near"
trap 'touch "$near"; over=yes' USR1
trap over=yes TERM
for start in 1 2 3 4; do
    srun --cpus-per-task={cpus} --kill-on-bad-exit=1 {python} -m torch.distributed.run \\
        --nnodes {nodes} --nproc-per-node {ranks} \\
        --rdzv-backend c10d --rdzv-id "$SLURM_JOB_ID-$start" \\
        --rdzv-endpoint "$(hostname):$((20000 + SLURM_JOB_ID % 20000))" {task} &
    while kill -0 $! 2>/dev/null; do wait $! && exit; done
    [ -z "$over" ] || exit
done
"""
HOLDING = {"RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "CONFIGURING", "RESIZING", "SIGNALING"}


def _run(*command: str) -> str:
    """Output of one of SLURM's commands.

    Raises:
        EngineError: it fails, or does not answer.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        raise EngineError(
            f"--on slurm: no {command[0]} here; run it where jobs are submitted, or leave --on out"
        ) from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"--on slurm: {command[0]} does not answer") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise EngineError(f"--on slurm: {command[0]}: {reason}")
    return done.stdout


@dataclass
class Slurm:
    """The engine.

    Args:
        given: options, as key=value.
    """

    given: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.options = read_options("slurm", self.given, OPTIONS)
        self.workers = whole_number("slurm", "workers", self.options["workers"])
        self.nodes = whole_number("slurm", "nodes", self.options["nodes"])
        whole_number("slurm", "cpus", self.options["cpus"])
        if self.options["dry-run"] not in ("yes", "no"):
            raise EngineError("--engine-options: slurm's dry-run is yes or no")
        for key in (*PASSED_ON, "gpus"):
            if re.search(r"[\s'\"\\]", self.options[key]):
                raise EngineError(f"--engine-options: slurm's {key}: {self.options[key]!r}")
        self.jobs: list[str] = []

    @property
    def left_running(self) -> str:
        """See `contract.Engine`."""
        if not self.jobs:
            return ""
        return (
            f"SLURM's job {self.jobs[-1]} goes on: the same command watches it again, "
            f"`scancel {self.jobs[-1]}` ends it"
        )

    def dry_run(self, cells: list[Cell], records: Path, limits: Limits) -> str:
        """See `contract.Engine`.

        Raises:
            EngineError: a task has fewer GPUs than a cell takes, or nodes that cannot share them.
        """
        for ranks in {cell.training.gpus_per_cell for cell in cells}:
            if ranks % self.nodes:
                raise EngineError(
                    f"--engine-options: slurm's nodes: {self.nodes} cannot share the {ranks} "
                    "processes of training.gpus_per_cell evenly"
                )
        count = self.options["gpus"].rpartition(":")[2]
        if count.isdigit():
            remedy = "; nodes=N gives a task as many on each of N nodes"
            refuse_gpus("slurm", self.nodes * int(count), cells, remedy)
        if self.options["dry-run"] == "no" or not cells:
            return ""
        return self.batch_file(_folder(records), cells)

    def batch_file(self, folder: Path, cells: list[Cell]) -> str:
        """What `sbatch` gets."""
        lines = [
            f"--job-name=isoflop-{cells[0].suite}",
            f"--array=1-{min(self.workers, len(cells))}",
            "--requeue",
            "--open-mode=append",
            f"--signal=B:USR1@{SIGNAL_SECONDS}",
            f"--output={folder}/task-%a.log",
            f"--chdir={os.getcwd()}",
            f"--cpus-per-task={self.options['cpus']}",
        ]
        several = self.nodes > 1
        lines += [f"--nodes={self.nodes}", "--ntasks-per-node=1"] if several else []
        if self.options["gpus"]:
            lines.append(f"--gpus{'-per-node' if several else ''}={self.options['gpus']}")
        lines += [
            f"--{name}={self.options[key]}" for key, name in PASSED_ON.items() if self.options[key]
        ]
        head = "#!/bin/sh\n" + "".join(f"#SBATCH {line}\n" for line in lines)
        task = ["-m", "isoflop.bench.engines.slurm_task", str(folder)]
        if not several:
            # `exec`, since the signal reaches the batch shell alone.
            return f"{head}exec {shlex.join([sys.executable, *task])}\n"
        return head + SEVERAL_NODES.format(
            near=shlex.quote(str(near_limit(folder, ""))) + '"$SLURM_JOB_ID"',
            python=shlex.quote(sys.executable),
            cpus=self.options["cpus"],
            nodes=self.nodes,
            ranks=cells[0].training.gpus_per_cell // self.nodes,
            task=shlex.join(task),
        )

    def check(self) -> None:
        """Ask for what a submission needs.

        Raises:
            EngineError: no sbatch, or no such partition.
        """
        if shutil.which("sbatch") is None:
            raise EngineError(
                "--on slurm: no sbatch here; run it where jobs are submitted, or leave --on out"
            )
        wanted = self.options["partition"]
        known = sorted(set(_run("sinfo", "--noheader", "--format=%R").split()))
        for partition in wanted.split(",") if wanted else []:
            if partition not in known:
                raise EngineError(
                    f"--engine-options: slurm has no partition {partition!r}"
                    f"{did_you_mean(partition, known)}; known: {', '.join(known)}"
                )

    def train(
        self, cells: list[Cell], records: Path, limits: Limits
    ) -> Generator[Event, None, None]:
        """See `contract.Engine`."""
        if not cells:
            return
        self.check()
        tokens = prepare_tokens(cells[0].corpus)
        queue = SharedQueue(_folder(records))
        order = starting_order(cells, limits)
        queue.fill(order, tokens.folder.resolve(), records.resolve(), limits)
        left = {cell.id: cell for cell in order}
        self.jobs = [job for job in queue.jobs() if _alive([job])]
        submissions, asked, quiet = 0, -SQUEUE_SECONDS, False
        stop_at: float | None = None
        while left:
            for event in queue.news(left):
                if event.record is not None:
                    left.pop(event.cell.id)
                    submissions = 0
                yield event
            now = time.monotonic()
            if limits.deadline is not None and now > limits.deadline and stop_at is None:
                queue.stop()
                stop_at = now + STOP_SECONDS
                for job in self.jobs:
                    _run("scancel", "--state=PENDING", job)
            if now - asked > SQUEUE_SECONDS or quiet:
                asked = now
                claims = queue.claims()
                alive = _alive(self.jobs)
                queue.release(claims, {task for task, state in alive.items() if state in HOLDING})
                if alive and (stop_at is None or now < stop_at):
                    quiet = False
                elif not quiet:  # what the last task has reported is read first
                    quiet = True
                    continue
                elif stop_at is not None:
                    yield from (Event(cell, stopped=True) for cell in left.values())
                    break
                elif left:
                    if submissions == SUBMISSIONS:
                        raise EngineError(
                            f"--on slurm: {SUBMISSIONS} arrays ended without a record; "
                            f"{queue.folder}/task-1.log may say why"
                        )
                    submissions += 1
                    self._submit(queue, list(left.values()))
                    quiet = False
            time.sleep(POLL_SECONDS)
        if not left:
            for job in self.jobs:  # tasks that were queued again, and have nothing more to do
                with suppress(EngineError):
                    _run("scancel", "--state=PENDING", job)
            shutil.rmtree(_folder(records), ignore_errors=True)
        self.jobs = []
        remove_scratch(records)

    def _submit(self, queue: SharedQueue, cells: list[Cell]) -> None:
        queue.release_all()
        path = queue.folder / "suite.sbatch"
        path.write_text(self.batch_file(queue.folder, cells), encoding="utf-8")
        job = _run("sbatch", "--parsable", str(path)).split(";")[0].strip()
        self.jobs.append(job)
        queue.note_job(job)


def _folder(records: Path) -> Path:
    """Of the queue: one for each folder of records."""
    return (records.parent / f"slurm-{records.name}").resolve()


def _alive(jobs: list[str]) -> dict[str, str]:
    """The state of every task that has not ended, as JOB_TASK."""
    result: dict[str, str] = {}
    for job in jobs:
        try:
            text = _run("squeue", "--noheader", "--array", "--format=%i %T", f"--jobs={job}")
        except EngineError as error:
            if "Invalid job id" in str(error):  # it is so old that SLURM has forgotten it
                continue
            raise
        result |= {line.split()[0]: line.split()[1] for line in text.splitlines() if line.strip()}
    return result
