"""The figure of routing locality: what is averaged and what is left out."""

from typing import Any

import pytest

from isoflop.analysis.report.locality import describe, equal_flops


def row(chosen: int, budget: float = 1e9, size: str = "s", **values: Any) -> dict[str, Any]:
    given = {"reuse": 0.4, "reuse_by_chance": 0.2, "lru_hits_1x": 0.5, "best_hits_1x": 0.6}
    key = {"variant": f"g{chosen}", "size": size, "budget": budget, "experts_per_token": chosen}
    return key | given | values


def test_what_is_drawn_has_equal_flops_and_size() -> None:
    rows = [
        row(1), row(2), row(4), row(1, 2e9), row(2, 2e9), row(4, 2e9, "m"), row(1, size="m"),
    ]  # fmt: skip
    assert equal_flops(rows) == rows[:3]  # the most granularities
    more = [*rows, row(4, 2e9)]
    assert [r["budget"] for r in equal_flops(more)] == [2e9] * 3  # the largest of equals
    assert {r["size"] for r in equal_flops(more)} == {"s"}


def test_seeds_are_averaged() -> None:
    rows = [row(1, reuse=0.2, lru_hits_1x=0.1), row(1, reuse=0.6, lru_hits_1x=0.3), row(2)]
    chart, look = describe(rows)
    hits, again = chart.panels
    assert hits.series[0].x == again.series[0].x == (1, 2)
    assert hits.series[0].y == pytest.approx((0.2, 0.5))
    assert hits.series[2].y == pytest.approx((0.6, 0.6))
    assert hits.series[2].dashed
    assert again.series[0].y == pytest.approx((0.4, 0.4))
    assert set(look) == {"1x", "next token", "by chance"}
