"""Reading a JSON file strictly: records and manifests come from strangers too."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

LONGEST = 2**26  # bytes of a file
LARGEST = 1e40  # of a number, in absolute value


def read_json(path: Path) -> Any:
    """The contents of a JSON file, in which every key is there once and every number finite.

    Raises:
        ValueError: one line says what is wrong with the file.
        OSError: it cannot be read.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # a FIFO would be waited for
        raise ValueError("no plain file")
    if status.st_size > LONGEST:
        raise ValueError(f"{status.st_size:,} bytes, more than {LONGEST:,}")
    try:
        return json.loads(
            path.read_bytes().decode("utf-8"),
            object_pairs_hook=_table,
            parse_constant=_constant,
            parse_float=_float,
            parse_int=_int,
        )
    except RecursionError:
        raise ValueError("not JSON as we write it: nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"Invalid JSON: not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"Invalid JSON: {error}") from None


def _table(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"{twice[:60]}: is there twice")
    return table


def _constant(text: str) -> float:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or abs(value) > LARGEST:
        raise ValueError(f"{_short(text)}: a number beyond {LARGEST:g}")
    return value


def _int(text: str) -> int:
    if len(text) > len(f"{LARGEST:.0f}"):
        raise ValueError(f"{_short(text)}: a number beyond {LARGEST:g}")
    return int(text)


def _short(text: str) -> str:
    return text if len(text) <= 20 else f"{text[:20]}..."
