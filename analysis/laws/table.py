"""A user's table of runs for a law: the columns it needs, checked.

What is wrong with a table is said in one line with the place and the remedy, because the commonest
ways to get a wrong law are in the table: other units, repeated runs, losses on different data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.approaches import best_losses, budgets, is_grid, isoflop
from isoflop.analysis.laws.cost import cost_of
from isoflop.analysis.laws.delimited import TableError, plain
from isoflop.analysis.laws.law import Law, six_nd
from isoflop.analysis.laws.names import LABELS, Name, find_names, shown
from isoflop.analysis.laws.numbers import MISSING, NumberError, has_decimal_comma, to_numbers
from isoflop.analysis.laws.tablefile import Frame, read_frame
from isoflop.analysis.laws.units import slip, unlikely, wrong_unit

__all__ = ["RunTable", "TableError", "read_table"]

ONE_VALUED = ("validation_hash", "flop_convention")  # losses and FLOPs else mean different things
SETTINGS = ("lr", "learning_rate", "peak_lr", "max_lr", "batch_size", "bs", "weight_decay", "wd")
CHECKPOINTS = 10  # rows per size from which they look like checkpoints of one run
FEW_SIZES = 20


@dataclass(frozen=True, eq=False)
class RunTable:
    """A law's columns, positive and finite, with what was assumed or left out in reading them.

    `columns` may hold more than the law needs: C, and the indices `budget` and `run`.
    """

    columns: dict[str, Array]
    notes: tuple[str, ...]
    path: Path = field(repr=False)


def read_table(
    path: str | Path, law: Law, rename: Mapping[str, str] | None = None, *, best: bool = False
) -> RunTable:
    """Read the columns that a law needs from a file, and check that they can be what they say.

    `rename` names the table's own column for one of ours: {"N": "params"}; usual names are
    recognised. Where the law counts 6 N D, one of C, N and D follows from the two others. Rows at
    one place (every column of the law but L the same) are refused unless a column `seed` tells
    them apart; `best` keeps the lowest loss of each place instead. Rows without a loss are left
    out.

    Raises:
        TableError: with one line to show.
    """
    path = Path(path)
    frame = read_frame(path)
    names = find_names(path, law, list(frame.cells.columns), rename or {})
    reader = _Reader(path, law, frame, names)
    reader.drop_unfinished()
    reader.check_comparable()
    columns = reader.numbers()
    reader.refuse_wrong_units(columns)
    _complete(law, columns, reader.notes)
    columns |= reader.labels()
    columns = _one_row_per_place(reader, columns, best)
    _refuse_one_valued(path, law, columns)
    reader.notes += _warnings(law, columns)
    return RunTable(columns, tuple(map(plain, reader.notes)), path)


class _Reader:
    """A frame with the columns that were recognised in it."""

    def __init__(self, path: Path, law: Law, frame: Frame, names: Mapping[str, Name]) -> None:
        self.path, self.law, self.names = path, law, names
        self.cells, self.unit = frame.cells, frame.place
        self.notes = list(frame.notes)
        used = {ours: name.header for ours, name in names.items() if ours != name.header}
        if used:
            shown_names = ", ".join(f"{ours} is {theirs}" for ours, theirs in used.items())
            self.notes.append(f"columns: {shown_names}")

    def place(self, position: int) -> str:
        return f"{self.path} {self.unit} {self.cells.index[position]}"

    def texts(self, ours: str) -> list[str]:
        return [cell.strip() for cell in self.cells[self.names[ours].header]]

    def drop_unfinished(self) -> None:
        """Leave out rows without a loss."""
        empty = np.array([cell.lower() in MISSING for cell in self.texts("L")])
        if empty.all():
            raise TableError(f"{self.path}: no row has a loss in {self.names['L'].header!r}")
        if empty.any():
            index = [str(i) for i in self.cells.index[empty]]
            more = f" and {len(index) - 5} more" if len(index) > 5 else ""
            rows = f"{self.unit}{'s' if len(index) > 1 else ''} {', '.join(index[:5])}{more}"
            self.notes.append(f"left out: {rows}, without a loss")
            self.cells = self.cells[~empty]

    def check_comparable(self) -> None:
        for name in ONE_VALUED:
            if name not in self.names:
                continue
            values = self.texts(name)
            other = next((i for i, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise TableError(
                    f"{self.place(other)}: {name} is {values[other][:60]!r} but "
                    f"{values[0][:60]!r} before; such rows cannot be compared: fit them apart"
                )

    def numbers(self) -> dict[str, Array]:
        """Every column of numbers."""
        texts = {n: self.texts(n) for n in self.names if n not in LABELS}
        commas = any(has_decimal_comma(cells) for cells in texts.values())
        return {name: self._column(name, cells, commas) for name, cells in texts.items()}

    def _column(self, ours: str, cells: list[str], commas: bool) -> Array:
        header = self.names[ours].header
        # A loss of 1,234 cannot be 1234 nats.
        comma = True if commas or ours == "L" else None
        try:
            values, styles = to_numbers(cells, suffixes=ours != "L", comma=comma)
        except NumberError as error:
            raise TableError(f"{self.place(error.position)}: {header} {error.reason}") from None
        self.notes += [f"{header}: {style}" for style in styles]
        scale = self.names[ours].scale
        if scale != 1:
            values = values * scale
            self.notes.append(f"{header}: multiplied by {scale:g}, as its name says")
        low, high = np.nanmin(values), np.nanmax(values)
        if np.isnan(values).any() or unlikely(ours, low) or unlikely(ours, high):
            for i, value in enumerate(values):
                if np.isnan(value):
                    raise TableError(f"{self.place(i)}: {header} is empty")
                if reason := unlikely(ours, value):
                    raise TableError(f"{self.place(i)}: {header} {reason}")
        return values

    def refuse_wrong_units(self, columns: dict[str, Array]) -> None:
        if wrong := wrong_unit(columns):
            name, reason = wrong
            raise TableError(f"{self.path}: {self.names[name].header} from {reason}")
        if self.law.flops_by_law is six_nd and (odd := slip(columns)):
            position, reason = odd
            raise TableError(f"{self.place(position)}: {reason}")

    def labels(self) -> dict[str, Array]:
        """The indices of budgets, runs and seeds."""
        indices = {}
        for name in ("budget", "run", "seed"):
            if name in self.names:
                indices[name] = pd.factorize(pd.array(self.texts(name), dtype=object))[0].astype(
                    float
                )
        return indices


def _complete(law: Law, columns: dict[str, Array], notes: list[str]) -> None:
    """Where the law counts 6 N D, the third of C, N and D from the two others."""
    if law.flops_by_law is not six_nd:
        return
    have = {"C", "N", "D"} & set(columns)
    (missing,) = {"C", "N", "D"} - have if len(have) == 2 else ("",)
    needed = (*law.columns, *law.optional)
    if missing not in needed:
        return
    if missing == "C":
        columns["C"] = six_nd(columns)
        notes.append("C is 6 N D, as the table has no FLOPs")
    else:
        other = "D" if missing == "N" else "N"
        columns[missing] = columns["C"] / (6 * columns[other])
        if missing in law.columns:
            notes.append(f"{missing} is C / 6 {other}, as the table has none")


def _one_row_per_place(reader: _Reader, columns: dict[str, Array], best: bool) -> dict[str, Array]:
    """The rows, none of them at another's place; indices of seeds are not needed any more."""
    law = reader.law
    frontier = law.reduce is best_losses
    grid = frontier and is_grid(columns)
    keys = [name for name in law.columns if name != "L"]
    if grid and not best:
        keys += ["N"]
    place = pd.DataFrame({name: _rounded(columns[name]) for name in keys})
    if best and frontier:
        place["C"], _ = budgets(columns)
    if "seed" in columns:
        place["seed"] = columns["seed"]
        if best and not place.duplicated().any():
            place = place.drop(columns="seed")
    if best:
        order = np.argsort(columns["L"], kind="stable")
        keep = np.sort(order[~place.iloc[order].duplicated().to_numpy()])
        if len(keep) < len(place):
            reader.notes.append(f"--best: {len(keep)} of {len(place)} rows, the lowest losses")
        columns = {name: values[keep] for name, values in columns.items()}
        if grid:
            columns = {name: columns[name] for name in columns if name not in ("N", "D")}
    else:
        _refuse_repeats(reader, columns, place)
        _note_settings(reader, place)
    return {name: values for name, values in columns.items() if name != "seed"}


def _rounded(values: Array) -> Array:
    """To nine digits, so that a rounded table repeats what it repeats."""
    return np.asarray(np.round(np.log(values), 9), dtype=float)


def _refuse_repeats(reader: _Reader, columns: dict[str, Array], place: pd.DataFrame) -> None:
    repeated = place.duplicated().to_numpy()
    if not repeated.any():
        return
    second = int(np.argmax(repeated))
    same = (place == place.iloc[second]).all(axis=1).to_numpy()
    first = int(np.argmax(same))
    what = ", ".join(f"{name} = {columns[name][second]:g}" for name in place if name != "seed")
    message = f"{reader.place(second)} repeats {reader.unit} {reader.cells.index[first]}: {what}"
    differ = _differing(reader, first, second)
    if "seed" in place:
        message += ", and the same seed"
    if differ:
        message += (
            f"; they differ in {shown(differ)}: --best keeps the lowest loss, or if it tells seeds "
            f"apart, --column seed={differ[0]}"
        )
    elif "seed" not in place:
        message += ", and no column seed tells them apart; --best keeps the lowest loss"
    else:
        message += "; --best keeps the lowest loss"
    raise TableError(message)


def _differing(reader: _Reader, first: int, second: int) -> list[str]:
    """Headers of columns that the law does not read, in which two rows differ."""
    used = {name.header for ours, name in reader.names.items() if ours not in LABELS}
    rows = reader.cells.iloc[[first, second]]
    return [h for h in reader.cells.columns if h not in used and rows[h].iloc[0] != rows[h].iloc[1]]


def _note_settings(reader: _Reader, place: pd.DataFrame) -> None:
    """Runs of several learning rates at a place would be averaged as if they were seeds."""
    if "seed" not in place:
        return
    at = place.drop(columns="seed")
    for header in reader.cells.columns:
        if header.lower().replace(" ", "_") not in SETTINGS:
            continue
        setting = pd.factorize(reader.cells[header].to_numpy())[0]
        if at.assign(setting=setting).drop_duplicates().duplicated(list(at)).any():
            reader.notes.append(
                f"rows at one place differ in {header} as well as in seed: --best keeps the lowest "
                "losses"
            )


def _refuse_one_valued(path: Path, law: Law, columns: dict[str, Array]) -> None:
    for name in (name for name in law.columns if name != "L"):
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


def _warnings(law: Law, columns: dict[str, Array]) -> list[str]:
    """What may make intervals or optima wrong."""
    notes = []
    frontier = law.reduce is best_losses
    if "N" in law.inputs and "run" not in columns:
        _, rows = np.unique(columns["N"], return_counts=True)
        if len(rows) <= FEW_SIZES and np.median(rows) >= CHECKPOINTS:
            notes.append(
                f"{len(rows)} values of N have {int(np.median(rows))} rows each: if these are "
                "checkpoints of few runs, intervals are far too narrow without a column run "
                "(--column run=NAME)"
            )
    if "run" in columns and (law.reduce is isoflop or (frontier and is_grid(columns))):
        notes.append("column run is not used: the law is fitted to minima of several runs each")
    if law.flops_by_law is six_nd and (cost := cost_of(columns)).note:
        notes.append(cost.note)
    return notes
