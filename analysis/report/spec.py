"""What a chart consists of: panels of series over two axes, and the keys of its legend.

`charts` describes every chart once, in these terms. `figures` draws a description with matplotlib;
the page hands it to Chart.js as plain data. Neither decides what is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from matplotlib.ticker import MaxNLocator

from isoflop.analysis.estimate import CENTRAL_95, Array, Estimate

Numbers = tuple[float, ...]
STEPS = 50  # points of a fitted curve
ROUNDING = 1e-12  # what is left of a number that should be zero, another on each machine
TINY, HUGE = 1e-99, 1e99  # an interval that reaches beyond is no reason for an axis to
LONGEST = 16  # letters of a label at the end of a line
MOST_TICKS = 8  # an axis with more given ticks than this gets round numbers instead


@dataclass(frozen=True)
class Axis:
    """Limits and ticks are fixed, so that hiding a variant moves nothing."""

    title: str
    low: float
    high: float
    ticks: Numbers
    labels: tuple[str, ...]  # of the ticks
    log: bool = False
    rule: float | None = None  # where a line is drawn across the panel


@dataclass(frozen=True)
class Series:
    """One line, row of points or band.

    - line: x, y; dashed where it is extrapolated or not to be trusted.
    - points: x, y, with whiskers from low to high and from x_low to x_high where these are given;
      hollow where they are not to be trusted. The marker is the variant's own, a diamond for an
      optimum, a dot for a cell in the background or a dash for one seed.
    - band: x, low, high.
    """

    kind: Literal["line", "points", "band"]
    variant: str | None  # gives colour, marker and weight, and hides it on the page
    x: Numbers
    y: Numbers = ()
    low: Numbers = ()
    high: Numbers = ()
    x_low: Numbers = ()
    x_high: Numbers = ()
    strength: float = 1.0  # of the colour, the rest being paper
    dashed: bool = False
    hollow: bool = False
    marker: Literal["variant", "diamond", "dot", "dash"] = "variant"
    text: tuple[tuple[str, ...], ...] = ()  # lines shown at each point, on the page
    label: str = ""  # of a line, written beside the panel at the height of its right end


@dataclass(frozen=True)
class Panel:
    """Series over one pair of axes."""

    y: Axis
    series: tuple[Series, ...]
    title: str = ""
    variant: str | None = None  # that it belongs to, and that gives the title its colour


@dataclass(frozen=True)
class Key:
    """One entry of a legend."""

    label: str
    variant: str | None = None
    strength: float = 1.0
    line: bool = True
    hollow: bool = False  # and its line dashed
    marker: Literal["variant", "diamond", "none"] = "variant"


@dataclass(frozen=True)
class Chart:
    """One figure of a report, or one place on its page."""

    id: str  # also the name of the figure's file
    title: str
    caption: str
    x: Axis
    panels: tuple[Panel, ...]
    keys: tuple[Key, ...]
    key_title: str = ""


def line(
    variant: str | None, x: Sequence[float] | Array, y: Sequence[float] | Array, **style: Any
) -> Series:
    """A line through (x, y); `style` as in `Series`."""
    return Series("line", variant, _numbers(x), _numbers(y), **style)


def points(
    variant: str | None, x: Sequence[float] | Sequence[Estimate] | Array,
    y: Sequence[float] | Sequence[Estimate] | Array, text: Sequence[Sequence[str]] = (),
    **style: Any,
) -> Series:  # fmt: skip
    """Points, with whiskers where coordinates are estimates whose intervals are known."""
    (at, x_low, x_high), (height, low, high) = _interval(x), _interval(y)
    lines = tuple(tuple(about) for about in text)
    return Series("points", variant, at, height, low, high, x_low, x_high, text=lines, **style)


def band(variant: str | None, x: Array, samples: Array) -> tuple[Series, ...]:
    """The central 95% of curves, and the curve of sample 0.

    Args:
        samples: shape (1 + samples, len(x)).
    """
    if not len(x):
        return ()
    centre = line(variant, x, samples[0])
    if len(samples) == 1:
        return (centre,)
    low, high = np.quantile(samples[1:], CENTRAL_95, axis=0)
    return (Series("band", variant, centre.x, low=_numbers(low), high=_numbers(high)), centre)


def _numbers(values: Iterable[float]) -> Numbers:
    return tuple(float(value) for value in values)


def _interval(
    values: Sequence[float] | Sequence[Estimate] | Array,
) -> tuple[Numbers, Numbers, Numbers]:
    """Values and the ends of their intervals; no ends unless all are known."""
    if not all(isinstance(value, Estimate) for value in values):
        return _numbers(values), (), ()  # type: ignore[arg-type]
    middle, low, high = (_numbers(column) for column in zip(*values, strict=True))
    return (middle, (), ()) if np.isnan([low, high]).any() else (middle, low, high)


def panel(y: Axis, series: Iterable[Series], title: str = "", variant: str | None = None) -> Panel:
    """A panel. On a logarithmic axis an interval that reaches zero ends at the axis."""
    if y.log:
        series = [
            replace(
                item,
                low=tuple(min(max(end, y.low), y.high) for end in item.low),
                high=tuple(min(max(end, y.low), y.high) for end in item.high),
            )
            for item in series
        ]
    return Panel(y, tuple(series), title, variant)


def axis(
    title: str, values: Iterable[float], label: Callable[[float], str], *, log: bool = False,
    rule: float | None = None, ticks: Sequence[float] = (),
) -> Axis:  # fmt: skip
    """An axis around `values`, of which a logarithmic one leaves out what is not positive.

    Args:
        label: of a tick.
        ticks: where to put them, unless there are too many.
    """
    known = np.array([v for v in values if np.isfinite(v) and not (log and not TINY < v < HUGE)])
    low, high = (known.min(), known.max()) if len(known) else (1.0, 1.0)
    if log:
        margin = max((high / low) ** 0.04, 1.02)
        low, high = low / margin, high * margin
    else:
        margin = 0.04 * (high - low) or 0.1
        low, high = low - margin, high + margin
    chosen = [float(tick) for tick in ticks]
    if not 0 < len(chosen) <= MOST_TICKS:
        chosen = log_ticks(low, high) if log else [*MaxNLocator(6).tick_values(low, high)]
    shown = tuple(float(tick) for tick in chosen if low <= tick <= high)
    return Axis(title, float(low), float(high), shown, tuple(map(label, shown)), log, rule)


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers: evenly spaced over less than a factor 3, else as many per decade as give
    at least four."""
    if high / low < 3:
        ticks = np.array(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        return [float(tick) for tick in ticks if low <= tick <= high]
    first, last = np.floor(np.log10(low)), np.ceil(np.log10(high))
    decades = 10.0 ** np.arange(first, last + 1, max(1, (last - first) // MOST_TICKS))
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = np.outer(decades, digits).ravel()
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 4:
            break
    return [float(tick) for tick in ticks]


def number(value: float) -> str:
    """A tick in at most four digits; adding zero takes the sign off a negative one."""
    return f"{round(value, 9) + 0.0:.4g}".replace("-", "\N{MINUS SIGN}")


def multiple(value: float) -> str:
    """A tick of an axis of factors."""
    return f"{value:.4g}x"


def shortened(name: str) -> str:
    """A name of at most `LONGEST` letters, for the end of a line."""
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}\N{HORIZONTAL ELLIPSIS}"


def spread(heights: Sequence[float], gap: float, top: float) -> list[float]:
    """Heights moved, in their order, as little as keeps them `gap` apart and at most at `top`."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    moved = list(heights)
    for below, at in pairwise(order):
        moved[at] = max(moved[at], moved[below] + gap)
    limit = top
    for at in reversed(order):
        moved[at] = min(moved[at], limit)
        limit = moved[at] - gap
    return moved


def extent(series: Iterable[Series], direction: Literal["x", "y"]) -> list[float]:
    """Every value that series reach along one axis, whiskers included."""
    names = ("x", "x_low", "x_high") if direction == "x" else ("y", "low", "high")
    return [value for item in series for name in names for value in getattr(item, name)]


def plain(value: Any) -> Any:
    """A description as JSON: fields at their defaults are left out, and numbers have six digits,
    since further ones may differ between machines."""
    if is_dataclass(value):
        shown = {field.name: (field, getattr(value, field.name)) for field in fields(value)}
        return {name: plain(part) for name, (field, part) in shown.items() if part != field.default}
    if isinstance(value, tuple):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return 0.0 if abs(value) < ROUNDING else float(f"{value:.6g}")
    return value
