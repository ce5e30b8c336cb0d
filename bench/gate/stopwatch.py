"""Step time and peak memory of two checkouts, side by side in one job.

Base and head each train in a process of their own, `python -P bench/stopwatch.py SUITE` with that
checkout on PYTHONPATH, so that this file times both; it asks of a checkout `load_suite`, `plan` and
`Trainer.step` as they are here. A round starts both processes anew, since two processes of the same
code differ by some per cent for as long as they live; within a round the two alternate, variant
after variant and over again, so that what the machine does besides meets both, and all.
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
ROUNDS = (4, 16)  # at least, at most: more while the noise hides `SEEN`
PAIRS = 20  # timings of each side and variant in a round
SECONDS = 0.02  # that a timing takes, at least
QUANTILE = 0.2  # of a round's timings: what the machine does besides only adds to them
SEEN = 0.04  # a slow-down that the noise must not hide
WORTH = 0.02  # a smaller change fails nobody, however sure it is
ERROR = 0.02  # probability that a job with the same code on both sides fails


class StopwatchError(IsoflopError):
    """A checkout that cannot be timed; one line says which and why."""


@dataclass(frozen=True)
class Ratio:
    """Head over base of one variant."""

    variant: str
    base: float  # seconds per step, or bytes
    head: float
    ratio: float
    threshold: float  # above which it is a regression

    @property
    def ok(self) -> bool:
        return self.ratio <= self.threshold


def judge(logs: dict[str, list[float]]) -> dict[str, tuple[float, float]]:
    """Ratio and threshold of each variant.

    The noise is the spread between rounds, pooled over variants (Student's t); the threshold is
    what the ratio of equal code stays below in all variants but with probability `ERROR`, and never
    below 1 + `WORTH`.

    Args:
        logs: per variant, log(head / base) of each round, as many for each.
    """
    values = np.array(list(logs.values()))  # (variants, rounds)
    variants, rounds = values.shape
    degrees = variants * (rounds - 1)
    error = math.sqrt(values.var(axis=1, ddof=1).mean() / rounds)
    half = float(stats.t.isf(ERROR / variants, degrees)) * error
    threshold = max(math.exp(half), 1 + WORTH)
    return {name: (math.exp(np.mean(each)), threshold) for name, each in logs.items()}


def race(base: Path, head: Path, suite: str) -> tuple[list[Ratio], list[Ratio], list[str]]:
    """Time a step of every variant of a suite, at the largest size, on both sides.

    Returns:
        Step times, peak memory, and the variants that only head has.
    Raises:
        StopwatchError: a side cannot be timed, or they have no variant in common.
    """
    logs: tuple[dict[str, list[float]], ...] = (defaultdict(list), defaultdict(list))
    seen: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for done in range(1, ROUNDS[1] + 1):
        with _Side(base, suite) as one, _Side(head, suite) as other:
            common = [name for name in other.variants if name in one.variants]
            new = [name for name in other.variants if name not in one.variants]
            if not common:
                raise StopwatchError(f"{base}: has none of {', '.join(new)}")
            pairs: dict[str, list[_Pair]] = defaultdict(list)
            for turn in range(PAIRS):
                for name in common:
                    pairs[name].append(_pair(one, other, name, swap=(turn + done) % 2))
        for name in common:
            before, after = np.quantile(np.array(pairs[name]), QUANTILE, axis=0)
            seen[name].append((before, after))
            for quantity, log in enumerate(logs):
                log[name].append(math.log(after[quantity] / before[quantity]))
        if done >= ROUNDS[0] and next(iter(judge(logs[0]).values()))[1] <= 1 + SEEN:
            break
    times, memory = (
        [
            Ratio(
                name,
                base=median(float(before[quantity]) for before, _ in seen[name]),
                head=median(float(after[quantity]) for _, after in seen[name]),
                ratio=ratio,
                threshold=threshold,
            )
            for name, (ratio, threshold) in judge(log).items()
        ]
        for quantity, log in enumerate(logs)
    )
    return times, memory, new


_Pair = tuple[tuple[float, int], tuple[float, int]]  # of base and head: seconds a step, peak bytes


def _pair(one: _Side, other: _Side, name: str, swap: int) -> _Pair:
    """Both timed, one after the other; `swap` says which comes first."""
    if swap:
        second = other.time(name)
        return one.time(name), second
    return one.time(name), other.time(name)


class _Side:
    """A checkout's process, to be asked for timings."""

    def __init__(self, checkout: Path, suite: str) -> None:
        self.checkout, self.suite = checkout, suite

    def __enter__(self) -> _Side:
        from isoflop.bench.run import ALLOCATOR

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
        with contextlib.suppress(BrokenPipeError):  # `_read` says why it died
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
    """A folder with the code of a revision: itself if it is one, else a worktree for a while.

    Raises:
        StopwatchError: neither a folder nor a revision here, or older than the package `isoflop`:
            its process would find the installed one, and time that.
    """
    if Path(revision, "isoflop").is_dir():
        yield Path(revision)
        return
    with tempfile.TemporaryDirectory(prefix="isoflop-base-") as folder:
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
                    f"--base: {revision} is older than the package `isoflop` and cannot be timed"
                )
            yield Path(folder)
        finally:
            remove = ["git", "-C", str(ROOT), "worktree", "remove", "--force", folder]
            subprocess.run(remove, capture_output=True)


def peak_bytes(function: Callable[[], object]) -> int:
    """The most memory `function` holds at once beyond what was held before: on a GPU of the
    allocator, on a CPU from the profiler's log of allocations, which is the same every time."""
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
    """Body of a side: say which variants there are, then time whichever is asked for."""
    import torch

    from isoflop.bench.plan import Cell, plan
    from isoflop.bench.suite import load_suite, suite_path
    from isoflop.bench.train import Trainer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)  # as a cell trains on a CPU
    cells: dict[str, Cell] = {}
    described = load_suite(suite)
    budget = described.budgets[0].model_copy(update={"variants": []})  # a step does not tell which
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
            trainers.append(Trainer(cell, device))
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
