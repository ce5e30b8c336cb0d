"""A table of runs for a law: the columns that it needs, by their usual names, checked.

The most common causes of a wrong fit are in the table: other units, repeated runs, losses on
different data. So every error names the place in the file and the remedy, and what was left out or
assumed is noted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from isoflop.analysis.estimate import Array
from isoflop.analysis.laws.law import Law, six_nd
from isoflop.analysis.laws.numbers import decimal_comma, is_empty, read_number
from isoflop.analysis.laws.reading import TableError, Text, read_text
from isoflop.results.errors import did_you_mean

__all__ = ["Table", "TableError", "read_table"]

ONE_VALUED = ("validation_hash", "flop_convention")  # or losses and FLOPs are not comparable
LABELS = ("seed", *ONE_VALUED)  # columns that are read as text
MOST_NATS = 15.0  # per token, of any model better than a uniform guess over 3 million tokens
TOKENS_PER_PARAMETER = 1e6  # beyond which N must be in another unit

# Usual names of a column, in small letters without anything else.
ALIASES = {
    "C": "c flop flops compute computebudget computeflops trainflops trainingflops trainingflop "
    "trainingcompute totalflops totalcompute budgetflops",
    "N": "n params param parameters nparams nparam nparameters numparams numparameters modelsize "
    "modelparams modelparameters size totalparams totalparameters",
    "D": "d tokens ntokens numtokens traintokens trainingtokens totaltokens tokensseen datasize "
    "datasettokens",
    "L": "l loss valloss validationloss evalloss testloss finalloss finalvalloss crossentropy",
    "E": "e experts nexperts numexperts",
    "G": "g granularity",
    "seed": "seed randomseed",
}


@dataclass(frozen=True)
class Table:
    """The columns of a law as positive, finite arrays of shape (n,), by its own names."""

    columns: dict[str, Array]
    lines: tuple[int, ...]  # of the file, of each row
    notes: list[str] = field(default_factory=list)  # what was left out or assumed


def read_table(
    path: str | Path, law: Law, rename: Mapping[str, str] | None = None, *, best: bool = False
) -> Table:
    """Read a law's columns, and C if the table has it.

    Where the law counts 6 N D FLOPs, one of C, N and D may be left to the two others.

    Args:
        path: CSV and its dialects, JSON lines, a JSON array or parquet, compressed or not.
        law: whose columns to read.
        rename: the table's name for a column, such as {"N": "params", "seed": "torch_seed"}.
        best: keep the lowest loss of rows that are alike in all that the law reads.

    Raises:
        TableError: a column or value is missing or wrong, or rows are not comparable.
    """
    path = Path(path)
    text = read_text(path)
    names = _names(path, law, text.header, rename or {})
    text, notes = _with_losses(path, text, names)
    labels = {name: _labels(text, names[name]) for name in LABELS if name in names}
    _refuse_mixed(path, text, labels)
    columns = {
        name: _numbers(path, text, header) for name, header in names.items() if name not in LABELS
    }
    notes += _derived(path, law, columns)
    _refuse_units(path, law, columns)
    table = Table(columns, tuple(text.rows), notes)
    settings = [name for name in law.columns if name != "L"]
    if best:
        table = _best(table, settings)
    else:
        _refuse_repeats(path, text, table, settings, labels.get("seed"))
    _refuse_constant(path, law, table.columns, settings)
    return table


def _names(path: Path, law: Law, header: list[str], rename: Mapping[str, str]) -> dict[str, str]:
    """The table's name for each column of the law, and each label, that it has."""
    known = tuple(dict.fromkeys((*law.columns, "C", *LABELS)))
    shown = ", ".join(header)
    for ours, theirs in rename.items():
        if ours not in known:
            raise TableError(
                f"--column {ours}={theirs}: {law.name} reads {', '.join(known)}, not {ours}"
                f"{did_you_mean(ours, known)}"
            )
        if theirs not in header:
            raise TableError(
                f"{path}: no column {theirs!r} for {ours}{did_you_mean(theirs, header)}; "
                f"it has {shown}"
            )
    if len(set(rename.values())) < len(rename):
        raise TableError(f"{path}: one column is named for two of the law's: {dict(rename)}")
    taken = set(rename.values())
    names = dict(rename)
    for ours in known:
        if ours in names:
            continue
        exact = [theirs for theirs in header if theirs == ours and theirs not in taken]
        usual = [
            theirs
            for theirs in header
            if theirs not in taken
            and re.sub(r"[^a-z]", "", theirs.lower()) in ALIASES.get(ours, ours).split()
        ]
        if not exact and len(usual) > 1:
            raise TableError(
                f"{path}: {' and '.join(map(repr, usual))} may each be {ours}: say which, "
                f"--column {ours}={usual[0]}"
            )
        if exact or usual:
            names[ours] = (exact or usual)[0]
            taken.add(names[ours])
    missing = [name for name in law.columns if name not in names]
    counted = law.nominal_flops is six_nd and {"C", "N", "D"} - set(names) == set(missing)
    if counted and missing in (["N"], ["D"]):
        missing = []
    if missing:
        raise TableError(
            f"{path}: no column {', '.join(missing)}, which {law.name} needs; say which it is "
            f"(--column {missing[0]}=NAME), of {shown}"
        )
    return names


def _labels(text: Text, header: str) -> list[str]:
    at = text.header.index(header)
    return [row[at] for row in text.rows.values()]


def _with_losses(path: Path, text: Text, names: Mapping[str, str]) -> tuple[Text, list[str]]:
    """The rows that have a loss, and a note on the others: runs that failed or are not done."""
    if "L" not in names:
        return text, []
    at = text.header.index(names["L"])
    kept = {line: row for line, row in text.rows.items() if not is_empty(row[at])}
    without = [line for line in text.rows if line not in kept]
    if not kept:
        raise TableError(f"{path}: no row has a value of {names['L']}")
    if not without:
        return text, []
    plural = "s" if len(without) > 1 else ""
    lines = ", ".join(map(str, without[:5])) + ", ..." * (len(without) > 5)
    note = f"{len(without)} row{plural} without a loss left out (line{plural} {lines})"
    return Text(text.header, kept, text.separator), [note]


def _numbers(path: Path, text: Text, header: str) -> Array:
    fields = _labels(text, header)
    comma = decimal_comma(fields) if text.separator != "," else False
    if comma is None:
        example = next(value for value in fields if "," in value)
        raise TableError(
            f"{path}: {header}: {example!r} may be {example.replace(',', '')} or "
            f"{example.replace(',', '.')}: write it without the comma"
        )
    values = np.empty(len(fields))
    for row, (line, value) in enumerate(zip(text.rows, fields, strict=True)):
        try:
            values[row] = number = read_number(value, comma)
        except ValueError as error:
            reason = "empty; fill it or leave out the row" if is_empty(value) else str(error)
            raise TableError(f"{path} line {line}: {header} is {reason}") from None
        if number <= 0:
            raise TableError(f"{path} line {line}: {header} is {value}, but must be positive")
        if not 1e-100 < number < 1e100:
            raise TableError(f"{path} line {line}: {header} is {value}: no such run exists")
    return values


def _derived(path: Path, law: Law, columns: dict[str, Array]) -> list[str]:
    """Fill in N or D from the other and C where the law counts 6 N D."""
    for ours, other in (("D", "N"), ("N", "D")):
        if ours in law.columns and ours not in columns:
            columns[ours] = columns["C"] / (6 * columns[other])
            return [f"{ours} = C / (6 {other}), as {law.name} counts FLOPs"]
    return []


def _refuse_units(path: Path, law: Law, columns: Mapping[str, Array]) -> None:
    """Values that are not what their column says: perplexities, parameters in millions."""
    L, N = columns.get("L"), columns.get("N")
    if L is not None and float(np.median(L)) > MOST_NATS:
        raise TableError(
            f"{path}: L has a median of {np.median(L):.3g}, which is no loss in nats per token: it "
            "looks like perplexity; take its natural logarithm"
        )
    if N is None or not {"C", "D"} & set(columns):
        return
    given = "D" in columns and "C" not in columns
    D = columns["D"] if "D" in columns else columns["C"] / (6 * N)
    ratio = float(np.median(D / N))
    for name, unit in (("millions", 1e6), ("billions", 1e9), ("thousands", 1e3)):
        # D that follows from C and N is too large by the unit as well.
        if ratio > TOKENS_PER_PARAMETER and 0.1 < ratio / unit ** (1 if given else 2) < 1e4:
            raise TableError(
                f"{path}: N looks like {name}: models of {N[0]:g} parameters would see "
                f"{D[0] / N[0]:.2g} tokens for each; write N in parameters"
            )
    if not 1e-6 < ratio < 1e3 * TOKENS_PER_PARAMETER:
        raise TableError(
            f"{path}: a median of {ratio:.2g} tokens per parameter: is one of C, N and D in "
            "another unit?"
        )


def _refuse_mixed(path: Path, text: Text, labels: Mapping[str, list[str]]) -> None:
    for name in ONE_VALUED:
        for line, value in zip(text.rows, labels.get(name, ()), strict=False):
            if value != labels[name][0]:
                raise TableError(
                    f"{path} line {line}: {name} is {value!r} but {labels[name][0]!r} before; "
                    "such rows cannot be compared: fit them separately"
                )


def _best(table: Table, settings: list[str]) -> Table:
    """The row of the lowest loss of each setting."""
    order = np.argsort(table.columns["L"], kind="stable")
    keys = np.stack([table.columns[name] for name in settings], axis=1)[order]
    _, first = np.unique(keys, axis=0, return_index=True)
    rows = np.sort(order[first])
    dropped = len(order) - len(rows)
    note = f"{dropped} rows with a higher loss than another of the same setting left out"
    return Table(
        {name: values[rows] for name, values in table.columns.items()},
        tuple(table.lines[row] for row in rows),
        [*table.notes, note] if dropped else table.notes,
    )


def _refuse_repeats(
    path: Path, text: Text, table: Table, settings: list[str], seeds: list[str] | None
) -> None:
    seen: dict[tuple[float | str, ...], int] = {}
    for row, line in enumerate(table.lines):
        setting: tuple[float, ...] = tuple(float(table.columns[name][row]) for name in settings)
        key: tuple[float | str, ...] = (*setting, seeds[row]) if seeds else setting
        if key not in seen:
            seen[key] = line
            continue
        what = ", ".join(
            f"{name} = {value:g}" for name, value in zip(settings, setting, strict=True)
        )
        first, again = text.rows[seen[key]], text.rows[line]
        differing = [
            header
            for header, a, b in zip(text.header, first, again, strict=True)
            if a != b and header not in ("L", "loss")
        ]
        if seeds:
            why = "and the same seed"
        elif differing:
            why = (
                f"yet {', '.join(map(repr, differing[:4]))} differ: --best keeps the lowest loss; "
                f"if it is a seed, --column seed={differing[0]}"
            )
        else:
            why = "and no column seed distinguishes them; --best keeps the lowest loss"
        raise TableError(f"{path} line {line} repeats line {seen[key]}: {what}, {why}")


def _refuse_constant(
    path: Path, law: Law, columns: Mapping[str, Array], settings: list[str]
) -> None:
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
