"""Options of layers and methods: listed, and as the command line gives them."""

from __future__ import annotations

import itertools
import json
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
    """KEY=VALUE,VALUE ... as every combination of values. A value is JSON, or else a string.

    Raises:
        IsoflopError: there is no `=`, or a key twice.
    """
    values: dict[str, list[Any]] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key or key in values:
            raise IsoflopError(f"--option: {text!r}: give each as KEY=VALUE, once")
        values[key] = [_value(part) for part in value.split(",")]
    return [
        dict(zip(values, combination, strict=True))
        for combination in itertools.product(*values.values())
    ]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
