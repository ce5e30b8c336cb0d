"""Figures of a report: PNG and SVG, the same bytes from the same records."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.curves import Curve
from isoflop.analysis.granularity import GranularitySweep
from isoflop.analysis.parabola import Estimate, estimate
from isoflop.analysis.report.format import flops, interval, si
from isoflop.analysis.report.style import (
    BASELINE,
    PALETTE,
    STYLE,
    Look,
    band,
    colours,
    compute_axis,
    log_ticks,
    looks,
    loss_axis,
    plain_ticks,
    shade,
    shades,
    whiskers,
)
from isoflop.results.record import Record


def isoflop(analysis: Analysis) -> Figure:
    """Loss against parameters: a panel per variant, a shade per budget, optima marked."""
    look, colour = looks(analysis), colours(analysis)
    shown = [each for each in analysis.in_order if each.curves]
    columns = min(3 if len(shown) <= 6 else 4, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(2.7 * columns + 0.3, 2.9 * lines + 0.2))
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).ravel()
    strength = shades(analysis)
    for ax, standing in zip(axes, shown, strict=False):
        own = look[standing.variant]
        for curve in standing.curves:
            shaded = shade(own.colour, strength[curve.budget])
            _draw_curve(ax, curve, own._replace(colour=shaded))
        ax.set_title(standing.variant, color=colour[standing.variant], fontweight="bold")
        ax.set_xscale("log")
        log_ticks(ax.xaxis, si)
    for ax in axes[len(shown) :]:
        ax.axis("off")
    for ax in axes[max(0, len(shown) - columns) : len(shown)]:
        ax.set_xlabel("active parameters")
        ax.tick_params(labelbottom=True)
    for ax in axes[::columns]:
        ax.set_ylabel("validation loss (nats/token)")
    keys = [
        Line2D([], [], color=shade(BASELINE, strength[budget]), marker="o", label=flops(budget))
        for budget in analysis.budgets
    ]
    keys.append(Line2D([], [], color="0.4", marker="*", ls="", ms=9, label="optimum"))
    if any(not curve.trusted for each in shown for curve in each.curves):
        keys.append(
            Line2D([], [], color="0.4", ls="--", marker="*", mfc="none", ms=9, label="not trusted")
        )
    if len(shown) < len(axes):
        axes[-1].legend(handles=keys, loc="center", title="FLOPs")
    else:
        figure.legend(handles=keys, loc="outside right upper", title="FLOPs")
    return figure


def _draw_curve(ax: Axes, curve: Curve, look: Look) -> None:
    colour, weight = look.colour, look.weight
    fill = colour if curve.trusted else "none"
    sizes = np.exp(curve.log_n)
    ax.plot(sizes, curve.loss, "o", mfc=fill, **look.drawn)
    for size, losses in zip(sizes, curve.losses, strict=True):
        if len(losses) > 1:
            ax.plot([size] * len(losses), losses, "_", color=colour, ms=5)
    grid = np.linspace(curve.log_n[0], curve.log_n[-1], 60)
    style = "-" if curve.trusted else "--"
    ax.plot(np.exp(grid), curve.parabola(grid), style, color=colour, lw=1.2 * weight)
    size, loss = curve.parabola.at, curve.parabola.loss
    if curve.trusted:
        ax.errorbar(
            size.value, loss.value, xerr=whiskers(size), yerr=whiskers(loss),
            fmt="none", ecolor=colour, elinewidth=1, capsize=2,
        )  # fmt: skip
    ax.plot(
        size.value, loss.value, "*", color=colour, ms=10 * weight, zorder=5,
        mfc=fill, mec="white" if curve.trusted else colour, mew=0.7,
    )  # fmt: skip


def frontier(analysis: Analysis) -> Figure:
    """Loss at the optimum against compute, with the fitted law and its band."""
    figure, ax = _single()
    look = looks(analysis)
    for standing in analysis.in_order:
        own = look[standing.variant]
        for curve in standing.curves:
            loss = curve.parabola.loss
            ax.errorbar(
                curve.budget, loss.value, yerr=whiskers(loss) if curve.trusted else None,
                fmt=own.marker, mfc=own.colour if curve.trusted else "none", capsize=2,
                elinewidth=own.weight, **own.drawn,
            )  # fmt: skip
        law = standing.frontier
        if law:
            compute = np.geomspace(law.budgets.min(), law.budgets.max(), 60)
            band(ax, compute, law.predict(compute), own)
        ax.plot([], [], marker=own.marker, label=standing.variant, **own.drawn)
    compute_axis(ax, analysis.budgets)
    ax.set_ylabel("loss at the optimum (nats/token)")
    loss_axis(ax)
    ax.legend()
    return figure


def multiplier(analysis: Analysis) -> Figure | None:
    """Compute multiplier at the largest budget, with its interval."""
    shown = [(each, each.headline) for each in analysis.standings if each.headline]
    if not shown:
        return None
    figure = Figure(figsize=(5.6, 0.9 + 0.36 * max(3, len(shown))))
    ax = figure.subplots()
    look = looks(analysis)
    for place, (standing, value) in enumerate(shown):
        own = look[standing.variant]
        ax.errorbar(value.value, place, xerr=whiskers(value), fmt="o", capsize=3, **own.drawn)
    ax.set_yticks(
        range(len(shown)), [f"{standing.rank}. {standing.variant}" for standing, _ in shown]
    )
    for label, (standing, _) in zip(ax.get_yticklabels(), shown, strict=True):
        if standing.variant == analysis.highlight:
            label.set_fontweight("bold")
    ax.set_ylim(len(shown) - 0.5, -0.5)
    ends = np.array([value for _, value in shown])
    ax.set_xscale("log")
    ax.set_xlim(np.nanmin(ends) / 1.06, np.nanmax(ends) * 1.06)
    plain_ticks(ax.xaxis, "{:g}x")
    ax.axvline(1, color="0.5", lw=0.8, zorder=0)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(f"compute multiplier at {flops(analysis.headline)} FLOPs (95% interval)")
    return figure


def multiplier_scale(analysis: Analysis) -> Figure | None:
    """Compute multiplier against compute, with its band and trend; dashed where the dense
    frontier is extrapolated."""
    shown = [
        (each, each.multiplier)
        for each in analysis.in_order
        if each.multiplier and each.variant != analysis.baseline
    ]
    if not shown:
        return None
    figure, ax = _single()
    look = looks(analysis)
    for standing, found in shown:
        own = look[standing.variant]
        band(ax, found.compute, found.band, own, ls="--")
        inside = found.compute * found.band[0] <= found.dense_largest
        ax.plot(found.compute[inside], found.band[0][inside], **own.drawn)
        for budget, samples in zip(found.budgets, found.at_budget.T, strict=True):
            value = estimate(samples)
            ax.errorbar(
                budget, value.value, yerr=whiskers(value), fmt=own.marker, capsize=2,
                elinewidth=own.weight, **own.drawn,
            )  # fmt: skip
        slope = estimate(found.slope)
        trend = ""
        if not np.isnan(slope.value):
            trend = f": {interval(Estimate(*(10**end for end in slope)), unit='x')} a decade"
        ax.plot([], [], marker=own.marker, label=standing.variant + trend, **own.drawn)
    ax.axhline(1, color=BASELINE, lw=0.8, zorder=0)
    compute_axis(ax, analysis.compared)
    ax.set_yscale("log")
    plain_ticks(ax.yaxis, "{:g}x")
    ax.set_ylabel("compute multiplier")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def wall_clock(analysis: Analysis) -> Figure:
    """Loss against training seconds: every cell, and the cells nearest each budget's optimum."""
    figure, ax = _single()
    look = looks(analysis)
    for standing in analysis.in_order:
        own = look[standing.variant]
        for curve in standing.curves:
            seconds = [_seconds(cell) for cell in curve.cells]
            ax.plot(seconds, curve.loss, ".", color=own.colour, alpha=0.35, ms=4 * own.weight)
        best = [curve for curve in standing.curves if curve.trusted]
        ax.plot(
            [_seconds(curve.cells[curve.nearest]) for curve in best],
            [curve.loss[curve.nearest] for curve in best],
            marker=own.marker, label=standing.variant, **own.drawn,
        )  # fmt: skip
    ax.set_xscale("log")
    log_ticks(ax.xaxis, si)
    devices = ", ".join(sorted({one.measured.device for one in analysis.finished}))
    ax.set_xlabel(f"training seconds ({devices})")
    ax.set_ylabel("validation loss (nats/token)")
    loss_axis(ax)
    ax.legend(title="nearest the optimum")
    return figure


def holdout(analysis: Analysis) -> Figure | None:
    """Error of predicting the largest budget against the FLOPs of the budgets it was fitted to."""
    if not any(analysis.holdouts.values()):
        return None
    figure = Figure(figsize=(8.2, 3.4))
    nats, compute = figure.subplots(1, 2, sharex=True)
    look = looks(analysis)
    for variant, holdouts in analysis.holdouts.items():
        own = look[variant]
        spent = [one.spent for one in holdouts]
        for ax, values in (
            (nats, [one.error for one in holdouts]),
            (compute, [one.compute for one in holdouts]),
        ):
            centres = [value.value for value in values]
            ax.plot(spent, centres, color=own.colour, lw=own.weight)
            for one, value in zip(holdouts, values, strict=True):
                ax.errorbar(
                    one.spent, value.value, yerr=whiskers(value), fmt=own.marker,
                    mfc=own.colour if one.judged else "none", capsize=2, elinewidth=own.weight,
                    **own.drawn,
                )  # fmt: skip
        if holdouts:
            nats.plot([], [], marker=own.marker, label=variant, **own.drawn)
    nats.axhline(0, color="0.5", lw=0.8, zorder=0)
    compute.axhline(1, color="0.5", lw=0.8, zorder=0)
    nats.set_ylabel("predicted less found (nats/token)")
    compute.set_ylabel("predicted over found compute")
    compute.set_yscale("log")
    plain_ticks(compute.yaxis, "{:g}x")
    for ax in (nats, compute):
        ax.set_xscale("log")
        log_ticks(ax.xaxis, flops)
        ax.set_xlabel("FLOPs spent on the budgets fitted")
    figure.legend(loc="outside upper left", ncols=6)
    return figure


def granularity(analysis: Analysis) -> Figure | None:
    """Loss against granularity above each budget's lowest, a shade per budget, the best marked."""
    if not analysis.granularity_sweeps:
        return None
    layers = sorted({sweep.layer for sweep in analysis.granularity_sweeps})
    figure = Figure(figsize=(4.2 * len(layers) + 1.8, 3.4))
    axes = figure.subplots(1, len(layers), squeeze=False).ravel()
    highlit = looks(analysis).get(analysis.highlight or "")
    for ax, layer in zip(axes, layers, strict=True):
        own = [sweep for sweep in analysis.granularity_sweeps if sweep.layer == layer]
        for sweep in own:
            _draw_sweep(ax, sweep, shade(PALETTE[0], shades(analysis)[sweep.budget]))
            for value, curve in zip(sweep.values, sweep.curves, strict=True):
                if highlit and curve.variant == analysis.highlight:
                    above = curve.parabola.loss.value - sweep.losses.min()
                    ax.plot(value, above, "o", zorder=6, **highlit.drawn)
        ax.set_xscale("log", base=2)
        values = sorted({float(each) for sweep in own for each in sweep.values})
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_title(layer)
        ax.set_xlabel("granularity G")
    axes[0].set_ylabel("loss above the lowest (nats/token)")
    handles, _ = axes[-1].get_legend_handles_labels()
    figure.legend(handles=handles, loc="outside right center", title="FLOPs, best G")
    return figure


def _draw_sweep(ax: Axes, sweep: GranularitySweep, colour: str) -> None:
    fit, label = sweep.parabola, flops(sweep.budget)
    lowest = sweep.losses.min()
    for value, curve in zip(sweep.values, sweep.curves, strict=True):
        loss = curve.parabola.loss
        ax.errorbar(
            value, loss.value - lowest, yerr=whiskers(loss), fmt="o", color=colour, capsize=2,
            elinewidth=1,
        )  # fmt: skip
    grid = np.linspace(fit.log_x[0], fit.log_x[-1], 60)
    trusted = fit.status == "ok"
    ax.plot(np.exp(grid), fit(grid) - lowest, "-" if trusted else "--", color=colour, lw=1.2)
    if trusted:
        ax.errorbar(
            fit.at.value, fit.loss.value - lowest, xerr=whiskers(fit.at), fmt="*", ms=10,
            color=colour, mec="white", mew=0.7, capsize=2, elinewidth=1, zorder=5,
        )  # fmt: skip
        label += f": {interval(fit.at, '.2g')}"
    ax.plot([], [], marker="o", color=colour, label=label)


def learning_rate(analysis: Analysis) -> Figure | None:
    """Every sweep as loss above its lowest; a hollow star is a best rate at the edge."""
    if not analysis.rate_sweeps:
        return None
    figure, ax = _single()
    look = looks(analysis)
    for sweep in analysis.rate_sweeps:
        own = look.get(sweep.variant, Look("0.6", "o", 1.0))
        finite = np.isfinite(sweep.losses)
        above = sweep.losses - sweep.losses[sweep.best]
        ax.errorbar(
            sweep.rates[finite], above[finite], yerr=1.96 * sweep.errors[finite],
            marker=own.marker, capsize=2, elinewidth=own.weight, **own.drawn,
            label=f"{sweep.variant} ({sweep.size.name}, {flops(sweep.budget)})",
        )  # fmt: skip
        ax.plot(
            sweep.rates[sweep.best], 0, "*", ms=12, color=own.colour, zorder=5,
            mfc="none" if sweep.at_edge else own.colour,
            mec=own.colour if sweep.at_edge else "white",
        )  # fmt: skip
        for rate in sweep.rates[~finite]:
            ax.axvline(rate, color=own.colour, lw=0.8, ls=":", label=f"{sweep.variant} diverged")
    ax.set_xscale("log")
    rates = sorted({float(rate) for sweep in analysis.rate_sweeps for rate in sweep.rates})
    ax.set_xticks(rates, [f"{rate:.2g}" for rate in rates])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("peak learning rate")
    ax.set_ylabel("loss above the sweep's lowest (nats/token)")
    ax.legend()
    return figure


FIGURES: dict[str, Callable[[Analysis], Figure | None]] = {
    "isoflop": isoflop,
    "frontier": frontier,
    "multiplier": multiplier,
    "multiplier_scale": multiplier_scale,
    "wall_clock": wall_clock,
    "holdout": holdout,
    "granularity": granularity,
    "learning_rate": learning_rate,
}


def draw(analysis: Analysis, description: str) -> dict[str, bytes]:
    """Every figure that has something to show, as file name -> bytes.

    Args:
        description: goes into each file's metadata.
    """
    files = {}
    with matplotlib.rc_context(STYLE):
        for name, make in FIGURES.items():
            figure = make(analysis)
            if figure is None:
                continue
            figure.draw_without_rendering()  # lays it out, once for both formats
            figure.set_layout_engine("none")
            for kind, extra in (("png", {}), ("svg", {"Date": None})):
                buffer = io.BytesIO()
                figure.savefig(
                    buffer, format=kind, dpi=160, metadata={"Description": description, **extra}
                )
                files[f"{name}.{kind}"] = buffer.getvalue()
    return files


def _single() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.6, 3.8))
    return figure, figure.subplots()


def _seconds(cell: Sequence[Record]) -> float:
    return float(np.mean([record.measured.train_seconds for record in cell]))
