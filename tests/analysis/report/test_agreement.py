"""A figure and the page show the same: points, flags, colours, axes and captions of one chart."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report.charts import charts
from isoflop.analysis.report.figures import FIGURES
from isoflop.analysis.report.page import page
from isoflop.analysis.report.spec import Panel, Series, plain
from isoflop.analysis.report.style import NEUTRAL, Look, looks
from isoflop.analysis.simulate import rate_sweep, simulate
from tests.analysis.report.browser import Browser, needs_browser

# what a panel shows, by kind, in the order it is drawn in: coordinates and flags, then the colour
Shown = dict[str, list[tuple[Any, str]]]
# markers of matplotlib, as Chart.js names and turns them
SHAPES = {
    "o": ["circle", 0], "s": ["rect", 0], "^": ["triangle", 0], "v": ["triangle", 180],
    ">": ["triangle", 90], "<": ["triangle", 270], "D": ["rectRot", 0], "_": ["line", 0],
}  # fmt: skip


@pytest.fixture(scope="module", params=[None, "moe-g2"], ids=["suite", "comparison"])
def analysis(request: pytest.FixtureRequest) -> Analysis:
    """Every chart, two seeds, pkm not to be trusted at the largest budget, a rate that diverged,
    and sweeps of a variant that is not in the suite."""
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    truth = {"dense": 1.0, "moe-g1": 1.2, "moe-g2": 1.5, "moe-g4": 1.6, "moe-g8": 1.4, "pkm": 0.7}
    made = simulate(
        truth, (1e14, 4e14, 1.6e15, 6.4e15), octaves=(-1.0, -0.5, 0.0, 0.5, 1.0), seeds=2,
        options=options,
    )  # fmt: skip
    records = [
        record.model_copy(update={"loss": 3.6 - 0.01 * (index % 5)})
        if (record.variant, record.budget) == ("pkm", 6.4e15)
        else record
        for index, record in enumerate(made)
    ]
    names = ("dense", "pkm", "moe-g2", "elsewhere")
    tune = [record for name in names for record in rate_sweep(name, (5e-4, 1e-3, 2e-3), 1e-3)]
    tune[0] = tune[0].model_copy(update={"status": "diverged", "loss": None})
    return analyse(records, tune, highlight=request.param, samples=50)


def six(values: Iterable[float]) -> list[float]:
    """Six digits, which the page is given."""
    return [float(value) for value in plain(tuple(map(float, values)))]


def described(panel: Panel, look: dict[str, Look]) -> Shown:
    """What a panel should show on white paper."""
    shown: Shown = {"line": [], "points": [], "whiskers": [], "band": []}
    for series in panel.series:
        style = look.get(series.variant or "", NEUTRAL)
        colour = style.tint(series.strength)
        x, y, low, high = map(six, (series.x, series.y, series.low, series.high))
        if series.kind == "line":
            shown["line"].append(([x, y, series.dashed], colour))
        elif series.kind == "band":
            shown["band"].append((outline(x, low, high), colour))
        else:
            named = {"variant": style.marker, "diamond": "D", "dot": "o", "dash": "_"}
            shape = SHAPES[named[series.marker]]
            edge = "#ffffff" if series.marker == "diamond" and not series.hollow else colour
            shown["points"].append(([x, y, series.hollow, shape], edge))
            shown["whiskers"] += [(whisker, colour) for whisker in whiskers(series)]
    return shown


def outline(x: list[float], low: list[float], high: list[float]) -> list[tuple[float, ...]]:
    """The corners of a band."""
    return sorted({*zip(x, low, strict=True), *zip(x, high, strict=True)})


def whiskers(series: Series) -> list[list[list[float]]]:
    """Both ends of every whisker, those along y first."""
    segments = []
    if series.low:
        for x, low, high in zip(series.x, series.low, series.high, strict=True):
            segments.append([six((x, low)), six((x, high))])
    if series.x_low:
        for y, low, high in zip(series.y, series.x_low, series.x_high, strict=True):
            segments.append([six((low, y)), six((high, y))])
    return segments


def in_figure(ax: Axes) -> Shown:
    """What matplotlib draws."""
    shown: Shown = {"line": [], "points": [], "whiskers": [], "band": []}
    for line in ax.lines:
        x, y = six(np.asarray(line.get_xdata())), six(np.asarray(line.get_ydata()))
        if line.get_zorder() == 0:
            continue  # the rule across
        if line.get_linestyle() == "None":
            hollow, shape = line.get_markerfacecolor() == "none", SHAPES[str(line.get_marker())]
            shown["points"].append(([x, y, hollow, shape], to_hex(line.get_markeredgecolor())))
        else:
            dashed = line.get_linestyle() == "--"
            shown["line"].append(([x, y, dashed], to_hex(line.get_color())))
    for collection in ax.collections:
        if isinstance(collection, LineCollection):
            colour = to_hex(collection.get_edgecolor()[0])
            for segment in collection.get_segments():
                shown["whiskers"].append(([six(end) for end in np.asarray(segment)], colour))
        else:
            (path,) = collection.get_paths()
            corners = sorted({tuple(six(corner)) for corner in np.asarray(path.vertices)})
            shown["band"].append((corners, to_hex(collection.get_facecolor()[0])))
    return shown


ON_PAGE = """charts.map(({ data, scales, options }) => {
    const shown = { line: [], points: [], whiskers: [], band: [] };
    const hex = (colour) => colour[0] === "#" ? colour : "#" + colour.match(/\\d+/g).slice(0, 3)
        .map((part) => Number(part).toString(16).padStart(2, "0")).join("");
    data.datasets.forEach((set, at) => {
        const colour = hex(set.borderColor), next = data.datasets[at + 1];
        const xs = set.data.map(({ x }) => x), ys = set.data.map(({ y }) => y);
        if (!set.showLine)
            shown.points.push([[xs, ys, set.backgroundColor === "transparent",
                [set.pointStyle, set.pointRotation]], colour]);
        else if (ys.some(Number.isNaN))
            for (let i = 0; i < xs.length; i += 3)
                shown.whiskers.push([[[xs[i], ys[i]], [xs[i + 1], ys[i + 1]]], colour]);
        else if (next?.fill === "-1")
            shown.band.push([[xs, ys, next.data.map(({ y }) => y)], colour]);
        else if (set.fill !== "-1")
            shown.line.push([[xs, ys, set.borderDash.length > 0], colour]);
    });
    const axes = ["x", "y"].map((name) => {
        const { min, max, type, ticks } = scales[name];
        return [min, max, type, ticks.map(({ value, label }) => [value, label])];
    });
    return [shown, axes, options.plugins.title.display ? options.plugins.title.text : ""];
})"""


def test_figures_show_what_is_described(analysis: Analysis) -> None:
    look = looks(analysis)
    for chart in charts(analysis):
        figure = FIGURES[chart.id](analysis)
        assert isinstance(figure, Figure)
        assert figure.get_suptitle() == chart.title
        assert figure.get_supxlabel().replace("\n", " ") == chart.caption
        drawn = [ax for ax in figure.axes if ax.axison]
        for ax, panel in zip(drawn, chart.panels, strict=True):
            assert in_figure(ax) == described(panel, look), chart.id
            assert ax.get_title() == panel.title
            for described_axis, axis in ((chart.x, ax.xaxis), (panel.y, ax.yaxis)):
                ends = (described_axis.low, described_axis.high)
                assert tuple(axis.get_view_interval()) == pytest.approx(ends)
                assert tuple(axis.get_ticklocs()) == described_axis.ticks
                assert axis.get_scale() == ("log" if described_axis.log else "linear")
                labels = tuple(label.get_text() for label in axis.get_ticklabels())
                assert labels in (described_axis.labels, ("",) * len(labels))
            rules = [np.asarray(line.get_ydata())[0] for line in ax.lines if line.get_zorder() == 0]
            assert rules == ([] if panel.y.rule is None else [panel.y.rule])


@needs_browser
def test_the_page_shows_what_is_described(
    analysis: Analysis, browser: Browser, tmp_path: Path
) -> None:
    path = tmp_path / "index.html"
    path.write_text(page(analysis), encoding="utf-8")
    browser.open(path)
    assert browser.problems == []
    captions = browser.evaluate(
        "[...document.querySelectorAll('figcaption')].map((caption) => "
        "[caption.children[0].innerText, caption.children[1].innerText])"
    )
    assert captions == [[chart.title, chart.caption] for chart in charts(analysis)]
    look = looks(analysis) | {str(analysis.baseline): Look("#222222")}  # the paper's ink
    given = [(chart, panel) for chart in charts(analysis) for panel in chart.panels]
    drawn = browser.evaluate(ON_PAGE)
    for (chart, panel), (shown, axes, title) in zip(given, drawn, strict=True):
        shown["band"] = [(outline(*sides), colour) for sides, colour in shown["band"]]
        for kind, wanted in described(panel, look).items():
            assert [what for what, _ in shown[kind]] == [what for what, _ in wanted], chart.id
            # the page mixes colours with its paper in the browser, which rounds for itself
            channels = [[to_rgb(colour) for _, colour in items] for items in (shown[kind], wanted)]
            assert np.allclose(*channels, rtol=0, atol=1.01 / 255), chart.id
        assert title == panel.title
        for axis, (low, high, scale, ticks) in zip((chart.x, panel.y), axes, strict=True):
            assert [low, high] == [plain(axis.low), plain(axis.high)]
            assert scale == ("logarithmic" if axis.log else "linear")
            # Chart.js leaves out labels that would overlap
            labels = dict(zip(plain(axis.ticks), axis.labels, strict=True))
            assert len(ticks) > 1
            assert all(labels[value] == label for value, label in ticks)
