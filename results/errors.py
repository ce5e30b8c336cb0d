"""The one error under all that a user can cause, and the hint for a misspelt name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IsoflopError(Exception):
    """One line for the user: what is wrong, where (file, key), and the remedy.

    The command line prints the line and ends with exit code 2. A plug-in's or a layer's own error
    may derive from it, and is then shown so too.
    """


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What follows an unknown name: ` (did you mean 'x'?)` if a known name is close, or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""
