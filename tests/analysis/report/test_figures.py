"""What the figures show, and that they are the same bytes every time."""

from itertools import pairwise

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Annotation, Text

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report import figures
from isoflop.analysis.report.charts import CHARTS
from isoflop.analysis.report.format import si
from isoflop.analysis.report.spec import Chart, axis, line, number, panel
from isoflop.analysis.report.style import HIGHLIGHT, STYLE, looks
from isoflop.analysis.simulate import rate_sweep, simulate

BUDGETS = (1e14, 4e14, 1.6e15, 6.4e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)
TRUTH = {"dense": 1.0, "moe-g1": 1.2, "moe-g2": 1.5, "moe-g4": 1.6, "moe-g8": 1.4, "pkm": 0.7}


@pytest.fixture(scope="module")
def full() -> Analysis:
    """Everything a report can show; the largest pkm budget is not to be trusted."""
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    records = simulate(TRUTH, BUDGETS, octaves=OCTAVES, options=options)
    spoilt = [
        record.model_copy(update={"loss": 3.6 - 0.01 * (index % 5)})
        if (record.variant, record.budget) == ("pkm", BUDGETS[-1])
        else record
        for index, record in enumerate(records)
    ]
    tune = [*rate_sweep("dense", (5e-4, 1e-3, 2e-3), 1e-3), *rate_sweep("pkm", (5e-4, 1e-3), 1e-2)]
    tune += rate_sweep("not in the suite", (5e-4, 1e-3, 2e-3), 1e-3)
    tune[0] = tune[0].model_copy(update={"status": "diverged", "loss": None})
    return analyse(spoilt, tune, samples=100)


@pytest.fixture(scope="module")
def bare() -> Analysis:
    """One variant, one budget."""
    return analyse(simulate({"peer": 1.0}, BUDGETS[:1], octaves=OCTAVES), samples=100)


def make(name: str, analysis: Analysis) -> Figure:
    figure = figures.FIGURES[name](analysis)
    assert figure
    return figure


def panels(figure: Figure) -> list[Axes]:
    return [ax for ax in figure.axes if ax.axison]


def drawn(ax: Axes) -> list[Line2D]:
    """Lines and points, without the rule across."""
    return [line for line in ax.lines if line.get_zorder() > 0]


def test_every_figure_is_drawn_and_the_same_again(full: Analysis) -> None:
    first = figures.draw(full, "a description")
    assert set(first) == {f"{name}.{kind}" for name in figures.FIGURES for kind in ("png", "svg")}
    assert set(figures.FIGURES) == {*CHARTS, "multiplier"}
    assert first == figures.draw(full, "a description")
    assert all(b"a description" in content for content in first.values())


def test_what_has_nothing_to_show_is_left_out(bare: Analysis) -> None:
    files = {name.partition(".")[0] for name in figures.draw(bare, "")}
    assert files == {"isoflop", "frontier", "wall_clock", "resources"}


def test_eighteen_variants_and_odd_names_are_drawn() -> None:
    names = ["dense", r"$\frac{$ & co", "<b>", *(f"layer-{number}" for number in range(15))]
    truth = {name: 1 + 0.02 * place for place, name in enumerate(names)}
    tune = [record for name in names for record in rate_sweep(name, (1e-3, 2e-3, 4e-3), 2e-3)]
    analysis = analyse(simulate(truth, BUDGETS[:3], octaves=OCTAVES), tune, samples=10)
    files = figures.draw(analysis, "")
    assert {name for name in files if name.endswith("svg")} == {
        f"{name}.svg" for name in figures.FIGURES if name != "granularity"
    }
    titles = [ax.get_title() for ax in panels(make("isoflop", analysis))]
    best = [standing.variant for standing in analysis.standings if standing.variant != "dense"]
    assert sorted(titles) == sorted(["dense", *best[:6]])
    (bars,) = panels(make("multiplier", analysis))
    assert len(bars.get_yticklabels()) == len(names)


def test_a_variant_has_one_colour_and_marker_everywhere(full: Analysis) -> None:
    look = looks(full)
    assert len({style.tint() for style in look.values()}) == len(TRUTH)
    assert len({style.marker for style in look.values()}) == len(TRUTH)
    assert look["dense"].tint() == "#222222"
    titles = {ax.get_title(): ax for ax in panels(make("isoflop", full))}
    assert set(titles) == set(TRUTH)
    for variant, ax in titles.items():
        assert look[variant].tint() in {line.get_color() for line in ax.lines}
    for name in ("frontier", "wall_clock", "holdout"):
        for ax in panels(make(name, full)):
            style = look[ax.get_title()]
            assert style.tint() in {line.get_color() for line in ax.lines}
            assert style.marker in {line.get_marker() for line in ax.lines}
            assert ax.title.get_color() == style.colour


def test_lines_are_labelled_at_their_ends_in_their_order_and_apart(full: Analysis) -> None:
    figure = make("resources", full)
    figure.draw_without_rendering()
    for ax in panels(figure):
        ends, boxes = {}, {}
        for text in ax.texts:
            assert isinstance(text, Annotation)
            ends[text.get_text()] = float(text.xy[1])
            boxes[text.get_text()] = Text.get_window_extent(text)  # without its line
        assert set(boxes) == set(TRUTH)
        in_order = sorted(ends, key=lambda name: ends[name])
        for below, above in pairwise(in_order):
            assert boxes[below].y1 <= boxes[above].y0 + 1
        assert all(box.x0 > ax.get_window_extent().x1 for box in boxes.values())
        assert all(box.x1 <= figure.bbox.x1 for box in boxes.values())


def test_an_untrusted_fit_is_dashed_and_hollow(full: Analysis) -> None:
    figure = make("isoflop", full)
    titles = {ax.get_title(): ax for ax in panels(figure)}
    for variant, dashed in (("dense", 0), ("pkm", 1)):
        lines = titles[variant].lines
        assert sum(line.get_linestyle() == "--" for line in lines) == dashed
        optima = [line for line in lines if line.get_marker() == "D"]
        assert len(optima) == len(BUDGETS)
        assert sum(line.get_markerfacecolor() == "none" for line in optima) == dashed
    (legend,) = figure.legends
    (key,) = (line for line in legend.get_lines() if line.get_label() == "not trusted")
    assert (key.get_linestyle(), key.get_markerfacecolor()) == ("--", "none")


def test_optima_lie_on_their_parabolas(full: Analysis) -> None:
    (ax,) = (ax for ax in panels(make("isoflop", full)) if ax.get_title() == "dense")
    optima = [line.get_xydata() for line in ax.lines if line.get_marker() == "D"]
    dense = next(standing for standing in full.standings if standing.variant == "dense")
    for curve, optimum in zip(dense.curves, optima, strict=True):
        ((x, y),) = np.asarray(optimum)
        assert y == pytest.approx(curve.parabola(np.log([x]))[0])


def test_multipliers_are_drawn_best_first(full: Analysis) -> None:
    (ax,) = panels(make("multiplier", full))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    ranked = [standing for standing in full.standings if standing.headline]
    assert labels == [f"{standing.rank}. {standing.variant}" for standing in ranked]
    assert ax.get_ylim()[0] > ax.get_ylim()[1]
    for offset, shown in (
        (0.0, [standing.headline for standing in ranked]),
        (0.25, [None if s.variant == "dense" else s.parabola for s in ranked]),
    ):
        expected = {place: value for place, value in enumerate(shown) if value}
        values = {
            float(line.get_ydata()[0]) - offset: line.get_xdata()[0]
            for line in drawn(ax)
            if line.get_ydata()[0] % 1 == offset
        }
        assert values == {place: value.value for place, value in expected.items()}
        segments = [lines.get_segments()[0] for lines in ax.collections]
        ends = {y - offset: (low, high) for (low, y), (high, _) in segments if y % 1 == offset}
        assert ends == {place: value[1:] for place, value in expected.items()}


def test_compute_axes_are_ticked_at_the_budgets(full: Analysis) -> None:
    for name in ("frontier", "multiplier_scale"):
        ax = panels(make(name, full))[-1]
        assert [label.get_text() for label in ax.get_xticklabels()] == [
            "1e14", "4e14", "1.6e15", "6.4e15",
        ]  # fmt: skip


def test_panels_of_one_axis_are_labelled_at_the_margin(full: Analysis) -> None:
    labels = [
        (ax.get_xlabel() != "", ax.get_ylabel() != "") for ax in panels(make("isoflop", full))
    ]
    assert labels == [
        (False, True), (False, False), (False, False), (True, True), (True, False), (True, False),
    ]  # fmt: skip
    labels = [ax.get_ylabel() != "" for ax in panels(make("holdout", full))]
    assert labels == [True, False, False, True, False, False]


def test_labels_below_a_panel_do_not_touch() -> None:
    """Those of a log axis are not evenly spaced; their lines stay."""
    ticks = (5e4, 7e4, 1e5, 1.5e5, 2e5, 3e5)
    x = axis("N", (4e4, 4e5), si, log=True, ticks=ticks)
    y = axis("L", (3, 4), number)
    panels_of_it = tuple(panel(y, [line("dense", (5e4, 3e5), (3, 4))]) for _ in range(8))
    with matplotlib.rc_context(STYLE):
        figure = figures.render(Chart("a", "A", "", x, panels_of_it, ()), {})
        figures.files_of("a", figure, "")
    for ax in panels(figure)[4:]:
        labels = [label for label in ax.get_xticklabels() if label.get_visible()]
        assert [label.get_text() for label in labels] == ["50k", "70k", "100k", "150k", "300k"]
        ends = [label.get_window_extent() for label in labels]
        assert all(a.x1 + 3 < b.x0 for a, b in pairwise(ends))
        assert tuple(ax.get_xticks()) == ticks


def test_the_layer_under_comparison_is_on_top_in_every_figure() -> None:
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    records = simulate(TRUTH, BUDGETS, octaves=OCTAVES, options=options)
    tune = [*rate_sweep("moe-g2", (5e-4, 1e-3), 1e-3), *rate_sweep("pkm", (5e-4, 1e-3), 1e-3)]
    compared = analyse(records, tune, highlight="moe-g2", samples=50)
    others = {look.tint() for name, look in looks(compared).items() if name != "moe-g2"}
    highlight = HIGHLIGHT.lower()
    for name in ("multiplier_scale", "resources"):
        ax = panels(make(name, compared))[0]
        lines = [line for line in drawn(ax) if line.get_linestyle() != "None"]
        marked = [at for at, line in enumerate(lines) if line.get_color() == highlight]
        assert marked, name
        assert not [line for line in lines[marked[0] :] if line.get_color() in others], name
        widest = max(line.get_linewidth() for line in lines if line.get_color() in others)
        assert all(lines[at].get_linewidth() > widest for at in marked), name
    for name in ("isoflop", "frontier", "multiplier_scale", "wall_clock", "holdout"):
        *_, last = (ax.get_title() for ax in panels(make(name, compared)))
        assert last == "moe-g2", name
    for name in ("multiplier", "granularity"):
        (ax,) = panels(make(name, compared))
        sizes = {
            line.get_markerfacecolor(): line.get_markersize() for line in drawn(ax)
            if line.get_linestyle() == "None"
        }  # fmt: skip
        assert sizes[highlight] > 4.5
