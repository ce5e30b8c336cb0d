"""The command line: `isoflop`, the same as `python -m isoflop`."""

from __future__ import annotations

import io
import os
import sys
from typing import NoReturn

import typer

from isoflop.cli import (  # noqa: F401  (register verbs)
    check,
    compress,
    decode,
    evaluate,
    fit,
    layers,
    reports,
    suites,
)
from isoflop.cli.console import app
from isoflop.cli.usage import UsageError, explain_usage, verb_of
from isoflop.results.errors import IsoflopError, printable

INTERRUPTED = 130  # exit code after Ctrl-C, as shells have it


def main() -> None:
    """Run the command line. Bad input is one line on stderr and exit code 2, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # in an ASCII locale, say
    try:
        try:
            invoke(sys.argv[1:] or ["--help"])
        finally:
            sys.stdout.flush()
    except IsoflopError as error:
        # A plug-in's own error may have several lines.
        _end(2, " ".join(str(error).split()))
    except UsageError as error:
        _end(2, explain_usage(error, sys.argv[1:]))
    except KeyboardInterrupt:
        _end(INTERRUPTED, "interrupted")
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except BrokenPipeError:
        _forget_output()
        sys.exit(1)
    except OSError as error:
        _forget_output()
        _end(2, describe(error))
    except MemoryError:
        _end(2, "not enough memory for this")
    except UnicodeError as error:
        _end(2, f"text that is not UTF-8: {error}")
    except ImportError as error:
        if not error.name or error.name.partition(".")[0] == "isoflop":
            raise  # a fault of the program
        _end(2, _not_importable(error, error.name.partition(".")[0]))


def invoke(arguments: list[str]) -> None:
    """Parse the arguments and run the verb. What typer makes of errors is not used.

    Raises:
        UsageError: the arguments are not such as the verb takes.
    """
    command = typer.main.get_command(app)
    verb_of(command, arguments)
    with command.make_context("isoflop", list(arguments)) as context:
        command.invoke(context)


def describe(error: OSError) -> str:
    """An operating system's error as `PATH: reason`."""
    reason = error.strerror or str(error) or type(error).__name__
    paths = [error.filename] if error.filename2 is None else [error.filename, error.filename2]
    names = [os.fsdecode(path) for path in paths if isinstance(path, str | bytes | os.PathLike)]
    return f"{' and '.join(names)}: {reason}" if names else reason


def _not_importable(error: ImportError, package: str) -> str:
    """The remedy for a package that a verb needs."""
    if isinstance(error, ModuleNotFoundError):
        return f"this needs {package}, which is not installed: `pip install {package}`"
    return (
        f"this needs {package}, which cannot be imported ({' '.join(str(error).split())}): "
        f"`pip install --force-reinstall {package}`"
    )


def _forget_output() -> None:
    """Nobody reads it, or it cannot be written: its flush at exit would raise again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _end(code: int, line: str) -> NoReturn:
    print(f"isoflop: {printable(line)}", file=sys.stderr)
    sys.exit(code)
