"""The option `--time-limit` of the verbs that train."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from isoflop.results.errors import IsoflopError


def duration(text: str) -> float:
    """Seconds of a duration such as 90s, 9m or 1h30m.

    Raises:
        IsoflopError: it is none.
    """
    parts = re.fullmatch(r"(?:(\d{1,4})h)?(?:(\d{1,5})m)?(?:(\d{1,7})s?)?", text, re.ASCII)
    hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if not total:
        raise IsoflopError(f"--time-limit: {text!r} is no duration such as 90s, 9m or 1h30m")
    return float(total)


TimeLimit = Annotated[
    float | None,
    typer.Option(
        parser=duration,
        metavar="9m",
        help="Save and stop when this time is nearly over; the same command goes on. "
        "Cheaper budgets are then trained first.",
    ),
]
