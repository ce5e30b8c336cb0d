"""Axes that a reader can use, intervals that stay on them, descriptions as plain data."""

import json

import numpy as np
import pytest

from isoflop.analysis.estimate import Estimate
from isoflop.analysis.report.spec import (
    axis,
    band,
    line,
    log_ticks,
    multiple,
    number,
    panel,
    plain,
    points,
)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (9e2, 1.1e6, [1e3, 1e4, 1e5, 1e6]),
        (8e3, 4e5, [1e4, 3e4, 1e5, 3e5]),
        (1.3e4, 8.2e4, [1.5e4, 2e4, 3e4, 5e4, 7e4]),
        (9e5, 6e6, [1e6, 1.5e6, 2e6, 3e6, 5e6]),
        (2.6, 3.3, [2.6, 2.8, 3.0, 3.2]),
    ],
)
def test_logarithmic_axes_are_ticked_at_round_numbers(
    low: float, high: float, ticks: list[float]
) -> None:
    assert log_ticks(low, high) == pytest.approx(ticks)


def test_an_axis_holds_its_values_and_leaves_out_what_it_cannot_show() -> None:
    loss = axis("loss", [-1.0, 0.0, 2.5, 3.5, np.nan, np.inf], number, log=True)
    assert 0 < loss.low < 2.5
    assert 3.5 < loss.high < 4
    linear = axis("error", [-0.2, 0.1, np.nan], number)
    assert linear.low < -0.2
    assert linear.high > 0.1
    assert linear.labels == (
        "\N{MINUS SIGN}0.18",
        "\N{MINUS SIGN}0.12",
        "\N{MINUS SIGN}0.06",
        "0",
        "0.06",
    )
    for values in ([], [2.0], [0.0]):
        for log in (False, True):
            alone = axis("", values, number, log=log)
            assert alone.low < alone.high


def test_an_axis_is_ticked_at_given_values_unless_they_are_too_many() -> None:
    rates = [1e-3 * 2**step for step in range(9)]
    few = axis("rate", rates[:8], "{:.2g}".format, log=True, ticks=rates[:8])
    assert few.ticks == tuple(rates[:8])
    many = axis("rate", rates, "{:.2g}".format, log=True, ticks=rates)
    assert 4 <= len(many.ticks) <= 8
    assert many.ticks != few.ticks


def test_an_interval_stays_positive_on_a_logarithmic_axis() -> None:
    values = [Estimate(2.0, -1.0, 3.0), Estimate(4.0, 3.5, 5.0)]
    series = points("dense", [1e14, 4e14], values)
    assert series.low == (-1.0, 3.5)
    area, _ = band("dense", np.array([1.0, 2.0]), np.array([[2.0, 2.0], [-1.0, 1.0], [3.0, 3.0]]))
    loss = axis("loss", [-1.0, 2.0, 3.0, 5.0], number, log=True)
    shown = panel(loss, [series, area])
    assert shown.series[0].low == (loss.low, 3.5)
    assert shown.series[0].high == (3.0, 5.0)
    assert all(end >= loss.low > 0 for end in shown.series[1].low)
    linear = axis("loss", [-1.0, 5.0], number)
    assert panel(linear, [series]).series[0].low == (-1.0, 3.5)


def test_points_have_whiskers_where_every_interval_is_known() -> None:
    known, unknown = Estimate(1.0, 0.9, 1.2), Estimate(2.0, np.nan, np.nan)
    both = points("dense", [known], [known])
    assert (both.x_low, both.x_high, both.low, both.high) == ((0.9,), (1.2,), (0.9,), (1.2,))
    assert points("dense", [1.0, 2.0], [known, unknown]).low == ()
    assert points("dense", [1.0], [1.0]).low == ()


def test_a_band_is_the_central_95_per_cent_around_the_data() -> None:
    x = np.array([1.0, 2.0])
    samples = np.vstack([[5.0, 6.0], np.linspace([0.0, 0.0], [1.0, 2.0], 41)])
    area, centre = band("dense", x, samples)
    assert (area.kind, centre.kind) == ("band", "line")
    assert centre.y == (5.0, 6.0)
    assert area.low == pytest.approx((0.025, 0.05))
    assert area.high == pytest.approx((0.975, 1.95))
    assert [series.kind for series in band("dense", x, samples[:1])] == ["line"]
    assert band("dense", x[:0], samples[:, :0]) == ()


def test_plain_data_has_six_digits_and_no_defaults() -> None:
    data = plain(line(None, [1.23456789], [2.0], dashed=True))
    assert plain((-8.9e-16, 1e-9)) == [0.0, 1e-9]
    assert data == {"kind": "line", "variant": None, "x": [1.23457], "y": [2.0], "dashed": True}
    assert json.loads(json.dumps(data)) == data
    assert plain(axis("", [1.0], number, rule=0))["rule"] == 0
    assert multiple(1.5) == "1.5x"
    assert number(-1e-17) == "0"
