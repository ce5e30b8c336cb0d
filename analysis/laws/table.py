"""Reading a table of runs from CSV: the columns that a law needs, checked.

The most common causes of a wrong fit are in the table: other units, repeated runs, losses on
different data. So every error names the place in the file and the remedy.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Law, six_nd
from isoflop.results.errors import IsoflopError

ONE_VALUED = ("validation_hash", "flop_convention")  # or losses and FLOPs are not comparable


class TableError(IsoflopError):
    """A table that a law cannot be fitted to. The message is one line: what, where, remedy."""


def read_table(
    path: str | Path, law: Law, rename: Mapping[str, str] | None = None
) -> dict[str, Array]:
    """The law's columns, and C if the table has it, as positive and finite arrays of shape (n,).

    If there is no column D and the law counts 6 N D FLOPs, D is C / (6 N).

    Args:
        path: a CSV file with a run per row.
        law: whose columns to read.
        rename: the table's name for a column of the law, such as {"N": "params"}.

    Raises:
        TableError: a column or value is missing or wrong, rows are not comparable, or rows are
            equal in every column but L without different values in a column `seed`.
    """
    path = Path(path)
    header, rows = _rows(path)
    names = _names(path, law, header, rename or {})
    for name in ONE_VALUED:
        values = {row.get(name): line for line, row in reversed(rows.items())}
        if len(values) > 1:
            (first, _), (second, line) = sorted(values.items(), key=lambda item: item[1])[:2]
            raise TableError(
                f"{path} line {line}: {name} is {second!r} but {first!r} before; "
                "such rows cannot be compared: fit them separately"
            )
    columns = {
        ours: np.array(
            [_number(f"{path} line {line}: {theirs}", row[theirs]) for line, row in rows.items()]
        )
        for ours, theirs in names.items()
    }
    if "D" not in columns and "D" in law.columns:
        columns["D"] = columns["C"] / (6 * columns["N"])
    settings = [name for name in law.columns if name != "L"]
    _refuse_repeats(path, rows, {name: columns[name] for name in settings})
    for name in settings:
        sizes = len(np.unique(columns[name]))
        if sizes == 1 and (name in law.inputs or name == "N"):
            raise TableError(
                f"{path}: every row has {name} = {columns[name][0]:g}; "
                f"{law.name} needs at least two values of it"
            )
        if sizes > 1 and name == "E" and name not in law.inputs:
            raise TableError(
                f"{path}: E takes {sizes} values; {law.name} is for a single E: fit them separately"
            )
    return columns


Rows = dict[int, dict[str, str]]  # by line of the file


def _rows(path: Path) -> tuple[list[str], Rows]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="")
            rows: Rows = {}
            for row in reader:
                rows[reader.line_num] = row
    except FileNotFoundError:
        raise TableError(f"{path}: no such file; give a CSV with one run per row") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: not a readable CSV file ({error})") from None
    if not rows:
        raise TableError(f"{path}: no rows; a CSV needs a header and one run per row")
    header = list(reader.fieldnames or ())
    for line, row in rows.items():
        if len(row) > len(header):
            raise TableError(f"{path} line {line}: more fields than the header's {len(header)}")
    return header, rows


def _names(path: Path, law: Law, header: list[str], rename: Mapping[str, str]) -> dict[str, str]:
    """The table's name for each column of the law that it has."""
    known = tuple(dict.fromkeys((*law.columns, "C")))
    for ours, theirs in rename.items():
        if ours not in known:
            raise TableError(f"{ours}={theirs}: {law.name} reads {', '.join(known)}, not {ours}")
        if theirs not in header:
            raise TableError(f"{path}: no column {theirs!r} for {ours}; it has {', '.join(header)}")
    names = {ours: rename.get(ours, ours) for ours in known}
    names = {ours: theirs for ours, theirs in names.items() if theirs in header}
    missing = [name for name in law.columns if name not in names]
    if missing == ["D"] and "C" in names and law.nominal_flops is six_nd:
        missing = []
    if missing:
        raise TableError(
            f"{path}: no column {', '.join(missing)}, which {law.name} needs; "
            f"say which it is ({missing[0]}=NAME), of {', '.join(header)}"
        )
    return names


def _number(place: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise TableError(f"{place} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise TableError(f"{place} is {text.strip()}; leave out runs without a finite value")
    if value <= 0:
        raise TableError(f"{place} is {value:g}, but must be positive")
    return value


def _refuse_repeats(path: Path, rows: Rows, settings: Mapping[str, Array]) -> None:
    seen: dict[tuple[float | str | None, ...], int] = {}
    for i, (line, row) in enumerate(rows.items()):
        seed = row.get("seed")
        key = (*(values[i] for values in settings.values()), seed)
        if key in seen:
            what = ", ".join(f"{name} = {values[i]:g}" for name, values in settings.items())
            same = "and the same seed" if seed else "and no column seed distinguishes them"
            raise TableError(f"{path} line {line} repeats line {seen[key]}: {what}, {same}")
        seen[key] = line
