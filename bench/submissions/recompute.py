"""Records against the cells they claim to be of.

A record holds its cell's settings and counts, an outcome, and what depends on the machine. The
first follow from the suite and the layer's file, and so does the id that names the record. An
outcome cannot be recomputed; it must be possible.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.bench.plan import Cell
from isoflop.bench.suite import Suite
from isoflop.bench.train import describe
from isoflop.models import measures_flops
from isoflop.results.record import FLOP_CONVENTION, Record

if TYPE_CHECKING:
    from isoflop.bench.submissions.verify import Folder

# By variant and field: the cell, what its record says, what is right.
Cases = dict[tuple[str, str], list[tuple[str, Any, Any]]]


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

    def key(one: Record | Cell) -> tuple[str, str, float, int, float, float]:
        rates = (one.learning_rate, one.table_rate) if by_rate else (0.0, 0.0)
        return one.variant, one.size.name, one.budget, one.seed, *rates

    wanted = {key(cell): cell for cell in cells}
    unlike: Cases = {}
    for record in records:
        cell = wanted.pop(key(record), None)
        if cell is None:
            yield _of_no_cell(where, record)
            continue
        says, again = _flat(record), _flat(_recomputed(record, cell))
        for field in sorted({*says, *again}):
            if says.get(field) != again.get(field):
                case = (record.cell, says.get(field), again.get(field))
                unlike.setdefault((record.variant, field), []).append(case)
    yield from _lines(where, unlike)
    for variant, size, budget, seed, *_ in wanted:
        yield f"{where}: no record of {variant}, size {size}, {budget:g} FLOPs, seed {seed}"


def _of_no_cell(where: Path, record: Record) -> str:
    return (
        f"{where / record.cell}.json: of no cell of suite.toml, or of one that has a record "
        f"already: {record.variant}, size {record.size.name}, {record.budget:g} FLOPs, seed "
        f"{record.seed}, rate {record.learning_rate:g}"
    )


def _lines(where: Path, unlike: Cases) -> Iterator[str]:
    """A line for each field of a variant's records that is not as recomputed."""
    for (variant, field), cases in unlike.items():
        name, said, right = cases[0]
        more = f" (and so {len(cases) - 1} more records of {variant})" if cases[1:] else ""
        yield f"{where / name}.json: {field}: says {said}, recomputed {right}{more}"


def without_layer(folder: Folder) -> Iterator[str]:
    """What follows from the suite alone, of variants whose layers are not built here.

    A line for each cell without a record, each record of no cell, and each field of a record that
    its suite or its other fields decide.
    """
    suite = folder.suite
    for kind, records, wanted in (
        ("records", folder.records, _keys(suite)),
        ("tune", folder.tune, _sweep_keys(suite, folder.tune)),
    ):
        where, left = folder.directory / kind, dict(wanted)
        unlike: Cases = {}
        for record in records:
            key = (record.variant, record.size.name, record.budget, record.seed)
            by_rate = (record.learning_rate, record.table_rate) if kind == "tune" else ()
            rate = left.pop((*key, *by_rate), None)
            if rate is None:
                yield _of_no_cell(where, record)
                continue
            for field, said, right in _decided(record, suite, rate):
                if said != right:
                    case = (record.cell, said, right)
                    unlike.setdefault((record.variant, field), []).append(case)
        yield from _lines(where, unlike)
        for key in left:
            yield f"{where}: no record of {key[0]}, size {key[1]}, {key[2]:g} FLOPs, seed {key[3]}"


def _keys(suite: Suite) -> dict[tuple[Any, ...], float]:
    """Variant, size, budget and seed of every cell, and its learning rate."""
    return {
        (name, size, budget.flops, seed): _rate(suite, name, size)
        for budget in suite.budgets
        for name in budget.variants or suite.variants
        for size in budget.sizes or suite.sizes
        for seed in suite.seeds_at(budget)
    }


def _sweep_keys(suite: Suite, records: Sequence[Record]) -> dict[tuple[Any, ...], float]:
    """The same of the learning-rate sweeps of the variants of `records`, with both rates in the
    key. The sweep of the tables' rate is wanted where a record is of it."""
    tune = suite.tune
    if tune is None:
        return {}
    keys = {}
    for name in {record.variant for record in records} & set(suite.variants):
        table_rate = suite.variants[name].table_rate
        with_tables = any(r.variant == name and r.table_rate != table_rate for r in records)
        factors = [(factor, 1.0) for factor in tune.factors]
        factors += [(1.0, factor) for factor in tune.table_factors if with_tables and factor != 1]
        for size, (factor, table_factor), seed in product(tune.sizes, factors, tune.seeds):
            rate = _rate(suite, name, size) * factor
            keys[name, size, tune.budget, seed, rate, table_rate * table_factor] = rate
    return keys


def _rate(suite: Suite, variant: str, size: str) -> float:
    scale = (suite.transfer.width / suite.sizes[size].width) ** suite.transfer.exponent
    return suite.variants[variant].learning_rate * scale


def _decided(record: Record, suite: Suite, rate: float) -> Iterator[tuple[str, Any, Any]]:
    """Field, what a record says, what is right."""
    shape = suite.sizes[record.size.name]
    batch = shape.batch or suite.training.batch
    per_token = record.flops_per_token.training
    tokens = record.steps * batch * suite.training.context
    for field in ("width", "depth", "heads"):
        yield f"size.{field}", getattr(record.size, field), getattr(shape, field)
    yield "suite", record.suite, suite.name
    yield "layer", record.layer.rpartition("/")[2], _short(suite.variants[record.variant].layer)
    yield "placement", record.placement, suite.placement
    yield "corpus", record.corpus, suite.corpus.source
    yield "vocabulary", record.vocabulary, suite.corpus.vocabulary
    yield "context", record.context, suite.training.context
    yield "batch", record.batch, batch
    yield "learning_rate", record.learning_rate, rate
    yield "tokens", record.tokens, tokens
    planned = record.flops if record.planned_flops is None else record.planned_flops
    yield "flops", planned, tokens * per_token
    yield "flop_convention", record.flop_convention, FLOP_CONVENTION


def _short(layer: str) -> str:
    return layer.rpartition("/")[2]  # wherever the file lies


def _recomputed(record: Record, cell: Cell) -> Record:
    """The record with all that its cell decides written anew."""
    outcome = record.model_dump(include={"status", "message", "loss", "bits_per_byte", "layers"})
    # Of a layer that measures its FLOPs they are part of the outcome.
    measured = record.loss is not None and measures_flops(cell.config.layer)
    again = describe(
        cell,
        outcome,
        1,
        record.validation_hash,
        record.curve,
        record.measured,
        spent=record.flops if measured else None,
    )
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
