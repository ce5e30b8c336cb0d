"""The one error under all that a user can cause, and what its line says."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from pydantic import BaseModel, ValidationError


class IsoflopError(Exception):
    """One line for the user: what is wrong, where (file, key), and the remedy.

    The command line prints the line and ends with exit code 2. A plug-in's or a layer's own error
    may derive from it, and is then shown so too.
    """


def printable(text: str) -> str:
    """Foreign text as one line that can neither move a cursor nor start a line of a CI log.

    Control characters (ESC and C1 too), line ends, and characters that change the direction of
    text are shown as escapes such as \\x1b.
    """
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """What follows an unknown name: ` (did you mean 'x'?)` if a known name is close, or nothing."""
    by_lower = {candidate.lower(): candidate for candidate in known}
    alike = [candidate for candidate in by_lower if candidate.startswith(name.lower()[:3])]
    close = difflib.get_close_matches(name.lower(), alike, n=1, cutoff=0.5)
    close = close or difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.65)
    return f" (did you mean {by_lower[close[0]]!r}?)" if close else ""


def explain(error: ValidationError, model: type[BaseModel] | None = None) -> str:
    """The first error of a validation as one line: the key, what is wrong, what would be right.

    Args:
        error: of any pydantic model or adapter.
        model: the model that was validated; the line then lists the keys that it knows.
    """
    # A misspelt key gives two errors, an unknown key and a missing one: the unknown one helps.
    first = min(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    key = ".".join(map(str, first["loc"]))
    prefix = f"{key}: " if key else ""
    if first["type"] == "extra_forbidden":
        known = _known_keys(model, first["loc"]) if model else []
        hint = did_you_mean(str(first["loc"][-1]), known)
        return f"{prefix}unknown key{hint}" + (f"; known here: {', '.join(known)}" if known else "")
    if first["type"] == "missing":
        return f"{prefix}missing"
    text = prefix + first["msg"].removeprefix("Value error, ")
    value = first["input"]
    # Of a whole table or file the value would fill the screen.
    scalar = value is None or isinstance(value, str | int | float)
    return f"{text}, not {value!r}" if scalar and first["type"] != "json_invalid" else text


def _known_keys(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys of the table that holds the last part of `location`."""
    for part in ("root", *location[:-1]):  # the field of a model of a list
        if part in model.model_fields:
            annotation = model.model_fields[str(part)].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            tables = [a for a in inner if isinstance(a, type) and issubclass(a, BaseModel)]
            model = tables[0] if tables else model
    return list(model.model_fields)
