"""`plan --power`: how precise a suite's multipliers will be, before a FLOP is spent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from isoflop.analysis.power import (
    Assumed,
    Purchase,
    assumed_from,
    planned_cells,
    purchases,
    resolution,
)
from isoflop.analysis.report.format import flops
from isoflop.cli.console import show
from isoflop.results.baseline import LAYER
from isoflop.results.errors import IsoflopError
from isoflop.results.sources import sources

if TYPE_CHECKING:
    from isoflop.analysis.surface import Cells
    from isoflop.bench.plan import Cell
    from isoflop.bench.suite import Suite

Power = Annotated[
    bool, typer.Option("--power", help="Show instead how precise the multipliers will be.")
]
Noise = Annotated[
    float | None,
    typer.Option(
        min=1e-6,
        help="Of --power: nats between runs of a cell; that of published records if not given.",
    ),
]


def assumed_for(suite: str, noise: float | None) -> tuple[Assumed, str]:
    """The law and noise to assume for a suite: of its published records, if there are any.

    Args:
        suite: its name.
        noise: standard deviation between runs of a cell in nats, instead of that of the records.
    Returns:
        them, and where the law comes from, in words.
    """
    folder = Path("results") / suite
    records, _ = sources(folder) if folder.is_dir() else ([], [])
    fitted = assumed_from(records)
    where = f"the law of dense in {folder}" if fitted else "a law of exponents as Chinchilla's"
    assumed = fitted or Assumed()
    return (replace(assumed, seed=noise, fit=0.0) if noise else assumed), where


def power_rows(where: str, cells: list[Cell], assumed: Assumed) -> list[dict[str, Any]]:
    """One row per variant: what its multiplier will resolve, and what more would.

    Widths and ratios are factors: an interval from the multiplier divided by `interval` to the
    multiplier times it, and the smallest multiplier over 1 that is told from 1 with 80% power.

    Args:
        where: the suite, for errors.
        cells: of its plan.
        assumed: law and noise.
    Raises:
        IsoflopError: the suite has no dense variant, or nothing to compare with it, or dense has
            too few cells for a law.
    """
    dense = [cell.variant for cell in cells if cell.layer == LAYER]
    others = sorted({cell.variant for cell in cells} - set(dense))
    if not dense or not others:
        missing = "variants: no dense variant" if not dense else "variants: dense alone"
        raise IsoflopError(f"{where}: {missing}; --power needs one to compare with the others")
    planned = {name: _planned(name, cells) for name in sorted({cell.variant for cell in cells})}
    baseline = max(planned.keys() & set(dense), key=lambda name: (len(planned[name].loss), name))
    if why := planned[baseline].why_unfitted:
        raise IsoflopError(f"{where}: {baseline}: {why}; add sizes or budgets")
    budget = max(cell.budget for cell in cells if cell.variant in others)
    rows = []
    for variant in others:
        if planned[variant].why_unfitted:
            rows.append(_row(variant, None, []))
            continue
        now = resolution(planned, baseline, variant, budget, assumed)
        bought = purchases(planned, baseline, variant, budget, assumed)
        rows.append(_row(variant, (float(np.exp(now.half_width)), now.smallest_ratio), bought))
    return rows


def power_text(rows: list[dict[str, Any]], assumed: Assumed, law: str) -> str:
    """What is assumed, and what the additions cost."""
    known = [row for row in rows if row["interval"] is not None]
    price = "; ".join(
        f"{what.replace('_', ' ')} {flops(known[0][f'{what}_flops'])}"
        for what in ("one_more_seed", "one_more_size", "one_larger_budget")
        if known
    )
    lines = [
        f"Assumed: {assumed.seed:.2g} nats between runs of a cell and {assumed.fit:.2g} nats that "
        f"no seed removes, by C^{-assumed.slope:.2g}; {law}: exponents {assumed.alpha:.2g} and "
        f"{assumed.beta:.2g}, {assumed.reducible:.2g} nats above its floor.",
        "interval: the 95% interval goes from the multiplier over this to the multiplier times it. "
        "resolves: the smallest multiplier that is told from 1 with 80% power; behind it the same "
        "with one more seed, size or budget of every variant.",
    ]
    if price:
        lines.append(f"FLOPs that these cost: {price}.")
    if len(known) < len(rows):
        names = ", ".join(row["variant"] for row in rows if row["interval"] is None)
        lines.append(f"Too few cells for a law: {names}.")
    return "\n".join(lines)


def _planned(variant: str, cells: list[Cell]) -> Cells:
    points: dict[tuple[str, str, float], list[Cell]] = {}
    for cell in cells:
        if cell.variant == variant:
            points.setdefault(cell.key.point, []).append(cell)
    first = [group[0] for group in points.values()]
    return planned_cells(
        variant,
        np.array([cell.budget for cell in first]),
        np.array([cell.parameters.active for cell in first]),
        np.array([cell.tokens for cell in first]),
        np.array([cell.flops_per_token.training for cell in first]),
        np.array([len(group) for group in points.values()]),
    )


def _row(variant: str, now: tuple[float, float] | None, bought: list[Purchase]) -> dict[str, Any]:
    interval, smallest = now or (None, None)
    row: dict[str, Any] = {"variant": variant, "interval": interval, "resolves": smallest}
    options = {purchase.what.replace(" ", "_"): purchase for purchase in bought}
    for what in ("one_more_seed", "one_more_size", "one_larger_budget"):
        purchase = options.get(what)
        row[what] = purchase and purchase.resolution.smallest_ratio
    for what in ("one_more_seed", "one_more_size", "one_larger_budget"):
        purchase = options.get(what)
        row[f"{what}_flops"] = purchase and purchase.flops
    return row


def show_power(
    suite: Suite, cells: list[Cell], where: str, noise: float | None, as_json: bool
) -> None:
    """Print what the multipliers of a suite will resolve.

    Args:
        cells: of its plan.
        where: its file, for errors.
        noise: standard deviation between runs of a cell in nats.
    """
    assumed, law = assumed_for(suite.name, noise)
    rows = power_rows(where, cells, assumed)
    shown = rows
    if not as_json:
        shown = [{k: v for k, v in row.items() if not k.endswith("_flops")} for row in rows]
    show(shown, f"Precision of the multipliers of {suite.name}, before training", as_json)
    if not as_json:
        print(power_text(rows, assumed, law))
