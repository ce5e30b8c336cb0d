"""What the verbs that train share: what is missing is trained, watched, and ends in words."""

from __future__ import annotations

import functools
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any

import typer
from rich.console import Console

from isoflop.bench.engines.contract import Engine, Limits
from isoflop.bench.kept_models import model_path
from isoflop.bench.plan import Cell
from isoflop.bench.run import missing, run_suite
from isoflop.bench.suite import suite_path
from isoflop.cli.progress import outcome_of, watch
from isoflop.cli.scalars import scalars
from isoflop.cli.tensorboard import EventFile
from isoflop.cli.wandb import WandbRun
from isoflop.results.errors import printable
from isoflop.results.files import write_whole

LIMIT_RESERVE = (0.1, 30.0)  # share of a time limit, and most seconds, kept to save and report


class TerminatedError(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, but for the exit code."""


@contextmanager
def _terminations() -> Iterator[None]:
    """SIGTERM raises `TerminatedError` within the block."""

    def handle(number: int, frame: Any) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def train(
    cells: list[Cell],
    directory: Path,
    records: Path,
    suite: str,
    *,
    tensorboard: Path | None = None,
    wandb: str | None = None,
    time_limit: float | None = None,
    keep_models: bool = False,
    engine: Engine | None = None,
) -> None:
    """Train what is missing under `directory`. Progress is on stderr: stdout is for results.

    Args:
        tensorboard: folder for scalars.
        wandb: project of Weights & Biases for scalars.
        time_limit: seconds from now after which running cells save their state and stop.
        keep_models: store trained weights in `directory/models`.
        engine: `local` if None.
    """
    began = monotonic()
    console = Console(stderr=True)
    say = functools.partial(print, file=sys.stderr, flush=True)
    directory.mkdir(parents=True, exist_ok=True)
    write_whole(directory / "suite.toml", suite_path(suite).read_text(encoding="utf-8"))
    deadline = None
    if time_limit is not None:
        share, most = LIMIT_RESERVE
        deadline = began + time_limit - min(share * time_limit, most)
    models = directory / "models" if keep_models else None
    limits = Limits(models, deadline)
    preview = engine.dry_run(missing(cells, records), records, limits) if engine else ""
    if preview:
        print(preview, end="")
        raise typer.Exit
    events = run_suite(cells, records, limits, engine)
    known = list(islice(events, len(cells)))  # of every cell: stored, or to be trained
    before = [event.record for event in known if event.record is not None]
    unkept = sum(not model_path(models, record.cell).exists() for record in before) if models else 0
    if unkept:
        say(f"note: {unkept} cells have records but no weights: they were trained without them")
    if len(before) == len(cells):
        say(f"nothing to train: all {len(cells)} cells have records in {records}")
        return
    say(f"{len(cells) - len(before)} of {len(cells)} cells to train; records go to {records}")
    if tensorboard:
        events = scalars(events, functools.partial(EventFile, directory=tensorboard))
    if wandb:
        events = scalars(events, functools.partial(WandbRun, project=wandb))
    try:
        with _terminations(), closing(events) as shown:
            made = watch(shown, cells, before, console)
    except KeyboardInterrupt as interrupt:
        say("interrupted; finished records are whole, the same command goes on from them")
        if engine and engine.left_running:
            say(engine.left_running)
        raise typer.Exit(143 if isinstance(interrupt, TerminatedError) else 130) from None
    for record in made:
        if record.status != "finished":
            name = f"{record.variant} {record.size.name}"
            say(printable(f"not finished: {name}: {outcome_of(record)}"))
    left = len(cells) - len(before) - len(made)
    if left:
        say(f"stopped at the time limit with {left} cells left; the same command goes on")
    if left == len(cells):  # nothing to report on yet
        raise typer.Exit
