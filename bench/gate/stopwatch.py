"""Step time and peak memory of two checkouts, the baseline and the candidate, in the same job.

Both train in processes of their own, `python -P bench/gate/stopwatch.py SUITE` with the checkout on
PYTHONPATH, so that this file times both. It uses `load_suite`, `plan` and `Trainer.step` of the
checkout, under the names they have here. A round starts both processes anew, since two processes
of the same code differ by some per cent as long as they live. Within a round the two alternate,
variant after variant, several times over, so that other load on the machine disturbs all alike.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
from scipy import stats

from isoflop.results.errors import IsoflopError

ROOT = Path(__file__).resolve().parents[2]  # of the checkout
ROUNDS = (4, 16)  # fewest and most: they go on while the threshold is above 1 + `DETECTABLE`
PAIRS = 20  # timings of each checkout and variant in a round
SECONDS = 0.02  # shortest timing
QUANTILE = 0.2  # of a round's timings: other load on the machine can only lengthen them
DETECTABLE = 0.04  # a slow-down that the noise must not hide
TOLERANCE = 0.02  # a smaller slow-down never fails
ERROR = 0.02  # family-wise false-alarm rate: how often equal code fails


class StopwatchError(IsoflopError):
    """A checkout that cannot be timed; one line says which and why."""


@dataclass(frozen=True)
class Ratio:
    """Candidate over baseline of a variant."""

    variant: str
    baseline: float  # seconds per step, or bytes
    candidate: float
    ratio: float
    threshold: float  # a ratio above it is a regression

    @property
    def ok(self) -> bool:
        return self.ratio <= self.threshold


def judge(logs: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Ratio and threshold of each variant.

    The noise is the spread between rounds, pooled over variants (Student's t). At the threshold the
    family-wise false-alarm rate over all variants is `ERROR` (Bonferroni); it is never below
    1 + `TOLERANCE`.

    Args:
        logs: of each variant log(candidate / baseline) by round; all have the same rounds.
    """
    values = np.array(list(logs.values()))  # (variants, rounds)
    variants, rounds = values.shape
    degrees = rounds - 1  # the variants of a round share what slows its processes
    error = math.sqrt(values.var(axis=1, ddof=1).mean() / rounds)
    half = float(stats.t.isf(ERROR / variants, degrees)) * error
    threshold = max(math.exp(half), 1 + TOLERANCE)
    return {name: (math.exp(np.mean(log)), threshold) for name, log in logs.items()}


def race(baseline: Path, candidate: Path, suite: str) -> tuple[list[Ratio], list[Ratio], list[str]]:
    """Time a step of every variant of a suite, at the largest size, in both checkouts.

    Returns:
        step times, peak memory, and the variants that the candidate alone has.
    Raises:
        StopwatchError: a checkout cannot be timed, or they have no variant in common.
    """
    logs: tuple[dict[str, list[float]], ...] = (defaultdict(list), defaultdict(list))
    values: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for number in range(1, ROUNDS[1] + 1):
        pairs, new = _round(baseline, candidate, suite, number)
        for name, timings in pairs.items():
            before, after = np.quantile(np.array(timings), QUANTILE, axis=0)
            values[name].append((before, after))
            for quantity, log in enumerate(logs):
                log[name].append(math.log(after[quantity] / before[quantity]))
        if number < ROUNDS[0]:
            continue
        _, threshold = next(iter(judge(logs[0]).values()))  # of step times, the same for all
        if threshold <= 1 + DETECTABLE:
            break
    times, memory = (
        [
            Ratio(
                name,
                baseline=median(float(before[quantity]) for before, _ in values[name]),
                candidate=median(float(after[quantity]) for _, after in values[name]),
                ratio=ratio,
                threshold=threshold,
            )
            for name, (ratio, threshold) in judge(log).items()
        ]
        for quantity, log in enumerate(logs)
    )
    return times, memory, new


_Pair = tuple[tuple[float, int], tuple[float, int]]  # baseline, candidate: seconds, peak bytes


def _round(
    baseline: Path, candidate: Path, suite: str, number: int
) -> tuple[dict[str, list[_Pair]], list[str]]:
    """`PAIRS` timings of each variant that both checkouts have; the variants new in the candidate.

    Which checkout goes first alternates, also from round to round.
    """
    with _Process(baseline, suite) as before, _Process(candidate, suite) as after:
        common = [name for name in after.variants if name in before.variants]
        new = [name for name in after.variants if name not in before.variants]
        if not common:
            raise StopwatchError(f"{baseline}: has none of {', '.join(new)}")
        pairs: dict[str, list[_Pair]] = {name: [] for name in common}
        for turn in range(PAIRS):
            for name in common:
                if (turn + number) % 2:
                    second = after.time(name)
                    pairs[name].append((before.time(name), second))
                else:
                    pairs[name].append((before.time(name), after.time(name)))
    return pairs, new


class _Process:
    """The process of a checkout, which times a variant when asked."""

    def __init__(self, checkout: Path, suite: str) -> None:
        self.checkout, self.suite = checkout, suite

    def __enter__(self) -> _Process:
        from isoflop.bench.worker import ALLOCATOR

        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__, self.suite],
            env=os.environ | ALLOCATOR | {"PYTHONPATH": str(self.checkout.resolve())},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        return self

    @property
    def variants(self) -> list[str]:
        if not hasattr(self, "_variants"):
            self._variants: list[str] = self._read()
        return self._variants

    def time(self, variant: str) -> tuple[float, int]:
        """Seconds per step and peak bytes."""
        assert self.variants
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):  # `_read` tells why it ended
            self.process.stdin.write(variant + "\n")
            self.process.stdin.flush()
        seconds, peak = self._read()
        return seconds, peak

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or ["it ended without a word"]
            raise StopwatchError(f"{self.checkout}: cannot be timed: {said[-1]}")
        return json.loads(line)

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()
        self.errors.close()


@contextlib.contextmanager
def checkout_of(revision: str) -> Iterator[Path]:
    """A folder with the code of a revision, checked out for the duration of the block.

    Args:
        revision: of the repository that holds this file; or the folder of another checkout, which
            is used as it is.
    Raises:
        StopwatchError: it is neither, or its code is older than the import name `isoflop`.
    """
    if Path(revision, "isoflop").is_dir():
        yield Path(revision)
        return
    from isoflop.bench.gate.scratch import (
        scratch,  # an older baseline, timed by this file, has none
    )

    prune = ["git", "-C", str(ROOT), "worktree", "prune"]
    with scratch("baseline") as folder:
        subprocess.run(prune, capture_output=True)  # notes of checkouts of killed calls
        add = ["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", folder, revision]
        done = subprocess.run(add, capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["git said nothing"])[-1]
            raise StopwatchError(
                f"--base: {revision!r} is neither a checkout nor a revision: {said}"
            )
        try:
            if not Path(folder, "isoflop").is_dir():
                raise StopwatchError(
                    f"--base: {revision!r} has no folder isoflop/: code older than the import name "
                    "`isoflop` cannot be timed; give a later revision"
                )
            yield Path(folder)
        finally:
            remove = ["git", "-C", str(ROOT), "worktree", "remove", "--force", folder]
            subprocess.run(remove, capture_output=True)


def peak_bytes(function: Callable[[], object]) -> int:
    """Peak memory of a call in bytes, beyond what was held before.

    On a GPU by the allocator; on a CPU from the profiler's log of allocations, which is the same
    every time.
    """
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    log = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(log, key=lambda e: e.start_ns())])
    return int(held.max(initial=0))


def serve(suite: str) -> None:
    """Body of a checkout's process: write the names of the variants, then time those asked for."""
    import torch

    from isoflop.bench.plan import Cell, plan
    from isoflop.bench.suite import load_suite, suite_path
    from isoflop.bench.train import Trainer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # as a cell trains on a CPU
    cells: dict[str, Cell] = {}
    described = load_suite(suite)
    budget = described.budgets[0].model_copy(update={"variants": []})  # steps do not differ
    alone = described.model_copy(update={"budgets": [budget]})
    for cell in plan(alone, str(suite_path(suite))):
        if cell.variant not in cells or cell.size.width > cells[cell.variant].size.width:
            cells[cell.variant] = cell
    print(json.dumps(list(cells)), flush=True)
    ready: dict[str, tuple[Callable[[int], float], int, int]] = {}

    def prepare(cell: Cell) -> tuple[Callable[[int], float], int, int]:
        shape = (cell.training.batch, cell.training.context + 1)
        windows = np.random.default_rng(0).integers(cell.corpus.vocabulary, size=shape)
        trainers: list[Trainer] = []

        def steps(count: int) -> float:
            begin = perf_counter()
            for _ in range(count):
                loss = trainers[0].step(cell.steps // 2, windows)
            float(loss)  # waits for a GPU
            return (perf_counter() - begin) / count

        def first() -> None:
            trainers.append(Trainer(cell, device, compiled=device.type == "cuda"))
            steps(2)

        peak = peak_bytes(first)
        steps(5)
        return steps, max(1, round(SECONDS / steps(5))), peak

    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready[name] = prepare(cells[name])
        steps, count, peak = ready[name]
        print(json.dumps((steps(count), peak)), flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
