"""Errors in the use of the command line, in the form of all other errors."""

from __future__ import annotations

from typing import Any

import typer

from isoflop.results.errors import IsoflopError, did_you_mean

# Of click, which some versions of typer bring with them under another name.
UsageError: Any = typer.BadParameter.__bases__[0]


def verb_of(command: Any, arguments: list[str]) -> None:
    """Check that the first argument is a verb or an option.

    Raises:
        IsoflopError: it is a word that is no verb.
    """
    verb = arguments[0] if arguments else ""
    if not verb.startswith("-") and verb not in command.commands:
        known = list(command.commands)
        raise IsoflopError(f"no verb {verb!r}{did_you_mean(verb, known)}; known: {_list(known)}")


def explain_usage(error: Any, arguments: list[str]) -> str:
    """A usage error as one line: the verb, the option, what is wrong, what would be right."""
    context = getattr(error, "ctx", None)
    verb = arguments[0] if arguments and not arguments[0].startswith("-") else ""
    start, see = (f"{verb}: ", f"isoflop {verb} --help") if verb else ("", "isoflop --help")
    name = getattr(error, "option_name", None)
    if name and hasattr(error, "possibilities"):
        known = [
            option
            for parameter in (context.command.params if context is not None else [])
            for option in parameter.opts
            if option.startswith("--")
        ] + ["--help"]
        hint = did_you_mean(name, known) if name.startswith("--") else ""
        return f"{start}no option {name!r}{hint}; known: {_list(known)}"
    text = _sentence(error.message)
    parameter = getattr(error, "param", None)
    if isinstance(error, typer.BadParameter) and parameter is not None and text:
        option = next((option for option in parameter.opts if option.startswith("-")), None)
        return f"{start}{option or parameter.human_readable_name}: {text}; see `{see}`"
    return f"{start}{_sentence(error.format_message())}; see `{see}`"


def _list(names: list[str]) -> str:
    return ", ".join(names)


def _sentence(text: str) -> str:
    """Without the full stop and the capital, as the other errors are written."""
    line = " ".join(str(text).split()).removesuffix(".")
    return line[:1].lower() + line[1:]
