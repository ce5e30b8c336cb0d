"""The leaderboard: one row per variant, as plain values, as CSV and as a Markdown table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.estimate import Estimate, estimate
from isoflop.analysis.parabola import EXPLAIN
from isoflop.analysis.ranking import Standing
from isoflop.analysis.report import markdown
from isoflop.analysis.report.format import flops, interval, listed, si

Row = dict[str, Any]
UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def rows(analysis: Analysis) -> list[Row]:
    """The rows, best first.

    Estimates are rounded to five digits and None where unknown. What belongs to a cell is that of
    the cell nearest to the optimum at the budget of the ranking, averaged over its seeds.
    """
    return [_row(analysis, standing) for standing in analysis.standings]


def _row(analysis: Analysis, standing: Standing) -> Row:
    row: Row = {
        "rank": standing.rank,
        "variant": standing.variant,
        "baseline": standing.variant == analysis.baseline,
    }
    row |= _rounded("multiplier", standing.headline or UNKNOWN)
    slope = UNKNOWN
    if standing.multiplier and standing.variant != analysis.baseline:
        slope = estimate(standing.multiplier.slope)
    row |= _rounded("trend_per_decade", slope)
    trusted = {curve.budget: curve.parabola.loss for curve in standing.curves if curve.trusted}
    for budget in analysis.budgets:
        row |= _rounded(f"loss_{flops(budget)}", trusted.get(budget, UNKNOWN))
    seeds = standing.top.cells[standing.top.nearest] if standing.top else ()
    first = seeds[0] if seeds else None
    return row | {
        "bits_per_byte": _mean([record.bits_per_byte for record in seeds]),
        "size": first and first.size.name,
        "active_parameters": first and first.parameters.active,
        "total_parameters": first and first.parameters.total,
        "tokens_per_second": _mean([record.measured.tokens_per_second for record in seeds]),
        "layer_bytes_per_token": first and first.layer_bytes_per_token,
        "seeds": len(seeds),
        "flags": flags(analysis, standing),
    }


def _rounded(name: str, value: Estimate) -> Row:
    """A value and its interval to five digits: further digits may differ between machines."""
    names = (name, f"{name}_low", f"{name}_high")
    return {
        key: None if np.isnan(end) else float(f"{end:.5g}")
        for key, end in zip(names, value, strict=True)
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{np.mean(known):.5g}") if known else None


def flags(analysis: Analysis, standing: Standing) -> list[str]:
    """What a reader must know before using a row."""
    result = [standing.reason] if standing.reason else []
    lower = [curve for curve in standing.curves if curve.budget != analysis.headline]
    for status, why in EXPLAIN.items():
        budgets = [flops(curve.budget) for curve in lower if curve.parabola.status == status]
        if budgets and status != "ok":
            result.append(f"left out at {', '.join(budgets)} FLOPs: {why}")
    if standing.top and standing.top.trusted and standing.top.parabola.reaches_edge:
        result.append("the interval of the optimal size reaches the edge of the grid")
    if standing.headline and standing.multiplier and standing.variant != analysis.baseline:
        factor = standing.multiplier.extrapolation
        if factor > 1:
            result.append(f"dense frontier extrapolated {factor:.2g}x beyond its largest budget")
    holdouts = analysis.holdouts[standing.variant]
    if holdouts and holdouts[-1].failed:
        error = interval(holdouts[-1].error, "+.3f", " nats")
        result.append(f"its frontier fails to predict the held-out budget: error {error}")
    sweeps = [sweep for sweep in analysis.rate_sweeps if sweep.variant == standing.variant]
    for sweep in sweeps:
        if sweep.at_edge:
            rate = sweep.rates[sweep.best]
            result.append(f"best learning rate {rate:.2g} at the edge of its sweep")
    if analysis.rate_sweeps and not sweeps:
        result.append("learning rate not tuned")
    missing = analysis.missing(standing.variant)
    if missing:
        kinds = ", ".join(sorted({record.status for record in missing}))
        cells = "cell" if len(missing) == 1 else "cells"
        result.append(f"{len(missing)} {cells} did not finish ({kinds})")
    return result


def brief(table: Sequence[Row]) -> list[dict[str, str]]:
    """The few columns that fit a terminal, as text; `flags` are to be printed separately."""
    losses = [name for name in table[0] if name.startswith("loss_") and name[-1].isdigit()]
    # The largest budget at which a first-ranked variant has a loss: dense may have larger ones.
    best = [row for row in table if row["rank"] == table[0]["rank"]]
    known = [name for name in losses if any(row[name] is not None for row in best)]
    loss = (known or losses)[-1]
    keys = {
        "rank": "rank",
        "variant": "variant",
        "compute multiplier": "multiplier",
        f"loss at {loss.removeprefix('loss_')}": loss,
        "bits per byte": "bits_per_byte",
        "active": "active_parameters",
        "total": "total_parameters",
        "tokens/s": "tokens_per_second",
    }
    return [{title: cell(row, key) for title, key in keys.items()} for row in table]


def as_csv(table: Sequence[Row]) -> str:
    """All columns of the rows as CSV, flags separated by semicolons."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow(row | {"flags": "; ".join(row["flags"])})
    return text.getvalue()


def headline(analysis: Analysis) -> str:
    """The result in two or three sentences."""
    ranked = [(standing, standing.headline) for standing in analysis.standings if standing.headline]
    largest = flops(analysis.headline)
    if not ranked:
        return f"No compute multiplier at {largest} FLOPs can be trusted yet."
    best, value = ranked[0]
    if best.variant == analysis.baseline:
        return f"At {largest} FLOPs, no layer does better than {best.variant}."
    text = (
        f"At {largest} FLOPs, {analysis.baseline} needs {interval(value, unit='x')} the compute of "
        f"{best.variant} to reach the same loss."
    )
    tied = [standing.variant for standing, _ in ranked[1:] if standing.rank == best.rank]
    if tied:
        verb = "is" if len(tied) == 1 else "are"
        text += f" {listed(tied)} {verb} not significantly different from {best.variant}."
    trend = best.multiplier.trend if best.multiplier else "inconclusive"
    if trend == "inconclusive":
        return f"{text} Whether the gain grows or fades with compute is inconclusive."
    return f"{text} The gain {trend} with compute."


def columns(analysis: Analysis) -> dict[str, str]:
    """The columns that a reader sees: the key in a row, and the title."""
    return {
        "rank": "rank",
        "variant": "variant",
        "multiplier": f"compute multiplier at {flops(analysis.headline)} FLOPs",
        **{f"loss_{flops(budget)}": f"loss at {flops(budget)}" for budget in analysis.budgets},
        "bits_per_byte": "bits per byte",
        "active_parameters": "active parameters",
        "total_parameters": "total parameters",
        "tokens_per_second": "tokens/s",
        "layer_bytes_per_token": "layer bytes/token",
        "seeds": "seeds",
        "flags": "flags",
    }


def cell(row: Row, key: str) -> str:
    """A cell of the table as text."""
    value = row[key]
    if value is None or value == []:
        return "-"
    if key == "multiplier":
        if row["baseline"]:
            return "1 (baseline)"
        ends = (row["multiplier_low"], row["multiplier_high"])
        return interval(
            Estimate(value, *(np.nan if end is None else end for end in ends)), unit="x"
        )
    if key == "flags":
        return "; ".join(value)
    if key == "bits_per_byte" or key.startswith("loss_"):
        return f"{value:.3f}"
    return str(value) if key in ("rank", "variant", "seeds") else si(value)


def legend(analysis: Analysis) -> str:
    """How to read the table, in a paragraph."""
    return (
        "Compute multiplier (also called effective compute or efficiency gain): the FLOPs that "
        f"{analysis.baseline or 'a dense model'} needs to reach the loss of the layer's "
        "compute-optimal model, divided by the FLOPs of that model, with a 95% interval. Variants "
        "whose intervals overlap that of the best in their group share its rank. Loss: nats per "
        "token at the fitted optimum of each budget. Bits per byte to seeds: of the cell nearest "
        f"to the optimum at {flops(analysis.headline)} FLOPs."
    )


def table(analysis: Analysis) -> str:
    """The Markdown table and its legend: the block that a document shows."""
    shown = columns(analysis)
    body = [[cell(row, key) for key in shown] for row in rows(analysis)]
    text = markdown.table(list(shown.values()), body, left=("variant", "flags"))
    return f"{text}\n{legend(analysis)}\n"
