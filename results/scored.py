"""The loss of a suite's models on other text: what `isoflop eval --json` prints."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from pathlib import Path

from pydantic import RootModel

from isoflop.results.record import Frozen, Positive, RecordError, Shown, Spent, read_stored

FILE = "eval.json"  # beside the tables of a results directory, which then show it


class Scored(Frozen):
    """A variant's compute-optimal models on one set."""

    variant: Shown
    size: Shown  # nearest to the optimum
    budget: Spent  # FLOPs, of the models
    optimum: str  # whether the curve of that budget has one
    seeds: Positive  # the number of models
    data: Shown  # the set
    data_hash: str  # of its windows of tokens
    tokens: Positive  # scored
    losses: tuple[Spent, ...]  # nats per token, by seed
    nats_per_token: Spent  # their mean
    perplexity_per_token: Spent  # its exponential
    bits_per_byte: Spent


class _File(RootModel[tuple[Scored, ...]]):
    """What a file holds."""


def load_scored(path: Path, variants: Collection[str]) -> tuple[Scored, ...]:
    """The rows of a file; none if there is no such file.

    Args:
        variants: that there are; not all need to be scored.
    Raises:
        RecordError: it is not what `isoflop eval --json` prints of some of these variants.
    """
    if not path.exists():
        return ()
    try:
        rows = read_stored(path, _File).root
        if why := _contradiction(rows, variants):
            raise RecordError(f"{path}: {why}")
    except RecordError as error:
        remedy = f"`isoflop eval FOLDER --data SETS --json > {path}` writes it anew"
        raise RecordError(f"{error}; {remedy}") from None
    return rows


def _contradiction(rows: Sequence[Scored], variants: Collection[str]) -> str:
    """What is wrong with rows that are valid one by one; empty if nothing is."""
    if unknown := sorted({row.variant for row in rows} - {*variants}):
        return f"no records of {', '.join(unknown)}"
    pairs = [(row.variant, row.data) for row in rows]
    variants, sets = ({pair[side] for pair in pairs} for side in (0, 1))
    if sorted(pairs) != sorted(product(variants, sets)):
        return "not every variant has one row of every set"
    if any(len(row.losses) != row.seeds for row in rows):
        return "not every row has one loss for each of its seeds"
    return ""
