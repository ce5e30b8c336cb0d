"""The gate with real clocks: equal code passes nine times in ten, a tenth slower does not.

python -m tox run -e benchmarks -- -k gate
"""

import shutil
from pathlib import Path
from typing import Any

import pytest

from isoflop.bench.gate.stopwatch import ROOT, Ratio, race

RUNS = 10


def planted(folder: Path) -> Path:
    """A copy of the code whose training step takes a tenth longer."""
    data = shutil.ignore_patterns("*.json", "*.md", "*.html", "figures")
    for package in ("bench", "models", "results", "isoflop"):
        shutil.copytree(ROOT / package, folder / package, symlinks=True, ignore=data)
    path = folder / "bench" / "step.py"
    text = path.read_text()
    step = "    def step(self, step: int, windows: np.ndarray) -> Tensor:\n"
    assert step in text
    slower = step + (
        "        from time import perf_counter\n\n"
        "        begin = perf_counter()\n"
        "        loss = self.fast_step(step, windows)\n"
        "        float(loss)\n"
        "        end = perf_counter() + (perf_counter() - begin) / 10\n"
        "        while perf_counter() < end:\n"
        "            pass\n"
        "        return loss\n\n"
    )
    path.write_text(text.replace(step, slower + step.replace("def step", "def fast_step")))
    return folder


def judged(benchmark: Any, baseline: Path, candidate: Path, runs: int) -> list[list[Ratio]]:
    jobs: list[list[Ratio]] = []
    benchmark.pedantic(lambda: jobs.append(race(baseline, candidate, "ci")[0]), rounds=runs)
    for times in jobs:
        worst = max(times, key=lambda ratio: ratio.ratio)
        print(f"\n{worst.variant} {worst.ratio:.3f}x, threshold {worst.threshold:.3f}x", end="")
    return jobs


@pytest.mark.timeout(3600)
def test_equal_code_passes_nine_times_in_ten(benchmark: Any) -> None:
    jobs = judged(benchmark, ROOT, ROOT, RUNS)
    assert sum(all(ratio.ok for ratio in times) for times in jobs) >= 0.9 * RUNS


@pytest.mark.timeout(1200)
def test_a_tenth_slower_is_caught(benchmark: Any, tmp_path: Path) -> None:
    (times,) = judged(benchmark, ROOT, planted(tmp_path), 1)
    assert not all(ratio.ok for ratio in times)
