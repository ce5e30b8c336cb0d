"""The command line: `isoflop`, the same as `python -m isoflop`."""

from __future__ import annotations

import sys

from isoflop.cli import check, fit, layers, reports, suites  # noqa: F401  (each registers its verbs)
from isoflop.cli.console import app
from isoflop.results.errors import IsoflopError


def main() -> None:
    """Console script: bad input is one line on stderr and exit code 2, never a traceback."""
    try:
        app()
    except IsoflopError as error:
        print(f"isoflop: {error}", file=sys.stderr)
        sys.exit(2)
