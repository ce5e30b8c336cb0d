"""Killed at any moment, a verb loses nothing: the same command completes, and its records are those
of a run that nothing disturbed. Long, so only `tox -e robustness` runs it."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from isoflop.results.record import load_records
from tests.robustness.test_mutations import SUITE, corpus

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "run": ["run", "tiny.toml"],
    "tune": ["tune", "tiny.toml"],
    "report": ["report", "runs/tiny"],
    "compare": ["compare", "moe", "--suite", "tiny.toml", "--option", "granularity=4"],
}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
GENERATED = "runs/tiny"
LEAST = 50  # --robustness below which these are left out
SECONDS = 300  # for one command, on a busy machine

# A shell that runs the tests in the background has its children ignore Ctrl-C.
PROGRAM = """
import signal
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from isoflop.cli.main import main
    main()
"""

Watch = Callable[[int], bool]


def start(folder: Path, verb: str) -> subprocess.Popen[bytes]:
    (folder.parent / "program.py").write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, folder.parent / "program.py", *COMMANDS[verb]],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(folder / "cache")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def states(process: subprocess.Popen[bytes], folder: Path, enough: Watch) -> int:
    """Follow the files that come and change until there have been enough, or it ends: how many."""
    seen: set[tuple[str, int]] = set()
    end = time.monotonic() + SECONDS
    while process.poll() is None and not enough(len(seen)):
        assert time.monotonic() < end, "no end"
        for where, _, names in os.walk(folder):
            for name in names:
                with suppress(OSError):
                    seen.add((f"{where}/{name}", os.stat(f"{where}/{name}").st_mtime_ns))
        time.sleep(0.002)
    return len(seen)


def complete(folder: Path, verb: str) -> str:
    """Run it to its end: what is wrong, or nothing."""
    process = start(folder, verb)
    try:
        _, error = process.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return "hangs after the kill"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return "" if process.returncode == 0 else f"exit code {process.returncode}: {error!r}"[-400:]


def outcome(folder: Path, verb: str) -> dict[str, Any]:
    """All records without what is measured, and what `report` generates from the same records."""
    places = sorted(path for path in folder.rglob("*") if path.name in ("records", "tune"))
    files = (folder / GENERATED / name for name in ("index.html", "LEADERBOARD.md", "figures"))
    generated = [path for top in files for path in (top, *top.rglob("[!.]*")) if path.is_file()]
    texts = {str(path.relative_to(folder)): path.read_bytes() for path in generated}
    return (texts if verb == "report" else {}) | {
        f"{place.relative_to(folder)}/{record.cell}": record.model_dump(exclude={"measured"})
        for place in places
        for record in load_records(place)
    }


@pytest.fixture
def prepared(tmp_path: Path, robustness: int) -> Path:
    """A folder with the suite, and its records."""
    if robustness < LEAST:
        pytest.skip(f"long: with --robustness of {LEAST} or more")
    folder = tmp_path / "prepared"
    folder.mkdir()
    (folder / "text.txt").write_text(corpus())
    (folder / "tiny.toml").write_text(SUITE)
    assert complete(folder, "run") == ""
    return folder


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("verb", COMMANDS)
def test_a_kill_at_a_random_state_loses_nothing(
    verb: str, prepared: Path, tmp_path: Path, robustness: int, counted: Callable[..., None]
) -> None:
    if verb in ("run", "tune"):
        shutil.rmtree(prepared / "runs")
    if verb == "report":
        for path in (prepared / GENERATED).glob("*"):
            if path.is_file() and path.name != "suite.toml":
                path.unlink()
        shutil.rmtree(prepared / GENERATED / "figures")
    plain = tmp_path / "plain"
    shutil.copytree(prepared, plain)
    process = start(plain, verb)
    most = states(process, plain, lambda count: False)
    assert process.wait() == 0
    right = outcome(plain, verb)
    assert right
    faults, early, kills = [], 0, robustness // LEAST
    for case in range(kills):
        r = random.Random(f"{verb} {case}")
        folder = tmp_path / str(case)
        shutil.copytree(prepared, folder)
        kind, at = SIGNALS[case % len(SIGNALS)], r.randrange(most)
        process = start(folder, verb)
        states(process, folder, lambda count, at=at: count > at)  # type: ignore[misc]
        early += process.poll() is not None
        process.send_signal(kind)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # workers of a killed parent end later
        kept = outcome(folder, verb)
        fault = complete(folder, verb)
        after = {} if fault else outcome(folder, verb)
        if not fault and after != right:
            fault = f"{len(after)} results, {len(right)} right ones, not equal"
        if not fault and any(after.get(key) != result for key, result in kept.items()):
            fault = "a result that was there has changed, or was not whole"
        if fault:
            faults.append(f"{verb}, case {case}, {kind.name} at state {at} of {most}: {fault}")
        shutil.rmtree(folder)
    counted(f"kills of {verb}", tried=kills, early=early, faults=len(faults))
    assert not faults, "\n".join(faults)
