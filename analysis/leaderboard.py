"""The leaderboard: one row per variant, as plain values, CSV and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.isoflop import EXPLAIN, Estimate, estimate
from analysis.ranking import Analysis, Standing

Row = dict[str, Any]


def si(value: float, unit: str = "") -> str:
    """A count in at most three digits, such as 1.23M."""
    for scale, prefix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= scale * 0.9995:
            return f"{value / scale:.3g}{prefix}{unit}"
    return f"{value:.3g}{unit}"


def flops(value: float) -> str:
    """FLOPs in three digits, such as 6.4e14."""
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def interval(value: Estimate, digits: str = ".2f", unit: str = "") -> str:
    """An estimate with its interval, such as 1.23x [1.10, 1.36]."""
    if np.isnan(value.low):
        return f"{value.value:{digits}}{unit}"
    return f"{value.value:{digits}}{unit} [{value.low:{digits}}, {value.high:{digits}}]"


def rows(analysis: Analysis) -> list[Row]:
    """The leaderboard, best first: numbers rounded to what can be read off them, None for none."""
    return [_row(analysis, standing) for standing in analysis.standings]


def _row(analysis: Analysis, standing: Standing) -> Row:
    row: Row = {"rank": standing.rank, "variant": standing.variant, "layer": standing.layer}
    multiplier = standing.headline or (None,) * 3
    row |= zip_rounded(("multiplier", "multiplier_low", "multiplier_high"), multiplier)
    slope = standing.multiplier and estimate(standing.multiplier.slope)
    baseline = standing.variant == analysis.baseline
    row |= zip_rounded(
        ("trend_per_decade", "trend_low", "trend_high"),
        slope if slope and not baseline and not np.isnan(slope.value) else (None,) * 3,
    )
    by_budget = {curve.budget: curve for curve in standing.curves}
    for budget in analysis.budgets:
        curve = by_budget.get(budget)
        trusted = curve is not None and curve.status == "ok"
        loss = curve.optimum_loss if curve and trusted else (None,) * 3
        name = f"loss_{flops(budget)}"
        row |= zip_rounded((name, f"{name}_low", f"{name}_high"), loss)
    nearest = standing.top.cells[standing.top.nearest] if standing.top else ()
    row["size"] = nearest[0].size.name if nearest else None
    row["active_parameters"] = nearest[0].parameters.active if nearest else None
    row["total_parameters"] = nearest[0].parameters.total if nearest else None
    row["bits_per_byte"] = _mean([record.bits_per_byte for record in nearest])
    row["tokens_per_second"] = _mean([record.measured.tokens_per_second for record in nearest])
    row["layer_bytes_per_token"] = nearest[0].layer_bytes_per_token if nearest else None
    row["seeds"] = len(nearest)
    row["flags"] = flags(analysis, standing)
    return row


def zip_rounded(names: Sequence[str], values: Sequence[float | None]) -> Row:
    """Named values to five digits: what a bootstrap's other digits say differs between machines."""
    return {
        name: None if value is None or np.isnan(value) else float(f"{value:.5g}")
        for name, value in zip(names, values, strict=True)
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{np.mean(known):.5g}") if known else None


def flags(analysis: Analysis, standing: Standing) -> list[str]:
    """What a reader must know before using a row."""
    result = [standing.reason] if standing.reason else []
    top = standing.top
    for curve in standing.curves:
        if curve.status != "ok" and curve.budget != analysis.budgets[-1]:
            result.append(f"{flops(curve.budget)} FLOPs left out: {EXPLAIN[curve.status]}")
    if top and top.status == "ok" and top.unsettled:
        result.append("the interval of the optimum's size reaches the edge of the grid")
    if standing.headline and standing.multiplier and standing.variant != analysis.baseline:
        reach = standing.multiplier.reaches[-1]
        if reach > 1:
            result.append(f"read off the dense frontier {reach:.2g}x beyond its largest budget")
        if np.isnan(standing.headline.low):
            result.append("no interval: one seed, and no size more than its parabola needs")
    if standing.missing:
        kinds = ", ".join(sorted({record.status for record in standing.missing}))
        result.append(f"{len(standing.missing)} cells did not finish ({kinds})")
    return result


def as_csv(table: Sequence[Row]) -> str:
    """All columns of the rows; flags separated by semicolons."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(table[0]), lineterminator="\n")
    writer.writeheader()
    for row in table:
        writer.writerow(row | {"flags": "; ".join(row["flags"])})
    return text.getvalue()


def table(analysis: Analysis) -> str:
    """The Markdown table, with one line below on how to read it: what README blocks hold."""
    largest = flops(analysis.budgets[-1])
    header = [
        "rank", "variant", f"compute multiplier at {largest} FLOPs",
        *(f"loss at {flops(budget)}" for budget in analysis.budgets),
        "bits per byte", "active parameters", "total parameters", "tokens/s",
        "layer bytes/token", "seeds", "flags",
    ]  # fmt: skip
    lines = [header, ["--:", ":--", *["--:"] * (len(header) - 3), ":--"]]
    for row in rows(analysis):
        multiplier = _estimate(row, "multiplier")
        cells = [str(row["rank"] or "-"), f"**{row['variant']}**"]
        cells.append(
            "1 (baseline)" if row["variant"] == analysis.baseline and multiplier
            else interval(multiplier, ".2f", "x") if multiplier else "-"
        )  # fmt: skip
        for budget in analysis.budgets:
            loss = row[f"loss_{flops(budget)}"]
            cells.append("-" if loss is None else f"{loss:.3f}")
        for name, show in (
            ("bits_per_byte", "{:.3f}".format), ("active_parameters", si),
            ("total_parameters", si), ("tokens_per_second", si), ("layer_bytes_per_token", si),
        ):  # fmt: skip
            cells.append("-" if row[name] is None else show(row[name]))
        lines.append([*cells, str(row["seeds"]), "; ".join(row["flags"]) or "-"])
    text = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return text + (
        f"\nCompute multiplier: the FLOPs {analysis.baseline or 'a dense model'} needs over those "
        "the layer needs for the loss of the layer's compute-optimal model, with its 95% interval; "
        "variants whose intervals overlap their group's best share its rank. Loss: nats per token "
        "at the fitted optimum of each budget. Bits per byte and the columns after it: the cell "
        f"nearest the optimum at {largest} FLOPs.\n"
    )


def _estimate(row: Row, name: str) -> Estimate | None:
    if row[name] is None:
        return None
    low, high = (
        np.nan if row[f"{name}_{end}"] is None else row[f"{name}_{end}"] for end in ("low", "high")
    )
    return Estimate(row[name], low, high)


def markdown(analysis: Analysis) -> str:
    """LEADERBOARD.md."""
    suites = ", ".join(sorted({record.suite for record in analysis.records}))
    return f"# Leaderboard: {suites}\n\n{table(analysis)}{_scale(analysis)}{_notes(analysis)}"


def _scale(analysis: Analysis) -> str:
    lines = ["\n## Over scale\n"]
    for standing in analysis.standings:
        multiplier = standing.multiplier
        if standing.variant == analysis.baseline or not multiplier:
            continue
        values = ", ".join(
            f"{interval(estimate(draws), '.2f', 'x')} at {flops(budget)}"
            for budget, draws in zip(multiplier.budgets, multiplier.at_budget.T, strict=True)
        )
        slope = estimate(multiplier.slope)
        trend = ""
        if not np.isnan(slope.value):
            trend = (
                f"; per tenfold compute it is multiplied by "
                f"{interval(Estimate(*(10**end for end in slope)))}: "
                f"{multiplier.trend}"
            )
        lines.append(f"- **{standing.variant}**: {values}{trend}.")
    for crossing in analysis.crossings:
        lines.append(
            f"- {crossing.below} is ahead below "
            f"{' '.join(_flops_interval(crossing.compute))} FLOPs, {crossing.above} above"
            f"{'' if crossing.resolved else ' (not resolved at this noise)'}."
        )
    return "\n".join(lines) + "\n"


def _flops_interval(value: Estimate) -> list[str]:
    if np.isnan(value.low):
        return [flops(value.value)]
    return [flops(value.value), f"[{flops(value.low)}, {flops(value.high)}]"]


def _notes(analysis: Analysis) -> str:
    noise = analysis.noise
    finished = [record for record in analysis.records if record.status == "finished"]
    devices = sorted({record.measured.device for record in finished})
    lines = ["\n## Notes\n"]
    lines.append(
        f"- {len(finished)} finished cells of {len(analysis.records)}, seeds "
        f"{', '.join(str(seed) for seed in sorted({record.seed for record in finished}))}; "
        f"at most {max(record.epochs for record in finished):.2g} epochs; "
        f"trained on {', '.join(devices)}"
        + (": times are not comparable between devices." if len(devices) > 1 else ".")
    )
    if noise.degrees:
        lines.append(
            f"- Noise of one cell: {np.hypot(noise.fit, noise.seed):.2g} nats, of which between "
            f"seeds {f'{noise.seed:.2g}' if noise.seed else 'not measured (one seed)'}; from "
            f"{noise.degrees} degrees of freedom. Intervals: percentiles of a bootstrap that "
            "resamples pooled residuals and refits every curve, frontier and multiplier."
        )
    for standing in analysis.standings:
        if standing.frontier:
            one = standing.frontier
            lines.append(
                f"- Frontier of {standing.variant}: L(C) = {one.floor[0]:.3f} + {one.scale[0]:.3f} "
                f"(C / {flops(one.unit)})^-{one.alpha[0]:.3f} ({one.status})."
            )
    for record in analysis.records:
        if record.status != "finished":
            message = f": {record.message}" if record.message else ""
            lines.append(
                f"- {record.variant} at size {record.size.name}, {flops(record.budget)} FLOPs, "
                f"seed {record.seed}: {record.status}{message}"
            )
    return "\n".join(lines) + "\n"
