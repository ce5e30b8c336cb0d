"""The verb `eval`: kept models on text of the user's own."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from isoflop.analysis.report.format import flops
from isoflop.cli.console import Json, app, show
from isoflop.results.errors import IsoflopError
from isoflop.results.record import Record, load_records
from isoflop.results.scored import Scored

if TYPE_CHECKING:
    from isoflop.analysis.curves import Curve
    from isoflop.bench.plan import Cell

SHOWN = (
    "variant", "size", "seeds", "data", "tokens", "nats_per_token", "perplexity_per_token",
    "bits_per_byte",
)  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """The kept models of the size that is nearest to a variant's compute-optimal one."""

    records: tuple[Record, ...]  # by seed
    curve: Curve  # of all records of the variant at the budget, kept or not


@app.command("eval")
def evaluate(
    folder: Annotated[Path, typer.Argument(help="Folder of a run with --keep-models.")],
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="PATH...", help="Text files or folders, each a set."),
    ],
    more: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="PATH")] = None,
    text: Annotated[
        str, typer.Option("--text", help="Column that holds the text, in files of rows.")
    ] = "text",
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of each set to score at most.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score each variant's compute-optimal kept model on held-out text."""
    from isoflop.bench.data import hash_of_windows
    from isoflop.bench.evaluate import check_path, kept_losses, read_set, windows_multiple

    paths = [*data, *(more or [])]  # --data a b c: what follows the first is here
    for path in paths:
        check_path(path)
    records = [record for record in load_records(folder / "records") if record.ablation is None]
    if not records:
        raise IsoflopError(f"{folder / 'records'}: no records here; give the folder of a run")
    models = folder / "models"
    chosen = choose(records, models)
    cells = cells_of(folder, [record for choice in chosen for record in choice.records])
    corpus = tokens_of(folder, cells[0], chosen[0].records[0])
    context, multiple = cells[0].training.context, windows_multiple(cells)
    sets = [read_set(path, text, corpus, context, tokens, multiple) for path in paths]
    by_id = {cell.id: kept_losses(cell, models, sets) for cell in cells}
    rows = []
    for choice in chosen:
        first = choice.records[0]
        losses = np.array([by_id[record.cell] for record in choice.records])
        for part, of_set in zip(sets, losses.T.tolist(), strict=True):
            mean = float(np.mean(of_set))
            scored = Scored(
                variant=first.variant,
                size=first.size.name,
                budget=first.budget,
                optimum=choice.curve.parabola.status,
                seeds=len(of_set),
                data=part.name,
                data_hash=hash_of_windows(part.windows),
                tokens=part.tokens,
                losses=of_set,
                nats_per_token=mean,
                perplexity_per_token=math.exp(mean),
                bits_per_byte=part.bits_per_byte(mean),
            )
            row = scored.model_dump(mode="json")
            rows.append(row if as_json else {key: row[key] for key in SHOWN})
    show(rows, f"Held-out text, models of {flops(chosen[0].curve.budget)} FLOPs", as_json)
    for note in notes(records, chosen):
        print(f"note: {note}", file=sys.stderr)


def choose(records: Sequence[Record], models: Path) -> list[Chosen]:
    """For every variant with kept models, those nearest to the optimum.

    The budget is the largest at which all of these variants have one. The optimum is the minimum of
    the parabola of that budget through all records of the variant.

    Args:
        models: folder of the weights.
    Raises:
        IsoflopError: nothing is kept, or at no common budget; or the records contradict each other.
    """
    from isoflop.analysis.curves import fit_curves
    from isoflop.bench.kept_models import model_path

    kept = {
        record.cell
        for record in records
        if record.status == "finished" and model_path(models, record.cell).exists()
    }
    if not kept:
        raise IsoflopError(
            f"{models}: no weights of a finished cell: `isoflop run SUITE --out {models.parent} "
            "--keep-models` trains and keeps them, in a folder without records"
        )
    budgets: dict[str, set[float]] = {}
    for record in records:
        if record.cell in kept:
            budgets.setdefault(record.variant, set()).add(record.budget)
    common = set.intersection(*budgets.values())
    if not common:
        raise IsoflopError(
            f"{models}: no budget at which all of {', '.join(sorted(budgets))} have weights: keep "
            "the models of one budget of every variant"
        )
    chosen = []
    for curve in fit_curves(records, samples=0)[0]:
        if curve.budget == max(common) and curve.variant in budgets:
            by_size = [[r for r in cell if r.cell in kept] for cell in curve.cells]
            distance = np.abs(curve.log_n - curve.parabola.log_lowest[0])
            best = min((i for i, cell in enumerate(by_size) if cell), key=lambda i: distance[i])
            chosen.append(Chosen(tuple(by_size[best]), curve))
    return chosen


def notes(records: Sequence[Record], chosen: Sequence[Chosen]) -> list[str]:
    """What a reader must know of the choice of models."""
    from isoflop.analysis.parabola import EXPLAIN

    lines = []
    for choice in chosen:
        curve, first = choice.curve, choice.records[0]
        if not curve.trusted:
            lines.append(
                f"{curve.variant}: no optimum ({EXPLAIN[curve.parabola.status]}): the size at the "
                "lowest point of its curve is scored"
            )
        nearest = curve.cells[curve.nearest][0].size.name
        if nearest != first.size.name:
            lines.append(
                f"{curve.variant}: no weights of size {nearest}, which is nearest to the optimum"
            )
    left_out = {record.variant for record in records} - {c.curve.variant for c in chosen}
    if left_out:
        lines.append(f"no weights of {', '.join(sorted(left_out))}")
    return lines


def cells_of(folder: Path, records: Sequence[Record]) -> list[Cell]:
    """The cells of records, planned anew from the suite that their folder was filled with.

    Raises:
        IsoflopError: the suite cannot be read, or plans them no more.
    """
    from isoflop.bench.plan import plan
    from isoflop.bench.seeds import with_seeds
    from isoflop.bench.suite import load_suite

    where = str(folder / "suite.toml")
    suite = load_suite(where)
    seeds = sorted({*suite.seeds, *(record.seed for record in records)})
    cells = {cell.id: cell for cell in plan(with_seeds(suite, seeds), where)}
    for record in records:
        if record.cell not in cells:
            raise IsoflopError(
                f"{where}: it does not plan {record.cell}, {record.variant} at size "
                f"{record.size.name}, which {folder / 'records'} holds: the suite, a layer's file "
                "or isoflop has changed since"
            )
    return [cells[record.cell] for record in records]


def tokens_of(folder: Path, cell: Cell, record: Record) -> Any:
    """The tokens of a cell's corpus, with its tokenizer.

    Raises:
        IsoflopError: they cannot be made, or are not those that the record was scored on.
    """
    from isoflop.bench.data import hash_of_windows, prepare

    tokens = prepare(cell.corpus)
    windows = tokens.validation_windows(cell.training.validation_tokens, cell.training.context)
    current = hash_of_windows(windows)
    if current != record.validation_hash:
        raise IsoflopError(
            f"{folder}: {cell.corpus.source} has changed since the models were trained (its "
            f"held-out tokens were {record.validation_hash}, now {current}), and its tokenizer "
            "with it"
        )
    return tokens
