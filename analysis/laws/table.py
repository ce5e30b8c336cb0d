"""Anybody's table of runs, from CSV, for a law: the columns it needs, checked.

What is wrong with a table is said in one line with the place and the remedy, because the commonest
ways to get a wrong law are in the table: other units, repeated runs, losses on different data.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from isoflop.analysis.laws.law import Array, Law, six_nd
from isoflop.results.errors import IsoflopError

ONE_VALUED = ("validation_hash", "flop_convention")  # losses and FLOPs else mean different things


class TableError(IsoflopError):
    """A table that a law cannot be fitted to; one line says what, where and what would be right."""


def read_table(
    path: str | Path, law: Law, rename: Mapping[str, str] | None = None
) -> dict[str, Array]:
    """The law's columns (and C) as arrays, positive and finite.

    `rename` names the table's own column for one of the law's: {"N": "params"}. D may be left to
    C / (6 N), where that is how the law counts. A row at another's place (every column but L the
    same) is refused unless a column `seed` tells them apart.

    Raises:
        TableError: with one line to show.
    """
    path = Path(path)
    header, rows = _rows(path)
    names = _names(path, law, header, rename or {})
    for name in ONE_VALUED:
        values = {row.get(name): line for line, row in reversed(rows.items())}
        if len(values) > 1:
            (first, _), (other, line) = sorted(values.items(), key=lambda item: item[1])[:2]
            raise TableError(
                f"{path} line {line}: {name} is {other!r} but {first!r} before; "
                "such rows cannot be compared: fit them apart"
            )
    columns = {
        ours: np.array(
            [_number(f"{path} line {line}: {theirs}", row[theirs]) for line, row in rows.items()]
        )
        for ours, theirs in names.items()
    }
    if "D" not in columns and "D" in law.columns:
        columns["D"] = columns["C"] / (6 * columns["N"])
    place = [name for name in law.columns if name != "L"]
    _refuse_repeats(path, rows, {name: columns[name] for name in place})
    for name in place:
        sizes = len(np.unique(columns[name]))
        if sizes == 1 and (name in law.inputs or name == "N"):
            raise TableError(
                f"{path}: every row has {name} = {columns[name][0]:g}; "
                f"{law.name} needs at least two values of it"
            )
        if sizes > 1 and name == "E" and name not in law.inputs:
            raise TableError(
                f"{path}: E takes {sizes} values; {law.name} is a law at one: fit them apart"
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
    """The table's column for each of ours, of those it has."""
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
            f"name yours ({missing[0]}=NAME), of {', '.join(header)}"
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
        raise TableError(f"{place} is {value:g}, where only positive values make sense")
    return value


def _refuse_repeats(path: Path, rows: Rows, place: Mapping[str, Array]) -> None:
    seen: dict[tuple[float | str | None, ...], int] = {}
    for i, (line, row) in enumerate(rows.items()):
        seed = row.get("seed")
        key = (*(values[i] for values in place.values()), seed)
        if key in seen:
            what = ", ".join(f"{name} = {values[i]:g}" for name, values in place.items())
            same = "and the same seed" if seed else "and no column seed tells them apart"
            raise TableError(f"{path} line {line} repeats line {seen[key]}: {what}, {same}")
        seen[key] = line
