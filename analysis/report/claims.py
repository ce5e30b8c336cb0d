"""The blocks of results/REPORT.md: what a suite says of a paper's claims, and its predictions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.estimate import Array, estimate
from isoflop.analysis.ranking import Standing
from isoflop.analysis.report import sections
from isoflop.analysis.report.format import decade, flops, interval, si
from isoflop.analysis.report.markdown import escape, table
from isoflop.results.record import Record

# Perplexity on C4 of each method's compute-optimal model at 6e18 FLOPs, and which variants are of
# that kind here: table 1 of Mixture of A Million Experts (arXiv 2407.04153).
PERPLEXITY = {"PEER": 20.63, "MoE": 21.41, "PKM": 21.92, "dense": 23.84}
KINDS: dict[str, Callable[[Record], bool]] = {
    "PEER": lambda record: record.layer == "peer",
    "MoE": lambda record: (
        record.layer in ("moe", "moe_ec") and record.options.get("granularity") == 1
    ),
    "PKM": lambda record: record.layer == "pkm",
    "dense": lambda record: record.layer == "dense",
}
# Layers that are to be shown beside a control, and which variants are it: Engram that reads the
# same rows whatever the tokens are, and OmniMoE's dense branch alone.
CONTROLS: dict[str, Callable[[Record], bool]] = {
    "engram": lambda record: record.layer == "engram" and record.options.get("table_size") == 1,
    "omnimoe": lambda record: (
        record.layer == "dense" and record.options.get("activation") == "swiglu"
    ),
}
TEXT = (
    "What holds of table 1 of PEER's paper (arXiv 2407.04153) at {budget} FLOPs; the paper has "
    "6e18. Ratio: how much more compute the second needs than the first for equal loss, with a 95% "
    "interval; of several variants of a kind, the best. Distance: the logarithm of the ratio over "
    "the standard deviation of its noise. Holds or contradicted: the interval excludes 1."
)
HEADER = ("claim", "perplexities there", "here", "ratio", "distance", "verdict")


def claims(analysis: Analysis) -> str:
    """The paper's order, trends, the best granularity and time, as Markdown."""
    rows = _order(analysis)
    text = TEXT.format(budget=flops(analysis.headline))
    parts = [f"{text}\n\n{table(HEADER, rows, left=('claim', 'here', 'verdict'))}"] if rows else []
    lines = [*_controls(analysis), *_trends(analysis), *_granularity(analysis), *_times(analysis)]
    if lines:
        parts.append("".join(f"- {escape(line)}\n" for line in lines))
    return "\n".join(parts) or "No variant of this suite has a compute multiplier yet.\n"


def _order(analysis: Analysis) -> list[list[str]]:
    """One row per pair of kinds that both have a multiplier; the paper's better one first."""
    best: dict[str, Standing] = {}
    for kind, belongs in KINDS.items():
        members = {record.variant for record in analysis.records if belongs(record)}
        ranked = [s for s in analysis.standings if s.variant in members and s.shown]
        if ranked:
            best[kind] = ranked[0]
    names = [kind for kind in PERPLEXITY if kind in best]
    rows = []
    for at, better in enumerate(names):
        for worse in names[at + 1 :]:
            first, second = best[better], best[worse]
            assert first.shown
            assert second.shown
            gap = first.shown.log_multiplier - second.shown.log_multiplier
            rows.append(
                [
                    f"{better} better than {worse}",
                    f"{PERPLEXITY[better]:g}, {PERPLEXITY[worse]:g}",
                    f"{first.variant}, {second.variant}",
                    interval(estimate(np.exp(gap)), unit="x"),
                    *_judged(gap),
                ]
            )
    return rows


def _judged(gap: Array) -> tuple[str, str]:
    """How far a difference is from its noise, and what follows."""
    if len(gap) < 2:
        return "-", "noise unknown"
    _, low, high = estimate(gap)
    verdict = "holds" if low > 0 else "contradicted" if high < 0 else "inconclusive"
    deviation = float(np.std(gap[1:]))
    return (f"{gap[0] / deviation:+.1f}" if deviation else "-"), verdict


def _controls(analysis: Analysis) -> list[str]:
    """What a layer gains over its control, where both have a multiplier."""
    first = {record.variant: record for record in analysis.records}
    shown = {s.variant: s.shown.log_multiplier for s in analysis.standings if s.shown}
    lines = []
    for layer, is_control in CONTROLS.items():
        controls = [variant for variant in shown if is_control(first[variant])]
        for variant in shown:
            if first[variant].layer != layer or variant in controls:
                continue
            for control in controls:
                gap = shown[variant] - shown[control]
                distance, verdict = _judged(gap)
                ratio = interval(estimate(np.exp(gap)), unit="x")
                lines.append(
                    f"Control: {control} needs {ratio} the compute of {variant} for equal loss; "
                    f"distance {distance}; that it gains over the control: {verdict}."
                )
    return lines


def _trends(analysis: Analysis) -> list[str]:
    lines = []
    for standing in analysis.standings:
        gain = standing.multiplier
        if not gain or standing.variant in analysis.dense:
            continue
        if gain.trend == "not stated":
            lines.append(
                f"Gain of {standing.variant}: no trend is stated, from budgets that span less than "
                "a decade."
            )
            continue
        slope = decade(estimate(gain.slope))
        lines.append(f"Gain of {standing.variant}: {slope} per decade of compute: {gain.trend}.")
    return lines


def _granularity(analysis: Analysis) -> list[str]:
    return [f"Granularity: {sections.granularity(sweep)}" for sweep in analysis.granularity_sweeps]


def _times(analysis: Analysis) -> list[str]:
    return [
        f"{standing.variant}: {interval(standing.headline, unit='x')} by FLOPs, "
        f"{interval(standing.time, unit='x')} by training time."
        for standing in analysis.standings
        if standing.headline and standing.time and standing.variant not in analysis.dense
    ]


PREDICTED = (
    "Each law fitted without its variant's largest budget, what it predicts for the cells of that "
    "budget, and what was measured; nats per token. Interval: where 95% of measurements fall if "
    "the law holds, corrected for the bias that the bootstrap shows, so that it need not be around "
    "the prediction."
)
PREDICTED_HEADER = ("variant", "budget", "active parameters", "predicted", "measured", "inside")


def predictions(analysis: Analysis) -> str:
    """The predictions of held-out budgets, cell by cell, as Markdown."""
    rows = []
    for variant, holdout in analysis.holdouts.items():
        for cell in np.argsort(holdout.cells.log_n):
            predicted, measured = holdout.prediction(int(cell)), holdout.cells.loss[cell]
            inside = predicted.low <= measured <= predicted.high
            rows.append(
                [
                    variant,
                    flops(holdout.budget),
                    si(float(np.exp(holdout.cells.log_n[cell]))),
                    interval(predicted, ".3f"),
                    f"{measured:.3f}",
                    "yes" if inside else "no",
                ]
            )
    if not rows:
        return "No variant has three budgets yet.\n"
    return f"{PREDICTED}\n\n{table(PREDICTED_HEADER, rows, left=('variant',))}"
