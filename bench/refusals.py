"""What a plan refuses about its cells, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from isoflop.bench.suite import SuiteError
from isoflop.bench.user_layers import passes_problem

if TYPE_CHECKING:
    from isoflop.bench.plan import Cell


def refuse_twins(cells: Iterable[Cell], where: str) -> None:
    """Cells of equal id would be trained twice and share a record.

    Raises:
        SuiteError: naming the two.
    """
    seen: dict[str, Cell] = {}
    for cell in cells:
        twin = seen.setdefault(cell.id, cell)
        if twin is not cell:
            first, second = (
                f"{c.variant} at size {c.size.name}, {c.budget:g} FLOPs, seed {c.seed}, learning "
                f"rate {c.learning_rate:g}"
                for c in (twin, cell)
            )
            raise SuiteError(
                f"{where}: {first}, is the same cell as {second}: remove what stands twice, of "
                "seeds, budgets, sizes or variants"
            )


def refuse_batches(cells: Iterable[Cell], where: str) -> None:
    """Ask every layer for a forward pass of as many sequences as it will get.

    Args:
        cells: one for each variant and size.
    Raises:
        SuiteError: it refuses; expert choice needs multiples of its expansion. Or the processes of
            a cell cannot share its micro-batches evenly.
    """
    for cell in cells:
        refuse_ranks(cell, cell.training.gpus_per_cell, f"{where}: training.gpus_per_cell")
        if cell.source is None:  # a user's layer is asked in a child process when it is built
            problem = passes_problem(cell.config, cell.training.passes)
            if problem:
                key, line = problem
                raise SuiteError(
                    f"{where}: training.{key}: variants.{cell.variant}, size {cell.size.name}: "
                    f"{line}"
                )


def refuse_ranks(cell: Cell, ranks: int, key: str) -> None:
    """Every process must get as many whole micro-batches of a step as the others.

    Args:
        ranks: processes that train the cell together.
        key: what states their number, for the message.
    Raises:
        SuiteError: they cannot.
    """
    training = cell.training
    parts = training.batch // (training.micro_batch or training.batch)
    if parts % ranks:
        raise SuiteError(
            f"{key}: {ranks} processes cannot share the {parts} micro-batches of size "
            f"{cell.size.name} evenly: set training.micro_batch so that batch / micro_batch, now "
            f"{training.batch} / {training.micro_batch or training.batch}, is a multiple of {ranks}"
        )
