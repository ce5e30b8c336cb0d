"""Figures of a report: PNG and SVG, the same bytes from the same records."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from analysis.isoflop import Array, Curve, Estimate
from analysis.leaderboard import flops, si
from analysis.ranking import Analysis, Standing
from bench.record import Record

# Okabe and Ito's colours, which the colour-blind tell apart; the baseline is nearly black.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C564B", "#7F7F7F")
BASELINE = "#222222"
MARKERS = "osD^vPX*"
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "isoflop",  # else element names are random
}


def colours(analysis: Analysis) -> dict[str, str]:
    """One colour per variant, in every figure and on the page."""
    others = [variant for variant in analysis.variants if variant != analysis.baseline]
    chosen = {variant: PALETTE[place % len(PALETTE)] for place, variant in enumerate(others)}
    return {variant: chosen.get(variant, BASELINE) for variant in analysis.variants}


def isoflop(analysis: Analysis) -> Figure:
    """Loss against parameters: a panel per variant, a shade per budget, optima marked."""
    colour = colours(analysis)
    shown = [each for each in _in_order(analysis) if each.curves]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(2.7 * columns + 0.3, 2.9 * lines + 0.2))
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    shades = dict(zip(analysis.budgets, np.linspace(0.35, 1.0, len(analysis.budgets)), strict=True))
    if len(analysis.budgets) == 1:
        shades = dict.fromkeys(analysis.budgets, 1.0)
    for ax, standing in zip(axes, shown, strict=False):
        for curve in standing.curves:
            _draw_curve(ax, curve, _shade(colour[standing.variant], shades[curve.budget]))
        ax.set_title(standing.variant, color=colour[standing.variant], fontweight="bold")
        _count_axis(ax)
    for ax in axes[len(shown) :]:
        ax.set_visible(False)
    for ax in axes[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("active parameters")
        ax.tick_params(labelbottom=True)
    for ax in axes[::columns]:
        ax.set_ylabel("validation loss (nats/token)")
    keys = [
        Line2D([], [], color=_shade(BASELINE, shades[budget]), marker="o", label=flops(budget))
        for budget in analysis.budgets
    ]
    keys.append(Line2D([], [], color="0.4", marker="*", ls="", ms=9, label="optimum"))
    if any(curve.status != "ok" for each in shown for curve in each.curves):
        keys.append(
            Line2D([], [], color="0.4", ls="--", marker="*", mfc="none", ms=9, label="not trusted")
        )
    if len(shown) < len(axes):
        axes[-1].set_visible(True)
        axes[-1].axis("off")
        axes[-1].legend(handles=keys, loc="center", title="FLOPs")
    else:
        figure.legend(handles=keys, loc="outside right upper", title="FLOPs")
    return figure


def _draw_curve(ax: Axes, curve: Curve, colour: str) -> None:
    trusted = curve.status == "ok"
    sizes = np.exp(curve.log_n)
    ax.plot(sizes, curve.loss, "o", color=colour, mfc=colour if trusted else "none")
    for size, cell in zip(sizes, curve.cells, strict=True):
        if len(cell) > 1:
            losses = [record.loss or 0.0 for record in cell]
            ax.plot([size] * len(cell), losses, "_", color=colour, ms=5)
    grid = np.linspace(curve.log_n[0], curve.log_n[-1], 60)
    ax.plot(np.exp(grid), curve.parabola(grid), "-" if trusted else "--", color=colour, lw=1.2)
    optimum, loss = curve.optimum, curve.optimum_loss
    if trusted:
        ax.errorbar(
            optimum.value, loss.value, xerr=_whiskers(optimum), yerr=_whiskers(loss),
            fmt="none", ecolor=colour, elinewidth=1, capsize=2,
        )  # fmt: skip
    ax.plot(
        optimum.value, loss.value, "*", color=colour, ms=10, zorder=5,
        mfc=colour if trusted else "none", mec="white" if trusted else colour, mew=0.7,
    )  # fmt: skip


def frontier(analysis: Analysis) -> Figure:
    """Loss at the optimum against compute, with the fitted law and its band."""
    figure = Figure(figsize=(5.6, 3.8))
    ax = figure.subplots()
    colour = colours(analysis)
    for standing, marker in zip(_in_order(analysis), _markers(), strict=False):
        trusted = [curve for curve in standing.curves if curve.status == "ok"]
        for curve in standing.curves:
            doubtful = curve.status != "ok"
            ax.errorbar(
                curve.budget, curve.optimum_loss.value,
                yerr=None if doubtful else _whiskers(curve.optimum_loss),
                fmt=marker, color=colour[standing.variant], capsize=2, elinewidth=1,
                mfc="none" if doubtful else colour[standing.variant],
            )  # fmt: skip
        if standing.frontier and trusted:
            compute = np.geomspace(trusted[0].budget, trusted[-1].budget, 60)
            _band(ax, compute, standing.frontier.predict(compute), colour[standing.variant])
        ax.plot([], [], marker=marker, color=colour[standing.variant], label=standing.variant)
    ax.set_xscale("log")
    ax.set_xlabel("training FLOPs")
    ax.set_ylabel("loss at the optimum (nats/token)")
    _loss_axis(ax)
    ax.legend()
    return figure


def multiplier(analysis: Analysis) -> Figure:
    """Compute multiplier at the largest budget, with its interval."""
    shown = [each for each in analysis.standings if each.headline]
    figure = Figure(figsize=(5.6, 0.9 + 0.36 * max(3, len(shown))))
    ax = figure.subplots()
    colour = colours(analysis)
    ends = [1.0]
    for place, standing in enumerate(shown):
        assert standing.headline
        value = standing.headline
        ends += [end for end in value if np.isfinite(end)]
        ax.errorbar(
            value.value, place, xerr=_whiskers(value), fmt="o", capsize=3,
            color=colour[standing.variant],
        )  # fmt: skip
    ax.axvline(1, color="0.5", lw=0.8, zorder=0)
    ax.set_yticks(range(len(shown)), [f"{standing.rank}. {standing.variant}" for standing in shown])
    ax.set_ylim(max(len(shown), 1) - 0.5, -0.5)
    ax.set_xscale("log")
    ax.set_xlim(min(ends) / 1.06, max(ends) * 1.06)
    _plain_ticks(ax.xaxis, "{:g}x")
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"compute multiplier at {flops(analysis.budgets[-1])} FLOPs (95% interval)")
    return figure


def wall_clock(analysis: Analysis) -> Figure:
    """Loss against training seconds: every cell, and the cells nearest each budget's optimum."""
    figure = Figure(figsize=(5.6, 3.8))
    ax = figure.subplots()
    colour = colours(analysis)
    for standing, marker in zip(_in_order(analysis), _markers(), strict=False):
        for curve in standing.curves:
            seconds = [_seconds(cell) for cell in curve.cells]
            ax.plot(seconds, curve.loss, ".", color=colour[standing.variant], alpha=0.35, ms=4)
        best = [curve for curve in standing.curves if curve.status == "ok"]
        seconds = [_seconds(curve.cells[curve.nearest]) for curve in best]
        losses = [curve.loss[curve.nearest] for curve in best]
        ax.plot(
            seconds, losses, marker=marker, color=colour[standing.variant], label=standing.variant
        )
    ax.set_xscale("log")
    devices = ", ".join(sorted({one.measured.device for one in analysis.records}))
    ax.set_xlabel(f"training seconds ({devices})")
    ax.set_ylabel("validation loss (nats/token)")
    _loss_axis(ax)
    ax.legend(title="nearest the optimum")
    return figure


FIGURES: dict[str, Callable[[Analysis], Figure]] = {
    "isoflop": isoflop,
    "frontier": frontier,
    "multiplier": multiplier,
    "wall_clock": wall_clock,
}


def draw(analysis: Analysis, description: str) -> dict[str, bytes]:
    """Every figure as file name -> bytes; `description` goes into each file's metadata."""
    files = {}
    with matplotlib.rc_context(STYLE):
        for name, make in FIGURES.items():
            figure = make(analysis)
            for kind, extra in (("png", {}), ("svg", {"Date": None})):
                buffer = io.BytesIO()
                figure.savefig(
                    buffer, format=kind, dpi=160, metadata={"Description": description, **extra}
                )
                files[f"{name}.{kind}"] = buffer.getvalue()
    return files


def _in_order(analysis: Analysis) -> list[Standing]:
    return sorted(analysis.standings, key=lambda each: analysis.variants.index(each.variant))


def _markers() -> list[str]:
    return list(MARKERS) * 8


def _seconds(cell: Sequence[Record]) -> float:
    return float(np.mean([record.measured.train_seconds for record in cell]))


def _shade(colour: str, strength: float) -> str:
    """The colour mixed with white."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))


def _whiskers(value: Estimate) -> Array | None:
    if np.isnan(value.low):
        return None
    return np.array([[max(0, value.value - value.low)], [max(0, value.high - value.value)]])


def _band(ax: Axes, x: Array, draws: Array, colour: str) -> None:
    ax.plot(x, draws[0], color=colour)
    if len(draws) > 1:
        low, high = np.quantile(draws[1:], [0.025, 0.975], axis=0)
        ax.fill_between(x, low, high, color=colour, alpha=0.15, lw=0)


def _count_axis(ax: Axes) -> None:
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: si(round(value))))
    ax.xaxis.set_minor_locator(NullLocator())


def _plain_ticks(axis: Axis, label: str = "{:g}") -> None:
    """A logarithmic axis of less than a decade or two, ticked at round numbers."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label.format(round(value, 6))))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def _loss_axis(ax: Axes) -> None:
    ax.set_yscale("log")
    _plain_ticks(ax.yaxis)
