"""Verdicts on simulated timings; what real clocks say is in `tests/benchmarks/test_gate.py`."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from isoflop.bench.gate import stopwatch
from isoflop.bench.gate.stopwatch import StopwatchError, checkout_of, judge, race

ROOT = Path(__file__).parents[3]


def simulated(
    generator: np.random.Generator, slower: float, noise: float
) -> dict[str, list[float]]:
    """Logs of head / base of seven variants in six rounds, one of them `slower`."""
    logs = noise * generator.standard_t(4, size=(7, 6))
    logs[2] += np.log(slower)
    return {f"v{index}": row.tolist() for index, row in enumerate(logs)}


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.02])
def test_equal_code_passes_and_a_tenth_slower_does_not(noise: float) -> None:
    generator = np.random.default_rng(0)
    equal = [judge(simulated(generator, 1.0, noise)) for _ in range(200)]
    assert np.mean([all(r <= t for r, t in one.values()) for one in equal]) >= 0.9
    slower = [judge(simulated(generator, 1.1, noise))["v2"] for _ in range(200)]
    assert np.mean([ratio > threshold for ratio, threshold in slower]) >= 0.9


def test_what_hardly_matters_fails_nobody() -> None:
    logs = {"a": [0.010, 0.010, 0.010], "b": [0.0, 0.0, 0.0]}
    assert all(ratio <= threshold for ratio, threshold in judge(logs).values())
    logs["a"] = [0.03, 0.03, 0.03]
    assert judge(logs)["a"] == pytest.approx((np.exp(0.03), 1.02))


def test_two_checkouts_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopwatch, "ROUNDS", (2, 2))
    monkeypatch.setattr(stopwatch, "PAIRS", 1)
    monkeypatch.setattr(stopwatch, "SECONDS", 0.0)
    times, memory, new = race(ROOT, ROOT, "ci")
    assert {one.variant for one in times} >= {"dense", "peer"}
    assert all(0 < one.base < 10 for one in times)
    assert [one.ratio for one in memory] == [1.0] * len(memory)
    assert all(10**6 < one.base < 10**9 for one in memory)
    assert new == []


def test_a_checkout_that_cannot_be_timed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise RuntimeError('an old one')")
    with pytest.raises(StopwatchError, match="cannot be timed: RuntimeError: an old one"):
        race(tmp_path, ROOT, "ci")


def test_a_revision_is_checked_out_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "-q")
    git("commit", "-qm", "before the package", "--allow-empty")
    (tmp_path / "isoflop").mkdir()
    (tmp_path / "isoflop" / "a.py").write_text("old")
    git("add", ".")
    git("commit", "-qm", "first")
    (tmp_path / "isoflop" / "a.py").write_text("new")
    monkeypatch.setattr(stopwatch, "ROOT", tmp_path)
    with checkout_of("HEAD") as folder:
        assert (folder / "isoflop" / "a.py").read_text() == "old"
    assert not folder.exists()
    with (
        pytest.raises(StopwatchError, match="--base: HEAD~1 is older than the package `isoflop`"),
        checkout_of("HEAD~1"),
    ):
        pass
    with checkout_of(str(tmp_path)) as folder:
        assert folder == tmp_path
    with (
        pytest.raises(StopwatchError, match="--base: 'nowhere' is neither"),
        checkout_of("nowhere"),
    ):
        pass
