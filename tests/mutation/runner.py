"""Runs tests on a copy of the tree in which a file is changed, in a process of its own."""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("analysis", "bench", "docs", "examples", "isoflop", "models", "results", "tests")
# What the tests import and no mutant changes: a process that has it is copied in milliseconds.
HEAVY = ("torch", "scipy.optimize", "scipy.stats", "pandas", "hypothesis", "pytest", "fvcore.nn")
CPU_SECONDS = 100  # of one test: a mutant that needs more does not end
WALL_SECONDS = 1800  # of all tests of a mutant: one may wait for a process that does not end
PASSED, FAILED, NO_END = "passed", "failed", "no end"
RUNNING = "../running"  # a file beside the copy: the test that runs, or ran last
LOG = "../tests.log"


@contextlib.contextmanager
def copied(folder: Path) -> Iterator[None]:
    """A copy of the tree in `folder` as the working directory, which children import from."""
    skip = shutil.ignore_patterns("__pycache__", ".*_cache", "runs", ".hypothesis")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=skip)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy2(path, folder)
    for name in HEAVY:
        importlib.import_module(name)
    assert "isoflop" not in sys.modules, "children would not import the copy"
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def written(path: str, text: str) -> Iterator[None]:
    """A file with another text for a while."""
    file = Path(path)
    before, times = file.read_text(encoding="utf-8"), file.stat()
    file.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        file.write_text(before, encoding="utf-8")
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


class _Limit:
    """A pytest plug-in: notes the test that runs, and ends the process if it takes too long."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        Path(RUNNING).write_text(nodeid)
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)  # then SIGPROF, which nothing handles


def run_tests(tests: Sequence[str]) -> tuple[str, str]:
    """What came of tests, up to the first that fails, and the one that ran last.

    Args:
        tests: what pytest takes, options included.
    """
    Path(RUNNING).write_text("")
    end = time.monotonic() + WALL_SECONDS
    child = os.fork()
    if child == 0:
        _child(tests)
    ended, status = 0, 0
    while not ended:
        ended, status = os.waitpid(child, os.WNOHANG)
        if not ended and time.monotonic() > end:
            os.kill(child, signal.SIGPROF)
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it has started
    last = Path(RUNNING).read_text()
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF:
        return NO_END, last
    return PASSED if status == 0 else FAILED, last


def _child(tests: Sequence[str]) -> None:
    """Never returns."""
    code = 1
    try:
        os.setpgid(0, 0)
        out = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(out, stream)
        # A shell that runs this in the background has its children ignore Ctrl-C.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ["PYTHONPATH"] = os.getcwd()
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutant's would be taken for the file's
        sys.dont_write_bytecode = True
        sys.path[:] = [os.getcwd(), *(path for path in sys.path if path not in ("", str(ROOT)))]
        for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
            del sys.modules[name]
        code = _pytest(["-x", "-p", "no:cacheprovider", "-p", "no:cov", *tests])
    finally:
        os._exit(code)


def _pytest(arguments: list[str]) -> int:
    import pytest
    import torch

    torch.set_num_threads(1)
    plugins: list[Any] = [_Limit()]
    code = int(pytest.main(arguments, plugins))
    package = sys.modules.get("isoflop")
    if package and not Path(str(package.__file__)).is_relative_to(os.getcwd()):
        raise RuntimeError("the tests import another copy")
    return code
