"""Runs a function in a child process with limits, because it executes a user's code.

A layer file may end the process, crash it, loop for ever, take all memory, print or fork. In a
child none of this reaches the caller, who reads a result or gets one line on what happened. Only
a result that was sent counts: an exit code says nothing. This protects against faults and against
code that ends the process, not against code that sets out to forge a result.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, suppress
from importlib import import_module
from inspect import isgeneratorfunction
from typing import Any

from isoflop.results.errors import IsoflopError

SECONDS = 120.0  # that a child may work on one item
MEMORY = 8 * 2**30  # bytes of data that a child may have, where the system can limit it
LONGEST = 2**24  # bytes of an item
# The path is set first, so that the child finds every module where the parent did.
_BOOT = """
import json, sys
request = json.loads(sys.stdin.buffer.readline())
sys.path[:] = request["path"]
from isoflop.bench.isolate import _child
_child(request)
"""


class ChildError(IsoflopError):
    """The function raised, or its process ended without a result; one line says which."""


_in_child = False


def inside() -> bool:
    """Is this process a child that was started for its work, here or to train a cell?"""
    return _in_child or multiprocessing.parent_process() is not None


def call(
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float | None = None,
    memory: int = MEMORY,
) -> Any:
    """The result of a function that runs in a child process.

    What the child prints is dropped; nothing that it starts outlives the call.

    Args:
        function: importable by its module and name.
        arguments: as JSON has them, like the result.
        seconds: the time limit; SECONDS if None.
        memory: bytes of data, at most; without effect where the system has no such limit.
    Raises:
        ChildError: it raised, or the process ended without a result.
    """
    with closing(_items(function, arguments, seconds or SECONDS, memory)) as items:
        return next(items)


def stream(
    function: Callable[..., Iterator[Any]],
    *arguments: Any,
    seconds: float | None = None,
    memory: int = MEMORY,
) -> Iterator[Any]:
    """The items of a generator function that runs in a child process, as they come.

    Args:
        seconds: the time limit of every item. None is an item too: it says that work goes on.
        function, arguments, memory: as for `call`.
    Raises:
        ChildError: as for `call`, after the items that were sent before.
    """
    return _items(function, arguments, seconds or SECONDS, memory)


def _items(
    function: Callable[..., Any], arguments: tuple[Any, ...], seconds: float, memory: int
) -> Generator[Any, None, None]:
    if inside():  # another child would add nothing but time
        try:
            result = function(*arguments)
            yield from result if isgeneratorfunction(function) else [result]
        except IsoflopError as error:
            raise ChildError(one_line(str(error))) from None
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise ChildError(describe(error)) from None
        return
    request = {
        "path": sys.path,
        "function": [function.__module__, function.__qualname__],
        "arguments": arguments,
        "seconds": seconds,
        "memory": memory,
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _BOOT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C reaches the parent alone, and all of it can be ended
    )
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(json.dumps(request).encode() + b"\n")
        lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        threading.Thread(target=_read, args=(process, lines), daemon=True).start()
        while True:
            message = _next(process, lines, seconds)
            if "error" in message:
                raise ChildError(str(message["error"]))
            if "item" not in message:
                return
            yield message["item"]
    finally:
        _end(process)


def _read(process: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Pass lines on, then an empty one. A thread, since Windows cannot wait for a pipe."""
    assert process.stdout is not None
    line = b"first"
    while line:
        with suppress(ValueError):  # closed meanwhile
            line = process.stdout.readline(LONGEST)
            lines.put(line)


def _next(
    process: subprocess.Popen[bytes], lines: queue.SimpleQueue[bytes], seconds: float
) -> dict[str, Any]:
    """The next message.

    Raises:
        ChildError: none came in time, or none can come.
    """
    waited, line = 0.0, b""
    while True:
        # A process that the child left behind may hold the pipe open: its own end is decisive.
        ended = process.poll() is not None
        try:
            line = lines.get(timeout=0.5)
            break
        except queue.Empty:
            waited += 0.5
            if ended:
                break
            if waited >= seconds:
                raise ChildError(f"was stopped after {seconds:g} s without a result") from None
    if not line:
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)  # its own exit code says more than that of a kill
        _end(process)
        raise ChildError(_ending(process.returncode))
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise ChildError("sent something that is no result")
    return message


def _ending(code: int) -> str:
    """What the end of a process without a result means."""
    if code >= 0:
        return f"ended the process with exit code {code}"
    with suppress(ValueError):
        name = signal.Signals(-code).name
        hint = ", perhaps for want of memory" if name == "SIGKILL" else ""
        return f"the process was ended by {name}{hint}"
    return f"the process was ended by signal {-code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the child and all that it started, unless that left its session."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()


def _child(request: dict[str, Any]) -> None:
    """Body of the child: send the items, then the end or an error."""
    global _in_child
    _in_child = True
    pid, pipe = os.getpid(), os.dup(1)
    silence = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):  # what the user's code prints is no result
        os.dup2(silence, descriptor)
    _limit(request["memory"])

    def send(message: dict[str, Any]) -> None:
        if os.getpid() != pid:
            os._exit(0)  # a process that the user's code forked has nothing to say
        if hasattr(signal, "alarm"):  # the parent may be gone
            signal.alarm(int(request["seconds"]) + 10)
        data = json.dumps(message).encode() + b"\n"
        while data:
            data = data[os.write(pipe, data) :]

    try:
        try:
            module, name = request["function"]
            function = getattr(import_module(module), name)
            result = function(*request["arguments"])
            for item in result if isgeneratorfunction(function) else [result]:
                send({"item": item})
            send({})
        except IsoflopError as error:
            send({"error": one_line(str(error))})
        except BaseException as error:  # whatever the user's code raises
            send({"error": describe(error)})
    finally:
        os._exit(1)  # no handlers, threads or finalisers of the user's code


def _limit(memory: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(ValueError, OSError):  # a lower limit is in force already
        # Not RLIMIT_AS: libraries and threads reserve far more addresses than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))


def describe(error: BaseException) -> str:
    """An exception in one line, whatever its own text does."""
    if isinstance(error, SystemExit):
        return one_line(f"calls sys.exit({error.code!r})")
    try:
        text = next(iter(str(error).strip().splitlines()), "")
    except Exception:
        text = ""
    return one_line(f"raises {type(error).__name__}: {text}".rstrip(": "))


def one_line(text: str, longest: int = 400) -> str:
    """Text that came from a user's code as one printable line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else f"{line[: longest - 3]}..."
