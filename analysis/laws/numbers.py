"""A column of text as numbers: decimal commas, digit groups, suffixes, each only if unambiguous.

`1,234` alone may be 1234 or 1.234, and `1_000` among plain numbers is more likely a slip than a
thousand, so a column is read as a whole: all its numbers are written in one way, or it is refused.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from isoflop.analysis.estimate import Array

DECIMAL, GROUP, UNKNOWN = "decimal", "group", "unknown"  # what a point or a comma is
UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "G": 1e9, "T": 1e12}
MISSING = {"", "na", "n/a", "null", "none", "-", "--"}
LONGEST = 60  # characters of a cell that a message repeats
UNLIKE = {"nan", "inf", "-inf", "+inf", "infinity", "-infinity"}

PLAIN = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
WRAPPED = re.compile(r"(?:torch\.)?tensor\(([^(),\s]+)(?:,[^()]*)?\)|np\.float\d+\(([^()]+)\)")
SUFFIXED = re.compile(r"(.*?[\d.,])\s?([A-Za-z]+)", re.ASCII)
GROUPS = re.compile(r"[+-]?[1-9]\d{0,2}([ _'.,])\d{3}(?:\1\d{3})*(?:(?!\1)[.,]\d+)?", re.ASCII)
SINGLE = re.compile(r"[+-]?[1-9]\d{0,2}([.,])\d{3}", re.ASCII)  # a group, or three decimals
COMMA = re.compile(r"[+-]?(?:\d+,\d*|,\d+)(?:[eE][+-]?\d+)?", re.ASCII)
UNGROUPED = re.compile(r"[+-]?\d{4,}(?:[.,]\d*)?", re.ASCII)
SPACES = str.maketrans(dict.fromkeys("\u00a0\u2007\u2009\u202f", " ") | {"\u2019": "'"})


class NumberError(ValueError):
    """A cell, by its position in the column, and what is wrong with it."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(reason)
        self.position, self.reason = position, reason


def quoted(cell: str) -> str:
    """A cell in quotes, a long one cut."""
    return repr(cell if len(cell) <= LONGEST else cell[:LONGEST] + "...")


def has_decimal_comma(cells: Sequence[str]) -> bool:
    """Whether some number can only be read with a decimal comma."""
    return any(COMMA.fullmatch(cell) and not SINGLE.fullmatch(cell) for cell in set(cells))


def to_numbers(
    cells: Sequence[str], *, suffixes: bool, comma: bool | None
) -> tuple[Array, tuple[str, ...]]:
    """(n,) numbers, nan where a cell is empty; and how they are written, where that is not plain.

    `suffixes` allows K, M, B (or G) and T. `comma` says how to read a single comma before three
    digits, as in 1,234: as a decimal comma, as a group, or not at all (None).

    Raises:
        NumberError: at the first cell that is no number, or not for sure.
    """
    values = np.full(len(cells), np.nan)
    odd: dict[int, str] = {}
    for i, cell in enumerate(cells):
        if PLAIN.fullmatch(cell):
            values[i] = float(cell)
        elif cell.lower() not in MISSING:
            odd[i] = cell
    if not odd:
        return values, ()
    bare = {i: _bare(i, cell, suffixes) for i, cell in odd.items()}
    texts = {i: cell for i, cell in enumerate(cells) if i not in bare and PLAIN.fullmatch(cell)}
    texts |= {i: text for i, (text, _) in bare.items()}
    points, commas = _marks(cells, texts, comma)
    styles: dict[str, int] = {}  # how numbers are written, and the first that is
    for i, (text, unit) in sorted(bare.items()):
        values[i], style = _value(i, cells[i], text, points, commas)
        values[i] *= unit
        styles.setdefault(style, i)
    if points == GROUP:
        for i, text in texts.items():
            if "." in text and SINGLE.fullmatch(text):
                values[i] = float(text.replace(".", "")) * bare.get(i, ("", 1.0))[1]
    _refuse_mixtures(cells, texts, styles)
    shown = {style: cells[i] for style, i in styles.items() if style}
    return values, tuple(f"{style} ({cell[:LONGEST]})" for style, cell in shown.items())


def _marks(cells: Sequence[str], texts: dict[int, str], comma: bool | None) -> tuple[str, str]:
    """What a point and a comma are in this column."""
    sure: dict[tuple[str, str], int] = {}  # (mark, meaning) -> the first number that shows it
    for i, text in sorted(texts.items()):
        if SINGLE.fullmatch(text):
            continue
        if PLAIN.fullmatch(text):
            if "." in text:
                sure.setdefault((".", DECIMAL), i)
        elif COMMA.fullmatch(text):
            sure.setdefault((",", DECIMAL), i)
        elif grouped := GROUPS.fullmatch(text):
            sure.setdefault((grouped[1], GROUP), i)
            rest = text[grouped.end(1) :].replace(grouped[1], "")
            for mark in ".,":
                if mark in rest:
                    sure.setdefault((mark, DECIMAL), i)
    for mark, name in ((".", "point"), (",", "comma")):
        both = [sure.get((mark, meaning)) for meaning in (DECIMAL, GROUP)]
        if None not in both:
            i = max(filter(None, both), default=0)
            raise NumberError(
                i,
                f"is {quoted(cells[i])}, where a {name} parts digits in some rows and decimals in "
                "others",
            )
    if (".", DECIMAL) in sure and (",", DECIMAL) in sure:
        i = max(sure[".", DECIMAL], sure[",", DECIMAL])
        raise NumberError(
            i, f"is {quoted(cells[i])}; some decimals here have a point, some a comma"
        )
    points = GROUP if (".", GROUP) in sure or (",", DECIMAL) in sure else DECIMAL
    if (",", DECIMAL) in sure:
        return points, DECIMAL
    if (",", GROUP) in sure or (".", DECIMAL) in sure:
        return points, GROUP
    return points, UNKNOWN if comma is None else DECIMAL if comma else GROUP


def _bare(i: int, cell: str, suffixes: bool) -> tuple[str, float]:
    """The number's own text, and what a suffix multiplies it by."""
    text = cell.translate(SPACES)
    strange = next((c for c in text if not c.isascii()), None)
    if strange:
        name = unicodedata.name(strange, "a character without a name")
        raise NumberError(
            i, f"is {quoted(cell)} with U+{ord(strange):04X} {name}; write plain digits"
        )
    if wrapped := WRAPPED.fullmatch(text):
        text = wrapped[1] or wrapped[2]
    if text.lower() in UNLIKE:
        raise NumberError(i, f"is {cell}; leave out runs without a finite value")
    suffix = SUFFIXED.fullmatch(text)
    if not suffix or not any(form.fullmatch(suffix[1]) for form in (PLAIN, COMMA, GROUPS)):
        return text, 1.0
    if not suffixes or suffix[2] in "eE":
        raise NumberError(i, f"is {quoted(cell)}, not a number")
    if suffix[2].upper() not in UNITS:
        raise NumberError(
            i, f"is {quoted(cell)}: {suffix[2]!r} is no unit known here; K, M, B (or G) and T are"
        )
    return suffix[1], UNITS[suffix[2].upper()]


def _value(i: int, cell: str, text: str, points: str, commas: str) -> tuple[float, str]:
    """The number, and how it is written if not plainly."""
    if PLAIN.fullmatch(text):
        return float(text), ""
    if SINGLE.fullmatch(text) and commas == UNKNOWN:
        raise NumberError(
            i,
            f"is {quoted(cell)}, which may be a group of digits or decimals; write it without a "
            "comma",
        )
    if COMMA.fullmatch(text) and commas == DECIMAL:
        return float(text.replace(",", ".")), "decimal commas"
    grouped = GROUPS.fullmatch(text)
    if grouped is None:
        raise NumberError(i, f"is {quoted(cell)}, not a number")
    number = float(text.replace(grouped[1], "").replace(",", "."))
    return number, f"digits in groups by {grouped[1]!r}"


def _refuse_mixtures(cells: Sequence[str], texts: dict[int, str], styles: dict[str, int]) -> None:
    """Digits in groups beside digits in other groups, or in none."""
    groups = {style: i for style, i in styles.items() if "groups" in style}
    for style, first in groups.items():
        if len(groups) > 1:
            i = max(groups.values())
            raise NumberError(i, f"is {quoted(cells[i])}; digits are in other groups in other rows")
        if any(UNGROUPED.fullmatch(text) for text in texts.values()):
            raise NumberError(
                first, f"is {quoted(cells[first])}, {style}, where other rows have none"
            )
