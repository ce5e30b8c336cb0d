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

from analysis.law import Array, Law

OPTIONAL = ("C",)  # read where there is one: derived quantities then count FLOPs as the table does
ONE_VALUED = ("validation_hash", "flop_convention")  # losses and FLOPs else mean different things


class TableError(Exception):
    """A table that a law cannot be fitted to; one line says what, where and what would be right."""


def read_table(
    path: str | Path, law: Law, rename: Mapping[str, str] | None = None
) -> dict[str, Array]:
    """The law's columns (and C) as arrays, positive and finite.

    `rename` names the table's own column for one of the law's: {"N": "params"}. A row repeating
    another's place (every column but L) is refused unless a column `seed` tells them apart.

    Raises:
        TableError: with one line to show.
    """
    rename = rename or {}
    path = Path(path)
    rows = _rows(path)
    header = list(rows[0])
    for ours, theirs in rename.items():
        if ours not in (*law.columns, *OPTIONAL):
            known = ", ".join(dict.fromkeys((*law.columns, *OPTIONAL)))
            raise TableError(f"{ours}={theirs}: {law.name} has no column {ours}; it has {known}")
        if theirs not in header:
            raise TableError(f"{path}: no column {theirs!r} for {ours}; it has {', '.join(header)}")
    missing = [name for name in law.columns if name not in header and name not in rename]
    if missing:
        raise TableError(
            f"{path}: no column {', '.join(missing)}, which {law.name} needs; "
            f"name another for it ({missing[0]}=NAME) of: {', '.join(header)}"
        )
    names = {name: rename.get(name, name) for name in dict.fromkeys((*law.columns, *OPTIONAL))}
    names = {ours: theirs for ours, theirs in names.items() if theirs in header}
    for name in ONE_VALUED:
        values = list(dict.fromkeys(row[name] for row in rows)) if name in header else []
        if len(values) > 1:
            line = 2 + next(i for i, row in enumerate(rows) if row[name] == values[1])
            raise TableError(
                f"{path} line {line}: {name} is {values[1]!r} but {values[0]!r} before; "
                "such rows cannot be compared: fit them apart"
            )
    columns = {
        ours: np.array([_number(path, i, row, theirs) for i, row in enumerate(rows)])
        for ours, theirs in names.items()
    }
    _refuse_repeats(path, law, columns, [row.get("seed") for row in rows])
    varied = set(law.inputs) | ({"N"} & set(law.columns))
    for name in law.columns:
        values = np.unique(columns[name])
        if name in varied and len(values) == 1:
            raise TableError(
                f"{path}: every row has {names[name]} = {values[0]:g}; "
                f"{law.name} needs at least two sizes of it"
            )
    if "E" in law.columns and "E" not in varied and len(np.unique(columns["E"])) > 1:
        raise TableError(
            f"{path}: {names['E']} takes {len(np.unique(columns['E']))} values; "
            f"{law.name} is a law at one number of experts: fit them apart"
        )
    return columns


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, restval=""))
    except FileNotFoundError:
        raise TableError(f"{path}: no such file; give a CSV with one run per row") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TableError(f"{path}: not a readable CSV file ({error})") from None
    if not rows:
        raise TableError(f"{path}: no rows; a CSV needs a header and one run per row")
    return rows


def _number(path: Path, index: int, row: Mapping[str, str], name: str) -> float:
    text = row[name]
    place = f"{path} line {index + 2}: {name}"
    try:
        value = float(text)
    except ValueError:
        raise TableError(f"{place} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise TableError(f"{place} is {text.strip()}; leave out runs without a finite value")
    if value <= 0:
        raise TableError(f"{place} is {value:g}, where only positive values make sense")
    return value


def _refuse_repeats(
    path: Path, law: Law, columns: Mapping[str, Array], seeds: list[str | None]
) -> None:
    place = [name for name in law.columns if name != "L"]
    seen: dict[tuple[float | str | None, ...], int] = {}
    for i, seed in enumerate(seeds):
        key = (*(columns[name][i] for name in place), seed)
        if key in seen:
            what = ", ".join(f"{name} = {columns[name][i]:g}" for name in place)
            same = "the same seed" if seed is not None else "no column seed to tell them apart"
            raise TableError(f"{path} line {i + 2}: repeats line {seen[key] + 2} ({what}; {same})")
        seen[key] = i
