"""The sections of LEADERBOARD.md: everything in a report, as sentences and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.conventions import CONVENTIONS, conventions
from isoflop.analysis.estimate import Estimate, estimate
from isoflop.analysis.granularity import GranularitySweep
from isoflop.analysis.learning_rates import RateSweep
from isoflop.analysis.parabola import EXPLAIN
from isoflop.analysis.ranking import Crossing
from isoflop.analysis.report import equal_total_table, layer_figures, leaderboard, other_text
from isoflop.analysis.report.format import decade, flops, flops_interval, interval
from isoflop.analysis.report.markdown import escape, table
from isoflop.analysis.report.verdict import result
from isoflop.analysis.surface import EXPLAIN as EXPLAIN_LAW
from isoflop.results.scored import Scored

FEW = 3  # inconclusive crossings that are listed one by one

# titles of the columns that hold words
WORDS = ("variant", "from", "cell", "trend", "held out", "verdict")


def markdown(analysis: Analysis, scored: Sequence[Scored] = ()) -> str:
    """LEADERBOARD.md.

    Args:
        scored: losses on other text.
    """
    title = f"Leaderboard: {escape(suites(analysis))}"
    if analysis.highlight:
        title = (
            f"Comparison: {escape(versus(analysis))}\n\n{escape(str(result(analysis)['sentence']))}"
        )
    parts = [
        f"# {title}\n\n{leaderboard.table(analysis)}",
        _table("Compute multiplier by budget", SCALE, scale_header(analysis), scale_rows(analysis)),
        _bullets("Crossings", crossings(analysis)),
        _table(
            "Equal total parameters",
            equal_total_table.text(analysis),
            equal_total_table.header(analysis),
            equal_total_table.rows(analysis),
        ),
        _table("Held-out budget", HELD_OUT, HELD_OUT_HEADER, holdout_rows(analysis)),
        _bullets("Granularity", [granularity(sweep) for sweep in analysis.granularity_sweeps]),
        _table("Learning-rate sweeps", RATES, RATES_HEADER, rate_rows(analysis)),
        _table(
            "What explains the layers",
            layer_figures.TEXT,
            layer_figures.HEADER,
            layer_figures.rows(analysis.standings),
        ),
        _table(
            "Other FLOP conventions",
            CONVENTIONS_TEXT,
            conventions_header(),
            convention_rows(analysis),
        ),
        *(_table(*parts) for parts in other_texts(analysis, scored)),
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
    "The compute multiplier at each budget, from the law of all cells and from the parabola of "
    "that budget alone where it can be trusted, and the factor by which the first changes per "
    "decade of compute. Trend: whether the gain grows or fades with compute; it is not stated from "
    "budgets that span less than a decade."
)


def scale_header(analysis: Analysis) -> tuple[str, ...]:
    """The titles for `scale_rows`: a column per budget."""
    return ("variant", "from", *map(flops, analysis.compared), "per decade", "trend")


def scale_rows(analysis: Analysis) -> list[list[str]]:
    """Each variant's multiplier at every budget, and its trend."""
    rows = []
    for standing in analysis.standings:
        gain = standing.multiplier
        if standing.variant == analysis.baseline:
            continue
        if gain:
            values = dict(zip(gain.budgets, map(estimate, gain.at_budget.T), strict=True))
            slope = "-" if gain.trend == "not stated" else decade(estimate(gain.slope))
            row = _by_budget(analysis, values)
            rows.append([standing.variant, "law", *row, slope, gain.trend])
        if standing.parabolas:
            values = {key: estimate(np.exp(logs)) for key, logs in standing.parabolas.items()}
            row = _by_budget(analysis, values)
            rows.append([standing.variant, "parabolas", *row, "-", "-"])
    return rows


def _by_budget(analysis: Analysis, values: Mapping[float, Estimate]) -> list[str]:
    return [
        interval(values[budget], unit="x") if budget in values else "-"
        for budget in analysis.compared
    ]


def crossings(analysis: Analysis) -> list[str]:
    """Where fitted frontiers cross; of many inconclusive ones, the number alone."""
    resolved = [crossing for crossing in analysis.crossings if crossing.resolved]
    others = [crossing for crossing in analysis.crossings if not crossing.resolved]
    told = [_crossing(crossing, ".") for crossing in resolved]
    if len(others) > FEW:
        return [*told, f"{len(others)} other pairs cross inconclusively at this noise."]
    return told + [_crossing(crossing, " (inconclusive at this noise).") for crossing in others]


def _crossing(crossing: Crossing, end: str) -> str:
    where = flops_interval(crossing.compute)
    return f"{crossing.below} has the lower loss below {where} FLOPs, {crossing.above} above{end}"


HELD_OUT = (
    "Extrapolation test: the law of a variant, fitted without the cells of its largest budget, "
    "predicts them. Error: mean predicted minus mean measured loss, in nats. F: the squared errors "
    "of the prediction per cell, in units of the noise, and p the probability of as much if the "
    "law holds. It fails if the interval of the error excludes 0 or p is under 0.05. Variants with "
    "three budgets or more are judged."
)
HELD_OUT_HEADER = ("variant", "held out", "fitted", "cells", "error, nats", "F", "p", "verdict")


def holdout_rows(analysis: Analysis) -> list[list[str]]:
    """One row per variant."""
    return [
        [
            variant,
            f"{flops(holdout.budget)} FLOPs",
            f"{holdout.fitted} budgets",
            str(len(holdout.cells.loss)),
            interval(holdout.error, "+.3f"),
            f"{holdout.f:.2f}",
            f"{holdout.p:.2g}",
            "fails" if holdout.failed else "holds",
        ]
        for variant, holdout in analysis.holdouts.items()
    ]


def granularity(sweep: GranularitySweep) -> str:
    """The best granularity of a sweep, in a sentence."""
    values = ", ".join(f"{value:g}" for value in sweep.values)
    where = f"{sweep.layer} at {flops(sweep.budget)} FLOPs (G = {values})"
    if sweep.parabola.status != "ok":
        lowest = sweep.values[int(np.argmin(sweep.losses))]
        why = EXPLAIN[sweep.parabola.status]
        return f"{where}: no fitted optimum; the lowest loss is at G = {lowest:g} ({why})."
    best = interval(sweep.parabola.at, ".3g")
    doubt = "; the interval reaches the edge of the sweep" if sweep.parabola.reaches_edge else ""
    return f"{where}: best G {best}, inside the sweep{doubt}."


CONVENTIONS_TEXT = (
    "The compute multiplier at the loss that a layer reaches at the budget of the ranking, with "
    "FLOPs counted otherwise; a column that changes an order says so below."
)


def conventions_header() -> tuple[str, ...]:
    """The titles for `convention_rows`."""
    return ("variant", *CONVENTIONS)


def convention_rows(analysis: Analysis) -> list[list[str]]:
    """One row per variant, one column per convention; then the orders that a convention changes."""
    columns = conventions(analysis.fits, analysis.finished)
    if not columns[0].multipliers:
        return []
    rows = [
        [variant, *(interval(column.multipliers[variant], unit="x") for column in columns)]
        for variant in columns[0].multipliers
    ]
    swaps = [
        "; ".join(f"{ahead} before {behind}" for ahead, behind in column.swapped) or "-"
        for column in columns
    ]
    return [*rows, ["order changed", *swaps]]


def other_texts(
    analysis: Analysis, scored: Sequence[Scored]
) -> list[tuple[str, str, tuple[str, ...], list[list[str]]]]:
    """Title, text, header and rows of each table of losses on other text."""
    if not scored:
        return []
    order, header = [s.variant for s in analysis.standings], other_text.header(scored)
    losses, bits = other_text.losses(scored, order), other_text.bits_per_byte(scored, order)
    return [
        ("Other text", other_text.text(scored), header, losses),
        ("Other text, bits per byte", other_text.BYTES, header, bits),
    ]


RATES = (
    "Each variant's learning-rate sweeps at small cells; in the rows of tables, their rate over "
    "that of the rest. Best: the optimum of a quadratic in the "
    "logarithm of the rate, with one curvature for all sweeps of a size at one budget, held to the "
    "rates of the sweep. "
    "Tuning gap: its loss at the rate that the suite used minus that at the best, with the noise "
    "of the runs. Multiplier if tuned: with every variant's tuning gap subtracted from its loss. "
    "Rank interval: the ranks that the significant differences leave open; if tuned, with the "
    "tuning gaps subtracted."
)
RATES_HEADER = (
    "variant", "cell", "rates", "used", "best", "tuning gap, nats", "multiplier if tuned",
    "rank interval", "rank interval if tuned",
)  # fmt: skip


def rate_rows(analysis: Analysis) -> list[list[str]]:
    """One row per sweep: those of the learning rate, then those of the tables'."""
    rows = [_rate_row(analysis, sweep, sweep.variant) for sweep in analysis.rate_sweeps]
    for sweep in analysis.table_sweeps:
        rows.append([*_rate_row(analysis, sweep, f"{sweep.variant}: tables")[:6], "-", "-", "-"])
    return rows


def _rate_row(analysis: Analysis, sweep: RateSweep, name: str) -> list[str]:
    row = [
        name,
        f"{sweep.size.name} at {flops(sweep.budget)} FLOPs",
        ", ".join(f"{rate:.2g}" for rate in sweep.rates),
        f"{sweep.used:.2g}",
        interval(sweep.best, ".2g") + ", at the edge" * sweep.at_edge,
        interval(estimate(sweep.tuning_gap), ".4f"),
    ]
    effect = analysis.sensitivity.get(sweep.variant)
    if not effect:
        return [*row, "-", "-", "-"]
    now = next(s.rank_interval for s in analysis.standings if s.variant == sweep.variant)
    return [
        *row,
        interval(effect.multiplier, unit="x"),
        _range(now) if now else "-",
        _range(effect.rank_interval),
    ]


def _range(ranks: tuple[int, int]) -> str:
    first, last = ranks
    return str(first) if first == last else f"{first}-{last}"


def notes(analysis: Analysis) -> list[str]:
    """What was run, the noise, the fitted frontiers, and the cells that did not finish."""
    finished = analysis.finished
    devices = sorted({record.measured.device for record in finished})
    seeds = sorted({record.seed for record in finished})
    plural, epochs = "s" * (len(seeds) > 1), max(record.epochs for record in finished)
    lines = [
        f"{len(finished)} of {len(analysis.records)} cells finished; seed{plural} "
        f"{', '.join(map(str, seeds))}; at most {epochs:.2g} epochs; trained on "
        f"{', '.join(devices)}"
        + (": times are not comparable between devices." if len(devices) > 1 else ".")
    ]
    noise, of_parabolas = analysis.fits.fits["floor per variant"].noise, analysis.parabola_noise
    if noise:
        between = f"{noise.seed:.2g} between seeds" if noise.seed else "one seed"
        lines.append(
            f"Noise of a cell about the laws: {np.hypot(noise.fit, noise.seed):.2g} nats "
            f"({between}) at {flops(np.exp(noise.log_middle))} FLOPs, by C^{-noise.slope:.2f}, "
            f"estimated with {noise.degrees:.0f} degrees of freedom. Intervals: the central 95% of "
            f"{analysis.samples} bootstrap samples, which resample the pooled residuals and refit "
            "every law, parabola and multiplier."
        )
    if of_parabolas.degrees:
        size = np.hypot(of_parabolas.fit, of_parabolas.seed)
        lines.append(
            f"Noise of a cell about the parabolas: {size:.2g} nats, with {of_parabolas.degrees} "
            "degrees of freedom."
        )
    for standing in analysis.standings:
        law = standing.surface
        if law:
            (a, b), (alpha, beta) = law.coefficients[0], law.exponents[0]
            lines.append(
                f"Law of {standing.variant}: L(N, D) = {law.floor[0]:.3f} + {a:.3g} N^-{alpha:.3f} "
                f"+ {b:.3g} D^-{beta:.3f} ({EXPLAIN_LAW[law.status]})."
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
    items = "".join(f"- {escape(line)}\n" for line in lines)
    return f"## {title}\n\n{items}" if items else ""


def _table(title: str, text: str, header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return f"## {title}\n\n{text}\n\n{table(header, body, left=WORDS)}" if body else ""
