"""Ticks that a reader can use, and looks that tell variants apart."""

import pytest
from matplotlib.colors import to_rgb

from isoflop.analysis.analyse import analyse
from isoflop.analysis.report.style import BASELINE, HIGHLIGHT, LogTicks, colours, looks
from isoflop.analysis.simulate import simulate


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (9e2, 1.1e6, [1e3, 1e4, 1e5, 1e6]),
        (8e3, 4e5, [1e4, 3e4, 1e5, 3e5]),
        (1.3e4, 8.2e4, [1.5e4, 2e4, 3e4, 4e4, 5e4, 7e4]),
        (9e5, 6e6, [1e6, 2e6, 5e6]),
    ],
)
def test_there_are_at_least_four_where_round_numbers_allow(
    low: float, high: float, ticks: list[float]
) -> None:
    found = LogTicks().tick_values(low, high)
    assert found == pytest.approx(ticks) or len(found) >= 4
    assert all(low <= tick <= high for tick in found)


def test_the_layer_under_comparison_stands_out_and_the_others_recede() -> None:
    records = simulate({"dense": 1.0, "moe": 1.2, "peer": 1.5, "pkm": 0.7}, (1e14, 4e14))
    plain = looks(analyse(records, samples=10))
    assert {look.weight for look in plain.values()} == {1.0}
    assert {name: look.colour for name, look in plain.items()} == colours(
        analyse(records, samples=10)
    )
    shown = analyse(records, highlight="moe", samples=10)
    assert shown.variants == ("dense", "peer", "pkm", "moe")  # drawn last
    found = looks(shown)
    assert found["dense"].colour == BASELINE
    assert found["moe"].colour == HIGHLIGHT
    assert found["moe"].weight > found["peer"].weight == found["pkm"].weight == 1.0
    for name in ("peer", "pkm"):  # nearer to white, on the way from their own colour
        own, muted = to_rgb(colours(shown)[name]), to_rgb(found[name].colour)
        assert all(
            1 - after == pytest.approx(0.55 * (1 - before), abs=0.01)
            for before, after in zip(own, muted, strict=True)
        )
    assert len({look.colour for look in found.values()}) == 4
    assert len({look.marker for look in found.values()}) == 4
