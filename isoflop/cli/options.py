"""Options of layers and methods: listed, and as the command line gives them."""

from __future__ import annotations

import itertools
import re
import tomllib
from dataclasses import MISSING, Field, fields
from typing import TYPE_CHECKING, Any

from isoflop.results.errors import IsoflopError

if TYPE_CHECKING:
    from isoflop.bench.methods import Method
    from isoflop.models import Layer


def described(layer: type[Layer] | type[Method]) -> tuple[str, str]:
    """The first line of the docstring of a layer or method, and its options with their defaults."""
    summary = next(iter((layer.__doc__ or "").strip().splitlines()), "")
    return summary, ", ".join(
        f"{option.name}={default_of(option)}" for option in fields(layer.Options)
    )


def default_of(option: Field[Any]) -> str:
    """The default of an option as Python writes it, or `required`."""
    if option.default is not MISSING:
        return repr(option.default)
    return "required" if option.default_factory is MISSING else repr(option.default_factory())


def options_of(texts: list[str]) -> list[dict[str, Any]]:
    """Options as the command line gives them, in every combination of their values.

    Each is NAME=VALUE. A value is TOML, or a bare word, which is a string; values between commas
    are to be tried one by one.

    Raises:
        IsoflopError: one has another form, or is given twice.
    """
    values: dict[str, list[Any]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name or name in values:
            raise IsoflopError(f"--option {text}: give NAME=VALUE, each name once")
        values[name] = _values(value, text)
    return [
        dict(zip(values, combination, strict=True))
        for combination in itertools.product(*values.values())
    ]


def single_options(texts: list[str]) -> dict[str, Any]:
    """Options with one value each.

    Raises:
        IsoflopError: see `options_of`; or one has several.
    """
    combinations = options_of(texts)
    if len(combinations) > 1:
        several = next(text for text in texts if len(options_of([text])) > 1)
        raise IsoflopError(f"--option {several}: one value here; a list is written in [ ]")
    return combinations[0]


def _values(value: str, text: str) -> list[Any]:
    """The values between commas; a comma in quotes, or between [ and ], is a part of its."""
    try:
        table = tomllib.loads(f"values = [{value}]")
        if table.keys() == {"values"} and table["values"]:
            return table["values"]
    except (tomllib.TOMLDecodeError, RecursionError):
        pass
    return [_value(part.strip(), text) for part in value.split(",")]


def _value(part: str, text: str) -> Any:
    try:
        return tomllib.loads(f"value = {part}")["value"]
    except (tomllib.TOMLDecodeError, RecursionError):
        if not re.fullmatch(r"[A-Za-z][\w.-]*", part):
            raise IsoflopError(f"--option {text}: neither a TOML value nor one word") from None
        return part
