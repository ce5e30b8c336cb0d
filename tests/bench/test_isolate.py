from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from isoflop.bench.isolate import ChildError, call, inside, one_line, stream
from isoflop.results.errors import IsoflopError


def total(*numbers: int) -> int:
    return sum(numbers)


def surroundings() -> list[Any]:
    return [inside(), os.getpid(), sys.path]


def noise() -> str:
    print('{"item": 3}', flush=True)
    os.write(1, b'{"item": 4}\n')
    os.write(2, b"\x1b[31m")
    try:
        return input()
    except EOFError:
        return "no input"


def items() -> Iterator[Any]:
    yield 1
    yield None
    os._exit(0)


def leaves() -> None:
    sys.exit(0)


def leaves_at_once() -> None:
    os._exit(0)


def crashes() -> None:
    ctypes.string_at(0)


def waits() -> None:
    time.sleep(1000)


def loops() -> None:
    while True:
        pass


def ignores() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    loops()


def allocates() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(2**26))


def raises() -> None:
    raise RuntimeError("one\nand \x1b[2J more")


def raises_ours() -> None:
    raise IsoflopError("a line\n  of ours")


def interrupts() -> None:
    raise KeyboardInterrupt


class BadError(Exception):
    def __str__(self) -> str:
        raise ValueError


def raises_badly() -> None:
    raise BadError


def gives_no_json() -> Any:
    return object()


def forks() -> str:
    return "parent" if os.fork() else "child"


def leaves_a_process(path: str) -> int:
    """A process that holds the pipe, and outlives its parent unless it is ended."""
    pid = os.fork()
    if not pid:
        Path(path).write_text(str(os.getpid()))
        time.sleep(1000)
    while not Path(path).exists():
        time.sleep(0.01)
    return pid


def leaves_a_process_and_ends(path: str) -> None:
    leaves_a_process(path)
    os._exit(3)


def leaves_a_thread() -> int:
    threading.Thread(target=waits).start()
    return 5


def test_a_result_comes_back() -> None:
    assert call(total, 1, 2, 4) == 7
    child, pid, path = call(surroundings)
    assert child
    assert not inside()
    assert pid != os.getpid()
    assert path == sys.path


def test_what_is_printed_is_no_result() -> None:
    assert call(noise) == "no input"
    assert call(leaves_a_thread) == 5


def test_items_come_before_the_end_that_follows_them() -> None:
    received = []
    with pytest.raises(ChildError, match="ended the process with exit code 0"):
        received.extend(stream(items))
    assert received == [1, None]


@pytest.mark.parametrize(
    ("function", "line"),
    [
        (leaves, "calls sys.exit(0)"),
        (leaves_at_once, "ended the process with exit code 0"),
        (crashes, "the process was ended by SIGSEGV"),
        (raises, "raises RuntimeError: one"),
        (raises_ours, "a line of ours"),
        (raises_badly, "raises BadError"),
        (interrupts, "raises KeyboardInterrupt"),
        (gives_no_json, "raises TypeError: Object of type object is not JSON serializable"),
    ],
)
def test_whatever_happens_is_one_line(function: Callable[..., Any], line: str) -> None:
    with pytest.raises(ChildError) as error:
        call(function)
    assert str(error.value) == line


@pytest.mark.parametrize("function", [waits, loops, ignores])
def test_a_child_that_does_not_end_is_ended(function: Callable[..., Any]) -> None:
    with pytest.raises(ChildError, match="was stopped after 2 s without a result"):
        call(function, seconds=2)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such limit")
def test_memory_has_a_limit() -> None:
    with pytest.raises(ChildError, match="raises MemoryError"):
        call(allocates, memory=2**29)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forks_neither_answer_nor_stay(tmp_path: Path) -> None:
    assert call(forks) == "parent"
    pid = call(leaves_a_process, str(tmp_path / "first"))
    wait_for_the_end_of(pid)
    with pytest.raises(ChildError, match="exit code 3"):
        call(leaves_a_process_and_ends, str(tmp_path / "second"))
    wait_for_the_end_of(int((tmp_path / "second").read_text()))


def wait_for_the_end_of(pid: int) -> None:
    while True:  # the test's own time limit ends a wait without end
        done = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
        if done.stdout.strip()[:1] in ("", "Z"):
            return
        time.sleep(0.05)


def test_foreign_text_becomes_one_printable_line() -> None:
    assert one_line("a\n\x1b[2Jb\udc80 c") == "a [2Jb c"
    assert one_line("x" * 1000).endswith("x...")
    assert len(one_line("x" * 1000)) == 400
