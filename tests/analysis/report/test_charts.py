"""The data of the page's charts."""

import json

import numpy as np
import pytest

from isoflop.analysis.analyse import Analysis, analyse
from isoflop.analysis.report.charts import Chart, charts
from isoflop.analysis.simulate import rate_sweep, simulate

BUDGETS = (1e14, 4e14, 1.6e15, 6.4e15)
OCTAVES = (-1.0, -0.5, 0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def full() -> Analysis:
    options = {f"moe-g{g}": {"granularity": g} for g in (1, 2, 4, 8)}
    truth = {"dense": 1.0, "moe-g1": 1.2, "moe-g2": 1.5, "moe-g4": 1.6, "moe-g8": 1.4, "pkm": 0.7}
    records = simulate(truth, BUDGETS, octaves=OCTAVES, options=options)
    kept = [
        one
        for index, one in enumerate(records)
        if (one.variant, one.budget) != ("pkm", 1e14) or index % 5 < 3
    ]
    tune = rate_sweep("dense", (5e-4, 1e-3, 2e-3), 1e-2)
    tune[0] = tune[0].model_copy(update={"status": "diverged", "loss": None})
    return analyse(kept, tune, samples=100)


@pytest.fixture(scope="module")
def drawn(full: Analysis) -> dict[str, Chart]:
    return {chart["id"]: chart for chart in charts(full)}


def test_every_chart_is_there_and_is_json(drawn: dict[str, Chart]) -> None:
    assert list(drawn) == [
        "isoflop", "frontier", "multiplier", "wall_clock", "holdout", "granularity",
        "learning_rate",
    ]  # fmt: skip
    assert json.loads(json.dumps(drawn, allow_nan=False)) == drawn


def test_a_single_budget_has_fewer() -> None:
    alone = analyse(simulate({"peer": 1.0}, BUDGETS[:1], octaves=OCTAVES), samples=10)
    assert [chart["id"] for chart in charts(alone)] == ["isoflop", "frontier", "wall_clock"]


def test_all_that_is_drawn_lies_within_the_axes(drawn: dict[str, Chart]) -> None:
    for chart in drawn.values():
        x, y = chart["x"], chart["y"]
        assert x["ticks"] == sorted(x["ticks"])
        assert 2 <= len(y["ticks"]) <= 12
        assert x["min"] <= x["ticks"][0]
        assert x["ticks"][-1] <= x["max"]
        for series in chart["series"]:
            assert x["min"] <= min(series["x"])
            assert max(series["x"]) <= x["max"]
            ends = [v for key in ("y", "low", "high") for v in series.get(key, ())]
            assert y["min"] <= min(ends)
            assert max(ends) <= y["max"]


def test_series_are_as_long_as_their_x(drawn: dict[str, Chart]) -> None:
    for chart in drawn.values():
        for series in chart["series"]:
            lengths = {
                len(series[key]) for key in ("x", "y", "low", "high", "text") if key in series
            }
            assert len(lengths) == 1
            assert series["kind"] in ("line", "points", "band")
            assert ("text" in series) == (series["kind"] == "points")


def test_an_untrusted_curve_is_dashed_and_hollow(drawn: dict[str, Chart]) -> None:
    own = [series for series in drawn["isoflop"]["series"] if series["variant"] == "pkm"]
    assert [series.get("dashed") for series in own if series["kind"] == "line"] == [
        True, False, False, False,
    ]  # fmt: skip
    hollow = [series["hollow"] for series in own if series["kind"] == "points"]
    assert hollow == [True, True] + [False] * 6
    assert own[2]["text"] == [["pkm, 1e14 FLOPs: not to be trusted", "few"]]


def test_the_optimum_lies_on_its_parabola(full: Analysis, drawn: dict[str, Chart]) -> None:
    diamonds = [
        series
        for series in drawn["isoflop"]["series"]
        if series.get("marker") and series["variant"] == "dense"
    ]
    dense = next(each for each in full.standings if each.variant == "dense")
    for curve, series in zip(dense.curves, diamonds, strict=True):
        assert series["y"][0] == pytest.approx(
            float(curve.parabola(np.log(series["x"]))[0]), abs=1e-4
        )


def test_a_rate_that_diverged_has_no_point(drawn: dict[str, Chart]) -> None:
    line, points, best = drawn["learning_rate"]["series"]
    assert line["x"] == points["x"] == [1e-3, 2e-3]
    assert best["hollow"]
    assert "at the edge" in best["text"][0][1]
    assert 5e-4 in drawn["learning_rate"]["x"]["ticks"]
