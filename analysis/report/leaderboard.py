"""The leaderboard: one row per variant, as plain values, CSV and a Markdown table."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.parabola import EXPLAIN, Estimate, estimate
from isoflop.analysis.ranking import Standing
from isoflop.analysis.report.format import flops, interval, si

Row = dict[str, Any]
NOTHING = Estimate(np.nan, np.nan, np.nan)


def rows(analysis: Analysis) -> list[Row]:
    """The leaderboard, best first. Estimates have five digits, None where there is none; what is
    per cell is of the cell nearest the optimum at the largest budget, averaged over seeds."""
    return [_row(analysis, standing) for standing in analysis.standings]


def _row(analysis: Analysis, standing: Standing) -> Row:
    row: Row = {
        "rank": standing.rank,
        "variant": standing.variant,
        "baseline": standing.variant == analysis.baseline,
    }
    row |= _rounded("multiplier", standing.headline or NOTHING)
    slope = NOTHING
    if standing.multiplier and standing.variant != analysis.baseline:
        slope = estimate(standing.multiplier.slope)
    row |= _rounded("trend_per_decade", slope)
    trusted = {curve.budget: curve.parabola.loss for curve in standing.curves if curve.trusted}
    for budget in analysis.budgets:
        row |= _rounded(f"loss_{flops(budget)}", trusted.get(budget, NOTHING))
    cell = standing.top.cells[standing.top.nearest] if standing.top else ()
    first = cell[0] if cell else None
    return row | {
        "bits_per_byte": _mean([one.bits_per_byte for one in cell]),
        "size": first and first.size.name,
        "active_parameters": first and first.parameters.active,
        "total_parameters": first and first.parameters.total,
        "tokens_per_second": _mean([one.measured.tokens_per_second for one in cell]),
        "layer_bytes_per_token": first and first.layer_bytes_per_token,
        "seeds": len(cell),
        "flags": flags(analysis, standing),
    }


def _rounded(name: str, value: Estimate) -> Row:
    """Value and interval to five digits: the others may differ between machines."""
    names = (name, f"{name}_low", f"{name}_high")
    return {
        each: None if np.isnan(end) else float(f"{end:.5g}")
        for each, end in zip(names, value, strict=True)
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{np.mean(known):.5g}") if known else None


def flags(analysis: Analysis, standing: Standing) -> list[str]:
    """What a reader must know before using a row."""
    result = [standing.reason] if standing.reason else []
    lower = [one for one in standing.curves if one.budget != analysis.headline]
    for status, why in EXPLAIN.items():
        budgets = [flops(one.budget) for one in lower if one.parabola.status == status]
        if budgets and status != "ok":
            result.append(f"left out at {', '.join(budgets)} FLOPs: {why}")
    if standing.top and standing.top.trusted and standing.top.parabola.unsettled:
        result.append("interval of the optimum's size reaches the edge of the grid")
    if standing.headline and standing.multiplier and standing.variant != analysis.baseline:
        reach = standing.multiplier.reach
        if reach > 1:
            result.append(f"dense frontier extrapolated {reach:.2g}x beyond its largest budget")
    holdouts = analysis.holdouts[standing.variant]
    if holdouts and holdouts[-1].failed:
        error = interval(holdouts[-1].error, "+.3f", " nats")
        result.append(f"its frontier fails to predict the largest budget: {error}")
    for sweep in analysis.rate_sweeps:
        if sweep.variant == standing.variant and sweep.at_edge:
            rate = sweep.rates[sweep.best]
            result.append(f"best learning rate {rate:.2g} at the edge of its sweep")
    if analysis.rate_sweeps and standing.variant not in {
        one.variant for one in analysis.rate_sweeps
    }:
        result.append("learning rate not tuned")
    missing = analysis.missing(standing.variant)
    if missing:
        kinds = ", ".join(sorted({record.status for record in missing}))
        cells = "cell" if len(missing) == 1 else "cells"
        result.append(f"{len(missing)} {cells} did not finish ({kinds})")
    return result


def brief(table: Sequence[Row]) -> list[dict[str, str]]:
    """The rows' few columns that fit a terminal; `flags` are to be printed apart."""
    shown = []
    losses = [name for name in table[0] if name.startswith("loss_") and name[-1].isdigit()]
    # The largest budget of the best; dense alone may have larger ones. Without a rank, of any.
    best = [row for row in table if row["rank"] == table[0]["rank"]]
    known = [name for name in losses if any(row[name] is not None for row in best)]
    loss = (known or losses)[-1]
    for row in table:
        keys = {
            "rank": "rank",
            "variant": "variant",
            "compute multiplier": "multiplier",
            f"loss at {loss[5:]}": loss,
            "bits per byte": "bits_per_byte",
            "active": "active_parameters",
            "total": "total_parameters",
            "tokens/s": "tokens_per_second",
        }
        shown.append({title: cell(row, key) for title, key in keys.items()})
    return shown


def as_csv(table: Sequence[Row]) -> str:
    """All columns of the rows; flags separated by semicolons."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow(row | {"flags": "; ".join(row["flags"])})
    return text.getvalue()


def headline(analysis: Analysis) -> str:
    """The result in a sentence or two."""
    ranked = [(each, each.headline) for each in analysis.standings if each.headline]
    largest = flops(analysis.headline)
    if not ranked:
        return f"No compute multiplier at {largest} FLOPs is to be trusted yet."
    best, value = ranked[0]
    if best.variant == analysis.baseline:
        return f"At {largest} FLOPs no layer is ahead of {best.variant}."
    text = (
        f"At {largest} FLOPs {analysis.baseline} needs {interval(value, unit='x')} the compute of "
        f"{best.variant} for equal loss."
    )
    beside = [each.variant for each, _ in ranked[1:] if each.rank == best.rank]
    if beside:
        text += f" {', '.join(beside)} are not significantly different from it."
    trend = best.multiplier.trend if best.multiplier else "inconclusive"
    if trend == "inconclusive":
        return text + " Whether the gain grows or fades with compute is inconclusive."
    return text + f" The gain {trend} with compute."


def columns(analysis: Analysis) -> dict[str, str]:
    """The columns shown of a row: key and heading."""
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
    """One shown cell as text."""
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
    largest = flops(analysis.headline)
    return (
        f"Compute multiplier: the FLOPs {analysis.baseline or 'a dense model'} needs over those "
        "the layer needs for the loss of the layer's compute-optimal model, with its 95% interval; "
        "variants whose intervals overlap their group's best share its rank. Loss: nats per token "
        "at the fitted optimum of each budget. Bits per byte and the columns after it: the cell "
        f"nearest the optimum at {largest} FLOPs."
    )


def table(analysis: Analysis) -> str:
    """The Markdown table and how to read it: what a document's block holds."""
    shown = columns(analysis)
    left = ("variant", "flags")
    lines = [list(shown.values()), [":--" if key in left else "--:" for key in shown]]
    lines += [[cell(row, key) for key in shown] for row in rows(analysis)]
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"{text}\n{legend(analysis)}\n"
