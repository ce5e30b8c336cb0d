"""Charts drawn by matplotlib: PNG and SVG, the same bytes from the same records."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.report.charts import CHARTS, noted
from isoflop.analysis.report.format import flops
from isoflop.analysis.report.multiples import left_out, without
from isoflop.analysis.report.spec import Axis, Chart, Key, Panel, Series, axis, multiple, spread
from isoflop.analysis.report.style import NEUTRAL, STYLE, Look, looks
from isoflop.results.errors import printable

SIZES = {"variant": 1.0, "diamond": 1.35, "dot": 0.6, "dash": 1.1}  # of markers, over the usual
LETTER = 0.068  # inches that a letter of a legend or caption takes, about
LINE = 0.21  # inches between the labels of lines, of the height that a panel has with its axes
MARGIN = 0.12  # inches around a figure's text
GAP = 0.04  # inches between the labels of ticks below a panel


def draw(
    analysis: Analysis, description: str, failed: dict[str, str] | None = None
) -> dict[str, bytes]:
    """Every figure that has something to show, as file name -> bytes.

    Args:
        description: goes into each file's metadata.
        failed: takes the figures that cannot be drawn, and why; if None, they raise.
    """
    files: dict[str, bytes] = {}
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        # A letter that the font lacks is a box in the PNG and whole in the SVG's text.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        for name, make in FIGURES.items():
            with noted(name, failed):
                figure = make(analysis)
                if figure is not None:
                    files |= files_of(name, figure, description)
    return files


def files_of(name: str, figure: Figure, description: str) -> dict[str, bytes]:
    """A figure as PNG and SVG."""
    files = {}
    figure.draw_without_rendering()  # lays it out, once for both formats
    figure.set_layout_engine("none")
    _part_labels(figure)
    for kind, extra in (("png", {}), ("svg", {"Date": None})):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=160, metadata={"Description": description, **extra})
        files[f"{name}.{kind}"] = buffer.getvalue()
    return files


def _part_labels(figure: Figure) -> None:
    """Hide labels below a panel that touch the one before; known once it is laid out."""
    for ax in figure.axes:
        end = -math.inf
        for label in ax.get_xticklabels():
            box = label.get_window_extent()
            if box.x0 < end + GAP * figure.dpi:
                label.set_visible(False)
            elif box.width:
                end = box.x1


def render(chart: Chart, look: Mapping[str, Look]) -> Figure:
    """Draw a described chart: its panels in rows, its legend on the right, its caption below.

    Args:
        look: by variant.
    """
    count = len(chart.panels)
    columns = {1: 1, 2: 2, 4: 2}.get(count, 3 if count <= 6 else 4)
    rows = -(-count // columns)
    width, height = {1: (5.0, 3.5), 2: (3.6, 3.3)}.get(columns, (2.6, 2.5))
    unused = rows * columns - count
    letters = max((len(key.label) for key in chart.keys), default=0)
    legend = 0.7 + LETTER * letters if letters and not unused else 0.0
    figure = _figure(columns * width + legend, rows * height, chart.title, chart.caption)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    shared = all(panel.y == chart.panels[0].y for panel in chart.panels)
    for place, (ax, panel) in enumerate(zip(grid, chart.panels, strict=False)):
        _draw_panel(ax, panel, look)
        set_axis(ax, "x", chart.x, labelled=place + columns >= count)
        set_axis(ax, "y", panel.y, labelled=not shared or place % columns == 0)
        _label_ends(ax, panel, look, height)
    for ax in grid[count:]:
        ax.axis("off")
    handles = [_handle(key, look) for key in chart.keys]
    if not handles:
        return figure
    if unused:
        grid[-1].legend(handles=handles, loc="center", title=chart.key_title)
    else:
        figure.legend(handles=handles, loc="outside right upper", title=chart.key_title)
    return figure


def _figure(width: float, height: float, title: str, caption: str) -> Figure:
    """A figure with its title above and its caption below, around `height` inches of panels."""
    lines = textwrap.wrap(printable(caption), int((width - 2 * MARGIN) / LETTER))
    figure = Figure(figsize=(width, height + 0.4 + 0.16 * len(lines)))
    figure.suptitle(printable(title), x=MARGIN / width, ha="left", fontweight="bold", fontsize=10)
    figure.supxlabel("\n".join(lines), x=MARGIN / width, ha="left", fontsize=8, color="0.35")
    return figure


def _draw_panel(ax: Axes, panel: Panel, look: Mapping[str, Look]) -> None:
    if panel.title:
        colour = look.get(panel.variant or "", NEUTRAL).colour
        ax.set_title(printable(panel.title), color=colour, fontweight="bold")
    if panel.y.rule is not None:
        ax.axhline(panel.y.rule, color="0.5", lw=0.8, zorder=0)
    for series in panel.series:
        _draw_series(ax, series, look.get(series.variant or "", NEUTRAL))


def _label_ends(ax: Axes, panel: Panel, look: Mapping[str, Look], height: float) -> None:
    """The labels of lines beside the panel, each joined to the right end of its line."""
    labelled = [series for series in panel.series if series.label]
    if not labelled:
        return
    ends = [max(zip(item.x, item.y, strict=True)) for item in labelled]
    places = ax.transAxes.inverted().transform(ax.transData.transform(ends))
    heights = spread([float(y) for _, y in places], LINE / height, 1)
    for item, end, place in zip(labelled, ends, heights, strict=True):
        colour = look.get(item.variant or "", NEUTRAL).tint()
        ax.annotate(
            printable(item.label), end, (1.04, place), textcoords="axes fraction", va="center",
            color=colour, fontsize=8, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "relpos": (0, 0.5),
                        "shrinkA": 2, "shrinkB": 0},
        )  # fmt: skip


def _draw_series(ax: Axes, series: Series, look: Look) -> None:
    colour = look.tint(series.strength)
    if series.kind == "band":
        ax.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, lw=0)
    elif series.kind == "line":
        ax.plot(series.x, series.y, **_line(look, colour, dashed=series.dashed))
    else:
        if series.low:
            ax.vlines(series.x, series.low, series.high, color=colour, lw=look.weight)
        if series.x_low:
            ax.hlines(series.y, series.x_low, series.x_high, color=colour, lw=look.weight)
        marker = _marker(look, colour, series.marker, hollow=series.hollow)
        ax.plot(series.x, series.y, ls="none", **marker)


def _line(look: Look, colour: str, *, dashed: bool) -> dict[str, Any]:
    width = STYLE["lines.linewidth"] * look.weight
    return {"color": colour, "lw": width, "ls": "--" if dashed else "-"}


def _marker(look: Look, colour: str, shape: str, *, hollow: bool) -> dict[str, Any]:
    shapes = {"variant": look.marker, "diamond": "D", "dot": "o", "dash": "_", "none": ""}
    return {
        "marker": shapes[shape],
        "ms": STYLE["lines.markersize"] * look.weight * SIZES.get(shape, 1.0),
        "mfc": "none" if hollow else colour,
        "mec": "white" if shape == "diamond" and not hollow else colour,
        "mew": {"dot": 0.0, "diamond": 0.8}.get(shape, 1.0),
    }


def _handle(key: Key, look: Mapping[str, Look]) -> Line2D:
    style = look.get(key.variant or "", NEUTRAL)
    colour = style.tint(key.strength)
    drawn = _line(style, colour, dashed=key.hollow) | _marker(
        style, colour, key.marker, hollow=key.hollow
    )
    line = {} if key.line else {"ls": "none"}
    return Line2D([], [], label=printable(key.label), **drawn | line)


def set_axis(ax: Axes, name: Literal["x", "y"], axis: Axis, *, labelled: bool = True) -> None:
    """Scale, limits and ticks as described; title and labels only where `labelled`."""
    labels, title = (axis.labels, axis.title) if labelled else ([""] * len(axis.ticks), "")
    scale = "log" if axis.log else "linear"
    ax.set(**{f"{name}scale": scale, f"{name}lim": (axis.low, axis.high), f"{name}label": title})
    target = ax.xaxis if name == "x" else ax.yaxis
    target.set_ticks(axis.ticks, labels)
    target.set_minor_locator(NullLocator())


def multiplier(analysis: Analysis) -> Figure | None:
    """Compute multipliers at the largest budget with their intervals, best first, those of the
    parabolas below: the figure of what the page shows as bars in its table."""
    shown = [(standing, standing.headline) for standing in analysis.standings if standing.headline]
    if not shown:
        return None
    figure = _figure(
        5.6, 0.5 + 0.36 * max(3, len(shown)), "Compute multiplier",
        f"FLOPs {analysis.dense_name} needs over those the layer needs for equal loss, at "
        f"{flops(analysis.headline)} FLOPs, with 95% intervals, by rank. Pale: by the parabolas of "
        "that budget alone.",
    )  # fmt: skip
    ax, look = figure.subplots(), looks(analysis)
    for place, (standing, value) in enumerate(shown):
        style = look[standing.variant]
        beside = None if standing.variant == analysis.baseline else standing.parabola
        for at, estimate, colour in ((place + 0.25, beside, style.tint(0.45)),
                                     (place, value, style.tint())):  # fmt: skip
            if estimate:
                ax.hlines(at, estimate.low, estimate.high, color=colour, lw=1.5 * style.weight)
                marker = _marker(style, colour, "variant", hollow=False)
                ax.plot(estimate.value, at, ls="none", **marker)
    names = [printable(f"{standing.rank}. {standing.variant}") for standing, _ in shown]
    ax.set_yticks(range(len(shown)), names)
    for label, (standing, _) in zip(ax.get_yticklabels(), shown, strict=True):
        if standing.variant == analysis.highlight:
            label.set_fontweight("bold")
    ax.set_ylim(len(shown) - 0.5, -0.5)
    drawn = [estimate for standing, value in shown for estimate in (value, standing.parabola)]
    ends = [1.0, *(end for estimate in drawn if estimate for end in estimate)]
    set_axis(ax, "x", axis("compute multiplier", ends, multiple, log=True))
    ax.axvline(1, color="0.5", lw=0.8, zorder=0)
    ax.grid(axis="y", visible=False)
    return figure


def _chart_figure(make: Callable[[Analysis], Chart | None], analysis: Analysis) -> Figure | None:
    chart = make(analysis)
    return render(without(chart, left_out(analysis)), looks(analysis)) if chart else None


FIGURES: dict[str, Callable[[Analysis], Figure | None]] = {
    name: partial(_chart_figure, make) for name, make in CHARTS.items()
} | {"multiplier": multiplier}
