"""What stands between a plan and its training, asked before anything is spent."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.bench.suite import Suite, suite_path

if TYPE_CHECKING:
    from isoflop.bench.plan import Cell


def ready(
    suite: Suite,
    cells: list[Cell],
    name: str,
    records: Path,
    shard: str | None,
    *,
    sweep: bool = False,
) -> list[Cell]:
    """This machine's share of the cells, when nothing stands against training them.

    Notes go to stderr.

    Args:
        name: of the suite, as `load_suite` takes it.
        records: the folder that they go to.
        sweep: the cells differ by learning rate.
    Raises:
        IsoflopError: what stands against it.
    """
    from isoflop.bench.lint import refuse_files
    from isoflop.bench.other_settings import refuse_other_settings, refuse_other_text
    from isoflop.bench.preflight import check, epochs_note
    from isoflop.bench.run import missing
    from isoflop.bench.shard import share
    from isoflop.results.record import load_records

    mine = cells if shard is None else share(cells, shard)
    own_text = [cell for cell in mine if cell.corpus == suite.corpus]  # an ablation may have more
    stored = load_records(records)
    refuse_other_settings(suite, cells, records, stored, sweep=sweep)
    notes = refuse_files(mine)
    if missing(mine, records):
        tokens = check(suite, own_text, str(suite_path(name)), fetch=True)
        assert tokens is not None  # it was to be fetched
        refuse_other_text(suite, own_text, records, stored, tokens)
        notes.append(epochs_note(mine, tokens))
    for note in filter(None, notes):
        print(note, file=sys.stderr)
    return mine
