"""The files that an ablation gives: what each choice decides, as tables and a figure."""

from __future__ import annotations

import csv
import io

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from isoflop.analysis.ablation import Ablation
from isoflop.analysis.estimate import Estimate
from isoflop.analysis.report import latex
from isoflop.analysis.report.figures import files_of
from isoflop.analysis.report.format import flops, interval, listed, ten_digits
from isoflop.analysis.report.markdown import table
from isoflop.analysis.report.style import BASELINE, PALETTE, STYLE

HEADER = ("axis", "choice", "variant", "difference, nats", "multiplier over dense", "")
RANGE_HEADER = ("variant", "as it is", "least", "largest")
LOAD_HEADER = ("axis", "choice", "variant", "experts", "used, %", "KL from even, nats")
PAPER = "in the paper"
LEFT = ("axis", "choice", "variant", "")
COLUMNS = (
    "axis", "choice", "variant", "difference", "difference_low", "difference_high",
    "multiplier", "multiplier_low", "multiplier_high",
)  # fmt: skip


def files(ablation: Ablation, description: str) -> dict[str, bytes]:
    """File name -> bytes: ABLATION.md, ablation.csv, ablation.tex and the figure.

    Args:
        description: goes into the figure's metadata.
    """
    with rc_context(STYLE):
        figures = files_of("ablation", figure(ablation), description)
    return {
        "ABLATION.md": markdown(ablation).encode(),
        "ablation.csv": as_csv(ablation).encode(),
        "ablation.tex": latex.table(
            HEADER[:-1], [row[:-1] for row in rows(ablation)], LEFT
        ).encode(),
    } | {f"figures/{name}": content for name, content in figures.items()}


def markdown(ablation: Ablation) -> str:
    """ABLATION.md."""
    seeds = len(ablation.seeds)
    text = (
        f"# Ablation\n\nWhat each choice changes at {flops(ablation.budget)} FLOPs, size "
        f"{ablation.size}, {seeds} paired seed{'s' * (seeds > 1)}. Difference: loss under the "
        "choice minus loss of the suite as it is, with its 95% interval (one standard deviation of "
        "a difference for all rows"
    )
    if ablation.degrees:
        text += (
            f", {ablation.deviation:.3f} nats at {ablation.degrees} degrees of freedom). A "
            f"difference of {ablation.resolved:.3f} nats is told from 0 with 80% power"
        )
    else:
        text += "; unknown, since no cell has two seeds)"
    text += (
        ". Multiplier: FLOPs that dense needs over those the variant needs, both under the choice"
    )
    if np.isfinite(ablation.slope):
        text += f"; dense's loss falls by {ablation.slope:.3f} nats per factor e of compute"
    ranges = [
        [
            variant,
            interval(value, unit="x"),
            *(f"{end:.2f}x" for end in ablation.sensitivity(variant)),
        ]
        for variant, value in ablation.as_it_is.items()
        if variant != ablation.baseline and np.isfinite(value.value)
    ]
    if not all(np.isfinite(effect.difference.value) for effect in ablation.effects):
        text += (
            ". Where a choice has other text than the suite, losses are not compared and the "
            "multiplier takes the slope of the suite's text"
        )
    if ablation.degrees:
        text += ". An interval that excludes 0 is marked, without a correction for their number"
    parts = [
        f"{text}.\n",
        _main_table(ablation),
        "## Design sensitivity\n\nThe least and the largest multiplier over the choices above but "
        "those of other rates: the suite's are tuned.\n\n" + table(RANGE_HEADER, ranges, LEFT)
        if ranges
        else "",
        _loads(ablation),
        "## Order\n\n" + "".join(f"- {line}\n" for line in _order(ablation)),
    ]
    return "\n".join(part for part in parts if part)


def _main_table(ablation: Ablation) -> str:
    """With a column of what a paper reports, where one does."""
    if not ablation.paper:
        return table(HEADER, rows(ablation), LEFT)
    said = [ablation.paper.get((effect.axis, effect.choice), "") for effect in ablation.effects]
    with_paper = [[*row, text] for row, text in zip(rows(ablation), said, strict=True)]
    return table((*HEADER, PAPER), with_paper, (*LEFT, PAPER))


def _loads(ablation: Ablation) -> str:
    if not ablation.loads:
        return ""
    entries = [
        [
            load.axis or "as it is",
            load.choice,
            load.variant,
            f"{load.experts:,}",
            f"{100 * load.used:.1f}",
            f"{load.kl:.2f} [{load.kl_least:.2f}, {load.kl_largest:.2f}]",
        ]
        for load in ablation.loads
    ]
    return (
        "## Load\n\nThe share of the experts or slots that the validation tokens use, and the "
        "KL divergence of their load from an even one in nats: means over the seeds, with the "
        "least and the largest.\n\n" + table(LOAD_HEADER, entries, LEFT)
    )


def _order(ablation: Ablation) -> list[str]:
    """Which choices change the order of mean losses."""
    pairs: dict[tuple[str, str], list[str]] = {}
    for axis, choice, behind, ahead in ablation.reversals:
        pairs.setdefault((axis, choice), []).append(f"{ahead} before {behind}")
    if not pairs:
        return ["No choice changes the order of the variants' mean losses."]
    return [f"{axis} = {choice}: {listed(swaps)}." for (axis, choice), swaps in pairs.items()]


def as_rows(ablation: Ablation) -> list[dict[str, str]]:
    """The rows of ABLATION.md by the titles of their columns, for a terminal."""
    return [dict(zip(HEADER[:-1], row, strict=False)) for row in rows(ablation)]


def rows(ablation: Ablation) -> list[list[str]]:
    """A row per choice and variant; a significant difference is marked."""
    return [
        [
            effect.axis,
            effect.choice,
            effect.variant,
            _shown(effect.difference, "+.3f"),
            _shown(effect.multiplier, ".2f", "x") if effect.variant != ablation.baseline else "",
            "significant" if effect.significant else "",
        ]
        for effect in ablation.effects
    ]


def _shown(value: Estimate, digits: str, unit: str = "") -> str:
    return interval(value, digits, unit) if np.isfinite(value.value) else "-"


def as_latex(ablation: Ablation) -> str:
    """ablation.tex."""
    return latex.table(HEADER[:-1], [row[:-1] for row in rows(ablation)], LEFT)


def as_csv(ablation: Ablation) -> str:
    """ablation.csv, to ten digits; empty where there is no value."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(COLUMNS)
    for effect in ablation.effects:
        numbers = (*effect.difference, *effect.multiplier)
        writer.writerow([effect.axis, effect.choice, effect.variant, *map(ten_digits, numbers)])
    return stream.getvalue()


def figure(ablation: Ablation) -> Figure:
    """One panel per axis: the difference in nats of every choice, by variant.

    Without those of other text, whose losses are not compared, unless there are no others.
    """
    axes: dict[str, list[str]] = {}
    known = [effect for effect in ablation.effects if np.isfinite(effect.difference.value)]
    for effect in known or ablation.effects:
        choices = axes.setdefault(effect.axis, [])
        if effect.choice not in choices:
            choices.append(effect.choice)
    changed = {effect.variant for effect in ablation.effects}
    variants = [variant for variant in ablation.as_it_is if variant in changed]
    colours = dict(zip([v for v in variants if v != ablation.baseline], PALETTE, strict=False))
    colours[ablation.baseline] = BASELINE
    heights = [len(choices) * (0.6 + 0.4 * len(variants)) for choices in axes.values()]
    figure = Figure(figsize=(6.5, 0.9 + 0.26 * sum(heights)))
    grid = figure.subplots(len(axes), 1, sharex=True, squeeze=False, height_ratios=heights)
    panels = list(grid[:, 0])
    for panel, (axis, choices) in zip(panels, axes.items(), strict=True):
        for effect in known:
            if effect.axis != axis:
                continue
            offset = (variants.index(effect.variant) + 0.5) / len(variants) - 0.5
            place = choices.index(effect.choice) + 0.75 * offset
            value, low, high = effect.difference
            colour = colours[effect.variant]
            if np.isfinite(low):
                panel.hlines(place, low, high, color=colour, lw=1.3)
            panel.plot(value, place, "o", color=colour)
        panel.axvline(0, color="0.5", lw=0.8, zorder=0)
        panel.set_yticks(range(len(choices)), choices)
        panel.set_ylim(len(choices) - 0.5, -0.5)
        panel.set_title(axis, loc="left")
        panel.grid(axis="y", visible=False)
    panels[-1].set_xlabel("loss under the choice minus loss as it is, nats (lower is better)")
    handles = [
        panels[0].plot([], [], "o", color=colours[variant], label=variant)[0]
        for variant in variants
    ]
    figure.legend(handles=handles, loc="outside right upper")
    return figure
