"""The program in this process, on one input at a time, and what a user may see of it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.cli.main import main

SECONDS = 60  # a verb on a tiny input that takes longer hangs


class HangError(BaseException):
    """Nothing of the program may catch it."""


@dataclass(frozen=True)
class Outcome:
    """How the program ended."""

    code: int
    out: str
    err: str
    crash: str = ""  # a traceback, or that it hung

    @property
    def fault(self) -> str:
        """What is wrong with how it ended; empty if a user can live with it.

        Fine is exit code 0 or 1 without a traceback, or exit code 2 and one line on stderr that
        names the program.
        """
        if self.crash:
            return self.crash
        if "Traceback (most recent call last)" in self.out + self.err:
            return "a traceback is printed"
        if self.code in (0, 1):
            return ""
        lines = [line for line in self.err.splitlines() if line.startswith("isoflop: ")]
        if self.code == 2 and len(lines) == 1:
            return ""
        return f"exit code {self.code}: {self.err.strip()[-300:]!r}"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise `HangError` in a block that takes too long."""

    def ring(number: int, frame: Any) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(folder: Path, *arguments: str) -> Outcome:
    """`isoflop ARGUMENTS` in a folder."""
    out, err, code, crash = io.StringIO(), io.StringIO(), 0, ""
    argv, where = sys.argv, os.getcwd()
    os.chdir(folder)
    sys.argv = ["isoflop", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _limited():
            main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except HangError:
        crash = f"no end within {SECONDS} s"
    except BaseException:
        crash = traceback.format_exc(limit=-3)
    finally:
        sys.argv = argv
        os.chdir(where)
    return Outcome(code, out.getvalue(), err.getvalue(), crash)
