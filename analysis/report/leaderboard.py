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
from isoflop.analysis.report import latex, layer_figures, markdown
from isoflop.analysis.report.format import flops, interval, listed, si
from isoflop.analysis.report.verdict import in_time, loses_time, verdict
from isoflop.analysis.time_multiplier import place_of

Row = dict[str, Any]
UNKNOWN = Estimate(np.nan, np.nan, np.nan)


def rows(analysis: Analysis) -> list[Row]:
    """The rows, best first.

    Estimates are rounded to five digits and None where unknown. What belongs to a cell is that of
    the cell nearest to the optimum at the budget of the ranking, averaged over its seeds.
    """
    return [_row(analysis, standing) for standing in analysis.standings]


def _row(analysis: Analysis, standing: Standing) -> Row:
    outcome = verdict(analysis, standing)
    low, high = standing.rank_interval or (None, None)
    row: Row = {
        "rank": standing.rank,
        "rank_low": low,
        "rank_high": high,
        "variant": standing.variant,
        "baseline": standing.variant == analysis.baseline,
    }
    row |= _rounded("multiplier", standing.headline)
    row["source"] = standing.shown and standing.shown.source
    row |= _rounded("parabola_multiplier", standing.parabola)
    row |= _rounded("time_multiplier", standing.time)
    row["verdict"] = outcome and outcome.word
    row["more_seeds_dense"] = outcome and outcome.seeds and outcome.seeds.baseline
    row["more_seeds_layer"] = outcome and outcome.seeds and outcome.seeds.variant
    slope = None
    gain = standing.multiplier
    if gain and gain.trend != "not stated" and standing.variant != analysis.baseline:
        slope = estimate(gain.slope)
    row |= _rounded("trend_per_decade", slope)
    if analysis.choices:
        row |= _ends("choices", analysis.choices.sensitivity(standing.variant))
    for budget in analysis.budgets:
        row |= _rounded(f"loss_{flops(budget)}", standing.loss(budget))
    seeds = standing.nearest
    first = seeds[0] if seeds else None
    return row | {
        "bits_per_byte": _mean([record.bits_per_byte for record in seeds]),
        "size": first and first.size.name,
        "active_parameters": first and first.parameters.active,
        "total_parameters": first and first.parameters.total,
        "tokens_per_second": _mean(
            [record.measured.tokens_per_second for record in analysis.timed(seeds)]
        ),
        "layer_bytes_per_token": first and first.layer_bytes_per_token,
        "seeds": len(seeds),
        "flags": flags(analysis, standing),
    }


def _rounded(name: str, value: Estimate | None) -> Row:
    """A value and its interval to five digits: further digits may differ between machines."""
    names = (name, f"{name}_low", f"{name}_high")
    return {
        key: None if np.isnan(end) else float(f"{end:.5g}")
        for key, end in zip(names, value or UNKNOWN, strict=True)
    }


def _ends(name: str, ends: tuple[float, float]) -> Row:
    return {
        f"{name}_{which}": None if np.isnan(end) else float(f"{end:.5g}")
        for which, end in zip(("low", "high"), ends, strict=True)
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(f"{np.mean(known):.5g}") if known else None


def flags(analysis: Analysis, standing: Standing) -> list[str]:
    """What a reader must know before using a row."""
    result = [standing.reason] if standing.reason else list(standing.flags)
    value = standing.headline
    apart = value and (value.low > 1 or value.high < 1) and standing.variant not in analysis.dense
    if apart and not standing.differs:
        count = sum(1 for other in analysis.standings if other.shown)
        result.append(f"its interval excludes 1; among {count} variants that may be chance")
    for status, why in EXPLAIN.items():
        budgets = [
            flops(curve.budget) for curve in standing.curves if curve.parabola.status == status
        ]
        if budgets and status != "ok":
            result.append(f"no parabola at {', '.join(budgets)} FLOPs: {why}")
    holdout = analysis.holdouts.get(standing.variant)
    if holdout and holdout.failed:
        error = interval(holdout.error, "+.3f", " nats")
        if holdout.error.low <= 0 <= holdout.error.high:  # then the F-test found it
            error = f"cells depart from it by more than noise, p = {holdout.p:.2g}; mean {error}"
        else:
            error = f"error {error}"
        result.append(f"its law fails to predict the held-out budget: {error}")
    sweeps = [sweep for sweep in analysis.rate_sweeps if sweep.variant == standing.variant]
    for sweep in sweeps:
        if sweep.at_edge:
            result.append(f"best learning rate {sweep.best.value:.2g} at the edge of its sweep")
    if analysis.rate_sweeps and not sweeps:
        result.append("learning rate not tuned")
    result += layer_figures.flags(standing.nearest)
    missing = analysis.missing(standing.variant)
    if missing:
        kinds = ", ".join(sorted({record.status for record in missing}))
        cells = "cell" if len(missing) == 1 else "cells"
        result.append(f"{len(missing)} {cells} did not finish ({kinds})")
    result += layer_figures.off_budget(
        [r for r in analysis.records if r.variant == standing.variant]
    )
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
        "time multiplier": "time_multiplier",
        "verdict": "verdict",
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


def as_latex(table: Sequence[Row]) -> str:
    """The brief columns of the rows as a LaTeX table."""
    shown = brief(table)
    cells = [list(row.values()) for row in shown]
    return latex.table(list(shown[0]), cells, left=("variant", "verdict"))


def headline(analysis: Analysis) -> str:
    """The result in a few sentences."""
    ranked = [(standing, standing.headline) for standing in analysis.standings if standing.headline]
    largest = flops(analysis.headline)
    if not ranked or not analysis.dense:
        return f"No compute multiplier at {largest} FLOPs can be trusted yet."
    best, value = ranked[0]
    if best.variant in analysis.dense:
        return f"At {largest} FLOPs, no layer does better than {best.variant}."
    text = (
        f"At {largest} FLOPs, {analysis.dense_name} needs {interval(value, unit='x')} the compute "
        f"of {best.variant} to reach the same loss"
    )
    text += f".{in_time(best)}"
    losers = [s.variant for s, _ in ranked[1:] if loses_time(s) and s.variant not in analysis.dense]
    if losers:
        verb = "wins on FLOPs and loses" if len(losers) == 1 else "win on FLOPs and lose"
        text += f" {listed(losers)} {verb} on time."
    tied = [standing.variant for standing, _ in ranked[1:] if standing.rank == best.rank]
    if tied:
        verb = "is" if len(tied) == 1 else "are"
        text += f" {listed(tied)} {verb} not significantly different from {best.variant}."
    trend = best.multiplier.trend if best.multiplier else "not stated"
    if trend == "not stated":
        return f"{text} The budgets span less than a decade: no trend with compute is stated."
    if trend == "inconclusive":
        return f"{text} Whether the gain grows or fades with compute is inconclusive."
    return f"{text} The gain {trend} with compute."


def columns(analysis: Analysis) -> dict[str, str]:
    """The columns that a reader sees: the key in a row, and the title."""
    return {
        "rank": "rank",
        "variant": "variant",
        "multiplier": f"compute multiplier at {flops(analysis.headline)} FLOPs",
        "parabola_multiplier": "by parabolas",
        "time_multiplier": "time multiplier",
        "verdict": "verdict",
        **({"choices_low": "under other choices"} if analysis.choices else {}),
        "flags": "flags",
        **{f"loss_{flops(budget)}": f"loss at {flops(budget)}" for budget in analysis.budgets},
        "bits_per_byte": "bits per byte",
        "active_parameters": "active parameters",
        "total_parameters": "total parameters",
        "tokens_per_second": "tokens/s",
        "layer_bytes_per_token": "layer bytes/token",
        "seeds": "seeds",
    }


def parts(analysis: Analysis) -> tuple[list[str], list[str]]:
    """The keys of two tables, since one of all columns is wider than a screen: the ranking, and
    losses and costs."""
    keys = list(columns(analysis))
    end = keys.index("flags") + 1
    return keys[:end], ["variant", *keys[end:]]


def cell(row: Row, key: str) -> str:
    """A cell of the table as text."""
    value = row[key]
    if value is None or value == []:
        return "-"
    if key == "rank":
        low, high = row["rank_low"], row["rank_high"]
        return str(value) if low == high else f"{value} ({low}-{high})"
    if key.endswith("multiplier"):
        if row["baseline"]:
            return "1 (baseline)" if key == "multiplier" else "1"
        ends = (row[f"{key}_low"], row[f"{key}_high"])
        return interval(
            Estimate(value, *(np.nan if end is None else end for end in ends)), unit="x"
        )
    if key == "verdict":
        return _verdict(row)
    if key == "choices_low":
        return "-" if row["baseline"] else f"{value:.2f} to {row['choices_high']:.2f}x"
    if key == "flags":
        return "; ".join(value)
    if key == "bits_per_byte" or key.startswith("loss_"):
        return f"{value:.3f}"
    return str(value) if key in ("variant", "seeds") else si(value)


def _verdict(row: Row) -> str:
    """The verdict, with the seeds that would settle it."""
    if row["verdict"] != "inconclusive":
        return str(row["verdict"])
    sides = (("dense", row["more_seeds_dense"]), ("it", row["more_seeds_layer"]))
    more = [f"{count} of {side}" for side, count in sides if count]
    return f"inconclusive; seeds to settle it: {listed(more) if more else 'none would'}"


def legend(analysis: Analysis) -> str:
    """How to read the table, in a paragraph."""
    text = (
        "Compute multiplier (also called effective compute or efficiency gain): the FLOPs that "
        f"{analysis.dense_name} needs to reach the loss of the layer's compute-optimal model, "
        "divided by the FLOPs of that model, with a 95% interval; from one law of all cells of a "
        "variant, and beside it from the parabolas of that budget alone. Time multiplier: the same "
        "with training seconds, on a device that trained both. Rank: one more than the "
        "number of variants that are significantly better, by the ratios of multipliers; in "
        "parentheses the ranks that the significant differences leave open. Verdict: significantly "
        f"better or worse than dense, equivalent within {100 * analysis.margin:.3g}%, or "
        "inconclusive, with the further seeds that would settle it with 80% power. Loss: nats per "
        "token of the best size at each budget. Bits per byte to seeds: of the cell nearest to the "
        f"best size at {flops(analysis.headline)} FLOPs."
    )
    if analysis.place and len({place_of(record) for record in analysis.finished}) > 1:
        text += (
            f" Tokens per second, and training times in charts: of the runs on {analysis.place[0]} "
            "alone; others have none."
        )
    if analysis.choices:
        text += (
            " Under other choices: the least and the largest multiplier that one change at a time "
            "of the design or the training, tuned rates apart, gives at size "
            f"{analysis.choices.size} and {flops(analysis.choices.budget)} FLOPs."
        )
    return text


def table(analysis: Analysis) -> str:
    """Ranking, legend, losses and costs in Markdown: the block that a document shows."""
    ranking, others = (_part(analysis, keys) for keys in parts(analysis))
    return f"{ranking}\n{legend(analysis)}\n\n{others}"


def _part(analysis: Analysis, keys: Sequence[str]) -> str:
    titles = columns(analysis)
    body = [[cell(row, key) for key in keys] for row in rows(analysis)]
    return markdown.table([titles[key] for key in keys], body, left=("variant", "verdict", "flags"))
