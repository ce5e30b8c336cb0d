"""A file of runs, whatever it is written in, as columns of text with the line of each row.

Compression, encoding and format are recognised by the content, not by the name. Nothing is
converted here: what is a number is decided column by column (`numbers`).
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import stat
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from isoflop.analysis.laws.delimited import TableError, parse

LARGEST = 512 * 2**20  # bytes of a table, unpacked
NOT_TABLES = {
    b"PK\x03\x04": "a spreadsheet or a zip archive: save the sheet as CSV",
    b"\xd0\xcf\x11\xe0": "an old spreadsheet: save the sheet as CSV",
    b"ARROW1": "an Arrow file: save it as parquet or CSV",
    b"\x93NUMPY": "a NumPy array, which has no column names: save it as CSV",
    b"\x80\x04": "a pickle, which is not opened: save it as CSV",
    b"\x80\x05": "a pickle, which is not opened: save it as CSV",
    b"SQLite": "a database: save the table as CSV",
    b"%PDF": "a PDF: save the table as CSV",
}
BOMS = {  # a longer mark before one that it begins with
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
COMPRESSED = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda source: pa.CompressedInputStream(source, "zstd"),
}


@dataclass(frozen=True)
class Frame:
    """Columns of text; the index says where a row is: a line of the file, or its number."""

    cells: pd.DataFrame
    place: str  # "line" or "row": what the index counts
    notes: tuple[str, ...] = ()


def read_frame(path: Path) -> Frame:
    """The table in a file: delimited text, JSON lines, JSON or parquet, compressed or not.

    Raises:
        TableError: with one line that says what the file is, or where it is damaged.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise TableError(f"{path}: a folder; give a table with one run per row")
        if not stat.S_ISREG(mode):
            raise TableError(f"{path}: not a file on disk; save the table first")
        if path.stat().st_size > LARGEST:
            raise _too_large(path)
        data = path.read_bytes()
    except FileNotFoundError:
        raise TableError(f"{path}: no such file; give a table with one run per row") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TableError(f"{path}: cannot be read ({reason})") from None
    for _ in range(2):  # a compressed file may have been compressed once more
        data = _unpacked(path, data)
    for magic, what in NOT_TABLES.items():
        if data.startswith(magic):
            raise TableError(f"{path}: {what}")
    if data.startswith(b"PAR1"):
        return _parquet(path, data)
    text, notes = _decoded(path, data)
    if text.lstrip().startswith(("{", "[")):
        return _json(path, text)
    return Frame(parse(path, text), "line", notes)


def _too_large(path: Path) -> TableError:
    return TableError(
        f"{path}: more than {LARGEST // 2**20} MiB; keep the columns of runs that are needed"
    )


def _unpacked(path: Path, data: bytes) -> bytes:
    """Compressed data unpacked, other data as it is."""
    opened: Any = next(
        (opens for magic, opens in COMPRESSED.items() if data.startswith(magic)), None
    )
    if opened is None:
        return data
    try:
        with opened(io.BytesIO(data)) as stream:
            unpacked: bytes = stream.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        raise TableError(f"{path}: compressed, and damaged or cut short ({_line(error)})") from None
    if len(unpacked) > LARGEST:
        raise _too_large(path)
    return unpacked


def _decoded(path: Path, data: bytes) -> tuple[str, tuple[str, ...]]:
    encoding = next((name for bom, name in BOMS.items() if data.startswith(bom)), "utf-8")
    if encoding == "utf-8" and b"\x00" in data[:200]:  # no mark: every other byte of ASCII is 0
        zeros = [data[start:200:2].count(0) for start in (0, 1)]
        if max(zeros) > 0.4 * len(data[:200]) and min(zeros) == 0:
            encoding = "utf-16-be" if zeros[0] else "utf-16-le"
    notes: tuple[str, ...] = ()
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise TableError(
                f"{path}: begins as {encoding} but is not; it is damaged or cut short"
            ) from None
        text = data.decode("cp1252", errors="replace")
        line = data[: error.start].count(b"\n") + 1
        notes = (f"line {line} is not UTF-8: read as Windows-1252",)
    if "\x00" in text:
        line = text[: text.index("\x00")].count("\n") + 1
        raise TableError(f"{path} line {line}: a zero byte; the file is damaged or not a table")
    return text, notes


def _line(error: Exception) -> str:
    """An error's message in one line of plain characters."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else "?" for c in text)[:200]


def _parquet(path: Path, data: bytes) -> Frame:
    try:
        table = parquet.read_table(pa.BufferReader(data))
        columns = {name: _texts(table.column(i)) for i, name in enumerate(table.column_names)}
    except (pa.ArrowException, OSError, ValueError, TypeError) as error:
        raise TableError(f"{path}: a damaged parquet file ({_line(error)})") from None
    if len(columns) < table.num_columns:
        raise TableError(f"{path}: two columns have one name; rename one")
    return _framed(path, columns, table.num_rows)


def _texts(column: pa.ChunkedArray) -> list[str]:
    """Values as they would be typed; nothing where there is none."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.cast(kind.value_type)
    if pa.types.is_float16(kind):
        column = column.cast(pa.float32())
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        shown = (None if value is None else repr(float(value)) for value in column.to_pylist())
    else:
        shown = (None if value is None else str(value) for value in column.to_pylist())
    return [value or "" for value in shown]


def _json(path: Path, text: str) -> Frame:
    """JSON lines (an object a line), a list of objects, or an object of columns."""
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    first = lines[0][1].strip()
    if len(lines) > 1 and first.startswith("{") and first.endswith("}"):
        objects = [(i, _loads(path, line, f" line {i}")) for i, line in lines]
        return _from_objects(path, objects, "line")
    value = _loads(path, text, "")
    if isinstance(value, list):
        return _from_objects(path, enumerate(value, 1), "row")
    columns = {
        name: list(column.values()) if isinstance(column, dict) else column
        for name, column in value.items()
    }
    lengths = {len(column) if isinstance(column, list) else -1 for column in columns.values()}
    if lengths == {-1}:
        return _from_objects(path, [(1, value)], "line")
    if len(lengths) != 1:
        raise TableError(f"{path}: an object, not a list of runs; give one object per run")
    texts = {name: [_shown(entry) for entry in column] for name, column in columns.items()}
    return _framed(path, texts, lengths.pop())


def _loads(path: Path, text: str, where: str) -> Any:
    try:
        return json.loads(
            text,
            parse_float=str,
            parse_int=str,
            parse_constant=str,
            object_pairs_hook=_once,
        )
    except json.JSONDecodeError as error:
        where = where or f" line {error.lineno}"
        raise TableError(
            f"{path}{where}: not JSON at column {error.colno} ({error.msg}); damaged or cut short?"
        ) from None
    except KeyError as error:
        raise TableError(f"{path}{where}: an object has the key {error} twice") from None
    except RecursionError:
        raise TableError(f"{path}{where}: nested too deep; give one flat object per run") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise KeyError(name)
        entries[name] = value
    return entries


def _from_objects(path: Path, objects: Iterable[tuple[int, Any]], place: str) -> Frame:
    rows: dict[int, dict[str, str]] = {}
    for i, run in objects:
        if not isinstance(run, dict):
            raise TableError(f"{path} {place} {i}: not an object with a run's columns")
        rows[i] = {name: _shown(value) for name, value in run.items()}
    names = dict.fromkeys(name for row in rows.values() for name in row)
    columns = {name: [row.get(name, "") for row in rows.values()] for name in names}
    return _framed(path, columns, len(rows), place, list(rows))


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _framed(
    path: Path,
    columns: dict[str, list[str]],
    rows: int,
    place: str = "row",
    index: list[int] | None = None,
) -> Frame:
    if not rows or not columns:
        raise TableError(f"{path}: no rows; a table has one run per row")
    names = {name.strip(): values for name, values in columns.items()}
    if len(names) < len(columns):
        raise TableError(f"{path}: two columns have one name; rename one")
    frame = pd.DataFrame(names, index=index or range(1, rows + 1), dtype=object)
    return Frame(frame, place)
