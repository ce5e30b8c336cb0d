"""Records of another setting in the folder of a run: refused before any training."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from isoflop.bench.data import Tokens, hash_of_windows
from isoflop.bench.plan import Cell
from isoflop.bench.suite import Suite, SuiteError
from isoflop.results.record import Record

REMEDY = "move them away, or use --out with another folder"
SHOWN = 3  # settings that a message names


def refuse_other_settings(
    suite: Suite, cells: list[Cell], records: Path, stored: list[Record], *, sweep: bool = False
) -> None:
    """Refuse a folder with records of another setting than the cells'.

    They have the name of a cell (variant, size, budget and seed), yet are not of it, or are of
    another text or context. Records of what was taken out of the suite may stay.

    Args:
        cells: all of the suite or of its sweep.
        records: the folder; the suite that it was filled with is beside it.
        stored: what it holds.
        sweep: both rates belong to the name of a cell.
    Raises:
        SuiteError: naming how many there are, and a setting that differs.
    """

    def name(of: Record | Cell) -> object:
        return (of.key, of.learning_rate, of.table_rate) if sweep else of.key

    ids = {cell.id for cell in cells}
    named = {name(cell): cell for cell in cells}
    other = []
    for record in stored:
        cell = named.get(name(record), cells[0])
        if record.cell not in ids and (name(record) in named or _text(record) != _text(cell)):
            other.append((record, cell))
    if other:
        settings = _differences(suite, *other[0], records.parent / "suite.toml")
        raise SuiteError(f"{records}: {_number(other)} of another setting ({settings}): {REMEDY}")


def refuse_other_text(
    suite: Suite, cells: list[Cell], records: Path, stored: list[Record], tokens: Tokens
) -> None:
    """Refuse a folder whose records were scored on other text than there is now.

    Raises:
        SuiteError: naming how many there are.
    """
    training = suite.training
    windows = tokens.validation_windows(training.validation_tokens, training.context)
    current, ids = hash_of_windows(windows), {cell.id for cell in cells}
    other = [
        record
        for record in stored
        if record.cell in ids and record.validation_hash not in (current, None)
    ]
    if other:
        raise SuiteError(
            f"{records}: {_number(other)} of other text: {suite.corpus.source} has changed since "
            f"(its held-out tokens were {other[0].validation_hash}, now {current}): {REMEDY}"
        )


def _number(records: list[Any]) -> str:
    return f"{len(records)} records are" if len(records) > 1 else "1 record is"


def _text(of: Record | Cell) -> tuple[str, int, int]:
    if isinstance(of, Record):
        return of.corpus, of.vocabulary, of.context
    return of.corpus.source, of.corpus.vocabulary, of.training.context


def _differences(suite: Suite, record: Record, cell: Cell, suite_file: Path) -> str:
    """What differs between a record and a cell, in words."""
    size = cell.size.name
    pairs: dict[str, tuple[Any, Any]] = {
        "corpus.source": (record.corpus, cell.corpus.source),
        "corpus.vocabulary": (record.vocabulary, cell.corpus.vocabulary),
        "training.context": (record.context, cell.training.context),
    }
    if record.key == cell.key:
        pairs |= {
            "learning_rate": (record.learning_rate, cell.learning_rate),
            "table_rate": (record.table_rate, cell.table_rate),
            "layer": (record.layer, cell.config.layer.name),
            "placement": (record.placement, cell.placement),
            "batch": (record.batch, cell.training.batch),
        }
        for key in ("width", "depth", "heads"):
            pairs[f"sizes.{size}.{key}"] = getattr(record.size, key), getattr(cell.size, key)
        for key in sorted({*record.options, *cell.options}):
            pairs[f"options.{key}"] = record.options.get(key), cell.options.get(key)
    different = list(_unequal(pairs)) or list(_unequal(_suite_pairs(suite, suite_file)))
    if different:
        return ", ".join(different[:SHOWN])
    if cell.source is not None:
        return f"the text of {cell.layer.rpartition(':')[0]}"
    return "one that records do not hold, or another version of isoflop"


def _suite_pairs(suite: Suite, suite_file: Path) -> dict[str, tuple[Any, Any]]:
    """The settings of text and training in the suite that a folder was filled with, and now."""
    try:
        table = tomllib.loads(suite_file.read_text(encoding="utf-8-sig"))
        before = Suite.model_validate({"name": suite.name} | table).model_dump()
    except (OSError, ValueError, RecursionError, ValidationError):
        return {}
    now = suite.model_dump()
    return {
        f"{table}.{key}": (before[table][key], value)
        for table in ("corpus", "training", "transfer")
        for key, value in now[table].items()
    }


def _unequal(pairs: dict[str, tuple[Any, Any]]) -> Iterable[str]:
    for key, values in pairs.items():
        before, now = (json.dumps(value, sort_keys=True, default=str) for value in values)
        if before != now:
            yield f"{key} {before}, now {now}"
