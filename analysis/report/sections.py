"""The sections of LEADERBOARD.md: all that a report found, in words and tables."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.granularity import GranularitySweep
from isoflop.analysis.learning_rates import RateSweep
from isoflop.analysis.parabola import EXPLAIN, Estimate, estimate
from isoflop.analysis.report import leaderboard
from isoflop.analysis.report.format import flops, flops_interval, interval
from isoflop.analysis.report.verdict import result


def markdown(analysis: Analysis) -> str:
    """LEADERBOARD.md."""
    title = f"Leaderboard: {suites(analysis)}"
    if analysis.highlight:
        title = f"Comparison: {versus(analysis)}\n\n{result(analysis)['sentence']}"
    parts = [
        f"# {title}\n\n{leaderboard.table(analysis)}",
        _table("Over scale", SCALE, scale_header(analysis), scale_rows(analysis)),
        _bullets("Crossings", crossings(analysis)),
        _table("Held-out budget", HELD_OUT, HELD_OUT_HEADER, holdout_rows(analysis)),
        _bullets("Granularity", [granularity(sweep) for sweep in analysis.granularity_sweeps]),
        _table("Learning rates", RATES, RATES_HEADER, rate_rows(analysis)),
        _bullets("Notes", notes(analysis)),
    ]
    return "\n".join(part for part in parts if part)


def suites(analysis: Analysis) -> str:
    """The suite's name."""
    return ", ".join(sorted({record.suite for record in analysis.records}))


def versus(analysis: Analysis) -> str:
    """What is compared."""
    return f"{analysis.highlight} against {analysis.baseline}, suite {suites(analysis)}"


SCALE = (
    "The compute multiplier at each budget whose optimum is to be trusted, and the factor it "
    "changes by with every tenfold of compute."
)


def scale_header(analysis: Analysis) -> tuple[str, ...]:
    """A column per budget."""
    return ("variant", *map(flops, analysis.compared), "per tenfold", "the gain")


def scale_rows(analysis: Analysis) -> list[list[str]]:
    """Each variant's multiplier at every budget and its trend."""
    rows = []
    for standing in analysis.standings:
        found = standing.multiplier
        if standing.variant == analysis.baseline or not found:
            continue
        values = dict(zip(found.budgets, map(estimate, found.at_budget.T), strict=True))
        row = [
            interval(values[budget], unit="x") if budget in values else "-"
            for budget in analysis.compared
        ]
        slope = estimate(found.slope)
        trend = ["-", "-"]
        if not np.isnan(slope.value):
            trend = [interval(Estimate(*(10**end for end in slope)), unit="x"), found.trend]
        rows.append([standing.variant, *row, *trend])
    return rows


def crossings(analysis: Analysis) -> list[str]:
    """Where fitted frontiers cross."""
    return [
        f"{one.below} is ahead below {flops_interval(one.compute)} FLOPs, {one.above} above"
        + ("." if one.resolved else " (inconclusive at this noise).")
        for one in analysis.crossings
    ]


HELD_OUT = (
    "Each frontier fitted to the smaller budgets alone, against the loss found at the largest. "
    "Compute: where that law reaches the loss found, over the FLOPs it took. A law is judged from "
    "three budgets on; two determine a power law without floor, which bends too little."
)
HELD_OUT_HEADER = ("variant", "budgets", "FLOPs spent", "error, nats", "error, compute", "verdict")


def holdout_rows(analysis: Analysis) -> list[list[str]]:
    """One row per variant and number of budgets fitted."""
    return [
        [
            variant,
            str(len(one.budgets)),
            flops(one.spent),
            interval(one.error, "+.3f"),
            interval(one.compute, ".2f", "x"),
            "fails" if one.failed else "holds" if one.judged else "not judged",
        ]
        for variant, holdouts in analysis.holdouts.items()
        for one in holdouts
    ]


def granularity(sweep: GranularitySweep) -> str:
    """The best granularity of one sweep, in words."""
    tried = ", ".join(f"{value:g}" for value in sweep.values)
    where = f"{sweep.layer} at {flops(sweep.budget)} FLOPs (G = {tried})"
    if sweep.parabola.status != "ok":
        lowest = sweep.values[int(np.argmin(sweep.losses))]
        why = EXPLAIN[sweep.parabola.status]
        return f"{where}: no best G is named; the lowest loss is at G = {lowest:g} ({why})."
    doubt = ", its interval reaching the edge of what was tried" * sweep.parabola.unsettled
    best = interval(sweep.parabola.at, ".3g")
    return f"{where}: best G {best}, inside what was tried{doubt}."


RATES = (
    "Sweeps at one small cell. Left: loss at the rate the suite used less the lowest of the "
    "sweep, given the noise of its runs. Places: 95% range of the variant's place among the "
    "ranked, from the noise of the suite's runs; then with what every variant may have left taken "
    "off its loss, which gives the multiplier in the column before."
)
RATES_HEADER = (
    "variant", "cell", "tried", "used", "best", "left, nats", "multiplier if tuned", "places",
    "places if tuned",
)  # fmt: skip


def rate_rows(analysis: Analysis) -> list[list[str]]:
    """One row per sweep."""
    return [_rate_row(analysis, sweep) for sweep in analysis.rate_sweeps]


def _rate_row(analysis: Analysis, sweep: RateSweep) -> list[str]:
    low, high = sweep.best_rates
    row = [
        sweep.variant,
        f"{sweep.size.name} at {flops(sweep.budget)} FLOPs",
        ", ".join(f"{rate:.2g}" for rate in sweep.rates),
        f"{sweep.rates[sweep.used]:.2g}",
        f"{sweep.rates[sweep.best]:.2g} [{low:.2g}, {high:.2g}]" + ", at the edge" * sweep.at_edge,
        interval(estimate(sweep.left), ".4f"),
    ]
    effect = analysis.sensitivity.get(sweep.variant)
    if not effect:
        return [*row, "-", "-", "-"]
    return [
        *row,
        interval(effect.multiplier, unit="x"),
        _range(effect.rank_interval),
        _range(effect.rank_interval_tuned),
    ]


def _range(places: tuple[int, int]) -> str:
    first, last = places
    return str(first) if first == last else f"{first}-{last}"


def notes(analysis: Analysis) -> list[str]:
    """What was run, the noise, the fitted frontiers and the cells that did not finish."""
    finished, noise = analysis.finished, analysis.noise
    devices = sorted({record.measured.device for record in finished})
    seeds = sorted({record.seed for record in finished})
    lines = [
        f"{len(finished)} finished cells of {len(analysis.records)}, seeds "
        f"{', '.join(map(str, seeds))}; at most {max(one.epochs for one in finished):.2g} epochs; "
        f"trained on {', '.join(devices)}"
        + (": times are not comparable between devices." if len(devices) > 1 else ".")
    ]
    if noise.degrees:
        between = f"{noise.seed:.2g} between seeds" if noise.seed else "one seed"
        lines.append(
            f"Noise of one cell: {np.hypot(noise.fit, noise.seed):.2g} nats ({between}), from "
            f"{noise.degrees} degrees of freedom. Intervals: central 95% of {analysis.samples} "
            "bootstrap samples, which resample pooled residuals and refit every curve, frontier "
            "and multiplier."
        )
    for standing in analysis.standings:
        law = standing.frontier
        if law:
            lines.append(
                f"Frontier of {standing.variant}: L(C) = {law.floor[0]:.3f} + {law.scale[0]:.3f} "
                f"(C / {flops(law.unit)})^-{law.alpha[0]:.3f} ({law.status})."
            )
    for record in analysis.records:
        if record.status != "finished":
            message = f": {record.message.splitlines()[0]}" if record.message else ""
            lines.append(
                f"{record.variant} at size {record.size.name}, {flops(record.budget)} FLOPs, seed "
                f"{record.seed}: {record.status}{message}"
            )
    return lines


def _bullets(title: str, lines: Sequence[str]) -> str:
    return f"## {title}\n\n" + "".join(f"- {line}\n" for line in lines) if lines else ""


def _table(title: str, text: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    if not body:
        return ""
    lines = [header, ["--"] * len(header), *body]
    rendered = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    return f"## {title}\n\n{text}\n\n{rendered}"
