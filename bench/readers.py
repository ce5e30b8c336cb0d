"""How each kind of file gives documents, one a row, and what it says if it cannot."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from isoflop.bench.unpack import PACKED
from isoflop.results.errors import IsoflopError, did_you_mean

END_OF_TEXT = "<|endoftext|>"
ASKED_FOR_NUMBERS = 20  # rows of a CSV file without any text, after which its column holds none
LONGEST_LIST = 200  # characters of a list of columns


class DataError(IsoflopError):
    """A corpus that cannot be used: one line says which, why, and the remedy."""


def text_in(row: Any, column: str, place: str) -> str:
    """The text of a row; empty if it is null.

    Raises:
        DataError: the row has no such column, or it holds no text.
    """
    if not isinstance(row, dict):
        raise DataError(f"corpus.source: {place}: not a table with columns but {_kind(row)}")
    if column not in row:
        raise DataError(
            f"corpus.text: {place}: no column {column!r}{did_you_mean(column, row)}; it has "
            f"{', '.join(row)[:LONGEST_LIST] or 'none'}"
        )
    text = row[column]
    if text is None:
        return ""
    if not isinstance(text, str):
        others = [name for name, value in row.items() if isinstance(value, str)]
        raise DataError(
            f"corpus.text: {place}: column {column!r} holds {_kind(text)}, not text; columns of "
            f"text: {', '.join(others)[:LONGEST_LIST] or 'none'}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"corpus.source: {place}: character {error.start + 1} is half a surrogate pair, no "
            "character: mend the text"
        ) from None
    return text


def _kind(value: Any) -> str:
    names = {
        bool: "true or false", int: "an integer", float: "a number", list: "a list",
        dict: "a table", str: "text", type(None): "null",
    }  # fmt: skip
    return names.get(type(value), f"a {type(value).__name__}")


def _lines(stream: IO[bytes], name: str) -> Iterator[tuple[int, str]]:
    """The lines with their numbers, as they end in the file, without a byte order mark."""
    for number, line in enumerate(stream, 1):
        content = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        try:
            text = content.decode()
        except UnicodeDecodeError as error:
            wide = number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
            why = "UTF-16, not UTF-8" if wide else f"byte {error.start + 1} is not UTF-8"
            raise DataError(
                f"corpus.source: {name}: line {number}: {why}: save the file as UTF-8"
            ) from None
        yield number, text


def _text_documents(stream: IO[bytes], name: str, column: str) -> Iterator[str]:
    parts: list[str] = []
    for _, text in _lines(stream, name):
        for line in _split(text):
            if line.strip() == END_OF_TEXT:
                yield "".join(parts)
                parts = []
            else:
                parts.append(line)
    yield "".join(parts)


def _split(text: str) -> list[str]:
    """Lines as Python reads text: whatever ends them, it is shown as a newline."""
    if "\r" not in text:
        return [text]
    return re.findall(r"[^\n]*\n|[^\n]+", text.replace("\r\n", "\n").replace("\r", "\n"))


def _json_documents(stream: IO[bytes], name: str, column: str) -> Iterator[str]:
    """One object a line, or one array of objects."""
    lines = ((number, line) for number, line in _lines(stream, name) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("["):
        whole = "".join(line for _, line in itertools.chain([first], lines))
        for number, row in enumerate(_loads(whole, name), 1):
            yield text_in(row, column, f"{name}: entry {number}")
        return
    for number, line in itertools.chain([first], lines):
        place = f"{name}: line {number}"
        yield text_in(_loads(line, place), column, place)


def _loads(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"corpus.source: {place}: not JSON ({str(error)[:100]}): give one object a line, or "
            "one list of objects"
        ) from None


def _csv_documents(stream: IO[bytes], name: str, column: str) -> Iterator[str]:
    csv.field_size_limit(2**31 - 1)  # a document may be long
    rows = csv.reader((line for _, line in _lines(stream, name)), strict=True)
    numbers: int | None = 0  # rows that hold one, until a row holds text
    try:
        header = next(rows, [])
        for row in filter(None, rows):
            place = f"{name}: line {rows.line_num}"
            if len(row) != len(header):
                raise DataError(
                    f"corpus.source: {place}: {len(row)} entries, where the header has "
                    f"{len(header)}: put quotes around text with commas"
                )
            text = text_in(dict(zip(header, row, strict=True)), column, place)
            if text and numbers is not None:
                numbers = numbers + 1 if _is_number(text) else None
            if numbers == ASKED_FOR_NUMBERS:
                break
            yield text
    except csv.Error as error:
        raise DataError(f"corpus.source: {name}: line {rows.line_num}: {error}") from None
    if numbers:
        raise DataError(f"corpus.text: {name}: column {column!r} holds numbers, not text")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parquet_documents(stream: IO[bytes], name: str, column: str) -> Iterator[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # In a compressed stream going back costs a new start.
        on_disk = isinstance(stream, io.BufferedReader) and stream.seekable()
        file = pq.ParquetFile(stream if on_disk else io.BytesIO(stream.read()))
        schema = file.schema_arrow
        if column in schema.names:
            kind = schema.field(column).type
            kind = kind.value_type if pa.types.is_dictionary(kind) else kind
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise DataError(f"corpus.text: {name}: column {column!r} holds {kind}, not text")
        else:
            text_in(dict.fromkeys(schema.names), column, name)
        for batch in file.iter_batches(256, columns=[column]):
            yield from (text or "" for text in batch.column(0).to_pylist())
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise DataError(f"corpus.source: cannot read {name}: {str(error)[:200]}") from None


Reader = Callable[[IO[bytes], str, str], Iterator[str]]

READERS: dict[str, Reader] = {
    ".txt": _text_documents,
    ".jsonl": _json_documents,
    ".ndjson": _json_documents,
    ".json": _json_documents,
    ".csv": _csv_documents,
    ".parquet": _parquet_documents,
}


def reader_of(path: Path) -> Reader | None:
    """How a file is read, by its name: docs.json.gz as docs.json."""
    name = path.name.lower()
    for suffix in PACKED:
        name = name.removesuffix(suffix)
    return READERS.get(Path(name).suffix)
