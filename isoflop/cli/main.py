"""The command line: `isoflop`, the same as `python -m isoflop`."""

from __future__ import annotations

import sys

from isoflop.cli import check, fit, layers, reports, suites  # noqa: F401  (each registers its verbs)
from isoflop.cli.console import app
from isoflop.results.errors import IsoflopError


def main() -> None:
    """Run the command line. Bad input is one line on stderr and exit code 2, not a traceback."""
    try:
        app()
    except IsoflopError as error:
        # A plug-in's own error may have several lines.
        print(f"isoflop: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
