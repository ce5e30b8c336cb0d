"""Ticks that a reader can use."""

import pytest

from analysis.style import LogTicks


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
