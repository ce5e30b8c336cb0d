"""Delimited text as columns of text: which separator, which header, which rows.

Exports differ in separator, comments, blank rows, aligned columns and Markdown bars. What cannot be
read for sure is refused with its cause, as a row read wrongly is a wrong law.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import pandas as pd

from isoflop.results.errors import IsoflopError

SAMPLE = 200  # lines by which the separator is chosen
SEPARATORS = "\t;|,"  # else spaces
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?", re.ASCII)

Line = tuple[int, str]  # its number, its text


class TableError(IsoflopError):
    """A table that a law cannot be fitted to; one line says what, where and what would be right."""

    def __init__(self, message: str) -> None:
        super().__init__(plain(message))


def plain(text: str) -> str:
    """Foreign text for a terminal: line ends and control characters are shown, not sent."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def parse(path: Path, text: str) -> pd.DataFrame:
    """The cells by column, indexed by line.

    Raises:
        TableError: the text is no table of one header and rows of its width.
    """
    lines: list[Line] = []
    comments: list[Line] = []
    hint = ""
    for i, line in enumerate(re.split(r"\r\n|\n|\r", text), 1):
        if line.lstrip().startswith("#"):
            comments.append((i, line.lstrip().lstrip("#").strip()))
        elif not lines and (match := re.fullmatch(r"sep=(.)", line.strip())):
            hint = match[1]  # Excel's own hint
        else:
            lines.append((i, line))
    none = TableError(f"{path}: no rows; a table needs a header and one run per row")
    if all(not line.strip() for _, line in lines):
        raise none
    lines = [(i, line) for i, line in lines if line.strip() or '"' in text]
    while not lines[0][1].strip():
        lines.pop(0)
    separator = hint if hint in [*SEPARATORS] else _separator([line for _, line in lines[:SAMPLE]])
    if separator == "|":
        lines = _unbarred(lines)
    rows = _split(path, lines, separator)
    line, header = next(rows, (0, []))
    if not header:
        raise none  # separators alone
    if all(NUMBER.fullmatch(cell) for cell in header):
        header = _header_in_comment(path, line, header, comments, separator)
        rows = _split(path, lines, separator)
    return _frame(path, header, rows, separator)


def _separator(sample: list[str]) -> str:
    """The separator that splits most lines into as many fields as the first, and that into most."""
    best, chosen = (0.0, 0), " "
    for separator in SEPARATORS:
        try:
            counts = [len(row) for row in csv.reader(sample, delimiter=separator) if row]
        except csv.Error:
            continue
        share = sum(count == counts[0] for count in counts) / len(counts)
        if counts[0] > 1 and (round(share, 1), counts[0]) > best:
            best, chosen = (round(share, 1), counts[0]), separator
    return chosen


def _unbarred(lines: list[Line]) -> list[Line]:
    """Lines of a Markdown table without its outer bars and its line of dashes."""
    return [
        (i, line.strip().removeprefix("|").removesuffix("|"))
        for i, line in lines
        if not re.fullmatch(r"[\s|:=+-]+", line) or not line.strip()
    ]


def _split(path: Path, lines: list[Line], separator: str) -> Iterator[tuple[int, list[str]]]:
    """Line and fields of every row that is not blank."""
    if separator == " ":
        for i, line in lines:
            if fields := line.split():
                yield i, [field.strip('"') for field in fields]
        return
    reader = csv.reader(
        (line + "\n" for _, line in lines), delimiter=separator, skipinitialspace=True, strict=True
    )
    read = 0  # lines of whole rows
    try:
        for row in reader:
            read = reader.line_num
            fields = [field.strip() for field in row]
            if any(fields):
                yield lines[read - 1][0], fields
    except csv.Error as error:
        number = lines[min(read, len(lines) - 1)][0]
        raise TableError(f"{path} line {number}: {error}; a quotation mark is open?") from None


def _header_in_comment(
    path: Path, line: int, row: list[str], comments: list[Line], separator: str
) -> list[str]:
    """A first line of numbers has its header in the comment above it, as NumPy writes it."""
    above = [text for i, text in comments if i < line]
    for _, header in _split(path, [(0, above[-1])] if above else [], separator):
        if len(header) == len(row):
            return header
    raise TableError(f"{path} line {line}: numbers where the header should be; name the columns")


def _frame(
    path: Path, header: list[str], rows: Iterable[tuple[int, list[str]]], separator: str
) -> pd.DataFrame:
    width = len(header)
    twice = [name for name, times in Counter(header).items() if name and times > 1]
    if twice:
        raise TableError(f"{path}: column {twice[0]!r} stands twice in the header; rename one")
    index, cells = [], []
    for line, row in rows:
        if row == header:
            raise TableError(
                f"{path} line {line}: the header again; two tables joined? remove that line"
            )
        while len(row) > width and not row[-1]:
            row.pop()
        if len(row) > width:
            raise TableError(f"{path} line {line}: {_too_many(len(row), width, separator)}")
        if len(row) < width:
            raise TableError(
                f"{path} line {line}: {_fields(len(row))} where the header has {width}; cut short?"
            )
        index.append(line)
        cells.append(row)
    if not cells:
        raise TableError(f"{path}: no rows; a table needs a header and one run per row")
    columns = zip(header, zip(*cells, strict=True), strict=True)
    named = {name: column for name, column in columns if name}
    return pd.DataFrame(named, index=index, dtype=object)


def _too_many(fields: int, width: int, separator: str) -> str:
    cause = f"{_fields(fields)} where the header has {width}"
    if separator == ",":
        cause += "; digit groups and decimal commas need quotes, or semicolons between columns"
    return cause


def _fields(number: int) -> str:
    return f"{number} field{'' if number == 1 else 's'}"
