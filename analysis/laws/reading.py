"""Files of runs as rows of text: CSV and its dialects, JSON, parquet, compressed or not.

What people export differs in separators, decimal marks, comments and encodings. The numbers are
what matters, so a dialect is recognised by what the whole file has in common, and a file that can
be read in two ways is refused with the two ways named.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.results.errors import IsoflopError

SEPARATORS = ("\t", ";", "|", ",")
LARGEST = 2**31  # bytes of a file, uncompressed


class TableError(IsoflopError):
    """A table that a law cannot be fitted to; one line says what, where and what would be right."""


@dataclass(frozen=True)
class Text:
    """Rows as they stand in a file."""

    header: list[str]
    rows: dict[int, list[str]]  # by line of the file, or number of the object; as long as header
    separator: str = ","  # "" where the file has none


def read_text(path: Path) -> Text:
    """The header and the rows of a file; comment lines and rows without any value are dropped.

    Raises:
        TableError: the file cannot be read as a table; the line says why.
    """
    content = _content(path)
    if content[:4] == b"PAR1":
        return _parquet(path, content)
    text = _decoded(path, content)
    table = (_json if text.lstrip()[:1] in ("{", "[") else _delimited)(path, text)
    if not table.rows:
        raise TableError(f"{path}: no rows; a table needs a header and one run per row")
    twice = next((name for name in table.header if table.header.count(name) > 1), None)
    if twice is not None:
        raise TableError(f"{path}: the header has {twice!r} twice: rename one of the two columns")
    return table


def _content(path: Path) -> bytes:
    """The bytes of a file, decompressed by what it begins with, whatever its name."""
    try:
        if path.exists() and not path.is_file():
            raise TableError(f"{path}: not a file; give a table with one run per row")
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        elif content[:3] == b"BZh":
            content = bz2.decompress(content)
        elif content[:6] == b"\xfd7zXZ\x00":
            content = lzma.decompress(content)
        elif content[:4] == b"\x28\xb5\x2f\xfd":
            import pyarrow

            with pyarrow.input_stream(io.BytesIO(content), compression="zstd") as stream:
                content = stream.read(LARGEST)
    except FileNotFoundError:
        raise TableError(f"{path}: no such file; give a table with one run per row") from None
    except OSError as error:
        raise TableError(f"{path}: cannot be read: {error.strerror or error}") from None
    except (EOFError, lzma.LZMAError, ValueError) as error:
        raise TableError(f"{path}: its compression is damaged: {error}") from None
    if content[:4] == b"PK\x03\x04":
        raise TableError(f"{path}: a zip archive or a spreadsheet: export it as CSV")
    return content


def _decoded(path: Path, content: bytes) -> str:
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TableError(
            f"{path} line {line}: not {encoding.removesuffix('-sig').upper()} text: save it as "
            "UTF-8"
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise TableError(f"{path} line {line}: a zero byte: not a text file")
    return text


def _parquet(path: Path, content: bytes) -> Text:
    import pandas

    try:
        frame = pandas.read_parquet(io.BytesIO(content))
    except Exception as error:  # pyarrow raises many kinds
        raise TableError(f"{path}: a damaged parquet file: {str(error).splitlines()[0]}") from None
    header = [str(name) for name in frame.columns]
    values = zip(*(map(_cell, frame[name].tolist()) for name in frame.columns), strict=True)
    return Text(header, {number: list(row) for number, row in enumerate(values, start=1)}, "")


def _json(path: Path, text: str) -> Text:
    """An array of objects, an object a line, or one object of equally long arrays."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"{key!r} stands twice in one object")
        return dict(pairs)

    decode = json.JSONDecoder(object_pairs_hook=once).decode
    try:
        try:
            whole = decode(text.strip())
        except json.JSONDecodeError:
            whole = None
        if whole is None:
            numbered = {n: line for n, line in enumerate(text.splitlines(), 1) if line.strip()}
            objects = {}
            for number, line in numbered.items():
                try:
                    objects[number] = decode(line.strip())
                except json.JSONDecodeError as error:
                    raise TableError(f"{path} line {number}: not JSON: {error.msg}") from None
        elif isinstance(whole, dict) and all(isinstance(v, list) for v in whole.values()):
            lengths = {len(values) for values in whole.values()}
            if len(lengths) > 1:
                raise TableError(f"{path}: its columns differ in length: {sorted(lengths)}")
            rows = zip(*whole.values(), strict=True)
            objects = {n: dict(zip(whole, row, strict=True)) for n, row in enumerate(rows, 1)}
        else:
            objects = dict(enumerate(whole if isinstance(whole, list) else [whole], start=1))
    except RecursionError:
        raise TableError(f"{path}: JSON nested too deep for a table") from None
    except ValueError as error:  # of `once`, and integers without end
        raise TableError(f"{path}: {error}") from None
    header: dict[str, None] = {}
    for number, row in objects.items():
        if not isinstance(row, dict):
            raise TableError(f"{path} row {number}: not an object of column names and values")
        header |= dict.fromkeys(row)
    return Text(
        list(header),
        {n: [_cell(row.get(name)) for name in header] for n, row in objects.items()},
        "",
    )


def _cell(value: Any) -> str:
    """A value of JSON or parquet as a file of text would hold it."""
    if value is None or value != value:
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def _delimited(path: Path, text: str) -> Text:
    lines = [
        (number, line)
        for number, line in enumerate(io.StringIO(text, newline=None), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    if not lines:
        return Text([], {})
    separator = _separator([line for _, line in lines[:200]])
    parsed = list(_parsed(path, lines, separator))
    (_, header), rest = parsed[0], parsed[1:]
    header = [name.strip() for name in header]
    while len(header) > 1 and not header[-1] and all(not "".join(row[len(header) - 1 :]).strip()
                                                     for _, row in rest):  # fmt: skip
        header.pop()  # a separator at the end of every line
    if all(_is_number(name) for name in header):
        raise TableError(
            f"{path} line {lines[0][0]}: the first row is numbers: put the names of the columns "
            "above it"
        )
    rows: dict[int, list[str]] = {}
    for number, row in rest:
        if not "".join(row).strip():
            continue
        if [cell.strip() for cell in row] == header:
            raise TableError(
                f"{path} line {number}: the header stands again: two tables in one file? remove "
                "that line if they belong together"
            )
        if "".join(row[len(header) :]).strip():
            hint = "; a number with a comma needs quotes" if separator == "," else ""
            raise TableError(
                f"{path} line {number}: more fields than the header's {len(header)}{hint}"
            )
        rows[number] = [cell.strip() for cell in row[: len(header)]]
        rows[number] += [""] * (len(header) - len(row))
    return Text(header, rows, separator)


def _separator(lines: list[str]) -> str:
    """The character that parts every line into equally many fields; "" for white space."""
    best = (0.0, 1, "")
    for separator in SEPARATORS:
        counts = [len(row) for row in csv.reader(lines, delimiter=separator, skipinitialspace=True)]
        fields = counts[0] if counts else 1
        share = sum(count == fields for count in counts) / max(1, len(counts))
        if fields > 1 and (share, fields) > best[:2]:
            best = (share, fields, separator)
    return best[2]


def _parsed(
    path: Path, lines: list[tuple[int, str]], separator: str
) -> Iterator[tuple[int, list[str]]]:
    if not separator:
        yield from ((number, line.split()) for number, line in lines)
        return
    numbers = iter(lines)
    last = [0]

    def texts() -> Iterator[str]:
        for last[0], line in numbers:
            yield line

    try:
        for row in csv.reader(texts(), delimiter=separator, skipinitialspace=True, strict=True):
            yield last[0], row
    except csv.Error as error:
        raise TableError(f"{path} line {last[0]}: {error}: is a quote left open?") from None


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", "."))
    except ValueError:
        return False
    return True
