"""What the charts show, whoever draws them."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report.charts import CHARTS, charts
from isoflop.analysis.report.multiples import left_out, without
from isoflop.analysis.report.spec import Chart, Panel, Series, plain
from isoflop.analysis.simulate import rate_sweep, simulate
from tests.analysis.devices import moved
from tests.analysis.report.crowd import MULTIPLIERS, crowd

BUDGETS = (1e14, 4e14, 1.6e15, 6.4e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def full() -> Analysis:
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    truth = {"dense": 1.0, "moe-g1": 1.2, "moe-g2": 1.5, "moe-g4": 1.6, "moe-g8": 1.4, "pkm": 0.7}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, options=options)
    kept = [
        record
        for index, record in enumerate(records)
        if (record.variant, record.budget) != ("pkm", 1e14) or index % 5 < 3
    ]
    tune = rate_sweep("dense", (5e-4, 1e-3, 2e-3), 1e-2)
    tune[0] = tune[0].model_copy(update={"status": "diverged", "loss": None})
    return analyse(kept, tune, samples=100)


@pytest.fixture(scope="module")
def drawn(full: Analysis) -> dict[str, Chart]:
    return {chart.id: chart for chart in charts(full)}


def panels(drawn: dict[str, Chart]) -> Iterator[tuple[Chart, Panel]]:
    for chart in drawn.values():
        for panel in chart.panels:
            yield chart, panel


def of(chart: Chart, variant: str, kind: str) -> list[Series]:
    """In the variant's panel, or in a panel of all."""
    return [
        series
        for panel in chart.panels
        for series in panel.series
        if (series.variant, series.kind) == (variant, kind)
        and (panel.variant == variant or not any(part.variant for part in chart.panels))
    ]


def test_every_chart_is_there_and_is_json(drawn: dict[str, Chart]) -> None:
    assert list(drawn) == list(CHARTS) == [
        "isoflop", "frontier", "multiplier_scale", "wall_clock", "resources", "holdout",
        "granularity", "learning_rate",
    ]  # fmt: skip
    data = [plain(chart) for chart in drawn.values()]
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert all(chart.title and chart.caption.endswith(".") for chart in drawn.values())


def test_a_single_budget_has_fewer() -> None:
    alone = analyse(simulate({"peer": 1.0}, BUDGETS[:1], octaves=OCTAVES), samples=10)
    assert [chart.id for chart in charts(alone)] == [
        "isoflop",
        "frontier",
        "wall_clock",
        "resources",
    ]


def test_all_that_is_drawn_lies_within_the_axes(drawn: dict[str, Chart]) -> None:
    for chart, panel in panels(drawn):
        x, y = chart.x, panel.y
        for axis in (x, y):
            assert axis.low <= axis.ticks[0]
            assert axis.ticks[-1] <= axis.high
            assert list(axis.ticks) == sorted(axis.ticks)
            assert 2 <= len(axis.ticks) == len(axis.labels) <= 12
        for series in panel.series:
            assert x.low <= min((*series.x, *series.x_low))
            assert max((*series.x, *series.x_high)) <= x.high
            ends = [*series.y, *series.low, *series.high]
            assert y.low <= min(ends)
            assert max(ends) <= y.high


def test_series_are_as_long_as_their_x(drawn: dict[str, Chart]) -> None:
    for _, panel in panels(drawn):
        for series in panel.series:
            names = ("x", "y", "low", "high", "x_low", "x_high", "text")
            lengths = {len(values) for name in names if (values := getattr(series, name))}
            assert lengths == {len(series.x)}
            assert series.kind in ("line", "points", "band")
            assert bool(series.text) == (series.kind == "points")


def test_an_untrusted_curve_is_dashed_and_hollow(drawn: dict[str, Chart]) -> None:
    lines = of(drawn["isoflop"], "pkm", "line")
    assert [series.dashed for series in lines] == [True, False, False, False]
    points = of(drawn["isoflop"], "pkm", "points")
    assert [series.hollow for series in points] == [True, True] + [False] * 6
    assert [bool(series.low) for series in points if series.marker == "diamond"] == [
        False, True, True, True,
    ]  # fmt: skip
    assert points[1].text == (("pkm, 1e14 FLOPs: not to be trusted", "few"),)
    minima = of(drawn["frontier"], "pkm", "points")
    assert [series.hollow for series in minima] == [True, False, False, False]
    assert [bool(series.low) for series in minima] == [False, True, True, True]
    keys = [key for key in drawn["isoflop"].keys if key.hollow]
    assert [key.label for key in keys] == ["not trusted"]


def test_the_optimum_lies_on_its_parabola(full: Analysis, drawn: dict[str, Chart]) -> None:
    points = of(drawn["isoflop"], "dense", "points")
    optima = [series for series in points if series.marker == "diamond"]
    dense = next(standing for standing in full.standings if standing.variant == "dense")
    for curve, series in zip(dense.curves, optima, strict=True):
        assert series.y[0] == pytest.approx(float(curve.parabola(np.log(series.x))[0]))


def test_seeds_are_marked_where_there_are_several() -> None:
    records = simulate({"dense": 1.0}, BUDGETS[:1], octaves=OCTAVES, seeds=2)
    (chart, *_) = charts(analyse(records, samples=10))
    points = of(chart, "dense", "points")
    (mean,) = (series for series in points if series.marker == "variant")
    seeds = [series for series in points if series.marker == "dash"]
    assert [np.mean(series.y) for series in seeds] == pytest.approx(mean.y)
    assert [set(series.x) for series in seeds] == [{size} for size in mean.x]


def test_an_extrapolated_multiplier_is_dashed(drawn: dict[str, Chart]) -> None:
    whole, inside = of(drawn["multiplier_scale"], "moe-g4", "line")
    assert (whole.dashed, inside.dashed) == (True, False)
    assert whole.x[-1] == pytest.approx(BUDGETS[-1])
    assert inside.x[-1] == pytest.approx(BUDGETS[-1] / 1.6, rel=0.1)
    (never,) = of(drawn["multiplier_scale"], "pkm", "line")
    assert not never.dashed


def test_compute_axes_are_ticked_at_the_budgets(drawn: dict[str, Chart]) -> None:
    for name in ("frontier", "multiplier_scale"):
        assert drawn[name].x.labels == ("1e14", "4e14", "1.6e15", "6.4e15")


def test_the_cells_of_the_held_out_budget_are_beside_their_prediction(
    full: Analysis, drawn: dict[str, Chart]
) -> None:
    assert [panel.variant for panel in drawn["holdout"].panels] == list(full.variants)
    for variant, holdout in full.holdouts.items():
        (cells,) = of(drawn["holdout"], variant, "points")
        (law,) = of(drawn["holdout"], variant, "line")
        (area,) = of(drawn["holdout"], variant, "band")
        assert cells.x == law.x == area.x
        assert np.sort(cells.y) == pytest.approx(np.sort(holdout.cells.loss))
        error = np.mean(law.y) - np.mean(cells.y)
        assert error == pytest.approx(holdout.error.value)
        assert cells.hollow == holdout.failed
    assert {holdout.budget for holdout in full.holdouts.values()} == {BUDGETS[-1]}


def test_a_rate_that_diverged_has_a_dashed_vertical_and_no_point(drawn: dict[str, Chart]) -> None:
    (panel,) = drawn["learning_rate"].panels
    vertical, line, points, best = panel.series
    assert (vertical.x, vertical.dashed) == ((5e-4, 5e-4), True)
    assert points.x == (1e-3, 2e-3)
    assert (line.x[0], line.x[-1]) == pytest.approx((1e-3, 2e-3))
    assert best.hollow
    assert "at the edge" in best.text[0][1]
    assert 5e-4 in drawn["learning_rate"].x.ticks


def test_a_sweep_that_diverged_everywhere_is_left_out() -> None:
    records = simulate({"dense": 1.0, "peer": 1.2}, BUDGETS[:2], octaves=OCTAVES)
    tune = []
    for record in rate_sweep("peer", (1e-3, 2e-3), 1e-3):
        lost = {"status": "diverged", "loss": None}
        tune += [record, record.model_copy(update={"cell": f"{record.cell}-1", "seed": 1} | lost)]
    tune += rate_sweep("dense", (1e-3, 2e-3), 1e-3)
    analysis = analyse(records, tune, samples=10)
    assert {sweep.variant for sweep in analysis.rate_sweeps} == {"dense"}
    chart = next(chart for chart in charts(analysis) if chart.id == "learning_rate")
    assert {series.variant for panel in chart.panels for series in panel.series} == {"dense"}


def test_layers_have_panels_of_granularity() -> None:
    options = {f"{layer}-g{g}": {"granularity": g} for layer in ("moe", "peer") for g in (1, 2, 4)}
    truth = {"dense": 1.0} | dict.fromkeys(options, 1.2)
    records = simulate(truth, BUDGETS[:2], octaves=OCTAVES, options=options)
    analysis = analyse(records, highlight="moe-g2", samples=20)
    chart = next(chart for chart in charts(analysis) if chart.id == "granularity")
    assert [panel.title for panel in chart.panels] == ["moe", "peer"]
    assert len({panel.y for panel in chart.panels}) == 1
    assert [key.label.partition(":")[0] for key in chart.keys] == [
        "moe, 1e14", "moe, 4e14", "peer, 1e14", "peer, 4e14",
    ]  # fmt: skip
    marked = of(chart, "moe-g2", "points")
    assert [series.x for series in marked] == [(2.0,), (2.0,)]
    assert chart.panels[0].series[-2:] == tuple(marked)  # on top


def test_a_variant_has_a_panel_with_the_baseline_pale_behind(drawn: dict[str, Chart]) -> None:
    names = ["dense", "moe-g1", "moe-g2", "moe-g4", "moe-g8", "pkm"]
    for name in ("isoflop", "frontier", "wall_clock"):
        panels = drawn[name].panels
        assert [(panel.title, panel.variant) for panel in panels] == [
            *zip(names, names, strict=True)
        ]
        assert len({panel.y for panel in panels}) == 1
        lines = [series for series in panels[0].series if series.kind == "line"]
        for panel in panels[1:]:
            behind = panel.series[: len(lines)]
            assert [(part.x, part.y) for part in behind] == [(part.x, part.y) for part in lines]
            assert all(part.strength < 0.5 and part.variant == "dense" for part in behind)
            assert {part.variant for part in panel.series[len(lines) :]} == {panel.variant}
    together, *apart = drawn["multiplier_scale"].panels
    assert (together.variant, [panel.variant for panel in apart]) == (None, names[1:])
    labels = [series.label for series in together.series if series.label]
    assert labels == names[1:]
    assert {series.kind for series in together.series} == {"line"}
    for panel in drawn["resources"].panels:
        assert [series.label for series in panel.series if series.kind == "line"] == names


def test_the_best_six_the_baseline_and_the_candidate_are_drawn() -> None:
    records, tune = crowd()
    analysis = analyse(records, tune, highlight="monet", samples=10)
    ranked = [s.variant for s in analysis.standings if s.variant not in ("dense-swiglu", "monet")]
    hidden = left_out(analysis)
    assert list(hidden) == ranked[6:]
    assert len(hidden) == len(MULTIPLIERS) - 8
    for chart in charts(analysis):
        kept = without(chart, hidden)
        shown = {series.variant for panel in kept.panels for series in panel.series}
        assert shown - {None} <= set(MULTIPLIERS) - set(hidden)
        assert not {panel.variant for panel in kept.panels} & set(hidden)
        assert not {key.variant for key in kept.keys} & set(hidden)
        assert ("Left out here, not on the page: 10 variants" in kept.caption) == (kept != chart)
    few = [record for record in records if record.variant not in (*hidden, "monet")]
    small = analyse(few, samples=10)
    assert left_out(small) == ()
    assert all(without(chart, left_out(small)) == chart for chart in charts(small))


def test_times_of_several_devices_are_not_drawn_together() -> None:
    """Each on a line of its own would look like a slow layer beside a fast one."""
    records = simulate({"dense": 1.0, "peer": 1.5, "pkm": 0.7}, BUDGETS, octaves=OCTAVES)
    elsewhere = [
        moved(record, "another") if record.variant == "pkm" else record for record in records
    ]
    drawn = {chart.id: chart for chart in charts(analyse(elsewhere, samples=20))}

    def variants(chart: Chart, title: str = "") -> set[str]:
        shown = [panel for panel in chart.panels if title in panel.title]
        return {item.variant for panel in shown for item in panel.series if item.variant}

    assert variants(drawn["wall_clock"]) == {"dense", "peer"}
    assert f"on {records[0].measured.device};" in drawn["wall_clock"].caption
    assert variants(drawn["resources"], "training seconds") == {"dense", "peer"}
    assert variants(drawn["resources"], "total parameters") == {"dense", "peer", "pkm"}
