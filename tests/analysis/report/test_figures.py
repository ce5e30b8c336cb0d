"""What the figures show, and that they are the same bytes every time."""

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report import figures
from isoflop.analysis.report.style import HIGHLIGHT, colours, looks
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
        one.model_copy(update={"loss": 3.6 - 0.01 * (index % 5)})
        if (one.variant, one.budget) == ("pkm", BUDGETS[-1])
        else one
        for index, one in enumerate(records)
    ]
    tune = [*rate_sweep("dense", (5e-4, 1e-3, 2e-3), 1e-3), *rate_sweep("pkm", (5e-4, 1e-3), 1e-2)]
    return analyse(spoilt, tune, samples=100)


@pytest.fixture(scope="module")
def bare() -> Analysis:
    """One variant, one budget."""
    return analyse(simulate({"peer": 1.0}, BUDGETS[:1], octaves=OCTAVES), samples=100)


def panels(figure: Figure | None) -> list[Axes]:
    assert figure
    return [ax for ax in figure.axes if ax.axison]


def hexes(ax: Axes) -> set[str]:
    return {matplotlib.colors.to_hex(line.get_color()) for line in ax.lines}


def test_every_figure_is_drawn_and_the_same_again(full: Analysis) -> None:
    first = figures.draw(full, "a description")
    assert set(first) == {f"{name}.{kind}" for name in figures.FIGURES for kind in ("png", "svg")}
    assert first == figures.draw(full, "a description")
    assert all(b"a description" in content for content in first.values())


def test_what_has_nothing_to_show_is_left_out(bare: Analysis) -> None:
    drawn = {name.partition(".")[0] for name in figures.draw(bare, "")}
    assert drawn == {"isoflop", "frontier", "wall_clock"}


def test_a_variant_has_one_colour_and_marker_everywhere(full: Analysis) -> None:
    colour = colours(full)
    marks = {name: look.marker for name, look in looks(full).items()}
    assert len(set(colour.values())) == len(set(marks.values())) == len(TRUTH)
    assert colour["dense"] == "#222222"
    titles = {ax.get_title(): ax for ax in panels(figures.isoflop(full))}
    assert set(titles) == set(TRUTH)
    for variant, ax in titles.items():
        assert colour[variant].lower() in hexes(ax)
    for make in (figures.frontier, figures.wall_clock, figures.holdout):
        lines = panels(make(full))[0].lines
        legend = {line.get_label(): line for line in lines if line.get_label() in TRUTH}
        assert {name: line.get_color() for name, line in legend.items()} == colour
        assert {name: line.get_marker() for name, line in legend.items()} == marks


def test_an_untrusted_fit_is_dashed_and_hollow(full: Analysis) -> None:
    titles = {ax.get_title(): ax for ax in panels(figures.isoflop(full))}
    for variant, dashed in (("dense", 0), ("pkm", 1)):
        lines = titles[variant].lines
        assert sum(line.get_linestyle() == "--" for line in lines) == dashed
        stars = [line for line in lines if line.get_marker() == "*"]
        assert len(stars) == len(BUDGETS)
        assert sum(line.get_markerfacecolor() == "none" for line in stars) == dashed


def test_optima_lie_on_their_parabolas(full: Analysis) -> None:
    (ax,) = (ax for ax in panels(figures.isoflop(full)) if ax.get_title() == "dense")
    stars = [line.get_xydata() for line in ax.lines if line.get_marker() == "*"]
    dense = next(each for each in full.standings if each.variant == "dense")
    for curve, star in zip(dense.curves, stars, strict=True):
        ((x, y),) = np.asarray(star)
        assert y == pytest.approx(curve.parabola(np.log([x]))[0])


def test_multipliers_are_drawn_best_first(full: Analysis) -> None:
    (ax,) = panels(figures.multiplier(full))
    labels = [label.get_text() for label in ax.get_yticklabels()]
    ranked = [each for each in full.standings if each.headline]
    assert labels == [f"{each.rank}. {each.variant}" for each in ranked]
    assert "pkm" not in " ".join(labels)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_an_extrapolated_multiplier_is_dashed(full: Analysis) -> None:
    (ax,) = panels(figures.multiplier_scale(full))
    own = [line for line in ax.lines if line.get_color() == colours(full)["moe-g4"]]
    reach = {line.get_linestyle(): np.max(line.get_xdata(), initial=0) for line in own[:2]}
    assert reach["--"] == pytest.approx(BUDGETS[-1])
    assert reach["-"] == pytest.approx(BUDGETS[-1] / 1.6, rel=0.1)


def test_a_best_rate_at_the_edge_is_hollow(full: Analysis) -> None:
    (ax,) = panels(figures.learning_rate(full))
    stars = {
        line.get_color(): line.get_markerfacecolor()
        for line in ax.lines
        if line.get_marker() == "*"
    }
    assert stars[colours(full)["dense"]] == colours(full)["dense"]
    assert stars[colours(full)["pkm"]] == "none"


def test_compute_axes_are_ticked_at_the_budgets(full: Analysis) -> None:
    for make in (figures.frontier, figures.multiplier_scale):
        (ax,) = panels(make(full))
        assert [label.get_text() for label in ax.get_xticklabels()] == [
            "1e14", "4e14", "1.6e15", "6.4e15",
        ]  # fmt: skip


def test_the_layer_under_comparison_is_on_top_in_every_figure() -> None:
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    records = simulate(TRUTH, BUDGETS, octaves=OCTAVES, options=options)
    tune = [*rate_sweep("moe-g2", (5e-4, 1e-3), 1e-3), *rate_sweep("pkm", (5e-4, 1e-3), 1e-3)]
    compared = analyse(records, tune, highlight="moe-g2", samples=50)
    others = {look.colour for name, look in looks(compared).items() if name != "moe-g2"}
    for name in ("frontier", "multiplier_scale", "wall_clock", "holdout", "learning_rate"):
        ax = panels(figures.FIGURES[name](compared))[0]
        lines = [line for line in ax.lines if line.get_linestyle() != "None" and line.zorder > 0]
        own = [at for at, line in enumerate(lines) if line.get_color() == HIGHLIGHT]
        assert own, name
        assert not [line for line in lines[own[0] :] if line.get_color() in others], name
        widest = max(line.get_linewidth() for line in lines if line.get_color() in others)
        assert all(lines[at].get_linewidth() > widest for at in own), name
    *_, last = (ax.get_title() for ax in panels(figures.isoflop(compared)))
    assert last == "moe-g2"
    for make in (figures.multiplier, figures.granularity):
        (ax,) = panels(make(compared))
        sizes = {
            line.get_color(): line.get_markersize() for line in ax.lines if len(line.get_xdata())
        }
        assert sizes[HIGHLIGHT] > 4.5
