"""Records against the cells they claim to be of.

A record holds its cell's settings and counts, an outcome, and what depends on the machine. The
first follow from the suite and the layer's file, and so does the id that names the record. An
outcome cannot be recomputed; it must be possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from isoflop.bench.plan import Cell
from isoflop.bench.train import describe
from isoflop.results.record import Record


def against_cells(
    where: Path, records: Sequence[Record], cells: Sequence[Cell], *, by_rate: bool
) -> Iterator[str]:
    """Each record is of a cell, each cell has a record, and what a cell decides is in it.

    Args:
        where: the folder of the records, for the lines.
        by_rate: whether cells differ in the learning rate too, as those of a sweep do; else a
            wrong rate is a wrong field.
    Returns:
        a line for each disagreement; one for all records of a variant that share it.
    """

    def key(one: Record | Cell) -> tuple[str, str, float, int, float]:
        rate = one.learning_rate if by_rate else 0.0
        return one.variant, one.size.name, one.budget, one.seed, rate

    wanted = {key(cell): cell for cell in cells}
    unlike: dict[tuple[str, str], list[tuple[str, Any, Any]]] = {}
    for record in records:
        cell = wanted.pop(key(record), None)
        if cell is None:
            yield (
                f"{where / record.cell}.json: of no cell of suite.toml, or of one that has a "
                f"record already: {record.variant}, size {record.size.name}, "
                f"{record.budget:g} FLOPs, seed {record.seed}, rate {record.learning_rate:g}"
            )
            continue
        says, again = _flat(record), _flat(_recomputed(record, cell))
        for field in sorted({*says, *again}):
            if says.get(field) != again.get(field):
                case = (record.cell, says.get(field), again.get(field))
                unlike.setdefault((record.variant, field), []).append(case)
    for (variant, field), cases in unlike.items():
        name, said, found = cases[0]
        more = f" (and so {len(cases) - 1} more records of {variant})" if cases[1:] else ""
        yield f"{where / name}.json: {field}: says {said}, recomputed {found}{more}"
    for variant, size, budget, seed, _ in wanted:
        yield f"{where}: no record of {variant}, size {size}, {budget:g} FLOPs, seed {seed}"


def _recomputed(record: Record, cell: Cell) -> Record:
    """The record with all that its cell decides written anew."""
    outcome = record.model_dump(include={"status", "message", "loss", "bits_per_byte"})
    again = describe(cell, outcome, 1, record.validation_hash, record.curve, record.measured)
    return again.model_copy(update={"epochs": record.epochs})


def _flat(record: Record) -> dict[str, Any]:
    """The fields, those of a table as table.field."""
    flat: dict[str, Any] = {}
    for field, value in record.model_dump(mode="json", exclude={"measured", "curve"}).items():
        if isinstance(value, dict):
            flat |= {f"{field}.{part}": inner for part, inner in value.items()}
        else:
            flat[field] = value
    return flat


def impossible(record: Record) -> Iterator[str]:
    """What cannot have been measured of a cell, a text each."""
    finished = record.status == "finished"
    for field in ("loss", "bits_per_byte"):
        value = getattr(record, field)
        if finished and not (value and 0 < value < math.inf):
            yield f"{field}: {value} of a finished cell"
        elif not finished and value is not None:
            yield f"{field}: {value} of a cell that {record.status}"
    steps = [0, *(step for step, _ in record.curve)]
    if any(after <= before for before, after in pairwise(steps)):
        yield "curve: its steps do not increase"
    if not finished:
        return
    if steps[-1] != record.steps:
        yield f"curve: ends at step {steps[-1]} of {record.steps}"
    if not all(math.isfinite(loss) for _, loss in record.curve):
        yield "curve: a loss of a finished cell is not finite"
    said, seconds = record.measured.tokens_per_second, record.measured.train_seconds
    if not (said and seconds > 0 and same(said * seconds, record.tokens)):
        yield (
            f"measured.tokens_per_second: says {said}, of {record.tokens} tokens in {seconds} s of "
            "train_seconds"
        )


def same(a: float, b: float) -> bool:
    """Whether two numbers differ by rounding alone."""
    return math.isclose(a, b, rel_tol=1e-9)
