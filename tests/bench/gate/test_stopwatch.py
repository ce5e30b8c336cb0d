"""Verdicts on simulated timings; what real clocks say is in `tests/benchmarks/test_gate.py`."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from isoflop.bench.gate import stopwatch
from isoflop.bench.gate.stopwatch import StopwatchError, checkout_of, judge, race

ROOT = Path(__file__).parents[3]


def simulated(
    generator: np.random.Generator, slower: float, noise: float
) -> dict[str, list[float]]:
    """Logs of candidate / baseline of seven variants in six rounds, the third `slower`."""
    logs = noise * generator.standard_t(4, size=(7, 6))
    logs[2] += np.log(slower)
    return {f"v{index}": row.tolist() for index, row in enumerate(logs)}


@pytest.mark.parametrize("noise", [0.003, 0.01, 0.02])
def test_equal_code_passes_and_a_tenth_slower_does_not(noise: float) -> None:
    generator = np.random.default_rng(0)
    equal = [judge(simulated(generator, 1.0, noise)) for _ in range(200)]
    assert np.mean([all(r <= t for r, t in job.values()) for job in equal]) >= 0.9
    slower = [judge(simulated(generator, 1.1, noise))["v2"] for _ in range(200)]
    assert np.mean([ratio > threshold for ratio, threshold in slower]) >= 0.9


def test_equal_code_fails_at_the_promised_rate_where_rounds_are_slow_as_a_whole() -> None:
    """All variants of a round share half of its noise: 2% of jobs may fail, over 2,000."""
    generator = np.random.default_rng(1)
    failed = 0
    for _ in range(2000):
        shared = generator.standard_normal(4)
        logs = 0.05 * (generator.standard_normal((7, 4)) + 2 * shared)
        outcome = judge({f"v{index}": row.tolist() for index, row in enumerate(logs)})
        failed += any(ratio > threshold for ratio, threshold in outcome.values())
    assert failed / 2000 <= 0.03


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
    assert {ratio.variant for ratio in times} >= {"dense", "peer"}
    assert all(0 < ratio.baseline < 10 for ratio in times)
    assert all(0 < ratio.candidate < 10 for ratio in times)
    assert [ratio.ratio for ratio in memory] == [1.0] * len(memory)
    assert all(10**6 < ratio.baseline == ratio.candidate < 10**9 for ratio in memory)
    assert new == []


def test_a_checkout_that_cannot_be_timed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "isoflop").mkdir()
    (tmp_path / "isoflop" / "__init__.py").write_text("raise RuntimeError('an old one')")
    with pytest.raises(StopwatchError, match="cannot be timed: RuntimeError: an old one"):
        race(tmp_path, ROOT, "ci")


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two revisions, the first without the import name, and a change that is not committed."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "-q")
    for folder in ("bench", "isoflop"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.py").write_text("old")
        git("add", folder)
        git("commit", "-qm", folder)
    (tmp_path / "isoflop" / "a.py").write_text("new")
    monkeypatch.setattr(stopwatch, "ROOT", tmp_path)
    return tmp_path


def test_a_revision_is_checked_out_for_the_block(repository: Path) -> None:
    with checkout_of("HEAD") as folder:
        assert (folder / "isoflop" / "a.py").read_text() == "old"
    assert not folder.exists()
    with checkout_of(str(repository)) as folder:
        assert folder == repository


HOLD = """
import sys
from pathlib import Path
from isoflop.bench.gate import stopwatch
stopwatch.ROOT = Path(sys.argv[1])
with stopwatch.checkout_of("HEAD") as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def worktrees(repository: Path) -> int:
    listed = ["git", "-C", str(repository), "worktree", "list"]
    return subprocess.run(listed, capture_output=True, text=True, check=True).stdout.count("\n")


def test_the_checkout_of_a_killed_call_is_removed_by_the_next(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of a call which still runs stays."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(repository)],
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout is not None
        left = Path(other.stdout.readline().strip())
        with checkout_of("HEAD"):
            assert (left / "isoflop").is_dir()
            assert worktrees(repository) == 3
    finally:
        other.kill()
        other.communicate()
    assert list(temporary.iterdir()) == [left]
    with checkout_of("HEAD") as folder:
        assert list(temporary.iterdir()) == [folder]
        assert worktrees(repository) == 2
    assert list(temporary.iterdir()) == []
    assert worktrees(repository) == 1


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nowhere", "--base: 'nowhere' is neither a checkout nor a revision: "),
        ("HEAD~1", "--base: 'HEAD~1' has no folder isoflop/: code older than the import name"),
    ],
)
def test_what_cannot_be_checked_out_is_one_line(
    repository: Path, revision: str, message: str
) -> None:
    with pytest.raises(StopwatchError, match=message) as caught, checkout_of(revision):
        pass
    assert "\n" not in str(caught.value)
    assert worktrees(repository) == 1  # nothing is left behind
