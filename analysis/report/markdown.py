"""Markdown: the one table of all generated documents, and text that is shown as it is."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from isoflop.results.errors import printable

WIDEST = 60  # characters that a cell is padded to at most
# Code between backticks stays code. An underscore inside a word, as in moe_ec, is no markup.
MARKUP = re.compile(
    r"(?P<code>`[^`]+`)|[\\`*<|~$]|\](?=[(\[:])|!(?=\[)|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])"
    r"|^(?=[#>+-]+\s)|(?<=http):(?=//)|(?<=https):(?=//)|(?<=www)\."
)


def escape(text: str) -> str:
    """The text on one line, such that Markdown shows it as it is, also in a table.

    Control characters, which a terminal would obey, are shown as escapes.
    """
    return MARKUP.sub(_escape, printable(" ".join(text.split())))


def _escape(match: re.Match[str]) -> str:
    code = match["code"]
    return code.replace("|", r"\|") if code else "\\" + match[0]


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: Collection[str] = ()) -> str:
    """A table, padded so that its source is readable too.

    Args:
        header: the titles of the columns.
        rows: the cells as text; they are escaped here.
        left: titles of the columns to align left, those with words; the others are aligned right.
    """
    lines = [[escape(cell) for cell in line] for line in (header, *rows)]
    at_left = [title in left for title in header]
    widths = [min(max(3, *map(len, column)), WIDEST) for column in zip(*lines, strict=True)]
    rule = [
        ":" + "-" * (width - 1) if is_left else "-" * (width - 1) + ":"
        for width, is_left in zip(widths, at_left, strict=True)
    ]
    padded = [
        [
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(line, widths, at_left, strict=True)
        ]
        for line in (lines[0], rule, *lines[1:])
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in padded)
