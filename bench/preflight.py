"""What a run needs beside its plan, asked by `plan`, `run` and `tune` alike before any work."""

from __future__ import annotations

from isoflop.bench.data import Sampler, Tokens, find, prepare
from isoflop.bench.documents import is_local
from isoflop.bench.flops import verify_flops
from isoflop.bench.isolate import describe
from isoflop.bench.plan import Cell, distinct_models
from isoflop.bench.readers import DataError
from isoflop.bench.suite import Suite, SuiteError
from isoflop.results.errors import IsoflopError

MOST_EPOCHS = 4  # up to which repeated text is worth nearly as much as new text (arXiv 2305.16264)


def check(suite: Suite, cells: list[Cell], where: str, *, fetch: bool) -> Tokens | None:
    """The tokens of a suite's corpus, when they and the layers will do for its cells.

    Args:
        cells: of the suite or its sweep; at least one.
        where: the suite's file, for messages.
        fetch: get a hub dataset, too. Else the result is None if it is not in the cache, and what
            depends on the text is not checked.
    Raises:
        SuiteError: the text cannot be read, or is too short for the vocabulary, a batch or the
            validation tokens; or a layer of another package cannot be trained.
    """
    for cell in distinct_models(cells):
        if cell.source is None and not cell.config.layer.__module__.startswith("isoflop."):
            _check_plugin(cell, where)
    try:
        get = prepare if fetch or is_local(suite.corpus.source) else find
        tokens = get(suite.corpus)
        if tokens is not None:
            training = suite.training
            tokens.validation_windows(training.validation_tokens, training.context)
    except DataError as error:
        raise SuiteError(f"{where}: {error}") from None
    if tokens is not None:
        for cell in distinct_models(cells):
            training = cell.training
            try:
                Sampler(tokens.train, training.context, training.batch, seed=0)
            except DataError as error:
                size = cell.size.name
                key = f"sizes.{size}.batch" if suite.sizes[size].batch else "training.batch"
                raise SuiteError(f"{where}: {key}: {error}") from None
    return tokens


def _check_plugin(cell: Cell, where: str) -> None:
    """Raises: SuiteError: the FLOPs of a layer of another package are not what it states."""
    try:
        verify_flops(cell.config, cell.training.micro_batch or cell.training.batch)
    except IsoflopError as error:
        raise SuiteError(f"{where}: variants.{cell.variant}.layer: {error}") from None
    except Exception as error:
        raise SuiteError(f"{where}: variants.{cell.variant}.layer: {describe(error)}") from None


def epochs_note(cells: list[Cell], tokens: Tokens) -> str:
    """A line if cells see their text more often than is of use; else nothing."""
    epochs = [cell.tokens / len(tokens.train) for cell in cells]
    over = sum(count > MOST_EPOCHS for count in epochs)
    if not over:
        return ""
    return (
        f"note: {over} of {len(cells)} cells see their text more than {MOST_EPOCHS} times, up to "
        f"{max(epochs):.3g} times: repeated text is worth less and less (arXiv 2305.16264); use "
        "more text or smaller budgets"
    )
