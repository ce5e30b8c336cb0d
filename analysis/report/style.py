"""The look of the figures: colours, markers, shades, axes that read well."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import FuncFormatter, Locator, MaxNLocator, NullFormatter, NullLocator

from isoflop.analysis.analyse import Analysis
from isoflop.analysis.parabola import Array, Estimate
from isoflop.analysis.report.format import flops

# The colours of Okabe and Ito, which the colour-blind tell apart, then some of Paul Tol's "muted";
# the baseline is nearly black.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9",
    "#882255", "#999933", "#332288", "#44AA99", "#AA4499", "#7F7F7F",
)  # fmt: skip
BASELINE = "#222222"
HIGHLIGHT = "#E6195F"  # the layer under comparison
WEIGHT = 1.6  # of its lines and markers, over the usual
MUTED = 0.55  # strength of the other layers' colours beside it
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


class Look(NamedTuple):
    """How a variant is drawn."""

    colour: str
    marker: str
    weight: float  # of lines and markers, over the usual

    @property
    def drawn(self) -> dict[str, Any]:
        """As matplotlib's arguments."""
        width, size = STYLE["lines.linewidth"], STYLE["lines.markersize"]
        return {"color": self.colour, "lw": self.weight * width, "ms": self.weight * size}


def colours(analysis: Analysis) -> dict[str, str]:
    """One colour per variant, in every figure and on the page."""
    named = {analysis.baseline: BASELINE, analysis.highlight: HIGHLIGHT}
    others = [variant for variant in analysis.variants if variant not in named]
    chosen = {variant: PALETTE[place % len(PALETTE)] for place, variant in enumerate(others)}
    return {variant: (chosen | named)[variant] for variant in analysis.variants}


def looks(analysis: Analysis) -> dict[str, Look]:
    """One look per variant, in every figure: a layer under comparison stands out, others recede."""
    result = {}
    for place, (variant, colour) in enumerate(colours(analysis).items()):
        highlit = variant == analysis.highlight
        if analysis.highlight and not highlit and variant != analysis.baseline:
            colour = shade(colour, MUTED)
        result[variant] = Look(colour, MARKERS[place % len(MARKERS)], WEIGHT if highlit else 1.0)
    return result


def shades(analysis: Analysis) -> dict[float, float]:
    """A strength of colour per budget, the largest full."""
    strengths = np.linspace(1, 0.35, len(analysis.budgets))[::-1]
    return dict(zip(analysis.budgets, strengths.tolist(), strict=True))


def shade(colour: str, strength: float) -> str:
    """The colour mixed with white."""
    red, green, blue = (1 - strength * (1 - part) for part in to_rgb(colour))
    return to_hex((red, green, blue))


def whiskers(value: Estimate) -> Array | None:
    """An interval as matplotlib's error bars want it."""
    if np.isnan(value.low):
        return None
    return np.array([[max(0, value.value - value.low)], [max(0, value.high - value.value)]])


def band(ax: Axes, x: Array, samples: Array, look: Look, ls: str = "-") -> None:
    """A curve and the central 95% of its samples, shape (1 + samples, len(x))."""
    ax.plot(x, samples[0], ls=ls, **look.drawn)
    if len(samples) > 1:
        low, high = np.quantile(samples[1:], [0.025, 0.975], axis=0)
        ax.fill_between(x, low, high, color=look.colour, alpha=0.15, lw=0)


class LogTicks(Locator):
    """Round numbers of a logarithmic axis: as many per decade as give at least four."""

    def tick_values(self, vmin: float, vmax: float) -> list[float]:
        decades = 10.0 ** np.arange(np.floor(np.log10(vmin)), np.ceil(np.log10(vmax)) + 1)
        for each in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
            ticks = np.outer(decades, each).ravel()
            ticks = ticks[(ticks >= vmin) & (ticks <= vmax)]
            if len(ticks) >= 4:
                break
        return [float(tick) for tick in ticks]

    def __call__(self) -> list[float]:
        assert self.axis
        return self.tick_values(*sorted(self.axis.get_view_interval()))


def log_ticks(axis: Axis, label: Callable[[float], str]) -> None:
    """Ticks of a logarithmic axis, each shown by `label`."""
    axis.set_major_locator(LogTicks())
    axis.set_major_formatter(FuncFormatter(lambda value, _: label(value)))
    axis.set_minor_locator(NullLocator())


def compute_axis(ax: Axes, budgets: Sequence[float]) -> None:
    """Ticked at the budgets."""
    ax.set_xscale("log")
    ax.set_xticks(budgets, [flops(budget) for budget in budgets])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("training FLOPs")


def plain_ticks(axis: Axis, label: str = "{:g}") -> None:
    """A logarithmic axis of less than a decade or two, ticked at round numbers."""
    axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: label.format(round(value, 6))))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def loss_axis(ax: Axes) -> None:
    """Loss, logarithmic."""
    ax.set_yscale("log")
    plain_ticks(ax.yaxis)
