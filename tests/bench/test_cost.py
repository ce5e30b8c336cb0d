"""Prices of cells: thin experts and gathered rows are dearer in time than in FLOPs."""

import json
from pathlib import Path

import pytest

from isoflop.bench.cost import DEVICES, predict_work
from isoflop.bench.plan import Cell, plan
from isoflop.bench.suite import load_suite
from isoflop.models import LAYERS

H100, H200 = DEVICES["h100"], DEVICES["h200"]
MEASURED = Path(__file__).resolve().parents[2] / "results" / "benchmarks" / "h200.json"


@pytest.fixture(scope="module")
def largest() -> dict[str, Cell]:
    """The variants of `h100` at width 768."""
    return {c.variant: c for c in plan(load_suite("h100"), "h100") if c.size.name == "xl"}


def seconds_per_flop(cell: Cell) -> float:
    return predict_work(cell, H100) / cell.flops


def test_finer_granularity_is_dearer_in_time_at_equal_flops(largest: dict[str, Cell]) -> None:
    prices = [seconds_per_flop(largest[name]) for name in ("dense", "moe-g1", "moe-g4", "moe-g8")]
    assert prices == sorted(prices)
    assert len(set(prices)) == 4


def test_no_two_variants_reach_the_same_utilisation(largest: dict[str, Cell]) -> None:
    reached = {name: 1 / seconds_per_flop(cell) / H100.flops for name, cell in largest.items()}
    assert len({f"{share:.3f}" for share in reached.values()}) == len(reached) == 6
    assert max(reached.values()) == reached["dense"] < H100.utilisation
    assert min(reached.values()) == reached["peer"]


def test_the_order_and_the_ratios_are_those_measured(largest: dict[str, Cell]) -> None:
    """Steps of the same cells on an H200: their time over dense's, by FLOP."""
    shares: dict[str, float] = {}
    for benchmark in json.loads(MEASURED.read_text())["benchmarks"]:
        shares |= benchmark["extra_info"]["ratios"]
    predicted = {name: predict_work(cell, H200) / cell.flops for name, cell in largest.items()}
    assert set(shares) == set(predicted) - {"moe-g4"}
    for name, share in shares.items():
        measured = shares["dense"] / share
        assert predicted[name] / predicted["dense"] == pytest.approx(measured, rel=0.05), name
    assert sorted(shares, key=predicted.__getitem__) == sorted(shares, key=lambda n: -shares[n])


@pytest.mark.parametrize(
    ("layer", "options", "chosen", "width", "hidden"),
    [
        ("moe", {"granularity": 4}, 4, 64, 64),
        ("moe", {"granularity": 1}, 1, 64, 256),
        ("moe_ec", {"granularity": 2}, 2, 64, 128),
        ("remoe", {"granularity": 4}, 4, 64, 64),
        ("moe_shared", {"granularity": 4, "shared": 1}, 3, 64, 64),
        ("moe_latent", {"granularity": 4, "shared": 1, "reduction": 2}, 6, 32, 64),
        ("dense", {}, 0, 64, 256),
    ],
)
def test_what_a_token_moves_is_what_its_experts_read_and_write(
    layer: str, options: dict, chosen: int, width: int, hidden: int
) -> None:
    moved = 0
    for _ in range(chosen):
        moved += width + hidden  # the first matrix reads an input and writes hidden values
        moved += hidden + width  # the second reads these and writes an output
    assert LAYERS[layer](64, **options).moved_per_token() == moved
